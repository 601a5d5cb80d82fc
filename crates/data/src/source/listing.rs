//! From the paths of image files to a data set: which of them, in which order, of which class.
//!
//! Folders and archives are the same here: a list of relative paths. Every worker has the whole of it, so it is kept
//! small.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::skipped::{self, Kind, Skipped};
use super::splits::{self, Choice, Lacking, Level};
use crate::Error;
use crate::list::Listed;

/// Relative paths of files, and what else is known of each.
///
/// A folder is kept once for all the files in it: a file takes its name and 16 bytes beside `T`.
#[derive(Debug)]
pub struct Files<T> {
    folders: Vec<Folder>,
    /// Of all files, one after the other.
    names: Vec<u8>,
    entries: Vec<Entry<T>>,
    /// Length of the path of the folder that all of them are below.
    base_len: usize,
}

/// A folder of files.
#[derive(Debug)]
pub struct Folder {
    /// With a slash at its end; that of the root is empty.
    pub path: Vec<u8>,
    /// 0 where there are no classes.
    label: u32,
}

#[derive(Debug)]
struct Entry<T> {
    folder: u32,
    name_len: u32,
    name_start: usize,
    known: T,
}

impl<T: Copy> Files<T> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn path(&self, index: usize) -> PathBuf {
        let entry = &self.entries[index];
        let bytes = [&self.folders[entry.folder as usize].path, entry.name(&self.names)].concat();
        PathBuf::from(OsStr::from_bytes(&bytes))
    }

    /// Appends a file's path below the folder of its split.
    pub fn name(&self, index: usize, out: &mut Vec<u8>) {
        let entry = &self.entries[index];
        out.extend_from_slice(&self.folders[entry.folder as usize].path[self.base_len..]);
        out.extend_from_slice(entry.name(&self.names));
    }

    /// The folder that all of them are below, with a slash at its end; empty for the root.
    pub fn base(&self) -> &[u8] {
        let Some(first) = self.entries.first() else { return b"" };
        &self.folders[first.folder as usize].path[..self.base_len]
    }

    /// The class of a file: 0 where there are no classes.
    pub fn label(&self, index: usize) -> u32 {
        self.folders[self.entries[index].folder as usize].label
    }

    pub fn known(&self, index: usize) -> T {
        self.entries[index].known
    }
}

impl<T> Files<T> {
    /// Puts them in the bytewise order of their paths. Of several with one path the last that was found stays, as when
    /// a tar is extracted; the others are counted in `skipped`.
    fn sort(&mut self, skipped: &mut Skipped) {
        let Files { folders, names, entries, .. } = self;
        // Names lie in the order in which they were found.
        entries.sort_unstable_by(|a, b| {
            order(folders, names, a, b).then_with(|| a.name_start.cmp(&b.name_start))
        });
        entries.dedup_by(|later, earlier| {
            let same = later.folder == earlier.folder && later.name(names) == earlier.name(names);
            if same {
                skipped.add(folders[later.folder as usize].as_path(), Kind::Replaced);
                std::mem::swap(later, earlier);
            }
            same
        });
    }

