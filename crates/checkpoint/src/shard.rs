//! A shard on its way: a safetensors file, written and read chunk by chunk.
//!
//! A shard may be as large as what a rank holds. Neither side ever has it twice: the encoder copies a chunk at a time
//! out of the tensors, the decoder keeps the tensor that is arriving.

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::path::Path;

use crate::Error;
use crate::manifest::{Digest, Shard, hex};
use crate::state::Tensor;

/// Bytes before the header, which say how long it is.
const LENGTH_BYTES: usize = 8;

/// Longer headers are refused, as by the safetensors crate.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// Gives the bytes of a shard in chunks, and digests them on the way.
pub struct ShardEncoder<'a> {
    /// The header and each tensor's bytes.
    pieces: Vec<Cow<'a, [u8]>>,
    /// The next byte: of which piece, and where in it.
    next: (usize, usize),
    hasher: blake3::Hasher,
}

impl<'a> ShardEncoder<'a> {
    /// Begins; the same tensors in any order give the same bytes.
    ///
    /// # Panics
    /// If a tensor's bytes do not fill its shape. The caller made them, so this is a bug.
    pub fn new(tensors: &'a [Tensor<'_>]) -> ShardEncoder<'a> {
        let mut tensors: Vec<&Tensor<'_>> = tensors.iter().collect();
        // The order that the safetensors crate writes: every tensor begins at a multiple of its elements' size.
        tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let mut end = 0;
        let entry = |tensor: &&Tensor<'_>| {
            let start = end;
            end += tensor.data.len();
            let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
            (tensor.name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
        };
        let metadata = Metadata::new(None, tensors.iter().map(entry).collect());
        let metadata = metadata.expect("a tensor's bytes fill its shape");
        let mut header = serde_json::to_vec(&metadata).expect("names and numbers serialise");
        header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
        let length = (header.len() as u64).to_le_bytes().to_vec();
        let data = tensors.into_iter().map(|tensor| Cow::Borrowed(&tensor.data[..]));
        let pieces = [length.into(), header.into()].into_iter().chain(data).collect();
        ShardEncoder { pieces, next: (0, 0), hasher: blake3::Hasher::new() }
    }

    /// Bytes of the whole shard.
    pub fn total_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }

    /// The next bytes, `most` of them except at the end; `None` after it.
    pub fn next_chunk(&mut self, most: usize) -> Option<Vec<u8>> {
        let mut chunk = Vec::new();
        while let Some(piece) = self.pieces.get(self.next.0)
            && chunk.len() < most
        {
            let (index, start) = self.next;
            let end = piece.len().min(start + most - chunk.len());
            chunk.extend_from_slice(&piece[start..end]);
            self.next = if end == piece.len() { (index + 1, 0) } else { (index, end) };
        }
        self.hasher.update(&chunk);
        (!chunk.is_empty()).then_some(chunk)
    }

    /// Digest of the chunks so far.
    pub fn digest(&self) -> Digest {
        *self.hasher.finalize().as_bytes()
    }
}

/// Encodes tensors as safetensors; the same tensors in any order give the same bytes.
///
/// # Panics
/// As [`ShardEncoder::new`].
pub fn encode_shard(tensors: &[Tensor<'_>]) -> Vec<u8> {
    ShardEncoder::new(tensors).pieces.concat()
}

/// Reads a shard chunk by chunk, trusting nothing in it, and hands over each tensor once it is there.
///
/// Only [`ShardDecoder::finish`] says whether all of it was what had been written.
pub struct ShardDecoder<'s> {
    shard: &'s Shard,
    /// What errors call it.
    file: &'s Path,
    hasher: blake3::Hasher,
    bytes: u64,
    /// Bytes of the header, and then of tensors; those before `start` were handed over.
    pending: Vec<u8>,
    start: usize,
    header: Header,
}

/// Names of tensors, and what they are, in the order of their bytes.
type Contents = VecDeque<(String, TensorInfo)>;

enum Header {
    Awaited,
    /// What is to come.
    Valid(Contents),
    Invalid(String),
}

