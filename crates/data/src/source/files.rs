//! Image files in a folder.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::access::{self, Refusal};
use super::listing::{self, Files, Found};
use super::skipped::{Kind, Skipped};
use crate::Error;

/// Files of a set, spread over it, that are looked for before all of it is called gone.
const SAMPLE: usize = 16;

/// The files of a set that lies in a folder.
pub struct Folder {
    pub root: PathBuf,
    /// Relative to the root.
    pub files: Files<()>,
}

impl Folder {
    /// Reads an image's file.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, Error> {
        let path = self.root.join(self.files.path(index));
        let reason = match access::read_image(&path) {
            Ok(bytes) => return Ok(bytes),
            Err(Refusal::Machine(error)) => return Err(error),
            // A root that is gone is one fault, and not as many as there are images.
            Err(Refusal::Unreachable(_)) if self.is_gone() => {
                return Err(Error::RootGone { path: self.root.clone() });
            }
            Err(Refusal::Unreachable(error)) => access::unreachable_because(&path, &error),
            Err(Refusal::Unfit(reason)) => reason,
        };
        Err(Error::Image { path: listing::text(self.files.path(index).as_os_str()), reason })
    }

    /// Whether the folder cannot be found, or, as where a disk is no longer mounted, none of its images can.
    fn is_gone(&self) -> bool {
        let n = self.files.len().min(SAMPLE);
        let mut sample = (0..n).map(|i| self.files.path(i * self.files.len() / n));
        fs::metadata(&self.root).is_err()
            || sample.all(|path| fs::symlink_metadata(self.root.join(path)).is_err())
    }
}

/// Finds the image files below `root`.
///
/// Symbolic links are followed, as torchvision's `ImageFolder` does, but not to a folder that they lie in. What cannot be
/// looked into is skipped and counted, unless it is `root` itself.
pub fn walk(root: &Path) -> Result<Found<()>, Error> {
    walk_by(root, &mut |folder| Ok(Box::new(fs::read_dir(folder)?)))
}

/// The entries of a folder.
pub type Entries = Box<dyn Iterator<Item = io::Result<DirEntry>>>;

/// As [`walk`], by what `read_dir` gives for each folder.
pub fn walk_by(
    root: &Path,
    read_dir: &mut dyn FnMut(&Path) -> io::Result<Entries>,
) -> Result<Found<()>, Error> {
    let mut found = Found::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let absolute = root.join(&folder);
        let (mark, n_folders) = (found.mark(), folders.len());
        let listed = access::persist(&absolute, || {
            // What an attempt found before it failed would be found twice.
            found.rewind(mark);
            folders.truncate(n_folders);
            list((root, &folder), read_dir(&absolute)?, &mut found, &mut folders)
        })?;
        match listed {
            Ok(Listing { skipped, loops, has_images }) => {
                found.skipped.extend(&folder, skipped);
                for path in loops {
                    found.skipped.add_named(&folder, Kind::LinkLoop, &path);
                }
                if !has_images {
                    found.without_images.push(folder);
                }
            }
            Err(source) if folder.as_os_str().is_empty() => return Err(access::of_source(root, source)),
            Err(_) => {
                found.rewind(mark);
                folders.truncate(n_folders);
                found.skipped.add_named(&folder, Kind::Unreadable, &folder);
            }
        }
    }
    Ok(found)
}

/// What lies in the folder of a set that has its own files, beside those that are `known`.
pub fn beside(root: &Path, is_known: &dyn Fn(&Path) -> bool) -> Result<Skipped, Error> {
    let listed = access::persist(root, || {
        let mut skipped = Skipped::default();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name();
            if is_known(&entry.path()) {
                continue;
            }
            let Some(what) = What::of(&entry)? else { continue };
            let kind = match what {
                _ if listing::is_hidden(&name) => Kind::Hidden,
                What::File => Kind::of_name(&name),
                What::Folder | What::LinkToFolder(_) => Kind::Folder,
                What::Special => Kind::Special,
            };
            skipped.add(Path::new(""), kind);
        }
        Ok(skipped)
    })?;
    listed.map_err(|source| access::of_source(root, source))
}

