//! What a memory bank is made of, which slots a rank keeps, and what a slot begins with.

use std::ops::Range;

use crate::draws::{Draws, Purpose};
use crate::state::{ArrayType, BLOCK, block_name};

pub(crate) const ROWS: &str = "objective.bank";
pub(crate) const WRITTEN: &str = "objective.bank_written";

/// What a bank is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BankSpec {
    /// Images of the data set.
    pub slots: usize,
    /// Numbers in a feature.
    pub width: usize,
    /// How they are stored.
    pub dtype: BankType,
    /// Whether each rank also keeps the slots of the rank before it.
    pub mirror: bool,
    /// Decides the first values.
    pub seed: u64,
}

/// How a feature's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BankType {
    /// As they are.
    F32,
    /// Rounded to their upper 16 bits: half the memory, 3 digits.
    Bf16,
}

impl BankSpec {
    /// The slots that `rank` owns: contiguous, in rank order, uneven by at most one.
    pub fn own_slots(&self, rank: usize, world_size: usize) -> Range<usize> {
        let (share, rest) = (self.slots / world_size, self.slots % world_size);
        let start = |rank: usize| rank * share + rank.min(rest);
        start(rank)..start(rank + 1)
    }

    /// The slots of which `rank` keeps the mirror: those of the rank before it, if there is another.
    pub fn mirrored_slots(&self, rank: usize, world_size: usize) -> Option<Range<usize>> {
        let before = (rank + world_size - 1) % world_size;
        (self.mirror && world_size > 1).then(|| self.own_slots(before, world_size))
    }

    /// Bytes of so many rows, which is what [`Storage::Mapped`](crate::Storage::Mapped) has to bring.
    pub fn shard_bytes(&self, slots: usize) -> usize {
        slots * self.width * self.dtype.element().size()
    }
}

impl BankType {
    pub(crate) fn element(self) -> ArrayType {
        match self {
            Self::F32 => ArrayType::F32,
            Self::Bf16 => ArrayType::Bf16,
        }
    }
}

/// The first value of a slot, before it is rounded to the bank's type.
pub(crate) fn first_value(spec: &BankSpec, slot: usize, out: &mut [f32]) {
    let draws = Draws::new(spec.seed, Purpose::Bank, [slot as u64, 0]);
    let bound = 1.0 / (spec.width as f64 / 3.0).sqrt();
    for (place, value) in out.iter_mut().enumerate() {
        *value = (bound * (2.0 * draws.unit(place as u64) - 1.0)) as f32;
    }
}

/// The ranges that a shard's slots are cut into for a checkpoint: at multiples of [`BLOCK`], whatever the world size.
pub(crate) fn blocks(slots: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let slots = slots.clone();
    let first = slots.start / BLOCK;
    (first..slots.end.div_ceil(BLOCK))
        .map(move |block| slots.start.max(block * BLOCK)..slots.end.min((block + 1) * BLOCK))
        .filter(|block| !block.is_empty())
}

/// The name of a block of rows, or of the steps that wrote them.
pub(crate) fn name(stem: &str, block: &Range<usize>) -> String {
    block_name(stem, block)
}
