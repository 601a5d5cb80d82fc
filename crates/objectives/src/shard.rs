//! Consecutive slots of a bank, as one rank stores them.

use std::ops::Range;

use kernels::{AlignedVec, Real, prefetch};
use memmap2::MmapMut;

use crate::Error;
use crate::bank_spec::{BankSpec, BankType, ROWS, WRITTEN, blocks, first_value, name};
use crate::candidates::widen;
use crate::state::{Array, ArrayType, Coverage};

/// Rows of some slots, and the step that last wrote each.
#[derive(Debug)]
pub struct Shard {
    spec: BankSpec,
    slots: Range<usize>,
    /// `[slots, width]` of the bank's type.
    rows: Bytes,
    /// `[slots]`: 0 is the beginning.
    written: Vec<u32>,
    /// Of rows and of steps, while a checkpoint is read.
    restored: [Coverage; 2],
}

/// Bytes that begin where any number may; in memory, on large pages, for they are read at random.
#[derive(Debug)]
enum Bytes {
    Memory(AlignedVec<u8>),
    Mapped(MmapMut),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Mapped(bytes) => bytes,
        }
    }

    fn get_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Mapped(bytes) => bytes,
        }
    }
}

impl Shard {
    /// Slots with their first values, in `mapped` memory if there is any.
    pub(crate) fn new(spec: BankSpec, slots: Range<usize>, mapped: Option<MmapMut>) -> Self {
        let bytes = spec.shard_bytes(slots.len());
        let rows = match mapped {
            Some(mapped) => {
                assert_eq!(mapped.len(), bytes, "mapped bytes for slots {slots:?}");
                Bytes::Mapped(mapped)
            }
            None => Bytes::Memory(AlignedVec::zeroed(bytes)),
        };
        let written = vec![0; slots.len()];
        let mut shard = Self { spec, slots: slots.clone(), rows, written, restored: Default::default() };
        let mut row = vec![0f32; spec.width];
        for slot in slots {
            first_value(&spec, slot, &mut row);
            shard.write(slot, &row, 0);
        }
        shard
    }

    /// Where its slots are in the bank.
    pub fn slots(&self) -> Range<usize> {
        self.slots.clone()
    }

    /// Bytes that it takes in memory, or in memory and in the mapped file.
    pub fn bytes(&self) -> usize {
        self.rows.get().len() + size_of_val(&self.written[..])
    }

    /// Copies the rows of `slots`, `[slots, width]`.
    ///
    /// # Panics
    /// If one of the slots is not here.
    pub fn read<T: Real>(&self, slots: Range<usize>, out: &mut [T]) {
        let bytes = &self.rows.get()[self.bytes_of(&slots)];
        match self.spec.dtype {
            BankType::F32 => widen(bytemuck::cast_slice(bytes), out),
            BankType::Bf16 => {
                let halves: &[u16] = bytemuck::cast_slice(bytes);
                match T::as_f32_mut(out) {
                    Some(out) => out.iter_mut().zip(halves).for_each(|(out, &half)| *out = from_bf16(half)),
                    None => out
                        .iter_mut()
                        .zip(halves)
                        .for_each(|(out, &half)| *out = T::from_f64(f64::from(from_bf16(half)))),
                }
            }
        }
    }

    /// Begins to bring a slot's row near, which [`Shard::read`] shall find there.
    ///
    /// # Panics
    /// If it is not here.
    pub(crate) fn prefetch(&self, slot: usize) {
        prefetch(&self.rows.get()[self.bytes_of(&(slot..slot + 1))]);
    }

    /// The step that last wrote a slot.
    ///
    /// # Panics
    /// If it is not here.
    pub fn written(&self, slot: usize) -> u32 {
        self.written[slot - self.slots.start]
    }

