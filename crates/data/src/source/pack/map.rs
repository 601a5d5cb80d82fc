//! A file as memory.

#![expect(unsafe_code, reason = "a mapped file changes when another program writes to it")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

/// A whole file, read only.
///
/// A packed set is never changed where it lies: a new one gets its name when it is complete. Another program that
/// writes into the file shows here as changed bytes (which checksums find), and one that cuts it ends this process.
pub struct Map(memmap2::Mmap);

/// How a map is going to be read.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// What follows is worth reading ahead.
    InOrder,
    /// It is not.
    InAnyOrder,
}

impl Map {
    /// Maps the file, unless it begins with something else than `magic`.
    pub fn of(mut file: &File, magic: &[u8]) -> io::Result<Option<Map>> {
        let mut start = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        (&mut file).take(magic.len() as u64).read_to_end(&mut start)?;
        if start != magic {
            return Ok(None);
        }
        // SAFETY: bytes that change meanwhile are only compared and copied as plain numbers; nothing that was
        // checked once is trusted to stay: a number is copied, then held against the length of the map, then used.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Some(Map(map)))
    }

    pub fn expect(&self, access: Access) -> io::Result<()> {
        self.0.advise(match access {
            Access::InOrder => memmap2::Advice::Sequential,
            Access::InAnyOrder => memmap2::Advice::Random,
        })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Some of the bytes, which are brought from the disk at once and not page by page as they are touched.
    pub fn range(&self, range: Range<usize>) -> io::Result<&[u8]> {
        self.0.advise_range(memmap2::Advice::WillNeed, range.start, range.len())?;
        Ok(&self.0[range])
    }
}
