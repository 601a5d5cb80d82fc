//! The header and index of a packed set: written, and read without trusting a single number.

use std::ops::Range;

use super::MAGIC;

/// The version that is read. Version 1 had the paths between the numbers.
const VERSION: u64 = 2;

/// Bytes of the header.
pub const HEADER_LEN: usize = 72;

/// Bytes of an image's entry: 36 of numbers and checksum, and where its path ends.
const ENTRY_LEN: usize = 44;

/// Where the parts of the index lie, by which an image's entry is found.
#[derive(Clone, Debug)]
pub struct Index {
    n_classes: u32,
    /// Where the images end, at most.
    images_end: u64,
    entries: Range<usize>,
    paths: Range<usize>,
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
}

impl Entry {
    /// Where its bytes lie. [`Index::entry`] has made sure that they do.
    pub fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start + self.len() as usize
    }

    fn len(&self) -> u64 {
        let (width, height) = (u64::from(self.width), u64::from(self.height));
        if self.width == 0 { height } else { width.saturating_mul(height).saturating_mul(3) }
    }
}

/// An index that is being written: its three parts.
pub struct Writer {
    class_names: Vec<u8>,
    entries: Vec<u8>,
    paths: Vec<u8>,
}

impl Writer {
    pub fn new(class_names: &[String]) -> Writer {
        let mut bytes = (class_names.len() as u32).to_le_bytes().to_vec();
        for name in class_names {
            bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        Writer { class_names: bytes, entries: Vec::new(), paths: Vec::new() }
    }

    /// Adds an image.
    pub fn push(&mut self, entry: &Entry, path: &str) {
        self.entries.extend_from_slice(&entry.offset.to_le_bytes());
        for number in [entry.width, entry.height, entry.label] {
            self.entries.extend_from_slice(&number.to_le_bytes());
        }
        self.entries.extend_from_slice(&entry.checksum);
        self.paths.extend_from_slice(path.as_bytes());
        self.entries.extend_from_slice(&(self.paths.len() as u64).to_le_bytes());
    }

    /// Header and parts of the index of a set whose images end at `index_offset`.
    pub fn finish(self, index_offset: u64) -> ([u8; HEADER_LEN], [Vec<u8>; 3]) {
        let n_images = (self.entries.len() / ENTRY_LEN) as u64;
        let parts = [self.class_names, self.entries, self.paths];
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(MAGIC);
        let len = parts.iter().map(|part| part.len() as u64).sum();
        for (place, number) in header[8..40].chunks_exact_mut(8).zip([VERSION, index_offset, len, n_images]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let digest = digest(&header, parts.iter().map(Vec::as_slice));
        header[40..].copy_from_slice(&digest);
        (header, parts)
    }
}

/// Checks the index of the file `bytes`, and lists the classes.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8]) -> Result<(Index, Vec<String>), String> {
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
    let whole = &bytes[offset as usize..];
    if digest(header, [whole])[..] != header[40..] {
        return Err("its index does not have the checksum of its header".to_owned());
    }
    let mut reader = Reader { rest: whole };
    let n_classes = reader.u32()?;
    let class_names = (0..n_classes).map(|_| reader.text()).collect::<Result<Vec<_>, _>>()?;
    let n_images = usize::try_from(n_images).ok().filter(|n| *n <= reader.rest.len() / ENTRY_LEN);
    let n_images = n_images.ok_or_else(|| format!("its images do not fit an index of {len} bytes"))?;
    let entries = bytes.len() - reader.rest.len();
    let paths = entries + n_images * ENTRY_LEN;
    let index = Index { n_classes, images_end: offset, entries: entries..paths, paths: paths..bytes.len() };
    for image in 0..n_images {
        index.entry(bytes, image)?;
        index.path(bytes, image)?;
    }
    let paths_end = index.path_end(bytes, n_images)?;
    if paths_end != index.paths.len() {
        return Err(format!("{} bytes follow its index", index.paths.len() - paths_end));
    }
    Ok((index, class_names))
}

/// The digest in the header of a file that [`read`] has accepted.
pub fn stated_digest(bytes: &[u8]) -> [u8; 32] {
    *bytes[40..].first_chunk().expect("the header was read")
}

impl Index {
    /// Counts the images.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY_LEN
    }

    /// What the index in the file `bytes` says of an image.
    ///
    /// # Errors
    /// If its bytes cannot lie in the file, or its class is none.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn entry(&self, bytes: &[u8], image: usize) -> Result<Entry, String> {
        assert!(image < self.len(), "image {image} of {}", self.len());
        let mut reader = Reader { rest: &bytes[self.entries.clone()][image * ENTRY_LEN..] };
        let offset = reader.u64()?;
        let (width, height, label) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let entry = Entry { offset, width, height, label, checksum: reader.bytes()? };
        let name = || self.path(bytes, image).unwrap_or_else(|_| format!("image {image}"));
        let within = offset >= HEADER_LEN as u64
            && offset.checked_add(entry.len()).is_some_and(|image_end| image_end <= self.images_end);
        // How many pixels an image may have was asked when it was packed; here the file bounds them.
        if !within || height == 0 {
            return Err(format!("{width} x {height} pixels of {} are not in it", name()));
        }
        if label >= self.n_classes.max(1) {
            return Err(format!("{} is of class {label} of {}", name(), self.n_classes));
        }
        Ok(entry)
    }

    /// The path of an image in the set that was packed.
    ///
    /// # Errors
    /// If it does not lie in the file `bytes`, or is no text.
    pub fn path(&self, bytes: &[u8], image: usize) -> Result<String, String> {
        let range = self.path_end(bytes, image)?..self.path_end(bytes, image + 1)?;
        let path = bytes[self.paths.clone()].get(range).ok_or("a path is not in its index")?;
        String::from_utf8(path.to_vec()).map_err(|_| "a path in its index is no UTF-8".to_owned())
    }

    /// Where the paths of the first `n` images end.
    fn path_end(&self, bytes: &[u8], n: usize) -> Result<usize, String> {
        match n.checked_sub(1) {
            None => Ok(0),
            Some(last) => {
                let mut reader = Reader { rest: &bytes[self.entries.clone()][last * ENTRY_LEN + 36..] };
                usize::try_from(reader.u64()?).map_err(|_| "a path is not in its index".to_owned())
            }
        }
    }
}

fn digest<'a>(header: &[u8; HEADER_LEN], index: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..40]);
    for part in index {
        hasher.update(part);
    }
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
}
