//! The format of MNIST and its relatives: images in one file, labels in another.
//!
//! A file begins with two zero bytes, the type of its elements (8: bytes) and the number of dimensions; the
//! dimensions follow, 32 bits each, big-endian, and then the elements.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::access::{self, Patient};
use super::hold::{Bytes, Collector, Hold};
use super::listing::Notices;
use super::pixels::{Layout, Pixels};
use super::{files, malformed, no_such_split, splits};
use crate::Error;

const NAMES: [(&str, &str); 2] = [("train", "train"), ("test", "t10k")];

/// Opens a split of a folder that holds IDX files under their usual names, if it does.
pub fn open_folder(root: &Path, split: Option<&str>, hold: Hold<'_>) -> Result<Option<Pixels>, Error> {
    let found: Vec<(&str, PathBuf)> =
        NAMES.iter().filter_map(|(split, prefix)| Some((*split, images_in(root, prefix)?))).collect();
    let halves: Vec<&str> = found.iter().map(|(split, _)| *split).collect();
    let Some(default) = halves.first() else { return Ok(None) };
    let wanted = split.map_or(Some(*default), |split| splits::half(&halves, split));
    let Some((_, path)) = found.iter().find(|(half, _)| Some(*half) == wanted) else {
        return Err(no_such_split(root, split.unwrap_or(default), &halves.join(" and ")));
    };
    let mut pixels = read_pair(path, hold)?;
    pixels.notices.notes.extend(splits::note_of_halves(root, &halves, split));
    let known: Vec<PathBuf> = found
        .iter()
        .flat_map(|(_, images)| [Some(images.clone()), labels_beside(images)])
        .flatten()
        .collect();
    let beside = files::beside(root, &|path| known.iter().any(|known| known == path))?;
    pixels.notices.add_beside(&beside, "the IDX files");
    Ok(Some(pixels))
}

/// Opens a file of images, if it is one.
pub fn open_file(path: &Path, hold: Hold<'_>) -> Result<Option<Pixels>, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.contains("idx3-ubyte") { read_pair(path, hold).map(Some) } else { Ok(None) }
}

fn images_in(root: &Path, prefix: &str) -> Option<PathBuf> {
    ["-images-idx3-ubyte", "-images-idx3-ubyte.gz", "-images.idx3-ubyte", "-images.idx3-ubyte.gz"]
        .iter()
        .map(|suffix| root.join(format!("{prefix}{suffix}")))
        .find(|path| path.is_file())
}

/// Reads a file of images, and of labels if one lies beside it.
fn read_pair(path: &Path, hold: Hold<'_>) -> Result<Pixels, Error> {
    let (dimensions, bytes) = read(path, hold)?;
    let [len, height, width] = dimensions[..] else {
        return Err(malformed(path, format!("{} dimensions where images have 3", dimensions.len())));
    };
    if len == 0 || width == 0 || height == 0 {
        return Err(malformed(path, format!("{len} images of {width} x {height} pixels")));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut notices = Notices::default();
    let labels = match labels_beside(path) {
        Some(labels) => read_labels(&labels, len, hold)?,
        None => {
            let expected = plain_labels(&name);
            notices.notes.push(format!("no classes: {expected} or {expected}.gz is not beside {name}"));
            Vec::new()
        }
    };
    let n_classes = labels.iter().max().map_or(0, |last| last + 1);
    Ok(Pixels {
        width,
        height,
        channels: 1,
        layout: Layout::Interleaved,
        bytes,
        len,
        class_names: (0..n_classes).map(|class| class.to_string()).collect(),
        labels,
        files: vec![(name, len)],
        notices,
    })
}

/// Images and labels need not both be compressed.
fn labels_beside(images: &Path) -> Option<PathBuf> {
    let plain = plain_labels(&images.file_name().unwrap_or_default().to_string_lossy());
    [plain.clone(), format!("{plain}.gz")]
        .iter()
        .map(|name| images.with_file_name(name))
        .find(|path| path.is_file())
}

fn plain_labels(images: &str) -> String {
    images.trim_end_matches(".gz").replace("images", "labels").replace("idx3", "idx1")
}

fn read_labels(path: &Path, n_images: usize, hold: Hold<'_>) -> Result<Vec<u32>, Error> {
    let (dimensions, bytes) = read(path, hold)?;
    if dimensions != [n_images] {
        return Err(malformed(path, format!("labels of shape {dimensions:?} for {n_images} images")));
    }
    let bytes = bytes.read(0, n_images)?.ok_or_else(|| malformed(path, "it ends early"))?;
    Ok(bytes.iter().map(|&label| u32::from(label)).collect())
}

/// Reads the dimensions and the elements. What the dimensions promise is held against the length of a plain file, and
/// against the memory that is available, before anything is reserved for it.
fn read(path: &Path, hold: Hold<'_>) -> Result<(Vec<usize>, Bytes), Error> {
    let (file, file_len) = access::open_source(path)?;
    let mut plain = BufReader::new(Patient(file));
    let is_compressed = plain.fill_buf().map_err(failed(path))?.starts_with(&[0x1F, 0x8B]);
    let mut stream: Box<dyn Read> =
        if is_compressed { Box::new(flate2::bufread::MultiGzDecoder::new(plain)) } else { Box::new(plain) };
    let mut start = Vec::new();
    (&mut stream).take(4).read_to_end(&mut start).map_err(failed(path))?;
    let [0, 0, 8, n_dimensions] = start[..] else {
        return Err(malformed(path, "not an IDX file of bytes: it does not begin with 00 00 08"));
    };
    let header_bytes = 4 * u64::from(n_dimensions);
    let mut header = Vec::new();
    (&mut stream).take(header_bytes).read_to_end(&mut header).map_err(failed(path))?;
    if (header.len() as u64) < header_bytes {
        return Err(malformed(path, "it ends within its header"));
    }
    let dimensions: Vec<usize> = header
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as usize)
        .collect();
    let expected = dimensions.iter().try_fold(1u64, |product, &len| product.checked_mul(len as u64));
    let other_than = |actual: String| {
        malformed(path, format!("{actual} bytes of data where the shape {dimensions:?} needs another number"))
    };
    let plain_bytes = (!is_compressed).then(|| file_len.saturating_sub(4 + header_bytes));
    if let Some(actual) = plain_bytes.filter(|actual| expected != Some(*actual)) {
        return Err(other_than(actual.to_string()));
    }
    let expected =
        expected.ok_or_else(|| malformed(path, format!("no memory holds a shape of {dimensions:?}")))?;
    let mut held = Collector::new(path, hold);
    held.expect(expected)?;
    let taken = held.take(&mut stream, expected)?.map_err(failed(path))?;
    // The end of a compressed file has its checksum.
    let more = stream.read(&mut [0]).map_err(failed(path))?;
    match (taken == expected, more) {
        (true, 0) => Ok((dimensions, held.finish())),
        (false, _) => Err(other_than(taken.to_string())),
        (true, _) => Err(other_than(format!("more than {expected}"))),
    }
}

/// The machine's fault, or damage of what is compressed.
fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |error| {
        if access::is_machines(&error) {
            access::machine(path, error)
        } else {
            malformed(path, format!("cannot be decompressed: {error}"))
        }
    }
}
