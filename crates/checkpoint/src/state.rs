//! Named tensors, and their form in a shard: a safetensors file.

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::Error;

pub use safetensors::Dtype;

// Tensors are stored as the bytes they have in memory, which safetensors wants little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// A named array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Unique in its checkpoint, as `model.backbone.conv1.weight`.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, the last dimension varying fastest.
    pub data: Vec<u8>,
}

impl Tensor {
    /// Copies `f32` values.
    ///
    /// # Panics
    /// If the shape does not hold as many values.
    pub fn from_f32(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_values(name.into(), Dtype::F32, shape, values)
    }

    /// Makes a scalar of a count.
    pub fn from_u64(name: impl Into<String>, value: u64) -> Tensor {
        Tensor::from_values(name.into(), Dtype::U64, &[], &[value])
    }

    /// Makes a scalar of a signed count, which is how PyTorch keeps `num_batches_tracked`.
    pub fn from_i64(name: impl Into<String>, value: i64) -> Tensor {
        Tensor::from_values(name.into(), Dtype::I64, &[], &[value])
    }

    /// Copies `i64` values.
    ///
    /// # Panics
    /// If the shape does not hold as many values.
    pub fn from_i64s(name: impl Into<String>, shape: &[usize], values: &[i64]) -> Tensor {
        Tensor::from_values(name.into(), Dtype::I64, shape, values)
    }

    fn from_values<T: bytemuck::Pod>(name: String, dtype: Dtype, shape: &[usize], values: &[T]) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?} of `{name}`");
        Tensor { name, dtype, shape: shape.to_vec(), data: bytemuck::cast_slice(values).to_vec() }
    }

    /// Copies the values out.
    ///
    /// # Errors
    /// If the tensor has another type or shape.
    pub fn copy_to_f32(&self, shape: &[usize], out: &mut [f32]) -> Result<(), Error> {
        self.expect(Dtype::F32, shape)?;
        bytemuck::cast_slice_mut(out).copy_from_slice(&self.data);
        Ok(())
    }

    /// The value of an unsigned scalar.
    ///
    /// # Errors
    /// If the tensor has another type or shape.
    pub fn to_u64(&self) -> Result<u64, Error> {
        self.expect(Dtype::U64, &[])?;
        Ok(bytemuck::pod_read_unaligned(&self.data))
    }

    /// The value of a signed scalar.
    ///
    /// # Errors
    /// If the tensor has another type or shape.
    pub fn to_i64(&self) -> Result<i64, Error> {
        self.expect(Dtype::I64, &[])?;
        Ok(bytemuck::pod_read_unaligned(&self.data))
    }

    fn expect(&self, dtype: Dtype, shape: &[usize]) -> Result<(), Error> {
        if self.dtype == dtype && self.shape == shape {
            return Ok(());
        }
        Err(Error::WrongTensor {
            name: self.name.clone(),
            expected: format!("{dtype} {shape:?}"),
            actual: format!("{} {:?}", self.dtype, self.shape),
        })
    }
}

/// All tensors of a checkpoint, whichever shard they came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
}

impl State {
    /// Collects tensors in the given order.
    ///
    /// # Errors
    /// If two have the same name.
    pub fn new(tensors: impl IntoIterator<Item = Tensor>) -> Result<State, Error> {
        let mut state = State::default();
        for tensor in tensors {
            if state.index.insert(tensor.name.clone(), state.tensors.len()).is_some() {
                return Err(Error::Shard { reason: format!("tensor `{}` is there twice", tensor.name) });
            }
            state.tensors.push(tensor);
        }
        Ok(state)
    }

    /// The tensors, in their order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Finds a tensor.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn get(&self, name: &str) -> Result<&Tensor, Error> {
        let index = self.index.get(name).ok_or_else(|| Error::NoSuchTensor { name: name.to_owned() })?;
        Ok(&self.tensors[*index])
    }
}

/// Encodes tensors as safetensors; the same tensors in any order give the same bytes.
///
/// # Panics
/// If a tensor's bytes do not fill its shape. The caller made them, so this is a bug.
pub fn encode_shard(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data);
        (tensor.name.as_str(), view.expect("a tensor's bytes fill its shape"))
    });
    safetensors::serialize(views, None).expect("a header of checked views is valid")
}

/// Decodes a safetensors file, trusting nothing in it.
///
/// # Errors
/// If the header is not valid, names a tensor twice, or does not cover the bytes exactly.
pub fn decode_shard(bytes: &[u8]) -> Result<Vec<Tensor>, Error> {
    decode(bytes).map_err(|reason| Error::Shard { reason })
}

