//! The format of MNIST and its relatives: images in one file, labels in another.
//!
//! A file begins with two zero bytes, the type of its elements (8: bytes) and the number of dimensions; the
//! dimensions follow, 32 bits each, big-endian, and then the elements.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::pixels::{Layout, Pixels};
use super::{malformed, no_such_split, read_file};
use crate::Error;

const NAMES: [(&str, &str); 2] = [("train", "train"), ("test", "t10k")];

/// Opens a split of a folder that holds IDX files under their usual names, if it does.
pub fn open_folder(root: &Path, split: Option<&str>) -> Result<Option<Pixels>, Error> {
    let found: Vec<(&str, PathBuf)> =
        NAMES.iter().filter_map(|(split, prefix)| Some((*split, images_in(root, prefix)?))).collect();
    let Some((default, _)) = found.first() else { return Ok(None) };
    let wanted = split.unwrap_or(default);
    let Some((_, path)) = found.iter().find(|(split, _)| *split == wanted) else {
        let available: Vec<_> = found.iter().map(|(split, _)| *split).collect();
        return Err(no_such_split(root, wanted, &available.join(" and ")));
    };
    let mut pixels = read_pair(path)?;
    if split.is_none() && found.len() > 1 {
        pixels.note = Some(format!(
            "{0} holds train and test images: taking train; {0}#test are the others",
            root.display()
        ));
    }
    Ok(Some(pixels))
}

/// Opens a file of images, if it is one.
pub fn open_file(path: &Path) -> Result<Option<Pixels>, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.contains("idx3-ubyte") { read_pair(path).map(Some) } else { Ok(None) }
}

fn images_in(root: &Path, prefix: &str) -> Option<PathBuf> {
    ["-images-idx3-ubyte", "-images-idx3-ubyte.gz", "-images.idx3-ubyte", "-images.idx3-ubyte.gz"]
        .iter()
        .map(|suffix| root.join(format!("{prefix}{suffix}")))
        .find(|path| path.is_file())
}

/// Reads a file of images, and of labels if one lies beside it.
fn read_pair(path: &Path) -> Result<Pixels, Error> {
    let (dimensions, bytes) = read(path)?;
    let [len, height, width] = dimensions[..] else {
        return Err(malformed(path, format!("{} dimensions where images have 3", dimensions.len())));
    };
    if len == 0 || width == 0 || height == 0 {
        return Err(malformed(path, format!("{len} images of {width} x {height} pixels")));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let labels = labels_beside(path, &name).map_or(Ok(Vec::new()), |labels| read_labels(&labels, len))?;
    let n_classes = labels.iter().max().map_or(0, |last| last + 1);
    Ok(Pixels {
        width,
        height,
        channels: 1,
        layout: Layout::Interleaved,
        bytes,
        class_names: (0..n_classes).map(|class| class.to_string()).collect(),
        labels,
        files: vec![(name.into_owned(), len)],
        note: None,
    })
}

/// Images and labels need not both be compressed.
fn labels_beside(images: &Path, name: &str) -> Option<PathBuf> {
    let plain = name.trim_end_matches(".gz").replace("images", "labels").replace("idx3", "idx1");
    [plain.clone(), format!("{plain}.gz")]
        .iter()
        .map(|name| images.with_file_name(name))
        .find(|path| path.is_file())
}

fn read_labels(path: &Path, n_images: usize) -> Result<Vec<u32>, Error> {
    let (dimensions, bytes) = read(path)?;
    if dimensions != [n_images] {
        return Err(malformed(path, format!("labels of shape {dimensions:?} for {n_images} images")));
    }
    Ok(bytes.into_iter().map(u32::from).collect())
}

/// Reads the dimensions and the elements.
fn read(path: &Path) -> Result<(Vec<usize>, Vec<u8>), Error> {
    let mut bytes = read_file(path)?;
    if bytes.starts_with(&[0x1F, 0x8B]) {
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(&bytes[..])
            .read_to_end(&mut plain)
            .map_err(|error| malformed(path, format!("cannot be decompressed: {error}")))?;
        bytes = plain;
    }
    let [0, 0, 8, n_dimensions, rest @ ..] = &bytes[..] else {
        return Err(malformed(path, "not an IDX file of bytes: it does not begin with 00 00 08"));
    };
    let header_bytes = 4 * usize::from(*n_dimensions);
    let Some(dimensions) = rest.get(..header_bytes) else {
        return Err(malformed(path, "it ends within its header"));
    };
    let dimensions: Vec<usize> = dimensions
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as usize)
        .collect();
    let expected = dimensions.iter().try_fold(1usize, |product, &len| product.checked_mul(len));
    let actual = rest.len() - header_bytes;
    if expected != Some(actual) {
        return Err(malformed(
            path,
            format!("{actual} bytes of data where the shape {dimensions:?} needs another number"),
        ));
    }
    bytes.drain(..4 + header_bytes);
    Ok((dimensions, bytes))
}
