//! A file as memory.

#![expect(unsafe_code, reason = "a mapped file changes when another program writes to it")]

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A whole file, read only.
///
/// A packed set is never changed where it lies: a new one gets its name when it is complete. Another program that
/// writes into the file shows here as changed bytes (which checksums find), and one that cuts it ends this process.
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps the file, unless it begins with something else than `magic`.
    pub fn open(path: &Path, magic: &[u8]) -> io::Result<Option<Map>> {
        let mut file = File::open(path)?;
        let mut start = Vec::new();
        (&mut file).take(magic.len() as u64).read_to_end(&mut start)?;
        if start != magic {
            return Ok(None);
        }
        // SAFETY: bytes that change meanwhile are only compared and copied as plain numbers; nothing that was
        // checked once is trusted to stay: ranges come from the index's own copy, within the length of the map.
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        // Images are read in any order: what lies behind them is not worth reading ahead.
        map.advise(memmap2::Advice::Random)?;
        Ok(Some(Map(map)))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
