//! Data sets: what lies behind the text in `data.source`, whose grammar [`Dataset`] gives.
//!
//! One file per format finds images and their classes; `listing.rs` is what folders and archives share.

mod archive;
mod builtin;
mod cifar;
mod files;
mod idx;
mod listing;
pub mod pack;
mod pixels;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::Cache;
use crate::decode::{Facts, inspect};
use crate::fingerprint::{Digest, Kind};
use crate::list::{Followed, GONE};
use crate::{Error, Image, MAX_PIXELS, decode};
use archive::Archive;
use builtin::Split;
use files::Folder;
use listing::Arranged;
use pack::Pack;
use pixels::Pixels;

/// Labelled or unlabelled images in a fixed order.
///
/// | text | what it opens |
/// | --- | --- |
/// | `builtin` | the built-in set, training images; `builtin#test` for the others |
/// | a folder | JPEG, PNG and WebP files in it, or IDX or CIFAR files |
/// | a tar, plain or compressed by gzip or zstd | such files in it |
/// | an IDX or CIFAR file | its images |
/// | a packed set ([`pack`](crate::pack())) | its images |
/// | any of these`#split` | the images of that subfolder, or the `train` or `test` half of IDX and CIFAR files |
///
/// Where a folder or tar holds a `train` and a `test` (or `val`) folder and nothing says which, `train` is taken and
/// [`Dataset::note`] says so. Classes are the folders that the images lie in; a folder that only wraps others is
/// passed through.
///
/// The order is that of the files' relative paths, bytewise, or the order in the file that holds them all.
pub struct Dataset {
    origin: String,
    source: Source,
    /// Empty: there are no labels.
    class_names: Vec<String>,
    note: Option<String>,
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
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_pixels: MAX_PIXELS }
    }
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
        Ok(Dataset { limits, ..Dataset::open_source(source)? })
    }

    fn open_source(source: &str) -> Result<Dataset, Error> {
        match with_split(source) {
            Some(("builtin", split)) => return Dataset::open_builtin(source, split),
            None if source == "builtin" => return Dataset::open_builtin(source, "train"),
            _ => {}
        }
        // A path may contain a #: it is taken as a path if there is such a file.
        let (path, split) = match with_split(source) {
            Some((path, split)) if !Path::new(source).exists() => (Path::new(path), Some(split)),
            _ => (Path::new(source), None),
        };
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound { path: path.to_owned() },
            _ => Error::Io { path: path.to_owned(), source: error },
        })?;
        if metadata.is_dir() {
            Dataset::open_folder(source, path, split)
        } else {
            Dataset::open_file(source, path, split)
        }
    }

    fn open_builtin(origin: &str, split: &str) -> Result<Dataset, Error> {
        let split = match split {
            "train" => Split::Train,
            "test" => Split::Test,
            other => return Err(no_such_split(Path::new("builtin"), other, "train and test")),
        };
        let class_names = builtin::CLASS_NAMES.map(str::to_owned).to_vec();
        Ok(Dataset::new(origin, Source::Builtin(split), class_names, None))
    }

    fn open_folder(origin: &str, root: &Path, split: Option<&str>) -> Result<Dataset, Error> {
        if let Some(pixels) = idx::open_folder(root, split)? {
            return Ok(Dataset::of_pixels(origin, pixels));
        }
        if let Some(pixels) = cifar::open_folder(root, split)? {
            return Ok(Dataset::of_pixels(origin, pixels));
        }
        let Arranged { files, class_names, note } = listing::arrange(root, files::walk(root)?, split)?;
        let folder = Folder { root: root.to_owned(), files };
        Ok(Dataset::new(origin, Source::Folder(folder), class_names, note))
    }

    fn open_file(origin: &str, path: &Path, split: Option<&str>) -> Result<Dataset, Error> {
        if let Some((pack, class_names)) = pack::open_file(path)? {
            return match split {
                None => Ok(Dataset::new(origin, Source::Pack(pack), class_names, None)),
                Some(split) => Err(no_such_split(path, split, "no splits: it was packed from one")),
            };
        }
        if let Some(pixels) = idx::open_file(path)? {
            return Dataset::of_one_file(origin, path, split, pixels);
        }
        if path.extension().is_some_and(|extension| extension == "bin") {
            return Dataset::of_one_file(origin, path, split, cifar::open_file(path)?);
        }
        let (found, bytes) = archive::index(path)?;
        let Arranged { files, class_names, note } = listing::arrange(path, found, split)?;
        Ok(Dataset::new(origin, Source::Archive(Archive { files, bytes }), class_names, note))
    }

    fn of_one_file(origin: &str, path: &Path, split: Option<&str>, pixels: Pixels) -> Result<Dataset, Error> {
        match split {
            None => Ok(Dataset::of_pixels(origin, pixels)),
            Some(split) => Err(no_such_split(path, split, "one only: name the folder, or another file")),
        }
    }

    fn of_pixels(origin: &str, mut pixels: Pixels) -> Dataset {
        let (class_names, note) = (std::mem::take(&mut pixels.class_names), pixels.note.take());
        Dataset::new(origin, Source::Pixels(pixels), class_names, note)
    }

    fn new(origin: &str, source: Source, class_names: Vec<String>, note: Option<String>) -> Dataset {
        let cache = Cache::new(source.len());
        Dataset {
            origin: origin.to_owned(),
            source,
            class_names,
            note,
            cache,
            limits: Limits::default(),
            followed: None,
        }
    }

    /// The text that was opened.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Counts the images: at least one.
    #[expect(clippy::len_without_is_empty, reason = "an empty set is not opened")]
    pub fn len(&self) -> usize {
        self.followed.as_ref().map_or(self.source.len(), |followed| followed.places.len())
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

    /// A choice that was made in opening and that the user should be told, such as which half was taken.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Names an image: its path within the source, or the file it lies in and its number there.
    pub fn path_of(&self, index: usize) -> String {
        match self.place(index) {
            Ok(place) => self.source.path(place),
            Err(name) => String::from_utf8_lossy(name).into_owned(),
        }
    }

    /// Appends the bytes of an image's name: its path below the folder of the split, which is the same wherever the set lies.
    pub(crate) fn name(&self, index: usize, out: &mut Vec<u8>) {
        match self.place(index) {
            Ok(place) => self.source.name(place, out),
            Err(name) => out.extend_from_slice(name),
        }
    }

    /// Tells whether an image is in the list that the set follows and not in the source.
    pub fn is_gone(&self, index: usize) -> bool {
        self.place(index).is_err()
    }

    /// Where in the source an image is, or the name of one that is gone.
    fn place(&self, index: usize) -> Result<usize, &[u8]> {
        match &self.followed {
            None => Ok(index),
            Some(Followed { places, gone, .. }) => match places[index] {
                GONE => Err(&gone[&index]),
                place => Ok(place as usize),
            },
        }
    }

    /// As [`place`](Self::place), where the image is wanted itself.
    fn present(&self, index: usize) -> Result<usize, Error> {
        self.place(index).map_err(|_| Error::Image {
            path: self.path_of(index),
            reason: "it is in the run's list of images, and in the data set no longer".to_owned(),
        })
    }

    /// Takes images in another order, and their labels and classes.
    pub(crate) fn rearrange(&mut self, followed: Followed, class_names: Vec<String>) {
        self.cache = Cache::new(followed.places.len());
        self.followed = Some(followed);
        self.class_names = class_names;
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
        let place = self.present(index)?;
        Ok(match &self.source {
            Source::Builtin(split) => builtin::render(*split, place).rgb,
            Source::Folder(folder) => folder.read(place)?,
            Source::Archive(archive) => archive.read(place)?,
            Source::Pixels(pixels) => pixels.image(place).rgb,
            Source::Pack(pack) => pack.image(place)?.rgb,
        })
    }

    /// Decodes an image, or takes it from memory: a set that is small when decoded is kept.
    ///
    /// # Errors
    /// [`Error::Image`] if it is corrupt, [`Error::Io`] if it cannot be read.
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
        let place = self.present(index)?;
        match &self.source {
            Source::Builtin(split) => Ok(builtin::render(*split, place)),
            Source::Folder(folder) => self.decode(index, &folder.read(place)?),
            Source::Archive(archive) => self.decode(index, &archive.read(place)?),
            Source::Pixels(pixels) => Ok(pixels.image(place)),
            Source::Pack(pack) => pack.image(place),
        }
    }

    /// Decodes an image, and looks for what its own file says of it, where it has one.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
    pub(crate) fn inspect(&self, index: usize) -> Result<(Image, Facts), Error> {
        let place = self.present(index)?;
        let bytes = match &self.source {
            Source::Folder(folder) => folder.read(place)?,
            Source::Archive(archive) => archive.read(place)?,
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

impl Source {
    fn len(&self) -> usize {
        match self {
            Source::Builtin(split) => split.len(),
            Source::Folder(folder) => folder.files.len(),
            Source::Archive(archive) => archive.files.len(),
            Source::Pixels(pixels) => pixels.len(),
            Source::Pack(pack) => pack.len(),
        }
    }

    fn label(&self, place: usize) -> u32 {
        match self {
            Source::Builtin(_) => builtin::label(place),
            Source::Folder(folder) => folder.files.label(place),
            Source::Archive(archive) => archive.files.label(place),
            Source::Pixels(pixels) => pixels.labels[place],
            Source::Pack(pack) => pack.label_of(place),
        }
    }

    fn path(&self, place: usize) -> String {
        match self {
            Source::Builtin(split) => {
                format!(
                    "{}/{}/{place:04}",
                    split.name(),
                    builtin::CLASS_NAMES[builtin::label(place) as usize]
                )
            }
            Source::Folder(folder) => folder.files.path(place).to_string_lossy().into_owned(),
            Source::Archive(archive) => archive.files.path(place).to_string_lossy().into_owned(),
            Source::Pixels(pixels) => pixels.path_of(place),
            Source::Pack(pack) => pack.path_of(place),
        }
    }

    fn name(&self, place: usize, out: &mut Vec<u8>) {
        match self {
            Source::Folder(folder) => folder.files.name(place, out),
            Source::Archive(archive) => archive.files.name(place, out),
            Source::Builtin(_) | Source::Pixels(_) | Source::Pack(_) => {
                out.extend_from_slice(self.path(place).as_bytes());
            }
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

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

fn malformed(path: &Path, reason: impl Into<String>) -> Error {
    Error::Malformed { path: PathBuf::from(path), reason: reason.into() }
}

#[cfg(test)]
mod tests;