impl<'s> ShardDecoder<'s> {
    /// Begins to read what the manifest lists as `shard`; `file` is what errors call it.
    pub fn new(shard: &'s Shard, file: &'s Path) -> ShardDecoder<'s> {
        let (hasher, pending) = (blake3::Hasher::new(), Vec::new());
        ShardDecoder { shard, file, hasher, bytes: 0, pending, start: 0, header: Header::Awaited }
    }

    /// Bytes that have arrived.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a chunk.
    ///
    /// # Errors
    /// If there are more bytes than the manifest lists.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.bytes += chunk.len() as u64;
        if self.bytes > self.shard.bytes {
            return Err(self.wrong_length());
        }
        self.hasher.update(chunk);
        self.pending.drain(..self.start);
        self.start = 0;
        match &self.header {
            Header::Invalid(_) => return Ok(()),
            Header::Valid(_) => self.pending.extend_from_slice(chunk),
            Header::Awaited => {
                self.pending.extend_from_slice(chunk);
                match parse(&self.pending, self.shard.bytes) {
                    Ok(None) => {}
                    Ok(Some((tensors, length))) => {
                        (self.header, self.start) = (Header::Valid(tensors), length);
                    }
                    Err(reason) => (self.header, self.pending) = (Header::Invalid(reason), Vec::new()),
                }
            }
        }
        Ok(())
    }

    /// The next tensor, if all of its bytes are there.
    pub fn next_tensor(&mut self) -> Option<Tensor<'_>> {
        let Header::Valid(tensors) = &mut self.header else { return None };
        let pending = &self.pending[self.start..];
        let (name, info) = tensors.pop_front_if(|(_, info)| bytes_of(info) <= pending.len())?;
        let data = &pending[..bytes_of(&info)];
        self.start += data.len();
        Some(Tensor { name, dtype: info.dtype, shape: info.shape, data: data.into() })
    }

    /// Ends the shard, of which every tensor was taken.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Altered`]; [`Error::Malformed`] if it is what was written, and yet its header is
    /// not valid, names a tensor twice, or does not cover the bytes exactly.
    pub fn finish(self) -> Result<(), Error> {
        let file = || self.file.to_owned();
        if self.bytes != self.shard.bytes {
            return Err(self.wrong_length());
        }
        let actual = hex(self.hasher.finalize().as_bytes());
        if actual != self.shard.blake3 {
            return Err(Error::Altered { file: file(), expected: self.shard.blake3.clone(), actual });
        }
        match self.header {
            Header::Valid(_) => Ok(()),
            Header::Awaited => Err(Error::Malformed { file: file(), reason: "header too small".to_owned() }),
            Header::Invalid(reason) => Err(Error::Malformed { file: file(), reason }),
        }
    }

    fn wrong_length(&self) -> Error {
        Error::Length { file: self.file.to_owned(), expected: self.shard.bytes, actual: self.bytes }
    }
}

fn bytes_of(info: &TensorInfo) -> usize {
    info.data_offsets.1 - info.data_offsets.0
}

/// What the header lists, and where the first tensor begins; `None` while the header is not whole.
fn parse(bytes: &[u8], total: u64) -> Result<Option<(Contents, usize)>, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES as u64 {
        return Err("header too large".to_owned());
    }
    if LENGTH_BYTES as u64 + length > total {
        return Err("header longer than the file".to_owned());
    }
    let length = length as usize;
    let Some(header) = rest.get(..length) else { return Ok(None) };
    // This refuses offsets that leave gaps, overlap, or do not fit the shapes.
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| format!("invalid header: {error}"))?;
    if let Some(name) = repeated_name(header) {
        return Err(format!("tensor `{name}` is there twice"));
    }
    let end = LENGTH_BYTES + length + metadata.data_len();
    if end as u64 != total {
        return Err(format!("its tensors end at byte {end} of {total}"));
    }
    let infos = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone()));
    let mut tensors: Vec<(String, TensorInfo)> = infos.collect();
    // By name where tensors of no elements share a place.
    tensors.sort_by(|(a, one), (b, other)| one.data_offsets.cmp(&other.data_offsets).then_with(|| a.cmp(b)));
    Ok(Some((tensors.into(), LENGTH_BYTES + length)))
}

