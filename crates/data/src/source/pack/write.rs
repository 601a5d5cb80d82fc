//! Writes a packed set.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::checksum;
use super::index::{Entry, HEADER_LEN, Writer};
use crate::augment::Shrink;
use crate::replace::Replaced;
use crate::{Dataset, Error};

/// Images begin at multiples of this: a cache line.
const ALIGNMENT: u64 = 64;

/// Images that one thread decodes before all of them are written.
const PER_THREAD: usize = 8;

/// How a set is packed.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Images whose shorter side is longer are shrunk to it, in pixels; the others stay as they are.
    pub shorter_side: usize,
    /// Threads that decode, at least 1.
    pub threads: usize,
}

/// What was packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Images, corrupt ones included.
    pub len: usize,
    /// How many of them were shrunk.
    pub shrunk: usize,
    /// Size of the file.
    pub file_bytes: u64,
    /// Images that cannot be decoded: they are kept as such, so that training replaces the same ones.
    pub corrupt: Vec<Replaced>,
}

/// Decodes every image of `dataset` into the file `out`, which appears under its name when it is complete and on
/// the disk.
///
/// - `progress`: called with the number of images that are done
///
/// # Errors
/// If a file of the set cannot be read, or the packed one cannot be written.
pub fn pack(
    dataset: &Dataset,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Packed, Error> {
    let partial = partial_name(out);
    let written = write_and_sync(dataset, &partial, options, progress).and_then(|packed| {
        let in_place = fs::rename(&partial, out).and_then(|()| sync_folder(out));
        in_place.map(|()| packed).map_err(|source| Error::Write { path: out.to_owned(), source })
    });
    if written.is_err() {
        // The error that is returned says more than a failure to tidy up would.
        fs::remove_file(&partial).ok();
    }
    written
}

/// Beside the file, and of this process only.
fn partial_name(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    out.with_file_name(name)
}

fn sync_folder(out: &Path) -> io::Result<()> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn write_and_sync(
    dataset: &Dataset,
    partial: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Packed, Error> {
    let failed = |source| Error::Write { path: partial.to_owned(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(partial).map_err(failed)?;
    let mut file = Positioned { file: BufWriter::with_capacity(1 << 20, file), position: 0 };
    file.write(&[0; HEADER_LEN]).map_err(failed)?;
    let mut index = Writer::new(dataset.class_names());
    let mut packed = Packed { len: dataset.len(), shrunk: 0, file_bytes: 0, corrupt: Vec::new() };
    let threads = options.threads.max(1);
    for start in (0..dataset.len()).step_by(threads * PER_THREAD) {
        let end = dataset.len().min(start + threads * PER_THREAD);
        for (place, prepared) in prepare(dataset, start..end, options).into_iter().enumerate() {
            let Prepared { width, height, bytes, shrunk } = prepared?;
            file.align().map_err(failed)?;
            let path = dataset.path_of(start + place);
            let label = if dataset.has_labels() { dataset.label_of(start + place) } else { 0 };
            if width == 0 {
                let reason = String::from_utf8_lossy(&bytes).into_owned();
                packed.corrupt.push(Replaced { path: path.clone(), reason });
            }
            packed.shrunk += usize::from(shrunk);
            let entry = Entry { offset: file.position, width, height, label, checksum: checksum(&bytes) };
            index.push(&entry, &path);
            file.write(&bytes).map_err(failed)?;
        }
        progress(end);
    }
    file.align().map_err(failed)?;
    let (header, index) = index.finish(file.position);
    for part in &index {
        file.write(part).map_err(failed)?;
    }
    packed.file_bytes = file.position;
    file.finish(&header).map_err(failed)?;
    Ok(packed)
}

/// A file, and how much of it is written.
struct Positioned {
    file: BufWriter<File>,
    position: u64,
}

impl Positioned {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = self.position.next_multiple_of(ALIGNMENT) - self.position;
        self.write(&[0; ALIGNMENT as usize][..padding as usize])
    }

    /// Puts the header in its place, and everything on the disk.
    fn finish(mut self, header: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(header)?;
        self.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// An image as it is stored.
struct Prepared {
    width: u32,
    height: u32,
    bytes: Vec<u8>,
    shrunk: bool,
}

/// Decodes and shrinks some images, in their order.
fn prepare(
    dataset: &Dataset,
    range: std::ops::Range<usize>,
    options: &PackOptions,
) -> Vec<Result<Prepared, Error>> {
    let indices: Vec<usize> = range.collect();
    std::thread::scope(|scope| {
        let started: Vec<_> = indices
            .chunks(PER_THREAD)
            .map(|part| {
                scope.spawn(move || {
                    let mut shrink = Shrink::default();
                    part.iter().map(|&index| prepare_one(dataset, index, options, &mut shrink)).collect()
                })
            })
            .collect();
        let parts = started.into_iter().map(|thread| thread.join().expect("packing does not panic"));
        parts.flat_map(|part: Vec<_>| part).collect()
    })
}

fn prepare_one(
    dataset: &Dataset,
    index: usize,
    options: &PackOptions,
    shrink: &mut Shrink,
) -> Result<Prepared, Error> {
    let image = match dataset.load(index) {
        Ok(image) => image,
        Err(Error::Image { reason, .. }) => {
            let bytes = reason.into_bytes();
            return Ok(Prepared { width: 0, height: bytes.len() as u32, bytes, shrunk: false });
        }
        Err(other) => return Err(other),
    };
    let small = shrink.shorten(&image, options.shorter_side);
    let (kept, shrunk) = match &small {
        Some(small) => (small, true),
        None => (&*image, false),
    };
    Ok(Prepared { width: kept.width as u32, height: kept.height as u32, bytes: kept.rgb.clone(), shrunk })
}