    /// Forgets the folders that no file lies in, and lists them.
    fn drop_empty_folders(&mut self) -> Vec<PathBuf> {
        let mut is_used = vec![false; self.folders.len()];
        self.entries.iter().for_each(|entry| is_used[entry.folder as usize] = true);
        let (mut numbers, mut kept, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        for (folder, is_used) in std::mem::take(&mut self.folders).into_iter().zip(is_used) {
            numbers.push(kept.len() as u32);
            if is_used {
                kept.push(folder);
            } else {
                dropped.push(folder.as_path().to_owned());
            }
        }
        self.folders = kept;
        if !dropped.is_empty() {
            self.entries.iter_mut().for_each(|entry| entry.folder = numbers[entry.folder as usize]);
        }
        dropped
    }

    /// Keeps those whose names end so.
    fn keep_endings(&mut self, endings: &[&str]) {
        let Files { names, entries, .. } = self;
        entries.retain(|entry| has_ending(OsStr::from_bytes(entry.name(names)), endings));
    }

    /// Counts those that have one of `wanted` as their path below `base`.
    fn count_below(&self, base: &[u8], wanted: &HashSet<Vec<u8>>) -> usize {
        let mut path = Vec::new();
        let is_wanted = |entry: &&Entry<T>| {
            let Some(folder) = self.folders[entry.folder as usize].path.strip_prefix(base) else {
                return false;
            };
            path.clear();
            path.extend_from_slice(folder);
            path.extend_from_slice(entry.name(&self.names));
            wanted.contains(&path)
        };
        self.entries.iter().filter(is_wanted).count()
    }

    /// Keeps those below `base`, and no more memory than they take.
    fn retain(&mut self, base: &[u8]) {
        let Files { folders, names, entries, base_len } = self;
        *base_len = base.len();
        entries.retain(|entry| folders[entry.folder as usize].path.starts_with(base));
        entries.shrink_to_fit();
        let mut kept = Vec::with_capacity(entries.iter().map(|entry| entry.name_len as usize).sum());
        for entry in entries {
            let start = kept.len();
            kept.extend_from_slice(entry.name(names));
            entry.name_start = start;
        }
        *names = kept;
    }

    /// Takes the folder in `base` that a file lies in as its class, and lists the classes. One file outside of any, and
    /// there are none.
    fn classify(&mut self, base: &[u8]) -> Vec<String> {
        let within = |folder: &Folder| folder.path.strip_prefix(base).map(|path| first_name(path).to_vec());
        let of_folders: Vec<Option<Vec<u8>>> = self.folders.iter().map(within).collect();
        // Sorted by path is not sorted by folder: "a-b/" comes before "a/".
        let classes: Vec<&Vec<u8>> =
            of_folders.iter().flatten().collect::<BTreeSet<_>>().into_iter().collect();
        if classes.iter().any(|class| class.is_empty()) {
            return Vec::new();
        }
        for (folder, class) in self.folders.iter_mut().zip(&of_folders) {
            if let Some(class) = class {
                folder.label = classes.binary_search(&class).expect("every class is listed") as u32;
            }
        }
        classes.into_iter().map(|class| text(OsStr::from_bytes(class))).collect()
    }

    /// The files that lie directly in `base`: how many, and the first.
    fn outside_of_folders(&self, base: &[u8]) -> (usize, String) {
        let mut direct = self.entries.iter().filter(|entry| self.folders[entry.folder as usize].path == base);
        let first = direct.next().map(|entry| text(OsStr::from_bytes(entry.name(&self.names))));
        first.map_or_else(Default::default, |first| (1 + direct.count(), first))
    }
}

impl Folder {
    /// Without a slash at its end.
    fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.path.strip_suffix(b"/").unwrap_or(&self.path)))
    }
}

/// A path or name as text in which two that differ stay different: bytes that are no UTF-8 are written `\xNN`.
pub fn text(name: &OsStr) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

impl<T> Entry<T> {
    fn name<'a>(&self, names: &'a [u8]) -> &'a [u8] {
        &names[self.name_start..][..self.name_len as usize]
    }
}

/// Compares two paths without putting them together.
fn order<T>(folders: &[Folder], names: &[u8], a: &Entry<T>, b: &Entry<T>) -> Ordering {
    let (name_a, name_b) = (a.name(names), b.name(names));
    if a.folder == b.folder {
        return name_a.cmp(name_b);
    }
    let (a, b) = (&folders[a.folder as usize].path, &folders[b.folder as usize].path);
    let common = a.len().min(b.len());
    // Where one folder lies in the other, the rest of its path, which has a slash, is compared with a name, which has
    // none: neither begins with the whole of the other unless it is the longer path.
    let rest_a = if a.len() > common { &a[common..] } else { name_a };
    let rest_b = if b.len() > common { &b[common..] } else { name_b };
    a[..common].cmp(&b[..common]).then_with(|| rest_a.cmp(rest_b))
}

/// The first name of a path.
pub fn first_name(path: &[u8]) -> &[u8] {
    path.split(|&byte| byte == b'/').next().unwrap_or_default()
}

/// Files as they are found, in any order.
pub struct Found<T> {
    files: Files<T>,
    /// The folders' numbers by their paths.
    numbers: HashMap<PathBuf, u32>,
    /// What is no image.
    pub skipped: Skipped,
    /// Folders without an image of their own.
    pub without_images: Vec<PathBuf>,
    /// What else the user should know.
    pub notes: Vec<String>,
}

/// How far a listing has come.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    names: usize,
    entries: usize,
}

