//! Data sets: what lies behind the text in `data.source`, whose grammar [`Dataset`] gives.
//!
//! One file per format finds images and their classes; `listing.rs` is what folders and archives share.

mod access;
mod archive;
mod builtin;
mod cifar;
mod files;
mod hold;
mod idx;
mod listing;
pub mod pack;
mod pixels;
mod skipped;
mod splits;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::Cache;
use crate::decode::{Facts, inspect};
use crate::fingerprint::{Digest, Kind};
use crate::list::{Differences, Followed, GONE, ImageList};
use crate::{Error, Image, MAX_PIXELS, decode, memory};
use archive::Archive;
use builtin::Split;
use files::Folder;
use hold::Hold;
use listing::{Arranged, Notices, Selection};
use pack::Pack;
use pixels::Pixels;

/// Labelled or unlabelled images in a fixed order.
///
/// | text | what it opens |
/// | --- | --- |
/// | `builtin` | the built-in set, training images; `builtin#test` for the others |
/// | a folder | JPEG, PNG, WebP, BMP and GIF files in it, or IDX or CIFAR files |
/// | a tar, plain or compressed by gzip or zstd | such files in it |
/// | an IDX or CIFAR file | its images |
/// | a packed set ([`pack`](crate::pack())) | its images |
/// | any of these`#split` | the images of that subfolder, or the `train` or `test` half of IDX and CIFAR files |
///
/// Where all folders of a folder or tar are splits by their names (train, training; test, testing; val, valid, validation;
/// dev; in any case of letters) and nothing says which, the one to train on is taken and [`Dataset::notes`] says so. A split
/// that is asked for is found exactly, or else without regard to case, or else by what it means. Classes are the folders
/// that the images lie in; a folder that only wraps others is passed through.
///
/// What is no image is skipped and counted ([`Dataset::skipped`]). What only turns out to be none when it is read (it is
/// missing, not permitted, no regular file, damaged) is [`Error::Image`].
///
/// The order is that of the files' relative paths, bytewise, or the order in the file that holds them all.
pub struct Dataset {
    origin: String,
    source: Source,
    /// Empty: there are no labels.
    class_names: Vec<String>,
    notices: Notices,
    cache: Cache,
    limits: Limits,
    /// The order of a list, where it is not the source's.
    followed: Option<Followed>,
}

/// What a data set may take of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Images with more pixels than this are refused before anything is allocated for them.
    pub max_pixels: usize,
    /// Bytes of memory that may be taken by what is held whole: compressed archives, IDX and CIFAR files, and a part of
    /// it by images that are kept decoded.
    pub memory_bytes: u64,
}

impl Default for Limits {
    /// All memory that is available to this process.
    fn default() -> Self {
        Limits { max_pixels: MAX_PIXELS, memory_bytes: memory::available() }
    }
}

/// What was found behind a source's text.
struct Opened {
    source: Source,
    class_names: Vec<String>,
    notices: Notices,
}

enum Source {
    Builtin(Split),
    Folder(Folder),
    Archive(Archive),
    Pixels(Pixels),
    Pack(Pack),
}

impl Dataset {
    /// Opens a source within the default limits; nothing is decoded yet.
    ///
    /// # Errors
    /// As of [`Dataset::open_within`].
    pub fn open(source: &str) -> Result<Dataset, Error> {
        Dataset::open_within(source, Limits::default())
    }

    /// Opens a source; nothing is decoded yet.
    ///
    /// # Errors
    /// If nothing is there, it holds no images, a split is not in it, or a file that holds the whole set is
    /// damaged.
    pub fn open_within(source: &str, limits: Limits) -> Result<Dataset, Error> {
        Dataset::open_by(source, limits, None, Selection::default())
    }