/// A name that a valid header has twice: the safetensors crate keeps the last and says nothing.
fn repeated_name(header: &[u8]) -> Option<String> {
    struct FirstRepeated;
    impl<'de> Visitor<'de> for FirstRepeated {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<String>, A::Error> {
            let mut seen = HashSet::new();
            let mut repeated = None;
            while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                if !seen.insert(name.clone()) {
                    repeated = Some(name);
                }
            }
            Ok(repeated)
        }
    }
    serde_json::Deserializer::from_slice(header).deserialize_map(FirstRepeated).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;
    use crate::state::State;
    use safetensors::tensor::TensorView;

    fn tensors() -> Vec<Tensor<'static>> {
        let empty = Tensor::from_f32("empty", &[0, 4], &[]);
        crate::state::tests::tensors().into_iter().chain([empty]).collect()
    }

    fn listed(bytes: &[u8]) -> Shard {
        Shard { file: "a.safetensors".into(), bytes: bytes.len() as u64, blake3: hex(&digest(bytes)) }
    }

    /// The tensors of a shard that arrives in chunks of `size`, and the most bytes that the decoder had room for.
    fn decode(shard: &Shard, bytes: &[u8], size: usize) -> Result<(Vec<Tensor<'static>>, usize), Error> {
        let mut decoder = ShardDecoder::new(shard, Path::new("a.safetensors"));
        let (mut tensors, mut waiting) = (Vec::new(), 0);
        for chunk in bytes.chunks(size) {
            decoder.push(chunk)?;
            waiting = waiting.max(decoder.pending.capacity());
            while let Some(tensor) = decoder.next_tensor() {
                tensors.push(tensor.into_owned());
            }
        }
        decoder.finish().map(|()| (tensors, waiting))
    }

    #[test]
    fn tensors_come_back_with_the_same_bits_however_they_are_cut() {
        let bytes = encode_shard(&tensors());
        for size in [1, 7, 64, bytes.len()] {
            let (decoded, _) = decode(&listed(&bytes), &bytes, size).unwrap();
            let state = State::new(decoded).unwrap();
            for tensor in tensors() {
                assert_eq!(state.get(&tensor.name).unwrap(), &tensor);
            }
        }
    }

    #[test]
    fn a_shard_is_what_the_safetensors_crate_writes() {
        let tensors = tensors();
        let views = tensors.iter().map(|tensor| {
            let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap();
            (tensor.name.as_str(), view)
        });
        let expected = safetensors::serialize(views, None).unwrap();
        assert_eq!(encode_shard(&tensors), expected);
        let mut reversed = tensors.clone();
        reversed.reverse();
        assert_eq!(encode_shard(&reversed), expected);
        for most in [1, 9, 100, 1000] {
            let mut encoder = ShardEncoder::new(&tensors);
            assert_eq!(encoder.total_bytes(), expected.len() as u64);
            let chunks: Vec<Vec<u8>> = std::iter::from_fn(|| encoder.next_chunk(most)).collect();
            assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk.len() == most));
            assert_eq!((chunks.concat(), encoder.digest()), (expected.clone(), digest(&expected)));
        }
    }

    /// Of 64 tensors of 4 KiB no more than the header and a few.
    #[test]
    fn no_more_than_the_tensor_that_arrives_is_kept() {
        let values = vec![0.5; 1024];
        let tensors: Vec<_> = (0..64).map(|i| Tensor::from_f32(format!("{i}"), &[1024], &values)).collect();
        let bytes = encode_shard(&tensors);
        let (decoded, waiting) = decode(&listed(&bytes), &bytes, 1000).unwrap();
        assert_eq!(decoded.len(), 64);
        assert!(waiting < 5 * 4096, "{waiting} bytes");
    }

    fn shard(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    #[track_caller]
    fn check_hostile(bytes: &[u8], reason: &str) {
        for size in [1, 10, 1000] {
            let error = decode(&listed(bytes), bytes, size).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let entry = |name: &str, offsets: &str| {
            format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#)
        };
        let (a, b) = (entry("a", "[0,4]"), entry("b", "[4,8]"));
        let good = shard(&format!("{{{a},{b}}}"), &[0; 8]);
        assert_eq!(decode(&listed(&good), &good, 5).unwrap().0.len(), 2);

        check_hostile(&[], "header too small");
        check_hostile(&u64::MAX.to_le_bytes(), "header too large");
        check_hostile(&1000u64.to_le_bytes(), "header longer than the file");
        check_hostile(&shard("not JSON", &[]), "invalid header: expected");
        check_hostile(&shard(&format!("{{{a},{b}}}"), &[0; 7]), "its tensors end at byte 121 of 120");
        check_hostile(&shard(&format!("{{{a},{}}}", entry("b", "[2,6]")), &[0; 6]), "invalid offset");
        check_hostile(&shard(&format!("{{{a},{}}}", entry("b", "[8,12]")), &[0; 12]), "invalid offset");
        check_hostile(&shard(&format!("{{{a},{a}}}"), &[0; 4]), "`a` is there twice");
        let huge = r#"{"a":{"dtype":"F64","shape":[9223372036854775807,4],"data_offsets":[0,4]}}"#;
        check_hostile(&shard(huge, &[0; 4]), "overflow");
    }

    #[test]
    fn bytes_that_are_not_the_manifests_are_refused() {
        let bytes = encode_shard(&tensors());
        let mut altered = bytes.clone();
        *altered.last_mut().unwrap() ^= 1;
        let error = decode(&listed(&bytes), &altered, 50).unwrap_err();
        assert!(matches!(error, Error::Altered { .. }), "{error}");
        // A header that was altered is no reason to call the shard badly written.
        altered[8] = b'?';
        let error = decode(&listed(&bytes), &altered, 50).unwrap_err();
        assert!(matches!(error, Error::Altered { .. }), "{error}");
        let error = decode(&listed(&bytes), &bytes[..bytes.len() - 1], 50).unwrap_err();
        assert!(error.to_string().contains("is truncated"), "{error}");
        let longer = [&bytes[..], &[0]].concat();
        let error = decode(&listed(&bytes), &longer, 50).unwrap_err();
        assert!(error.to_string().contains("has grown"), "{error}");
    }
}
