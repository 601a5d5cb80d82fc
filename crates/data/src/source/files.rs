//! Image files in a folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::listing::{Files, Found};
use super::{listing, read_file};
use crate::Error;

/// The files of a set that lies in a folder.
pub struct Folder {
    pub root: PathBuf,
    /// Relative to the root.
    pub files: Files<()>,
}

impl Folder {
    pub fn read(&self, index: usize) -> Result<Vec<u8>, Error> {
        read_file(&self.root.join(self.files.path(index)))
    }
}

/// Finds the image files below `root`.
///
/// Symbolic links are followed, as torchvision's `ImageFolder` does.
pub fn walk(root: &Path) -> Result<Found<()>, Error> {
    let mut found = Found::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let absolute = root.join(&folder);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        for entry in fs::read_dir(&absolute).map_err(failed(&absolute))? {
            let entry = entry.map_err(failed(&absolute))?;
            let name = entry.file_name();
            if listing::is_hidden(Path::new(&name)) {
                found.skipped += 1;
            } else if is_folder(&entry).map_err(failed(&entry.path()))? {
                folders.push(folder.join(name));
            } else if listing::is_image(Path::new(&name)) {
                found.push(&folder, &name, ());
            } else {
                found.skipped += 1;
            }
        }
    }
    Ok(found)
}

/// Asks for the kind of a file only where the listing does not tell it: a set may have a million files.
fn is_folder(entry: &fs::DirEntry) -> std::io::Result<bool> {
    let kind = entry.file_type()?;
    if kind.is_symlink() { Ok(fs::metadata(entry.path())?.is_dir()) } else { Ok(kind.is_dir()) }
}
