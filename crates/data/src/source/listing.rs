//! From the paths of image files to a data set: which of them, in which order, of which class.
//!
//! Folders and archives are the same here: a list of relative paths. Every worker has the whole of it, so it is kept
//! small.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::no_such_split;
use crate::Error;

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

#[derive(Debug)]
struct Folder {
    /// With a slash at its end; that of the root is empty.
    path: Vec<u8>,
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

    /// The class of a file: 0 where there are no classes.
    pub fn label(&self, index: usize) -> u32 {
        self.folders[self.entries[index].folder as usize].label
    }

    pub fn known(&self, index: usize) -> T {
        self.entries[index].known
    }
}

impl<T> Files<T> {
    /// Puts them in the bytewise order of their paths.
    fn sort(&mut self) {
        let Files { folders, names, entries, .. } = self;
        entries.sort_unstable_by(|a, b| order(folders, names, a, b));
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
        classes.into_iter().map(|class| String::from_utf8_lossy(class).into_owned()).collect()
    }
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

fn first_name(path: &[u8]) -> &[u8] {
    path.split(|&byte| byte == b'/').next().unwrap_or_default()
}

/// Files as they are found, in any order.
pub struct Found<T> {
    files: Files<T>,
    /// The folders' numbers by their paths.
    numbers: HashMap<PathBuf, u32>,
    /// How many others there are, which are no images.
    pub skipped: usize,
}

impl<T> Found<T> {
    pub fn new() -> Found<T> {
        let files = Files { folders: Vec::new(), names: Vec::new(), entries: Vec::new(), base_len: 0 };
        Found { files, numbers: HashMap::new(), skipped: 0 }
    }

    /// Adds the file `name` of `folder`, a relative path.
    pub fn push(&mut self, folder: &Path, name: &OsStr, known: T) {
        let Files { folders, names, entries, .. } = &mut self.files;
        let folder = self.numbers.get(folder).copied().unwrap_or_else(|| {
            let mut path = folder.as_os_str().as_bytes().to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            let number = folders.len() as u32;
            folders.push(Folder { path, label: 0 });
            self.numbers.insert(folder.to_owned(), number);
            number
        });
        let name_start = names.len();
        names.extend_from_slice(name.as_bytes());
        entries.push(Entry { folder, name_len: name.len() as u32, name_start, known });
    }
}

/// The files of a data set in order.
#[derive(Debug)]
pub struct Arranged<T> {
    pub files: Files<T>,
    /// Empty: there are no classes.
    pub class_names: Vec<String>,
    pub note: Option<String>,
}

/// Tells whether a file counts as an image, by its name: its content is looked at when it is decoded.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    ["jpg", "jpeg", "png", "webp"].iter().any(|known| extension == *known) && !is_hidden(path)
}

/// Tells whether a path leads through a name that begins with a dot.
pub fn is_hidden(path: &Path) -> bool {
    path.iter().any(|name| name.as_bytes().starts_with(b"."))
}

/// Selects a split, sorts by path, and takes classes from the folders.
///
/// A folder that only wraps others (`imagenette/train/…`) is passed through. Where no split is asked for and
/// the root holds a `train` and a `test` (or `val`) folder, `train` is taken.
pub fn arrange<T>(origin: &Path, found: Found<T>, split: Option<&str>) -> Result<Arranged<T>, Error> {
    let Found { mut files, skipped, .. } = found;
    if files.entries.is_empty() {
        return Err(Error::Empty { origin: origin.display().to_string(), skipped });
    }
    let mut note = None;
    let mut base = Vec::new();
    match split {
        Some(split) => base = find_split(origin, &files.folders, split)?,
        None => {
            pass_wrappers(&files.folders, &mut base);
            let level = Level::of(&files.folders, &base);
            let holds = |name: &str| level.folders.contains(name.as_bytes());
            let other = ["test", "val"].into_iter().find(|name| holds(name));
            if let (true, false, Some(other)) = (holds("train"), level.has_files, other) {
                base.extend_from_slice(b"train/");
                let origin = origin.display();
                note = Some(format!(
                    "{origin} holds train and {other}: taking train; {origin}#{other} is the other"
                ));
            }
        }
    }
    pass_wrappers(&files.folders, &mut base);
    files.retain(&base);
    files.sort();
    let class_names = files.classify(&base);
    Ok(Arranged { files, class_names, note })
}

/// What lies directly in a folder.
struct Level<'a> {
    folders: BTreeSet<&'a [u8]>,
    has_files: bool,
    /// Whether some folder here holds a file directly.
    has_leaves: bool,
}

impl<'a> Level<'a> {
    fn of(folders: &'a [Folder], base: &[u8]) -> Level<'a> {
        let mut level = Level { folders: BTreeSet::new(), has_files: false, has_leaves: false };
        for relative in folders.iter().filter_map(|folder| folder.path.strip_prefix(base)) {
            let name = first_name(relative);
            if name.is_empty() {
                level.has_files = true;
            } else {
                level.folders.insert(name);
                level.has_leaves |= relative.len() == name.len() + 1;
            }
        }
        level
    }
}

/// Goes down from `base` as long as everything goes through one folder that holds folders only: a class holds files.
fn pass_wrappers(folders: &[Folder], base: &mut Vec<u8>) {
    while let Some(inner) = wrapper(folders, base) {
        *base = inner;
    }
}

fn wrapper(folders: &[Folder], base: &[u8]) -> Option<Vec<u8>> {
    let level = Level::of(folders, base);
    let [only] = level.folders.iter().copied().collect::<Vec<_>>()[..] else { return None };
    (!level.has_files && !level.has_leaves).then(|| [base, only, b"/"].concat())
}

fn find_split(origin: &Path, folders: &[Folder], split: &str) -> Result<Vec<u8>, Error> {
    let mut base = Vec::new();
    loop {
        let wanted = [&base[..], split.trim_end_matches('/').as_bytes(), b"/"].concat();
        if folders.iter().any(|folder| folder.path.starts_with(&wanted)) {
            return Ok(wanted);
        }
        match wrapper(folders, &base) {
            Some(inner) => base = inner,
            None => {
                let level = Level::of(folders, &base);
                let names: Vec<_> = level.folders.iter().map(|name| String::from_utf8_lossy(name)).collect();
                let available = if names.is_empty() { "no folders".to_owned() } else { names.join(", ") };
                return Err(no_such_split(origin, split, &available));
            }
        }
    }
}