    /// Opens a source as version 0.1 did, which knew fewer endings and splits: what a run of that version, whose checkpoints
    /// have no list of its images, goes on with.
    ///
    /// # Errors
    /// As of [`Dataset::open_within`].
    pub fn open_as_version_0_1(source: &str, limits: Limits) -> Result<Dataset, Error> {
        Dataset::open_by(source, limits, None, Selection { as_version_0_1: true, ..Selection::default() })
    }

    /// Opens a source to take its images in the order of a list, and returns how it differs from that list.
    ///
    /// # Errors
    /// As of [`Dataset::open_within`], or [`Error::List`] if the list is damaged.
    pub fn open_in_order(
        source: &str,
        limits: Limits,
        list: &ImageList,
    ) -> Result<(Dataset, Differences), Error> {
        let listed = list.listed()?;
        let selection = Selection { listed: Some(&listed), ..Selection::default() };
        let mut dataset = Dataset::open_by(source, limits, None, selection)?;
        let differences = dataset.follow(list)?;
        Ok((dataset, differences))
    }

    /// Opens a source of which what does not fit into memory goes to a temporary file in `folder`.
    ///
    /// # Errors
    /// As of [`Dataset::open_within`], or if there is no room in `folder`.
    pub fn open_spilling(source: &str, limits: Limits, folder: &Path) -> Result<Dataset, Error> {
        Dataset::open_by(source, limits, Some(folder), Selection::default())
    }

    fn open_by(
        source: &str,
        limits: Limits,
        spill: Option<&Path>,
        selection: Selection<'_>,
    ) -> Result<Dataset, Error> {
        let hold = Hold { memory_bytes: limits.memory_bytes, spill };
        let opened = Opened::open(source, hold, selection).map_err(|error| match error {
            // The remedy names what can be packed: the file alone may have no labels, or be another split.
            Error::TooLargeForMemory { needed, available, .. } => {
                Error::TooLargeForMemory { path: PathBuf::from(source), needed, available }
            }
            error => error,
        })?;
        if let Source::Pixels(pixels) = &opened.source {
            pixels.check(limits.max_pixels).map_err(|reason| malformed(Path::new(source), reason))?;
        }
        Ok(Dataset::new(source, opened, limits))
    }

    fn new(origin: &str, opened: Opened, limits: Limits) -> Dataset {
        let Opened { source, class_names, notices } = opened;
        let left = limits.memory_bytes.saturating_sub(source.held_bytes());
        let cache = Cache::new(source.len(), left);
        Dataset { origin: origin.to_owned(), source, class_names, notices, cache, limits, followed: None }
    }

    /// The text that was opened.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Counts the images: at least one.
    #[expect(clippy::len_without_is_empty, reason = "an empty set is not opened")]
    pub fn len(&self) -> usize {
        self.followed.as_ref().map_or(self.source.len(), |followed| followed.indices.len())
    }

    /// Tells whether the images have classes.
    pub fn has_labels(&self) -> bool {
        !self.class_names.is_empty()
    }

    /// The class of an image.
    ///
    /// # Panics
    /// If there is no such image, or images have no classes.
    pub fn label_of(&self, index: usize) -> u32 {
        assert!(self.has_labels(), "{} has no classes", self.origin);
        match &self.followed {
            Some(followed) => followed.labels[index],
            None => self.source.label(index),
        }
    }

    /// The classes of all images, made anew; none where images have no classes.
    pub fn labels(&self) -> Option<Vec<u32>> {
        self.has_labels().then(|| (0..self.len()).map(|index| self.label_of(index)).collect())
    }

    /// The names of the classes by label, sorted for folders; empty without labels.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// What the user should know of the opening, in sentences: which split was taken, what was skipped, which classes
    /// lack an image.
    pub fn notes(&self) -> &[String] {
        &self.notices.notes
    }

    /// How many files and other members were skipped, by their kind: `.tif`, `no ending`, `hidden`, ...
    pub fn skipped(&self) -> &BTreeMap<String, usize> {
        &self.notices.skipped
    }

