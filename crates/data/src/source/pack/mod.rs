//! Packed sets: images decoded once, in one file that is read through a memory map.
//!
//! All numbers are little-endian. Images lie in the order of the set, each at a multiple of 64 bytes, as raw
//! `[height, width, 3]` bytes; the index follows them, so that a set is written in one pass.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0-7 | [`MAGIC`] |
//! | 8-15 | version, 1 |
//! | 16-23, 24-31 | where the index begins, and its length: the file ends with it |
//! | 32-39 | number of images |
//! | 40-71 | BLAKE3 of bytes 0-39 and the index |
//!
//! The index: the number of class names (0: no labels), then each name; then for every image offset, width, height,
//! label (4 bytes each but the offset's 8), the first 16 bytes of the BLAKE3 of its bytes, and its path. A text is
//! its length in 4 bytes and UTF-8. An image that could not be decoded has a width of 0; its bytes are the reason,
//! `height` of them, so that training replaces it as it would have.

mod index;
mod map;
mod write;

pub use write::{PackOptions, Packed, pack};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::malformed;
use crate::{Error, Image};
use index::{Entry, Index};
use map::Map;

/// What a packed set begins with. Detected by this, not by a name.
pub const MAGIC: &[u8; 8] = b"\x89HPACK\r\n";

/// A set in one file.
pub struct Pack {
    path: PathBuf,
    map: Map,
    entries: Vec<Entry>,
    /// Whose checksum was found right: it is computed at the first read of an image, not at every one.
    verified: Vec<AtomicBool>,
}

/// Opens a packed set, if the file begins like one: the set, its labels, and its class names.
#[expect(clippy::type_complexity, reason = "what a data set is made of")]
pub fn open_file(path: &Path) -> Result<Option<(Pack, Option<Vec<u32>>, Vec<String>)>, Error> {
    let io_error = |source| Error::Io { path: path.to_owned(), source };
    let Some(map) = Map::open(path, MAGIC).map_err(io_error)? else { return Ok(None) };
    let damaged = |reason| malformed(path, format!("damaged packed set: {reason}; pack it again"));
    let Index { entries, class_names } = index::read(map.bytes()).map_err(damaged)?;
    if entries.is_empty() {
        return Err(Error::Empty { origin: path.display().to_string(), skipped: 0 });
    }
    let labels = (!class_names.is_empty()).then(|| entries.iter().map(|entry| entry.label).collect());
    let verified = entries.iter().map(|_| AtomicBool::new(false)).collect();
    Ok(Some((Pack { path: path.to_owned(), map, entries, verified }, labels, class_names)))
}

impl Pack {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The image's path in the set that was packed.
    pub fn path_of(&self, index: usize) -> &str {
        &self.entries[index].path
    }

    /// Copies an image out of the map.
    pub fn image(&self, index: usize) -> Result<Image, Error> {
        let entry = &self.entries[index];
        let corrupt = |reason| {
            let path = format!("{} in {}", entry.path, self.path.display());
            Error::Image { path, reason }
        };
        let bytes = &self.map.bytes()[entry.range()];
        if !self.verified[index].load(Ordering::Relaxed) {
            if checksum(bytes) != entry.checksum {
                return Err(corrupt(
                    "its bytes do not have the checksum of the index: pack it again".to_owned(),
                ));
            }
            self.verified[index].store(true, Ordering::Relaxed);
        }
        if entry.width == 0 {
            return Err(corrupt(String::from_utf8_lossy(bytes).into_owned()));
        }
        Ok(Image { width: entry.width as usize, height: entry.height as usize, rgb: bytes.to_vec() })
    }
}

/// The first half of the BLAKE3: against damage, not against forgery.
fn checksum(bytes: &[u8]) -> [u8; 16] {
    *blake3::hash(bytes).as_bytes().first_chunk().expect("a hash has 32 bytes")
}

#[cfg(test)]
mod tests;
