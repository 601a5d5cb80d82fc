//! The list of a run's images as a checkpoint keeps it, and a data set in the order of such a list.
//!
//! A run's order is that of the names, so an image that is added or removed shifts all behind it: every entry of a memory
//! bank would then belong to another image. A resumed run therefore takes the order from the list that its checkpoint
//! names, and finds each image by its name.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0-7 | [`MAGIC`] |
//! | 8-11 | length of the header |
//! | ... | the fingerprint: kind (1), images (8), class names, blocks, samples, each list behind its length (4); and the folder within the source that names begin below, behind its length (4) |
//! | ... | of files, zstd: for each image how many bytes its name shares with the one before, the length of the rest, the rest, and its label, all integers in LEB128 |
//!
//! Integers are little-endian. A list comes from a disk or the network: nothing in it is trusted.

use std::collections::HashSet;
use std::io::{BufReader, Read, Write};

use crate::fingerprint::{Fingerprint, Kind};
use crate::{Dataset, Error};

/// What a list begins with.
pub const MAGIC: &[u8; 8] = b"\x89HLIST\r\n";

/// Longer than any path that a file system takes.
const MAX_NAME: usize = 1 << 16;

/// The list of a run's images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageList {
    /// What the set was when the list was made.
    pub fingerprint: Fingerprint,
    /// The folder within the source that names begin below, with a slash at its end; empty for the root.
    base: Vec<u8>,
    /// Names and labels, compressed; empty where images are no files.
    names: Vec<u8>,
}

/// How a data set differs from the list that it follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Images of the list that are not in the data set any more. They keep their positions.
    pub gone: Counted,
    /// Images that are not in the list. They are left out.
    pub new: Counted,
    /// The first image that is there under its name with another content; or why no image is the list's.
    pub changed: Option<String>,
}

/// Some images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub n: usize,
    /// The name of the first; empty if there is none.
    pub first: String,
}

impl Counted {
    fn add(&mut self, name: &[u8]) {
        if self.n == 0 {
            self.first = String::from_utf8_lossy(name).into_owned();
        }
        self.n += 1;
    }
}

/// An image of the list.
struct Entry {
    name: Vec<u8>,
    label: u32,
}

/// What a list says of where its images lie.
///
/// Which folder is the base depends on all that is in the source: one more folder beside `train`, or one file beside a
/// folder that only wraps others, makes it another, and with it all names. The images of a list are therefore looked for
/// below the base that they had, and below another one only where more of them are.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The base when the list was made, with a slash at its end; empty for the root.
    pub base: Vec<u8>,
    /// Some of the names, from all over the list.
    pub names: HashSet<Vec<u8>>,
}

impl ImageList {
    /// Lists the images of a set.
    pub fn of(dataset: &Dataset, fingerprint: Fingerprint) -> ImageList {
        let names = match fingerprint.kind {
            Kind::Files => compress(dataset),
            Kind::Pixels | Kind::Packed | Kind::Builtin => Vec::new(),
        };
        ImageList { fingerprint, base: dataset.base().to_vec(), names }
    }

    /// The list as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut header = Vec::new();
        let Fingerprint { kind, len, class_names, blocks, samples } = &self.fingerprint;
        header.push(*kind as u8);
        header.extend_from_slice(&(*len as u64).to_le_bytes());
        let put_len =
            |header: &mut Vec<u8>, len: usize| header.extend_from_slice(&(len as u32).to_le_bytes());
        put_len(&mut header, class_names.len());
        for name in class_names {
            put_len(&mut header, name.len());
            header.extend_from_slice(name.as_bytes());
        }
        put_len(&mut header, blocks.len());
        header.extend_from_slice(blocks.as_flattened());
        put_len(&mut header, samples.len());
        for (position, content) in samples {
            header.extend_from_slice(&(*position as u64).to_le_bytes());
            header.push(u8::from(content.is_some()));
            header.extend_from_slice(&content.unwrap_or_default());
        }
        put_len(&mut header, self.base.len());
        header.extend_from_slice(&self.base);
        let mut bytes = MAGIC.to_vec();
        put_len(&mut bytes, header.len());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&self.names);
        bytes
    }

    /// Reads a list.
    ///
    /// # Errors
    /// [`Error::List`] if the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<ImageList, Error> {
        let malformed = |reason: &str| Error::List { reason: reason.to_owned() };
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| malformed("it does not begin like one"))?;
        let mut reader = Reader(rest);
        let header = reader.counted().ok_or_else(|| malformed("it ends within its header"))?;
        let names = reader.0.to_vec();
        let (fingerprint, base) = read_header(header).ok_or_else(|| malformed("its header is damaged"))?;
        Ok(ImageList { fingerprint, base, names })
    }

    /// What it says of where its images lie.
    pub(crate) fn listed(&self) -> Result<Listed, Error> {
        let mut names = HashSet::new();
        if self.fingerprint.kind == Kind::Files {
            let stride = self.fingerprint.len.div_ceil(1024);
            let mut entries = self.entries()?;
            while let Some(Entry { name, .. }) = entries.next()? {
                if entries.left.is_multiple_of(stride) {
                    names.insert(name);
                }
            }
        }
        Ok(Listed { base: self.base.clone(), names })
    }

    /// Reads the images one by one.
    fn entries(&self) -> Result<Entries<'_>, Error> {
        let stream = zstd::stream::read::Decoder::with_buffer(&self.names[..]).map_err(damaged)?;
        let Fingerprint { len, class_names, .. } = &self.fingerprint;
        Ok(Entries {
            stream: BufReader::new(stream),
            left: *len,
            n_classes: class_names.len(),
            name: Vec::new(),
        })
    }
}

