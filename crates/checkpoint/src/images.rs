//! The list of a run's images, kept once beside the checkpoints that name it.
//!
//! A list is a file `images-<digest>.list` in the run's `checkpoints`. A checkpoint's manifest names the digest
//! (`metadata.images.list`), so that checkpoints of before and after a change of the data set each find their own. It is
//! removed with the last checkpoint that names it. What is in it, this crate does not know.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::manifest::{Digest, Manifest, digest, hex};
use crate::store::checkpoints_dir;

/// Where a manifest's metadata have what is recorded of the data set.
pub const IMAGES_KEY: &str = "images";

/// Below [`IMAGES_KEY`], the digest of the list.
pub const LIST_KEY: &str = "list";

/// The list's name while it is written.
pub(crate) const IMAGES_FILE: &str = "images.list";

pub(crate) fn images_file(run_dir: &Path, digest: &Digest) -> PathBuf {
    images_file_named(run_dir, &hex(digest))
}

pub(crate) fn images_file_named(run_dir: &Path, digest: &str) -> PathBuf {
    checkpoints_dir(run_dir).join(format!("images-{digest}.list"))
}

/// Whether a path has the name that [`images_file`] gives.
pub(crate) fn is_images_file(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix("images-").and_then(|name| name.strip_suffix(".list")).is_some_and(is_digest)
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The file of the list that a checkpoint of the run in `run_dir` names, and the digest it must have; nothing where the
/// checkpoint names none or the file is not there, as in a checkpoint that was copied alone.
pub fn images_of(run_dir: &Path, manifest: &Manifest) -> Option<(PathBuf, String)> {
    let named = manifest.metadata.get(IMAGES_KEY)?.get(LIST_KEY)?.as_str()?;
    let file = is_digest(named).then(|| images_file_named(run_dir, named))?;
    file.exists().then(|| (file, named.to_owned()))
}

/// Reads the list that a checkpoint of the run in `run_dir` names, if it is there.
///
/// # Errors
/// If it cannot be read, or is not the list that was written.
pub fn read_images(run_dir: &Path, manifest: &Manifest) -> Result<Option<Vec<u8>>, Error> {
    let Some((file, expected)) = images_of(run_dir, manifest) else { return Ok(None) };
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &file)(error)),
    };
    check_images(&bytes, &expected, &file)?;
    Ok(Some(bytes))
}

/// Compares a list with the digest that a manifest has of it.
///
/// # Errors
/// If it is another.
pub fn check_images(bytes: &[u8], expected: &str, file: &Path) -> Result<(), Error> {
    let actual = hex(&digest(bytes));
    if actual == expected {
        return Ok(());
    }
    Err(Error::Altered { file: file.to_owned(), expected: expected.to_owned(), actual })
}