    /// Folders that would be classes if they had an image, sorted.
    pub fn empty_classes(&self) -> &[String] {
        &self.notices.empty_classes
    }

    /// Bytes of memory that are held of the source itself, beside the list of its images.
    pub fn held_bytes(&self) -> u64 {
        self.source.held_bytes()
    }

    /// Names an image: its path within the source, or the file it lies in and its number there.
    pub fn path_of(&self, index: usize) -> String {
        match self.source_index(index) {
            Ok(at) => self.source.path(at),
            Err(name) => listing::text(OsStr::from_bytes(name)),
        }
    }

    /// Appends the bytes of an image's name: its path below the folder of the split, which is the same wherever the set lies.
    pub(crate) fn name(&self, index: usize, out: &mut Vec<u8>) {
        match self.source_index(index) {
            Ok(at) => self.source.name(at, out),
            Err(name) => out.extend_from_slice(name),
        }
    }

    /// Tells whether an image is in the list that the set follows and not in the source.
    pub fn is_gone(&self, index: usize) -> bool {
        self.source_index(index).is_err()
    }

    /// Where in the source an image is, or the name of one that is gone.
    fn source_index(&self, index: usize) -> Result<usize, &[u8]> {
        match &self.followed {
            None => Ok(index),
            Some(Followed { indices, gone, .. }) => match indices[index] {
                GONE => Err(&gone[&index]),
                at => Ok(at as usize),
            },
        }
    }

    /// As [`source_index`](Self::source_index), where the image is wanted itself.
    fn present(&self, index: usize) -> Result<usize, Error> {
        self.source_index(index).map_err(|_| Error::Image {
            path: self.path_of(index),
            reason: "it is in the run's list of images, and in the data set no longer".to_owned(),
        })
    }

    /// Takes images in another order, and their labels and classes.
    pub(crate) fn rearrange(&mut self, followed: Followed, class_names: Vec<String>) {
        let left = self.limits.memory_bytes.saturating_sub(self.held_bytes());
        self.cache = Cache::new(followed.indices.len(), left);
        self.followed = Some(followed);
        self.class_names = class_names;
    }

    /// The folder of the source that images have their names from, with a slash at its end; empty for the root.
    pub(crate) fn base(&self) -> &[u8] {
        match &self.source {
            Source::Folder(folder) => folder.files.base(),
            Source::Archive(archive) => archive.files.base(),
            Source::Builtin(_) | Source::Pixels(_) | Source::Pack(_) => b"",
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match &self.source {
            Source::Builtin(_) => Kind::Builtin,
            Source::Folder(_) | Source::Archive(_) => Kind::Files,
            Source::Pixels(_) => Kind::Pixels,
            Source::Pack(_) => Kind::Packed,
        }
    }

    /// The digest that a source has of itself: of names, classes and all pixels.
    pub(crate) fn own_digest(&self) -> Option<Digest> {
        match &self.source {
            Source::Pack(pack) => Some(pack.digest()),
            _ => None,
        }
    }

    /// What an image is made of: its file's bytes, or its pixels where they lie undecoded.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
    pub(crate) fn content(&self, index: usize) -> Result<Vec<u8>, Error> {
        let at = self.present(index)?;
        Ok(match &self.source {
            Source::Builtin(split) => builtin::render(*split, at).rgb,
            Source::Folder(folder) => folder.read(at)?,
            Source::Archive(archive) => archive.read(at)?,
            Source::Pixels(pixels) => pixels.image(at)?.rgb,
            Source::Pack(pack) => pack.image(at)?.rgb,
        })
    }

    /// Decodes an image, or takes it from memory: a set that is small when decoded is kept.
    ///
    /// # Errors
    /// [`Error::Image`] if it cannot be had, [`Error::Machine`] and [`Error::RootGone`] if that is not the image's fault.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn load(&self, index: usize) -> Result<Arc<Image>, Error> {
        if let Some(image) = self.cache.get(index) {
            return Ok(image);
        }
        let image = Arc::new(self.load_anew(index)?);
        // Of a mapped file, the system keeps what was read.
        if !matches!(self.source, Source::Pack(_)) {
            self.cache.offer(index, &image);
        }
        Ok(image)
    }