    /// Replaces a row, if it is here, and says when that was.
    pub(crate) fn write(&mut self, slot: usize, row: &[f32], step: u64) {
        if !self.slots.contains(&slot) {
            return;
        }
        let bytes = self.bytes_of(&(slot..slot + 1));
        let out = &mut self.rows.get_mut()[bytes];
        match self.spec.dtype {
            BankType::F32 => out.copy_from_slice(bytemuck::cast_slice(row)),
            BankType::Bf16 => {
                let halves: &mut [u16] = bytemuck::cast_slice_mut(out);
                halves.iter_mut().zip(row).for_each(|(half, &value)| *half = to_bf16(value));
            }
        }
        self.written[slot - self.slots.start] = u32::try_from(step).expect("fewer than 2^32 updates");
    }

    pub(crate) fn state(&self) -> Vec<Array<'_>> {
        let arrays = blocks(&self.slots).flat_map(|block| {
            let rows = Array {
                name: name(ROWS, &block),
                element: self.spec.dtype.element(),
                shape: vec![block.len(), self.spec.width],
                bytes: &self.rows.get()[self.bytes_of(&block)],
                sharded: true,
            };
            let written = Array {
                name: name(WRITTEN, &block),
                element: ArrayType::U32,
                shape: vec![block.len()],
                bytes: bytemuck::cast_slice(&self.written[self.local(&block)]),
                sharded: true,
            };
            [rows, written]
        });
        arrays.collect()
    }

    /// Takes what of a block falls into this shard.
    pub(crate) fn restore(
        &mut self,
        stem: &str,
        block: &Range<usize>,
        array: &Array<'_>,
    ) -> Result<(), Error> {
        let rows = stem == ROWS;
        let (element, shape) = if rows {
            (self.spec.dtype.element(), vec![block.len(), self.spec.width])
        } else {
            (ArrayType::U32, vec![block.len()])
        };
        array.expect(element, &shape)?;
        let common = block.start.max(self.slots.start)..block.end.min(self.slots.end);
        if common.is_empty() {
            return Ok(());
        }
        let bytes_per_slot = array.bytes.len() / block.len();
        let from = (common.start - block.start) * bytes_per_slot..(common.end - block.start) * bytes_per_slot;
        let out = if rows {
            let bytes = self.bytes_of(&common);
            &mut self.rows.get_mut()[bytes]
        } else {
            let local = self.local(&common);
            bytemuck::cast_slice_mut(&mut self.written[local])
        };
        out.copy_from_slice(&array.bytes[from]);
        self.restored[usize::from(!rows)].add(common);
        Ok(())
    }

    pub(crate) fn restored(&mut self) -> Result<(), Error> {
        let restored = std::mem::take(&mut self.restored);
        for (stem, coverage) in [ROWS, WRITTEN].into_iter().zip(restored) {
            if let Some(slots) = coverage.missing(&self.slots) {
                let what = format!("slots {} to {} of `{stem}`", slots.start, slots.end - 1);
                return Err(Error::Incomplete { what });
            }
        }
        Ok(())
    }

    fn local(&self, slots: &Range<usize>) -> Range<usize> {
        slots.start - self.slots.start..slots.end - self.slots.start
    }

    fn bytes_of(&self, slots: &Range<usize>) -> Range<usize> {
        let local = self.local(slots);
        self.spec.shard_bytes(local.start)..self.spec.shard_bytes(local.end)
    }
}

fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// To the nearest, ties to even; not-a-number stays that.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let half = if value.is_nan() { bits >> 16 | 0x40 } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 };
    u16::try_from(half).expect("16 bits are left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_to_the_nearest() {
        let cases = [
            (1.0, 0x3f80),
            (-2.5, 0xc020),
            (0.0, 0),
            // Halfway between two: to the even one; a little more: up.
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.0 + 3.0 / 256.0, 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::INFINITY, 0x7f80),
        ];
        for (value, half) in cases {
            assert_eq!(to_bf16(value), half, "{value}");
            assert!((from_bf16(half) - value).abs() <= value.abs() / 256.0 || value.is_infinite());
        }
        assert!(from_bf16(to_bf16(f32::NAN)).is_nan());
    }
}