impl<T> Found<T> {
    pub fn new() -> Found<T> {
        let files = Files { folders: Vec::new(), names: Vec::new(), entries: Vec::new(), base_len: 0 };
        Found {
            files,
            numbers: HashMap::new(),
            skipped: Skipped::default(),
            without_images: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds the file `name` of `folder`, a relative path.
    pub fn push(&mut self, folder: &Path, name: &OsStr, known: T) {
        let folder = self.folder(folder);
        self.push_in(folder, name, known);
    }

    /// The number of a folder, for [`Found::push_in`].
    pub fn folder(&mut self, folder: &Path) -> u32 {
        if let Some(number) = self.numbers.get(folder) {
            return *number;
        }
        let mut path = folder.as_os_str().as_bytes().to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        let number = self.files.folders.len() as u32;
        self.files.folders.push(Folder { path, label: 0 });
        self.numbers.insert(folder.to_owned(), number);
        number
    }

    /// Adds the file `name` of a folder.
    pub fn push_in(&mut self, folder: u32, name: &OsStr, known: T) {
        let Files { names, entries, .. } = &mut self.files;
        let name_start = names.len();
        names.extend_from_slice(name.as_bytes());
        entries.push(Entry { folder, name_len: name.len() as u32, name_start, known });
    }

    /// Where the listing is, so that it can go on from here once more.
    pub fn mark(&self) -> Mark {
        Mark { names: self.files.names.len(), entries: self.files.entries.len() }
    }

    /// Forgets the files that were added since `mark`.
    pub fn rewind(&mut self, mark: Mark) {
        self.files.names.truncate(mark.names);
        self.files.entries.truncate(mark.entries);
    }

    /// Calls `visit` with the path of each file, in the order of their discovery, and with what is known of it.
    pub fn visit(&mut self, mut visit: impl FnMut(&[u8], &mut T)) {
        let Files { folders, names, entries, .. } = &mut self.files;
        let mut path = Vec::new();
        for entry in entries {
            path.clear();
            path.extend_from_slice(&folders[entry.folder as usize].path);
            path.extend_from_slice(&names[entry.name_start..][..entry.name_len as usize]);
            visit(&path, &mut entry.known);
        }
    }

    /// Takes those out whose `known` is not to be kept, and counts them as `kind`.
    pub fn drop_unless(&mut self, kind: &Kind, keep: impl Fn(&T) -> bool) {
        let Found { files: Files { folders, entries, .. }, skipped, .. } = self;
        entries.retain(|entry| {
            let kept = keep(&entry.known);
            if !kept {
                skipped.add(folders[entry.folder as usize].as_path(), kind.clone());
            }
            kept
        });
    }
}

/// The files of a data set in order.
#[derive(Debug)]
pub struct Arranged<T> {
    pub files: Files<T>,
    /// Empty: there are no classes.
    pub class_names: Vec<String>,
    pub notices: Notices,
}

/// What the user should know of the opening of a source.
#[derive(Debug, Default)]
pub struct Notices {
    /// In sentences.
    pub notes: Vec<String>,
    /// What was skipped, by its kind.
    pub skipped: BTreeMap<String, usize>,
    /// Classes that lack an image, sorted.
    pub empty_classes: Vec<String>,
}

impl Notices {
    /// Adds what lies beside the files of a set that has its own, `of_set`.
    pub fn add_beside(&mut self, skipped: &Skipped, of_set: &str) {
        self.notes.extend(skipped.sentence_beside(of_set));
        self.skipped = skipped.counts(b"");
    }
}

/// Endings of images, in small letters.
const ENDINGS: [&str; 8] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif"];

/// Those that version 0.1 knew.
const ENDINGS_OF_VERSION_0_1: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Tells whether a file counts as an image, by its name: its content is looked at when it is decoded.
pub fn is_image(name: &OsStr) -> bool {
    has_ending(name, &ENDINGS)
}

fn has_ending(name: &OsStr, endings: &[&str]) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default().as_bytes();
    endings.iter().any(|known| extension.eq_ignore_ascii_case(known.as_bytes()))
}

/// Tells whether a name begins with a dot.
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// Which of the files that were found make the set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection<'a> {
    /// The split that was asked for.
    pub split: Option<&'a str>,
    /// By the rules of version 0.1, which a run of that version that has no list of its images goes on with.
    pub as_version_0_1: bool,
    /// Below which folder the images of a list are found.
    pub listed: Option<&'a Listed>,
}

impl Listed {
    fn choose<T>(
        &self,
        files: &Files<T>,
        split: Option<&str>,
        selected: Result<Base, Error>,
    ) -> Result<Base, Error> {
        let n_listed = files.count_below(&self.base, &self.names);
        match selected {
            selected if n_listed == 0 => selected,
            Ok(other) if split.is_some() && !self.base.starts_with(&other.selected) => Ok(other),
            Ok(other) if files.count_below(&other.path, &self.names) > n_listed => Ok(other),
            Err(error) if split.is_some() => Err(error),
            _ => Ok(Base { selected: self.base.clone(), path: self.base.clone(), note: None }),
        }
    }
}

/// The folder that the images of a set lie in.
struct Base {
    /// As it was selected.
    selected: Vec<u8>,
    /// Below folders in it that only wrap others.
    path: Vec<u8>,
    /// Why, where the user should know.
    note: Option<String>,
}

