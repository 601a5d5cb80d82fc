//! Image files in a tar.
//!
//! It is indexed once. A plain tar stays on disk and its files are read where they lie; of a compressed one,
//! which cannot be read from the middle, the images are kept in memory, still encoded.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::listing::{Files, Found};
use super::{listing, malformed};
use crate::Error;

/// The files of a set that lies in a tar.
pub struct Archive {
    /// Relative to the tar, and where the content is.
    pub files: Files<Span>,
    pub bytes: Bytes,
}

/// Where a file's content lies.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    offset: u64,
    len: usize,
}

/// What spans point into.
pub enum Bytes {
    OnDisk { path: PathBuf, file: File },
    InMemory(Vec<u8>),
}

impl Archive {
    pub fn read(&self, index: usize) -> Result<Vec<u8>, Error> {
        let Span { offset, len } = self.files.known(index);
        match &self.bytes {
            Bytes::OnDisk { path, file } => {
                let mut content = vec![0; len];
                file.read_exact_at(&mut content, offset)
                    .map_err(|source| Error::Io { path: path.clone(), source })?;
                Ok(content)
            }
            Bytes::InMemory(bytes) => Ok(bytes[offset as usize..][..len].to_vec()),
        }
    }
}

/// Finds the image files in the tar at `path`.
pub fn index(path: &Path) -> Result<(Found<Span>, Bytes), Error> {
    let io_error = |source| Error::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io_error)?;
    let mut start = Vec::new();
    (&file).take(512).read_to_end(&mut start).map_err(io_error)?;
    file.seek(SeekFrom::Start(0)).map_err(io_error)?;
    let damaged = |error: std::io::Error| malformed(path, format!("cannot be read as a tar: {error}"));
    match &start[..] {
        [0x1F, 0x8B, ..] => unpack(flate2::read::MultiGzDecoder::new(BufReader::new(file))).map_err(damaged),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => {
            unpack(zstd::stream::read::Decoder::new(file).map_err(io_error)?).map_err(damaged)
        }
        _ if start.get(257..262) == Some(b"ustar") => {
            let file_len = file.metadata().map_err(io_error)?.len();
            let found = locate(&file, file_len).map_err(damaged)?;
            Ok((found, Bytes::OnDisk { path: path.to_owned(), file }))
        }
        _ => Err(malformed(
            path,
            "neither a tar (plain, gzip or zstd) nor an IDX or CIFAR file: to train on single images, name the \
             folder they lie in",
        )),
    }
}

fn locate(file: &File, file_len: u64) -> std::io::Result<Found<Span>> {
    // Without this, a tar that was cut in the padding after a file would pass for a shorter one.
    if !file_len.is_multiple_of(512) {
        return Err(std::io::Error::other(format!(
            "{file_len} bytes are no number of blocks of 512: it is cut"
        )));
    }
    let mut found = Found::new();
    for entry in tar::Archive::new(BufReader::new(file)).entries_with_seek()? {
        let entry = entry?;
        let Some(path) = image_path(&entry, &mut found.skipped) else { continue };
        let span = Span { offset: entry.raw_file_position(), len: entry.size() as usize };
        if span.offset + span.len as u64 > file_len {
            return Err(std::io::Error::other(format!("it ends within {}", path.display())));
        }
        push(&mut found, &path, span);
    }
    Ok(found)
}

fn unpack(stream: impl Read) -> std::io::Result<(Found<Span>, Bytes)> {
    let (mut found, mut bytes) = (Found::new(), Vec::new());
    for entry in tar::Archive::new(stream).entries()? {
        let mut entry = entry?;
        let Some(path) = image_path(&entry, &mut found.skipped) else { continue };
        let offset = bytes.len();
        entry.read_to_end(&mut bytes)?;
        if bytes.len() - offset != entry.size() as usize {
            return Err(std::io::Error::other(format!("it ends within {}", path.display())));
        }
        push(&mut found, &path, Span { offset: offset as u64, len: bytes.len() - offset });
    }
    Ok((found, Bytes::InMemory(bytes)))
}

fn push(found: &mut Found<Span>, path: &Path, span: Span) {
    found.push(path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default(), span);
}

/// The path of an entry that is an image file, without a leading `./`.
fn image_path<R: Read>(entry: &tar::Entry<'_, R>, skipped: &mut usize) -> Option<PathBuf> {
    if entry.header().entry_type().is_dir() {
        return None;
    }
    let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
    let path: PathBuf =
        path.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect();
    if entry.header().entry_type().is_file() && listing::is_image(&path) {
        return Some(path);
    }
    *skipped += 1;
    None
}