    /// Decodes an image, whether or not it is in memory.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
    ///
    /// # Panics
    /// If there is no such image.
    pub fn load_anew(&self, index: usize) -> Result<Image, Error> {
        let at = self.present(index)?;
        match &self.source {
            Source::Builtin(split) => Ok(builtin::render(*split, at)),
            Source::Folder(folder) => self.decode(index, &folder.read(at)?),
            Source::Archive(archive) => self.decode(index, &archive.read(at)?),
            Source::Pixels(pixels) => pixels.image(at),
            Source::Pack(pack) => pack.image(at),
        }
    }

    /// Decodes an image, and looks for what its own file says of it, where it has one.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
    pub(crate) fn inspect(&self, index: usize) -> Result<(Image, Facts), Error> {
        let at = self.present(index)?;
        let bytes = match &self.source {
            Source::Folder(folder) => folder.read(at)?,
            Source::Archive(archive) => archive.read(at)?,
            Source::Builtin(_) | Source::Pixels(_) | Source::Pack(_) => {
                return Ok((self.load_anew(index)?, Facts::default()));
            }
        };
        Ok((self.decode(index, &bytes)?, inspect(&bytes, self.limits.max_pixels)))
    }

    fn decode(&self, index: usize, bytes: &[u8]) -> Result<Image, Error> {
        decode(bytes, self.limits.max_pixels)
            .map_err(|reason| Error::Image { path: self.path_of(index), reason })
    }
}

impl Opened {
    fn open(source: &str, hold: Hold<'_>, selection: Selection<'_>) -> Result<Opened, Error> {
        match with_split(source) {
            Some(("builtin", split)) => return Opened::builtin(split),
            None if source == "builtin" => return Opened::builtin("train"),
            _ => {}
        }
        // A path may contain a #: it is taken as a path if there is such a file.
        let (path, split) = match with_split(source) {
            Some((path, split)) if !Path::new(source).exists() => (Path::new(path), Some(split)),
            _ => (Path::new(source), None),
        };
        let metadata = access::persist(path, || fs::metadata(path))?;
        if metadata.map_err(|error| access::of_source(path, error))?.is_dir() {
            Opened::folder(path, Selection { split, ..selection }, hold)
        } else {
            Opened::file(path, Selection { split, ..selection }, hold)
        }
    }

    fn builtin(split: &str) -> Result<Opened, Error> {
        let split = match splits::half(&["train", "test"], split) {
            Some("train") => Split::Train,
            Some(_) => Split::Test,
            None => return Err(no_such_split(Path::new("builtin"), split, "train and test")),
        };
        let class_names = builtin::CLASS_NAMES.map(str::to_owned).to_vec();
        Ok(Opened { source: Source::Builtin(split), class_names, notices: Notices::default() })
    }

    fn folder(root: &Path, selection: Selection<'_>, hold: Hold<'_>) -> Result<Opened, Error> {
        let split = selection.split;
        if let Some(pixels) = idx::open_folder(root, split, hold)? {
            return Ok(Opened::pixels(pixels));
        }
        if let Some(pixels) = cifar::open_folder(root, split, hold)? {
            return Ok(Opened::pixels(pixels));
        }
        let Arranged { files, class_names, notices } = listing::arrange(root, files::walk(root)?, selection)?;
        let folder = Folder { root: root.to_owned(), files };
        Ok(Opened { source: Source::Folder(folder), class_names, notices })
    }

