//! Packed sets: images decoded once, in one file that is read through a memory map.
//!
//! All numbers are little-endian. Images lie in the order of the set, each at a multiple of 64 bytes, as raw
//! `[height, width, 3]` bytes; the index follows them, so that a set is written in one pass.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0-7 | [`MAGIC`] |
//! | 8-15 | version, 2 |
//! | 16-23, 24-31 | where the index begins, and its length: the file ends with it |
//! | 32-39 | number of images |
//! | 40-71 | BLAKE3 of bytes 0-39 and the index |
//!
//! The index: the number of class names (0: no labels), then each name, its length in 4 bytes before it; then for every
//! image offset (8 bytes), width, height and label (4 each), the first 16 bytes of the BLAKE3 of its bytes, and where its
//! path ends in the last part (8); then the paths. Texts are UTF-8. An image that could not be decoded has a width of 0;
//! its bytes are the reason, `height` of them, so that training replaces it as it would have.
//!
//! All of it is checked when the set is opened, and then read where it lies: no process has a list of the images.

mod index;
mod map;
mod write;

pub use write::{PackOptions, Packed, pack};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{access, malformed};
use crate::{Error, Image};
use index::{Entry, Index};
use map::{Access, Map};

/// What a packed set begins with. Detected by this, not by a name.
pub const MAGIC: &[u8; 8] = b"\x89HPACK\r\n";

/// A set in one file.
pub struct Pack {
    path: PathBuf,
    map: Map,
    index: Index,
    /// A bit for each image whose checksum was found right: it is computed at the first read, not at every one.
    verified: Vec<AtomicU64>,
}

/// Opens a packed set, if the file begins like one: the set, and its class names (none: it has no labels).
pub fn open_file(path: &Path) -> Result<Option<(Pack, Vec<String>)>, Error> {
    let io_error = |source| Error::Io { path: path.to_owned(), source };
    let (file, _) = access::open_source(path)?;
    let Some(map) = access::persist(path, || Map::of(&file, MAGIC))?.map_err(io_error)? else {
        return Ok(None);
    };
    map.expect(Access::InOrder).map_err(io_error)?;
    let damaged = |reason| malformed(path, format!("damaged packed set: {reason}; pack it again"));
    let (index, class_names) = index::read(map.bytes()).map_err(damaged)?;
    map.expect(Access::InAnyOrder).map_err(io_error)?;
    if index.len() == 0 {
        return Err(Error::Empty {
            origin: path.display().to_string(),
            skipped: "it was packed from none".to_owned(),
        });
    }
    let verified = (0..index.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
    Ok(Some((Pack { path: path.to_owned(), map, index, verified }, class_names)))
}

impl Pack {
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// The digest of header and index, and so of every path, class and checksum.
    pub fn digest(&self) -> [u8; 32] {
        index::stated_digest(self.map.bytes())
    }

    /// The image's path in the set that was packed.
    pub fn path_of(&self, index: usize) -> String {
        let path = self.index.path(self.map.bytes(), index);
        path.unwrap_or_else(|reason| format!("image {index} ({reason})"))
    }

    /// The image's class; that of one whose entry was overwritten since the set was opened is 0.
    pub fn label_of(&self, index: usize) -> u32 {
        self.index.entry(self.map.bytes(), index).map_or(0, |entry| entry.label)
    }

    /// Copies an image out of the map.
    pub fn image(&self, index: usize) -> Result<Image, Error> {
        let corrupt = |reason| {
            let path = format!("{} in {}", self.path_of(index), self.path.display());
            Error::Image { path, reason }
        };
        let entry = self.index.entry(self.map.bytes(), index).map_err(corrupt)?;
        let bytes = access::persist(&self.path, || self.map.range(entry.range()))?;
        let bytes = bytes.map_err(|source| Error::Io { path: self.path.clone(), source })?;
        let (word, bit) = (&self.verified[index / 64], 1 << (index % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            if checksum(bytes) != entry.checksum {
                return Err(corrupt(
                    "its bytes do not have the checksum of the index: pack it again".to_owned(),
                ));
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        let Entry { width, height, .. } = entry;
        if width == 0 {
            return Err(corrupt(String::from_utf8_lossy(bytes).into_owned()));
        }
        Ok(Image { width: width as usize, height: height as usize, rgb: bytes.to_vec() })
    }
}

/// The first half of the BLAKE3: against damage, not against forgery.
fn checksum(bytes: &[u8]) -> [u8; 16] {
    *blake3::hash(bytes).as_bytes().first_chunk().expect("a hash has 32 bytes")
}

#[cfg(test)]
mod tests;