/// As [`decode_shard`], for a caller that knows which file it is.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Tensor>, String> {
    let shard = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    if let Some(name) = repeated_name(bytes) {
        return Err(format!("tensor `{name}` is there twice"));
    }
    let mut views: Vec<(&str, TensorView<'_>)> = shard.iter().collect();
    // By place in the file, and by name where tensors of no elements share one.
    views.sort_by_key(|(name, view)| (view.data().as_ptr().addr(), *name));
    let tensor = |(name, view): (&str, TensorView<'_>)| Tensor {
        name: name.to_owned(),
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    };
    Ok(views.into_iter().map(tensor).collect())
}

/// A name that a valid header has twice: the safetensors crate keeps the last and says nothing.
fn repeated_name(bytes: &[u8]) -> Option<String> {
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
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    serde_json::Deserializer::from_slice(header).deserialize_map(FirstRepeated).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<Tensor> {
        vec![
            Tensor::from_f32("model.backbone.conv1.weight", &[2, 1, 1, 1], &[1.5, -0.0]),
            Tensor::from_i64("model.backbone.bn1.num_batches_tracked", -3),
            Tensor::from_u64("counters.step", u64::MAX),
            Tensor::from_f32("empty", &[0, 4], &[]),
        ]
    }

    #[test]
    fn tensors_come_back_with_the_same_bits() {
        let bytes = encode_shard(&tensors());
        let state = State::new(decode_shard(&bytes).unwrap()).unwrap();
        for tensor in tensors() {
            assert_eq!(state.get(&tensor.name).unwrap(), &tensor);
        }
        assert_eq!(state.get("counters.step").unwrap().to_u64().unwrap(), u64::MAX);
        assert_eq!(state.get("model.backbone.bn1.num_batches_tracked").unwrap().to_i64().unwrap(), -3);
        let mut values = [0f32; 2];
        state.get("model.backbone.conv1.weight").unwrap().copy_to_f32(&[2, 1, 1, 1], &mut values).unwrap();
        assert_eq!(values.map(f32::to_bits), [1.5f32, -0.0].map(f32::to_bits));
    }

    #[test]
    fn the_order_of_the_tensors_does_not_change_the_bytes() {
        let mut reversed = tensors();
        reversed.reverse();
        assert_eq!(encode_shard(&reversed), encode_shard(&tensors()));
    }

    #[test]
    fn what_does_not_fit_its_reader_is_named() {
        let state = State::new(tensors()).unwrap();
        assert_eq!(state.get("x").unwrap_err().to_string(), "the checkpoint has no tensor `x`");
        let error = state.get("counters.step").unwrap().copy_to_f32(&[3], &mut [0.0; 3]).unwrap_err();
        assert_eq!(error.to_string(), "tensor `counters.step` is U64 [] instead of F32 [3]");
        let twice = [tensors(), tensors()].concat();
        assert!(State::new(twice).unwrap_err().to_string().contains("conv1.weight` is there twice"));
    }

    fn shard(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    #[track_caller]
    fn check_hostile(bytes: &[u8], reason: &str) {
        let error = decode_shard(bytes).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }

    #[test]
    fn hostile_headers_are_refused() {
        let entry = |name: &str, offsets: &str| {
            format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#)
        };
        let (a, b) = (entry("a", "[0,4]"), entry("b", "[4,8]"));
        assert_eq!(decode_shard(&shard(&format!("{{{a},{b}}}"), &[0; 8])).unwrap().len(), 2);

        check_hostile(&[], "header too small");
        check_hostile(&u64::MAX.to_le_bytes(), "header too large");
        check_hostile(&1000u64.to_le_bytes(), "invalid header length");
        check_hostile(&shard("not JSON", &[]), "invalid JSON");
        check_hostile(&shard(&format!("{{{a},{b}}}"), &[0; 7]), "not fully covered");
        check_hostile(&shard(&format!("{{{a},{}}}", entry("b", "[2,6]")), &[0; 6]), "invalid offset");
        check_hostile(&shard(&format!("{{{a},{}}}", entry("b", "[8,12]")), &[0; 12]), "invalid offset");
        check_hostile(&shard(&format!("{{{a},{a}}}"), &[0; 4]), "`a` is there twice");
        let huge = r#"{"a":{"dtype":"F64","shape":[9223372036854775807,4],"data_offsets":[0,4]}}"#;
        check_hostile(&shard(huge, &[0; 4]), "overflow");
    }
}