    fn file(path: &Path, selection: Selection<'_>, hold: Hold<'_>) -> Result<Opened, Error> {
        let split = selection.split;
        if let Some((pack, class_names)) = pack::open_file(path)? {
            return match split {
                None => Ok(Opened { source: Source::Pack(pack), class_names, notices: Notices::default() }),
                Some(split) => Err(no_such_split(path, split, "no splits: it was packed from one")),
            };
        }
        if let Some(pixels) = idx::open_file(path, hold)? {
            return Opened::one_file(path, split, pixels);
        }
        if path.extension().is_some_and(|extension| extension == "bin") {
            return Opened::one_file(path, split, cifar::open_file(path, hold)?);
        }
        let (found, bytes) = archive::index(path, hold, selection.as_version_0_1)?;
        let Arranged { files, class_names, notices } = listing::arrange(path, found, selection)?;
        Ok(Opened { source: Source::Archive(Archive { files, bytes }), class_names, notices })
    }

    fn one_file(path: &Path, split: Option<&str>, pixels: Pixels) -> Result<Opened, Error> {
        match split {
            None => Ok(Opened::pixels(pixels)),
            Some(split) => Err(no_such_split(path, split, "one only: name the folder, or another file")),
        }
    }

    fn pixels(mut pixels: Pixels) -> Opened {
        let (class_names, notices) =
            (std::mem::take(&mut pixels.class_names), std::mem::take(&mut pixels.notices));
        Opened { source: Source::Pixels(pixels), class_names, notices }
    }
}

impl Source {
    fn len(&self) -> usize {
        match self {
            Source::Builtin(split) => split.len(),
            Source::Folder(folder) => folder.files.len(),
            Source::Archive(archive) => archive.files.len(),
            Source::Pixels(pixels) => pixels.len,
            Source::Pack(pack) => pack.len(),
        }
    }

    fn label(&self, index: usize) -> u32 {
        match self {
            Source::Builtin(_) => builtin::label(index),
            Source::Folder(folder) => folder.files.label(index),
            Source::Archive(archive) => archive.files.label(index),
            Source::Pixels(pixels) => pixels.labels[index],
            Source::Pack(pack) => pack.label_of(index),
        }
    }

    fn path(&self, index: usize) -> String {
        match self {
            Source::Builtin(split) => {
                format!(
                    "{}/{}/{index:04}",
                    split.name(),
                    builtin::CLASS_NAMES[builtin::label(index) as usize]
                )
            }
            Source::Folder(folder) => listing::text(folder.files.path(index).as_os_str()),
            Source::Archive(archive) => listing::text(archive.files.path(index).as_os_str()),
            Source::Pixels(pixels) => pixels.path_of(index),
            Source::Pack(pack) => pack.path_of(index),
        }
    }

    fn name(&self, index: usize, out: &mut Vec<u8>) {
        match self {
            Source::Folder(folder) => folder.files.name(index, out),
            Source::Archive(archive) => archive.files.name(index, out),
            Source::Builtin(_) | Source::Pixels(_) | Source::Pack(_) => {
                out.extend_from_slice(self.path(index).as_bytes());
            }
        }
    }

    fn held_bytes(&self) -> u64 {
        match self {
            Source::Archive(archive) => archive.bytes.in_memory(),
            Source::Pixels(pixels) => pixels.bytes.in_memory(),
            Source::Builtin(_) | Source::Folder(_) | Source::Pack(_) => 0,
        }
    }
}

fn with_split(source: &str) -> Option<(&str, &str)> {
    source.rsplit_once('#').filter(|(path, split)| !path.is_empty() && !split.is_empty())
}

fn no_such_split(origin: &Path, wanted: &str, available: &str) -> Error {
    Error::NoSuchSplit {
        origin: origin.display().to_string(),
        wanted: wanted.to_owned(),
        available: available.to_owned(),
    }
}

fn malformed(path: &Path, reason: impl Into<String>) -> Error {
    Error::Malformed { path: PathBuf::from(path), reason: reason.into() }
}

#[cfg(test)]
mod tests;