fn damaged(error: std::io::Error) -> Error {
    Error::List { reason: format!("its names cannot be decompressed: {error}") }
}

fn compress(dataset: &Dataset) -> Vec<u8> {
    const NO_FAILURE: &str = "writing to memory does not fail";
    let mut stream = zstd::stream::write::Encoder::new(Vec::new(), 0).expect(NO_FAILURE);
    let (mut previous, mut name, mut record) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..dataset.len() {
        name.clear();
        dataset.name(index, &mut name);
        let shared = name.iter().zip(&previous).take_while(|(a, b)| a == b).count();
        record.clear();
        put_varint(&mut record, shared);
        put_varint(&mut record, name.len() - shared);
        record.extend_from_slice(&name[shared..]);
        put_varint(&mut record, if dataset.has_labels() { dataset.label_of(index) as usize } else { 0 });
        stream.write_all(&record).expect(NO_FAILURE);
        std::mem::swap(&mut previous, &mut name);
    }
    stream.finish().expect(NO_FAILURE)
}

/// LEB128.
fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The images of a list as they are decompressed.
struct Entries<'a> {
    stream: BufReader<zstd::stream::read::Decoder<'a, &'a [u8]>>,
    left: usize,
    n_classes: usize,
    name: Vec<u8>,
}

impl Entries<'_> {
    /// The next image; none behind the last.
    fn next(&mut self) -> Result<Option<Entry>, Error> {
        let malformed = |reason: String| Err(Error::List { reason });
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (shared, rest) = (self.varint()?, self.varint()?);
        if shared > self.name.len() {
            return malformed(format!("a name shares {shared} bytes with one of {}", self.name.len()));
        }
        if shared + rest > MAX_NAME {
            return malformed(format!("a name has {} bytes", shared + rest));
        }
        let before = self.name.clone();
        self.name.resize(shared + rest, 0);
        self.stream.read_exact(&mut self.name[shared..]).map_err(damaged)?;
        // Names in order find each other in one pass, and none is there twice.
        if !before.is_empty() && self.name <= before {
            return malformed("its names are not in order".to_owned());
        }
        let label = self.varint()?;
        if label >= self.n_classes.max(1) {
            return malformed(format!("an image is of class {label} of {}", self.n_classes));
        }
        Ok(Some(Entry { name: self.name.clone(), label: label as u32 }))
    }

    fn varint(&mut self) -> Result<usize, Error> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).map_err(damaged)?;
            value |= u64::from(byte[0] & 0x7F) << shift;
            if byte[0] < 0x80 {
                return Ok(value as usize);
            }
        }
        Err(Error::List { reason: "an integer in it is too long".to_owned() })
    }
}

/// What is left of the header.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn len(&mut self) -> Option<usize> {
        self.take().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn position(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(self.take()?)).ok()
    }

    /// Bytes behind their length.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let len = self.len()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
}

fn read_header(header: &[u8]) -> Option<(Fingerprint, Vec<u8>)> {
    let mut reader = Reader(header);
    let kind = match reader.take::<1>()? {
        [0] => Kind::Files,
        [1] => Kind::Pixels,
        [2] => Kind::Packed,
        [3] => Kind::Builtin,
        _ => return None,
    };
    let len = reader.position()?;
    let class_names = (0..reader.len()?)
        .map(|_| String::from_utf8(reader.counted()?.to_vec()).ok())
        .collect::<Option<Vec<_>>>()?;
    let blocks = (0..reader.len()?).map(|_| reader.take()).collect::<Option<Vec<_>>>()?;
    let samples = (0..reader.len()?)
        .map(|_| {
            let (position, known, content) = (reader.position()?, reader.take::<1>()?, reader.take()?);
            (position < len).then_some((position, (known == [1]).then_some(content)))
        })
        .collect::<Option<Vec<_>>>()?;
    let fingerprint = Fingerprint { kind, len, class_names, blocks, samples };
    let base = reader.counted()?.to_vec();
    (reader.0.is_empty() && len > 0).then_some((fingerprint, base))
}