impl Base {
    fn select(
        origin: &Path,
        folders: &[Folder],
        lacking: Lacking<'_>,
        selection: Selection<'_>,
    ) -> Result<Base, Error> {
        let (mut selected, mut note) = (Vec::new(), None);
        match selection {
            Selection { split: Some(split), .. } => selected = splits::find(origin, folders, lacking, split)?,
            Selection { as_version_0_1: true, .. } => {
                splits::pass_wrappers(folders, &mut selected);
                if Level::of(folders, &selected).is_split_in_version_0_1() {
                    selected.extend_from_slice(b"train/");
                }
            }
            Selection { split: None, .. } => {
                splits::pass_to_splits(folders, lacking, &mut selected);
                let level = Level::with_lacking(folders, lacking, &selected);
                match splits::choose(origin, &level, &selected, lacking)? {
                    Choice::Everything => selected.clear(),
                    Choice::Noted(why) => {
                        note = Some(why);
                        selected.clear();
                    }
                    Choice::Train(name, why) => {
                        note = Some(why);
                        selected = [&selected, name, b"/"].concat();
                    }
                }
            }
        }
        let mut path = selected.clone();
        splits::pass_wrappers(folders, &mut path);
        Ok(Base { selected, path, note })
    }
}

/// Selects a split, sorts by path, and takes classes from the folders.
///
/// A folder that only wraps others (`imagenette/train/…`) is passed through. Where no split is asked for and all
/// folders of the first level are splits by their names, the one to train on is taken.
pub fn arrange<T>(origin: &Path, found: Found<T>, selection: Selection<'_>) -> Result<Arranged<T>, Error> {
    let Found { mut files, mut skipped, mut without_images, mut notes, .. } = found;
    if selection.as_version_0_1 {
        files.keep_endings(&ENDINGS_OF_VERSION_0_1);
    }
    without_images.extend(files.drop_empty_folders());
    if files.entries.is_empty() {
        return Err(Error::Empty { origin: origin.display().to_string(), skipped: skipped.summary() });
    }
    let lacking = Lacking { folders: &without_images, skipped: &skipped };
    let selected = Base::select(origin, &files.folders, lacking, selection);
    let Base { selected, path: base, note } = match selection.listed {
        Some(listed) => listed.choose(&files, selection.split, selected)?,
        None => selected?,
    };
    notes.extend(note);
    files.retain(&base);
    files.sort(&mut skipped);
    let class_names = files.classify(&base);
    let (n_outside, first) = files.outside_of_folders(&base);
    if (1..files.entries.len()).contains(&n_outside) {
        let lie = if n_outside == 1 { "image lies" } else { "images lie" };
        notes
            .push(format!("there are no classes, because {n_outside} {lie} in no folder, {first} the first"));
    }
    notes.extend(skipped.sentence(&selected));
    let empty_classes = match class_names[..] {
        [] => Vec::new(),
        _ => empty_classes(&files.folders, &base, &skipped, &without_images),
    };
    notes.extend(empty_sentence(&empty_classes));
    let notices = Notices {
        notes,
        skipped: skipped.counts(&selected),
        empty_classes: empty_classes.into_iter().map(|(name, _)| name).collect(),
    };
    Ok(Arranged { files, class_names, notices })
}

/// The folders in `base` that would be classes if they had an image, and what the first of them have.
fn empty_classes(
    folders: &[Folder],
    base: &[u8],
    skipped: &Skipped,
    without_images: &[PathBuf],
) -> Vec<(String, String)> {
    let class_of = |folder: &[u8]| -> Option<Vec<u8>> {
        let name = first_name(folder.strip_prefix(base)?);
        (!name.is_empty() && !name.starts_with(b".")).then(|| name.to_vec())
    };
    let with_images: BTreeSet<Vec<u8>> = folders.iter().filter_map(|folder| class_of(&folder.path)).collect();
    let others = without_images.iter().map(|path| path.as_os_str().as_bytes()).chain(skipped.folders());
    let classes: BTreeSet<Vec<u8>> = others.filter_map(class_of).collect();
    // What a class has takes a pass over everything skipped, and the note names only the first ones.
    let what = |position: usize, class: &[u8]| match position {
        0..skipped::NAMED => skipped.within(&[base, class].concat()),
        _ => String::new(),
    };
    let lacking = classes.difference(&with_images).enumerate();
    lacking.map(|(position, class)| (text(OsStr::from_bytes(class)), what(position, class))).collect()
}

fn empty_sentence(classes: &[(String, String)]) -> Option<String> {
    let texts: Vec<String> = classes.iter().map(|(name, what)| format!("class {name}: {what}")).collect();
    (!texts.is_empty()).then(|| format!("no image in {}", skipped::first_of(&texts, "; ")))
}