/// What one folder holds beside its images and folders.
#[derive(Default)]
struct Listing {
    skipped: BTreeMap<Kind, usize>,
    /// Links to a folder that they lie in.
    loops: Vec<PathBuf>,
    has_images: bool,
}

/// Adds the images of `folder`, relative to `root`, to `found`, and the folders in it to `folders`.
fn list(
    (root, folder): (&Path, &Path),
    entries: Entries,
    found: &mut Found<()>,
    folders: &mut Vec<PathBuf>,
) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let (mut number, mut around) = (None, None);
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if listing::is_hidden(&name) {
            *listing.skipped.entry(Kind::Hidden).or_default() += 1;
            continue;
        }
        let Some(what) = What::of(&entry)? else { continue };
        match what {
            What::Folder => folders.push(folder.join(name)),
            What::LinkToFolder(identity) => {
                if around.get_or_insert_with(|| folders_around(root, folder)).contains(&identity) {
                    listing.loops.push(folder.join(name));
                } else {
                    folders.push(folder.join(name));
                }
            }
            // What only looks like an image is found out when its turn comes, and counted as corrupt.
            What::File | What::Special if listing::is_image(&name) => {
                let number = *number.get_or_insert_with(|| found.folder(folder));
                found.push_in(number, &name, ());
                listing.has_images = true;
            }
            What::File => *listing.skipped.entry(Kind::of_name(&name)).or_default() += 1,
            What::Special => *listing.skipped.entry(Kind::Special).or_default() += 1,
        }
    }
    Ok(listing)
}

enum What {
    File,
    Folder,
    /// With the folder's device and inode.
    LinkToFolder((u64, u64)),
    Special,
}

impl What {
    /// Asks for the kind of a file only where the listing does not tell it: a set may have a million files. None: it was
    /// removed since it was listed.
    fn of(entry: &DirEntry) -> io::Result<Option<What>> {
        let Some(kind) = unless_removed(entry.file_type())? else { return Ok(None) };
        if kind.is_symlink() {
            return What::of_target(entry).map(Some);
        }
        Ok(Some(match kind {
            kind if kind.is_dir() => What::Folder,
            kind if kind.is_file() => What::File,
            _ => What::Special,
        }))
    }

    fn of_target(entry: &DirEntry) -> io::Result<What> {
        match fs::metadata(entry.path()) {
            Ok(target) if target.is_dir() => Ok(What::LinkToFolder(identity(&target))),
            Ok(target) if target.is_file() => Ok(What::File),
            Ok(_) => Ok(What::Special),
            Err(error) if access::is_machines(&error) => Err(error),
            // It leads nowhere: by its name it may be an image that cannot be had.
            Err(_) => Ok(What::File),
        }
    }
}

/// What was asked of an entry of a folder, if it is still there.
fn unless_removed<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// `folder` and those that it lies in, also above `root`. Not all that were visited: two links to one folder are no loop.
fn folders_around(root: &Path, folder: &Path) -> Vec<(u64, u64)> {
    let real = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let within = folder.ancestors().map(|part| root.join(part));
    let above = real.ancestors().skip(1).map(Path::to_owned);
    within
        .chain(above)
        .filter_map(|path| fs::metadata(path).ok())
        .map(|metadata| identity(&metadata))
        .collect()
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn an_entry_that_was_removed_since_it_was_listed_is_no_error() {
        let refused = |errno: Errno| unless_removed::<()>(Err(errno.into()));
        assert_eq!(unless_removed(Ok(1)).unwrap(), Some(1));
        assert_eq!(refused(Errno::ENOENT).unwrap(), None);
        assert!(refused(Errno::EIO).is_err());
    }
}
