//! From the paths of image files to a data set: which of them, in which order, of which class.
//!
//! Folders and archives are the same here: a list of relative paths.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::no_such_split;
use crate::Error;

/// The files of a data set in order.
#[derive(Debug)]
pub struct Arranged<T> {
    pub items: Vec<(PathBuf, T)>,
    pub labels: Option<Vec<u32>>,
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
pub fn arrange<T>(
    origin: &Path,
    mut items: Vec<(PathBuf, T)>,
    skipped: usize,
    split: Option<&str>,
) -> Result<Arranged<T>, Error> {
    items.sort_unstable_by(|(a, _), (b, _)| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    if items.is_empty() {
        return Err(Error::Empty { origin: origin.display().to_string(), skipped });
    }
    let mut note = None;
    let mut base = PathBuf::new();
    match split {
        Some(split) => base = find_split(origin, &items, split)?,
        None => {
            while let Some(inner) = wrapper(&items, &base) {
                base = inner;
            }
            let level = Level::of(&items, &base);
            let other = ["test", "val"].into_iter().find(|name| level.folders.contains(OsStr::new(name)));
            if let (true, false, Some(other)) =
                (level.folders.contains(OsStr::new("train")), level.has_files, other)
            {
                base.push("train");
                let origin = origin.display();
                note = Some(format!(
                    "{origin} holds train and {other}: taking train; {origin}#{other} is the other"
                ));
            }
        }
    }
    items.retain(|(path, _)| path.starts_with(&base));
    while let Some(inner) = wrapper(&items, &base) {
        base = inner;
    }
    let (labels, class_names) = classes(&items, &base);
    Ok(Arranged { items, labels, class_names, note })
}

/// What lies directly in a folder.
struct Level<'a> {
    folders: BTreeSet<&'a OsStr>,
    has_files: bool,
    /// Whether some folder here holds a file directly.
    has_leaves: bool,
}

impl<'a> Level<'a> {
    fn of<T>(items: &'a [(PathBuf, T)], base: &Path) -> Level<'a> {
        let mut level = Level { folders: BTreeSet::new(), has_files: false, has_leaves: false };
        for relative in items.iter().filter_map(|(path, _)| path.strip_prefix(base).ok()) {
            let names: Vec<&OsStr> = relative.iter().take(3).collect();
            level.has_files |= names.len() == 1;
            level.has_leaves |= names.len() == 2;
            if names.len() > 1 {
                level.folders.insert(names[0]);
            }
        }
        level
    }
}

/// The one folder in `base` through which everything goes, if it holds folders only: a class holds files.
fn wrapper<T>(items: &[(PathBuf, T)], base: &Path) -> Option<PathBuf> {
    let level = Level::of(items, base);
    let [only] = level.folders.iter().copied().collect::<Vec<_>>()[..] else { return None };
    (!level.has_files && !level.has_leaves).then(|| base.join(only))
}

fn find_split<T>(origin: &Path, items: &[(PathBuf, T)], split: &str) -> Result<PathBuf, Error> {
    let mut base = PathBuf::new();
    loop {
        let wanted = base.join(split);
        if items.iter().any(|(path, _)| path.starts_with(&wanted) && *path != wanted) {
            return Ok(wanted);
        }
        match wrapper(items, &base) {
            Some(inner) => base = inner,
            None => {
                let names: Vec<_> =
                    Level::of(items, &base).folders.iter().map(|name| name.to_string_lossy()).collect();
                let available = if names.is_empty() { "no folders".to_owned() } else { names.join(", ") };
                return Err(no_such_split(origin, split, &available));
            }
        }
    }
}

/// The folder in `base` that a file lies in is its class. One file outside of any, and there are no classes.
fn classes<T>(items: &[(PathBuf, T)], base: &Path) -> (Option<Vec<u32>>, Vec<String>) {
    let mut names: Vec<OsString> = Vec::new();
    let mut of_items = Vec::with_capacity(items.len());
    for (path, _) in items {
        let relative = path.strip_prefix(base).expect("files outside the base are removed");
        let mut parts = relative.iter();
        match (parts.next(), parts.next()) {
            (Some(folder), Some(_)) => {
                if names.last().is_none_or(|last| last != folder) {
                    names.push(folder.to_owned());
                }
                of_items.push(folder);
            }
            _ => return (None, Vec::new()),
        }
    }
    // Sorted by path is not sorted by folder: "a-b/" comes before "a/".
    names.sort_unstable();
    names.dedup();
    let label =
        |folder| names.binary_search_by(|name| name.as_os_str().cmp(folder)).expect("every folder is listed");
    let labels = of_items.into_iter().map(|folder| label(folder) as u32).collect();
    (Some(labels), names.iter().map(|name| name.to_string_lossy().into_owned()).collect())
}
