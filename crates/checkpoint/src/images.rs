//! The list of a run's images, kept once beside the checkpoints that name it.
//!
//! A list is a file `images-<digest>.list` in the run's `checkpoints`. A checkpoint's manifest names the digest
//! (`metadata.images.list`), so that checkpoints of before and after a change of the data set each find their own. It is
//! removed with the last checkpoint that names it. What is in it, this crate does not know.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::layout::open_checkpoints;
use crate::manifest::{Manifest, digest, hex};
use crate::{Directory, Error};

/// Where a manifest's metadata have what is recorded of the data set.
pub const IMAGES_KEY: &str = "images";

/// Below [`IMAGES_KEY`], the digest of the list.
pub const LIST_KEY: &str = "list";

/// The list's name while it is written.
pub(crate) const IMAGES_FILE: &str = "images.list";

/// The name of the list that has this digest.
pub(crate) fn list_file(digest: &str) -> String {
    format!("images-{digest}.list")
}

/// The digest that is part of a list's name; nothing where it is the name of anything else.
pub(crate) fn digest_in_name(name: &str) -> Option<&str> {
    let named = name.strip_prefix("images-").and_then(|name| name.strip_suffix(".list"));
    named.filter(|named| is_digest(named))
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The digest of the list that a checkpoint names, if it names any.
pub fn named_list(manifest: &Manifest) -> Option<&str> {
    manifest.metadata.get(IMAGES_KEY)?.get(LIST_KEY)?.as_str().filter(|named| is_digest(named))
}

/// Opens the list that has this digest; nothing where it is not there, as beside a checkpoint that was copied alone.
pub(crate) fn open_list(checkpoints: &Directory, digest: &str) -> Result<Option<File>, Error> {
    match checkpoints.read(list_file(digest)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the list that a checkpoint of the run names, if it is there.
///
/// # Errors
/// If it cannot be read, or is not the list that was written.
pub fn read_images(run: &Directory, manifest: &Manifest) -> Result<Option<Vec<u8>>, Error> {
    let Some(expected) = named_list(manifest) else { return Ok(None) };
    let Some(checkpoints) = open_checkpoints(run)? else { return Ok(None) };
    let Some(mut list) = open_list(&checkpoints, expected)? else { return Ok(None) };
    let file = checkpoints.path().join(list_file(expected));
    let mut bytes = Vec::new();
    list.read_to_end(&mut bytes).map_err(Error::io("read", &file))?;
    check_images(&bytes, expected, &file)?;
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
