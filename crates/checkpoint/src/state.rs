//! Named tensors, and a checkpoint's whole set of them.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::Error;

pub use safetensors::Dtype;

// Tensors are stored as the bytes they have in memory, which safetensors wants little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// A named array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// Unique in its checkpoint, as `model.backbone.conv1.weight`.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, the last dimension varying fastest.
    pub data: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// `f32` values as they lie.
    ///
    /// # Panics
    /// If the shape does not hold as many values.
    pub fn from_f32(name: impl Into<String>, shape: &[usize], values: &'a [f32]) -> Tensor<'a> {
        Tensor::from_values(name.into(), Dtype::F32, shape, values)
    }

    /// Makes a scalar of a count.
    pub fn from_u64(name: impl Into<String>, value: u64) -> Tensor<'a> {
        Tensor::from_values(name.into(), Dtype::U64, &[], &[value]).into_owned()
    }

    /// Makes a scalar of a signed count, which is how PyTorch keeps `num_batches_tracked`.
    pub fn from_i64(name: impl Into<String>, value: i64) -> Tensor<'a> {
        Tensor::from_values(name.into(), Dtype::I64, &[], &[value]).into_owned()
    }

    /// `i64` values as they lie.
    ///
    /// # Panics
    /// If the shape does not hold as many values.
    pub fn from_i64s(name: impl Into<String>, shape: &[usize], values: &'a [i64]) -> Tensor<'a> {
        Tensor::from_values(name.into(), Dtype::I64, shape, values)
    }

    fn from_values<T: bytemuck::Pod>(
        name: String,
        dtype: Dtype,
        shape: &[usize],
        values: &'a [T],
    ) -> Tensor<'a> {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?} of `{name}`");
        Tensor { name, dtype, shape: shape.to_vec(), data: bytemuck::cast_slice(values).into() }
    }

    /// Copies the elements, unless they are its own.
    pub fn into_owned<'b>(self) -> Tensor<'b> {
        Tensor { data: self.data.into_owned().into(), ..self }
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
    tensors: Vec<Tensor<'static>>,
    index: HashMap<String, usize>,
}

impl State {
    /// Collects tensors in the given order.
    ///
    /// # Errors
    /// If two have the same name.
    pub fn new(tensors: impl IntoIterator<Item = Tensor<'static>>) -> Result<State, Error> {
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
    pub fn tensors(&self) -> &[Tensor<'static>] {
        &self.tensors
    }

    /// Finds a tensor.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn get(&self, name: &str) -> Result<&Tensor<'static>, Error> {
        let index = self.index.get(name).ok_or_else(|| Error::NoSuchTensor { name: name.to_owned() })?;
        Ok(&self.tensors[*index])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn tensors() -> Vec<Tensor<'static>> {
        vec![
            Tensor::from_f32("model.backbone.conv1.weight", &[2, 1, 1, 1], &[1.5, -0.0]),
            Tensor::from_i64("model.backbone.bn1.num_batches_tracked", -3),
            Tensor::from_u64("counters.step", u64::MAX),
        ]
    }

    #[test]
    fn values_are_read_as_they_were_given() {
        let state = State::new(tensors()).unwrap();
        assert_eq!(state.get("counters.step").unwrap().to_u64().unwrap(), u64::MAX);
        assert_eq!(state.get("model.backbone.bn1.num_batches_tracked").unwrap().to_i64().unwrap(), -3);
        let mut values = [0f32; 2];
        state.get("model.backbone.conv1.weight").unwrap().copy_to_f32(&[2, 1, 1, 1], &mut values).unwrap();
        assert_eq!(values.map(f32::to_bits), [1.5f32, -0.0].map(f32::to_bits));
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
}