/// A data set in the order of a list.
pub struct Followed {
    /// The index in the source of each image of the list; [`GONE`] if it is not there.
    pub indices: Vec<u32>,
    /// The label that the list has for each.
    pub labels: Vec<u32>,
    /// Names of the images that are gone, by position.
    pub gone: std::collections::BTreeMap<usize, Vec<u8>>,
}

/// The index of an image that is not in the source.
pub const GONE: u32 = u32::MAX;

impl Dataset {
    /// Takes order and classes of the images from `list`, in which they are found by their names.
    ///
    /// A set whose images are no files is compared only: its order is that in its file.
    ///
    /// # Errors
    /// [`Error::List`] if the list is damaged.
    pub(crate) fn follow(&mut self, list: &ImageList) -> Result<Differences, Error> {
        let theirs = &list.fingerprint;
        let mut differences = Differences::default();
        if self.kind() != theirs.kind {
            differences.changed =
                Some(format!("{} where the list is of {}", describe(self.kind()), describe(theirs.kind)));
        } else if theirs.kind == Kind::Files {
            let followed = self.find(list, &mut differences)?;
            if differences.gone.n == theirs.len {
                differences.changed = Some("none of the images of the list is there".to_owned());
            } else if differences.gone.n + differences.new.n > 0 || self.class_names() != theirs.class_names {
                self.rearrange(followed, theirs.class_names.clone());
            }
        } else if self.len() != theirs.len {
            differences.changed = Some(format!("{} images where the list has {}", self.len(), theirs.len));
        }
        Ok(differences)
    }

    /// Walks through the images of the set and of the list, both in the order of their names.
    fn find(&self, list: &ImageList, differences: &mut Differences) -> Result<Followed, Error> {
        let mut followed = Followed { indices: Vec::new(), labels: Vec::new(), gone: Default::default() };
        let mut entries = list.entries()?;
        let (mut index, mut own) = (0, Vec::new());
        let own_name = |index: usize, own: &mut Vec<u8>| {
            own.clear();
            (index < self.len()).then(|| self.name(index, own)).is_some()
        };
        let mut is_left = own_name(index, &mut own);
        while let Some(Entry { name, label }) = entries.next()? {
            while is_left && own < name {
                differences.new.add(&own);
                index += 1;
                is_left = own_name(index, &mut own);
            }
            if is_left && own == name {
                followed.indices.push(u32::try_from(index).expect("fewer than 2^32 files"));
                index += 1;
                is_left = own_name(index, &mut own);
            } else {
                differences.gone.add(&name);
                followed.gone.insert(followed.indices.len(), name);
                followed.indices.push(GONE);
            }
            followed.labels.push(label);
        }
        while is_left {
            differences.new.add(&own);
            index += 1;
            is_left = own_name(index, &mut own);
        }
        Ok(followed)
    }

    /// The first image whose content is not what `before` says, the set being in the order of the same list. What cannot be
    /// had, now or then, is not compared, and no class of image files.
    pub fn first_changed(&self, before: &Fingerprint, now: &Fingerprint) -> Option<String> {
        let contents = before.samples.iter().zip(&now.samples);
        let changed = contents
            .filter(|((a, then), (b, now))| a != b || then.zip(*now).is_some_and(|(then, now)| then != now));
        if let Some(((position, _), _)) = changed.into_iter().next() {
            return Some(self.path_of(*position));
        }
        if now.kind == Kind::Files || before.blocks == now.blocks {
            return None;
        }
        let differs = |(then, now): (&[u8; 32], &[u8; 32])| then != now;
        let block = before.blocks.iter().zip(&now.blocks).position(differs).unwrap_or_default();
        Some(match now.kind {
            Kind::Packed => "the packed set, whose digest is another".to_owned(),
            _ => format!(
                "one of the {} images from {} on",
                crate::fingerprint::BLOCK,
                self.path_of(block * crate::fingerprint::BLOCK)
            ),
        })
    }
}

fn describe(kind: Kind) -> &'static str {
    match kind {
        Kind::Files => "image files",
        Kind::Pixels => "an IDX or CIFAR file",
        Kind::Packed => "a packed set",
        Kind::Builtin => "the built-in images",
    }
}

#[cfg(test)]
mod tests;
