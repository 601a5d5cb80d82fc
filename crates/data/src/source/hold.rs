//! Where the content of a data set lies that is one file: in that file, in memory, or in a file without a name.
//!
//! What has to be decompressed is held in memory as far as memory is available. Packing a set needs each image once, so
//! that it may take a temporary file instead, which the system removes with the process.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::access::persist;
use crate::Error;

/// What may be held of a source, and where.
#[derive(Clone, Copy, Debug)]
pub struct Hold<'a> {
    /// Bytes of memory that it may take.
    pub memory_bytes: u64,
    /// The folder of a temporary file for what does not fit.
    pub spill: Option<&'a Path>,
}

/// Bytes that images lie in.
pub enum Bytes {
    /// A file that is open: of the set itself, or a temporary one.
    OnDisk {
        /// The file of the set.
        path: PathBuf,
        /// What is read.
        file: File,
    },
    /// All of them.
    InMemory(Vec<u8>),
}

impl Bytes {
    /// Reads `len` bytes from `offset` on. `None`: they are not there any more.
    pub fn read(&self, offset: u64, len: usize) -> Result<Option<Cow<'_, [u8]>>, Error> {
        match self {
            Bytes::InMemory(bytes) => Ok(Some(Cow::Borrowed(&bytes[offset as usize..][..len]))),
            Bytes::OnDisk { path, file } => {
                let mut content = vec![0; len];
                match persist(path, || file.read_exact_at(&mut content, offset))? {
                    Ok(()) => Ok(Some(Cow::Owned(content))),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                    Err(source) => Err(Error::Io { path: path.clone(), source }),
                }
            }
        }
    }

    /// How much of it lies in memory.
    pub fn in_memory(&self) -> u64 {
        match self {
            Bytes::InMemory(bytes) => bytes.len() as u64,
            Bytes::OnDisk { .. } => 0,
        }
    }
}

/// Collects the content of a source.
pub struct Collector<'a> {
    /// The file of the set, for messages.
    path: &'a Path,
    hold: Hold<'a>,
    memory: Vec<u8>,
    /// Takes everything once memory does not suffice.
    spilled: Option<File>,
    len: u64,
}

impl<'a> Collector<'a> {
    pub fn new(path: &'a Path, hold: Hold<'a>) -> Collector<'a> {
        Collector { path, hold, memory: Vec::new(), spilled: None, len: 0 }
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Makes sure that `more` bytes will fit, before anything is reserved for them.
    pub fn expect(&mut self, more: u64) -> Result<(), Error> {
        let needed = self.len.saturating_add(more);
        if self.spilled.is_none() && needed > self.hold.memory_bytes {
            self.leave_memory(format!("{needed} bytes"))?;
        }
        if self.spilled.is_none() {
            // Most sets come in one piece.
            self.memory.reserve(more.min(1 << 30) as usize);
        }
        Ok(())
    }

    /// Takes at most `most` bytes of `stream`, and says how many there were.
    ///
    /// # Errors
    /// The inner one is the stream's own.
    pub fn take(&mut self, stream: &mut dyn Read, most: u64) -> Result<io::Result<u64>, Error> {
        let mut part = vec![0; most.clamp(1, 1 << 16) as usize];
        let mut taken = 0;
        while taken < most {
            let wanted = part.len().min((most - taken) as usize);
            match stream.read(&mut part[..wanted]) {
                Ok(0) => break,
                Ok(n) => {
                    self.push(&part[..n])?;
                    taken += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(taken))
    }

    /// Adds a part.
    pub fn push(&mut self, part: &[u8]) -> Result<(), Error> {
        self.len += part.len() as u64;
        if self.spilled.is_none() && self.len > self.hold.memory_bytes {
            self.leave_memory(format!("more than {} bytes", self.hold.memory_bytes))?;
        }
        match &mut self.spilled {
            None => {
                self.memory.extend_from_slice(part);
                Ok(())
            }
            Some(file) => file.write_all(part).map_err(|source| self.cannot_spill(source)),
        }
    }

    /// Goes on in a temporary file, where there may be one.
    fn leave_memory(&mut self, needed: String) -> Result<(), Error> {
        let Some(folder) = self.hold.spill else {
            let available = self.hold.memory_bytes;
            return Err(Error::TooLargeForMemory { path: self.path.to_owned(), needed, available });
        };
        let opened = tempfile::tempfile_in(folder).and_then(|mut file| {
            file.write_all(&self.memory)?;
            Ok(file)
        });
        self.spilled = Some(opened.map_err(|source| self.cannot_spill(source))?);
        self.memory = Vec::new();
        Ok(())
    }

    fn cannot_spill(&self, source: io::Error) -> Error {
        Error::Write { path: self.hold.spill.unwrap_or(self.path).to_owned(), source }
    }

    /// What was collected, without memory to spare.
    pub fn finish(mut self) -> Bytes {
        match self.spilled {
            Some(file) => Bytes::OnDisk { path: self.path.to_owned(), file },
            None => {
                self.memory.shrink_to_fit();
                Bytes::InMemory(self.memory)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(memory_bytes: u64, spill: Option<&Path>) -> Result<Bytes, Error> {
        let mut collector = Collector::new(Path::new("set.tar.gz"), Hold { memory_bytes, spill });
        for part in ["one", "two", "three"] {
            let taken = collector.take(&mut part.as_bytes(), 4)?.unwrap();
            assert_eq!(taken, part.len().min(4) as u64);
        }
        assert_eq!(collector.len(), 10);
        Ok(collector.finish())
    }

    #[test]
    fn what_does_not_fit_is_refused_or_lies_in_a_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        for (memory_bytes, spill, in_memory) in [
            (10, None, 10),
            (10, Some(folder.path()), 10),
            (9, Some(folder.path()), 0),
            (0, Some(folder.path()), 0),
        ] {
            let bytes = collect(memory_bytes, spill).unwrap();
            assert_eq!(bytes.in_memory(), in_memory);
            assert_eq!(*bytes.read(2, 6).unwrap().unwrap(), *b"etwoth");
            if in_memory == 0 {
                assert!(bytes.read(2, 9).unwrap().is_none(), "beyond the end");
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a name was left");
        let refused = collect(9, None).err().unwrap().to_string();
        assert_eq!(
            refused,
            "set.tar.gz takes more than 9 bytes of memory, and 9 bytes are available to each worker: pack it with \
             `himpun data pack --data set.tar.gz --out FILE` and train on FILE, or run fewer workers on this node"
        );
    }

    #[test]
    fn what_is_announced_is_refused_before_it_comes() {
        let mut collector = Collector::new(Path::new("images.gz"), Hold { memory_bytes: 99, spill: None });
        let refused = collector.expect(u64::MAX).unwrap_err().to_string();
        assert!(
            refused.starts_with("images.gz takes 18446744073709551615 bytes of memory, and 99"),
            "{refused}"
        );
    }
}
