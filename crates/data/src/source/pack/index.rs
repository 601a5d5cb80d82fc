//! The header and index of a packed set: written, and read without trusting a single number.

use std::ops::Range;

use super::MAGIC;
use crate::MAX_PIXELS;

/// The only version there is.
const VERSION: u64 = 1;

/// Bytes of the header.
pub const HEADER_LEN: usize = 72;

/// Bytes of an entry whose path is empty: more entries than fit are not believed.
const SMALLEST_ENTRY: usize = 40;

/// What the index says of the set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Index {
    pub entries: Vec<Entry>,
    /// Empty: there are no labels.
    pub class_names: Vec<String>,
}

/// What the index says of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub offset: u64,
    /// 0: it could not be decoded.
    pub width: u32,
    /// Of an image that could not be decoded: the length of the reason.
    pub height: u32,
    pub label: u32,
    pub checksum: [u8; 16],
    pub path: String,
}

impl Entry {
    /// Where its bytes lie. [`read`] has made sure that they do.
    pub fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start + self.len() as usize
    }

    fn len(&self) -> u64 {
        let (width, height) = (u64::from(self.width), u64::from(self.height));
        if self.width == 0 { height } else { width.saturating_mul(height).saturating_mul(3) }
    }
}

/// Writes header and index of a set whose images end at `index_offset`.
pub fn write(index: &Index, index_offset: u64) -> ([u8; HEADER_LEN], Vec<u8>) {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    bytes.extend_from_slice(&(index.class_names.len() as u32).to_le_bytes());
    index.class_names.iter().for_each(|name| text(&mut bytes, name));
    for entry in &index.entries {
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        for number in [entry.width, entry.height, entry.label] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&entry.checksum);
        text(&mut bytes, &entry.path);
    }
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    let numbers = [VERSION, index_offset, bytes.len() as u64, index.entries.len() as u64];
    for (place, number) in header[8..40].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let digest = digest(&header, &bytes);
    header[40..].copy_from_slice(&digest);
    (header, bytes)
}

/// Reads the index of the file `bytes`.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Index, String> {
    let header: &[u8; HEADER_LEN] = bytes
        .first_chunk()
        .ok_or_else(|| format!("it ends after {} bytes, within its header", bytes.len()))?;
    let mut numbers = Reader { rest: &header[8..40] };
    let (version, offset) = (numbers.u64()?, numbers.u64()?);
    let (len, n_images) = (numbers.u64()?, numbers.u64()?);
    if version != VERSION {
        return Err(format!("it has version {version}, and this program reads version {VERSION}"));
    }
    let file_len = bytes.len() as u64;
    if offset < HEADER_LEN as u64 || offset.checked_add(len) != Some(file_len) {
        return Err(format!("it has {file_len} bytes where its header says {len} behind the first {offset}"));
    }
    let index = &bytes[offset as usize..];
    if digest(header, index)[..] != header[40..] {
        return Err("its index does not have the checksum of its header".to_owned());
    }
    let mut reader = Reader { rest: index };
    let n_classes = reader.u32()?;
    let class_names = (0..n_classes).map(|_| reader.text()).collect::<Result<Vec<_>, _>>()?;
    if n_images > (reader.rest.len() / SMALLEST_ENTRY) as u64 {
        return Err(format!("{n_images} images do not fit an index of {len} bytes"));
    }
    let entries = (0..n_images).map(|_| reader.entry(offset, n_classes)).collect::<Result<Vec<_>, _>>()?;
    if !reader.rest.is_empty() {
        return Err(format!("{} bytes follow its index", reader.rest.len()));
    }
    Ok(Index { entries, class_names })
}

fn digest(header: &[u8; HEADER_LEN], index: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..40]);
    hasher.update(index);
    *hasher.finalize().as_bytes()
}

/// What is left to read.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (first, rest) = self.rest.split_first_chunk().ok_or("its index ends early")?;
        self.rest = rest;
        Ok(*first)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, String> {
        let len = self.u32()? as usize;
        let (text, rest) = self.rest.split_at_checked(len).ok_or("its index ends within a name")?;
        self.rest = rest;
        String::from_utf8(text.to_vec()).map_err(|_| "a name in its index is no UTF-8".to_owned())
    }

    /// An image of a file whose images end at `end`.
    fn entry(&mut self, end: u64, n_classes: u32) -> Result<Entry, String> {
        let offset = self.u64()?;
        let (width, height, label) = (self.u32()?, self.u32()?, self.u32()?);
        let entry = Entry { offset, width, height, label, checksum: self.bytes()?, path: self.text()? };
        let within = offset >= HEADER_LEN as u64
            && offset.checked_add(entry.len()).is_some_and(|image_end| image_end <= end);
        if !within || height == 0 || entry.len() > 3 * MAX_PIXELS as u64 {
            return Err(format!("{} x {} pixels of {} are not in it", width, height, entry.path));
        }
        if label >= n_classes.max(1) {
            return Err(format!("{} is of class {label} of {n_classes}", entry.path));
        }
        Ok(entry)
    }
}
