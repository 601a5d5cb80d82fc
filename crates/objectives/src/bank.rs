//! The memory bank: one feature of every image of the data set, spread over the ranks.
//!
//! The slots of a rank are a contiguous range, its *shard*; the next rank keeps the same slots again, its *mirror*, since
//! every update reaches all ranks anyway, so that a lost rank's slots exist once more ([`Bank::mirror_state`]). A step needs
//! the shard and one mirror and nothing else that grows with the data set: `2 / W` of `n (d * 4 + 4)` bytes in `f32`, `n (d * 2 + 4)` in bf16.
//!
//! A slot begins with numbers of `U(-s, s)`, `s = 1 / sqrt(d / 3)`, a function of seed and slot, and remembers the step
//! that last wrote it. Updates are staged in a step and applied by its commit; a slot's new value is a function of its
//! old one and of the feature, computed in `f64`, so that shards and mirrors of any world size hold the same bits.

use kernels::Real;
use memmap2::MmapMut;

use crate::Error;
use crate::bank_spec::{BankSpec, ROWS, WRITTEN};
use crate::shard::Shard;
use crate::state::{Array, parse_block_name};

/// Where the rows of a shard lie.
#[derive(Debug)]
pub enum Storage {
    /// In memory of the process.
    Memory,
    /// In memory that the caller has mapped, from files if the bank is to be larger than memory: each of
    /// [`BankSpec::shard_bytes`]. Their contents are overwritten.
    Mapped {
        /// For the rank's own slots.
        own: MmapMut,
        /// For the slots of the rank before it, unless it keeps none.
        mirror: Option<MmapMut>,
    },
}

/// This rank's part of a memory bank.
#[derive(Debug)]
pub struct Bank {
    spec: BankSpec,
    own: Shard,
    mirror: Option<Shard>,
    staged: Staged,
    /// While a checkpoint is restored: how many entries its blocks are known to have.
    restored_entries: usize,
}

/// Rows to be written by the next commit.
#[derive(Debug, Default)]
struct Staged {
    step: u64,
    slots: Vec<usize>,
    /// `[slots, width]`, unit rows.
    rows: Vec<f32>,
}

impl Bank {
    /// Makes this rank's part, with first values.
    ///
    /// # Panics
    /// If the bank has no slots or no width, or mapped memory has another size than the shard's.
    pub fn new(spec: BankSpec, rank: usize, world_size: usize, storage: Storage) -> Self {
        assert!(spec.slots > 0 && spec.width > 0, "{spec:?}");
        let (own, mirror) = match storage {
            Storage::Memory => (None, None),
            Storage::Mapped { own, mirror } => (Some(own), mirror),
        };
        let mirrored = spec.mirrored_slots(rank, world_size);
        Self {
            spec,
            own: Shard::new(spec, spec.own_slots(rank, world_size), own),
            mirror: mirrored.map(|slots| Shard::new(spec, slots, mirror)),
            staged: Staged::default(),
            restored_entries: 0,
        }
    }

    /// What it is made of.
    pub fn spec(&self) -> &BankSpec {
        &self.spec
    }

    /// This rank's slots.
    pub fn own(&self) -> &Shard {
        &self.own
    }

    /// Slots of the rank before this one.
    pub fn mirror(&self) -> Option<&Shard> {
        self.mirror.as_ref()
    }

    /// Begins what the next commit writes: nothing yet, as of update `step`.
    pub(crate) fn begin(&mut self, step: u64) {
        self.staged = Staged { step, ..Staged::default() };
    }

    /// Whether the next commit writes this slot.
    pub(crate) fn is_staged(&self, slot: usize) -> bool {
        self.staged.slots.contains(&slot)
    }

    /// Stages `normalise(momentum * slot + (1 - momentum) * feature)` of the slots that are kept here.
    ///
    /// - `features`: slots, none of them twice, and their unit rows
    pub(crate) fn stage<'a, T: Real>(
        &mut self,
        features: impl Iterator<Item = (usize, &'a [T])>,
        momentum: f64,
    ) {
        let mut old = vec![0f64; self.spec.width];
        for (slot, feature) in features {
            let Some(shard) = self.keeper(slot) else { continue };
            shard.read(slot..slot + 1, &mut old);
            for (old, feature) in old.iter_mut().zip(feature) {
                *old = momentum * *old + (1.0 - momentum) * feature.to_f64();
            }
            // Only a feature opposite to its slot, at a momentum of a half, leaves nothing to normalise.
            let norm = old.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-12);
            self.staged.slots.push(slot);
            self.staged.rows.extend(old.iter().map(|value| (value / norm) as f32));
        }
    }

    /// Writes what was staged.
    pub(crate) fn commit(&mut self) {
        let Staged { step, slots, rows } = std::mem::take(&mut self.staged);
        for (slot, row) in slots.into_iter().zip(rows.chunks_exact(self.spec.width)) {
            for shard in [Some(&mut self.own), self.mirror.as_mut()].into_iter().flatten() {
                shard.write(slot, row, step);
            }
        }
    }

    /// Own slots whose turn it is to be looked at after update `step`, and that no read would otherwise find within
    /// `age` steps of their last write.
    ///
    /// A slot's turn comes every `age / 2` steps, at a time of its own, so that each step re-encodes about
    /// `2 n / age` images at most and nothing has to be searched. It is due if it would be older than `age` when its next
    /// turn comes. So no slot that is read is ever older than `age`, at any world size, as long as all that are due are
    /// refreshed; one that is not is due again at its next turn.
    pub(crate) fn due(&self, step: u64, age: u64) -> Vec<usize> {
        let period = (age / 2).max(1);
        let first = (step % period) as usize;
        let period_slots = period as usize;
        let from = self.own.slots().start;
        let start = from + (first + period_slots - from % period_slots) % period_slots;
        let turn = (start..self.own.slots().end).step_by(period_slots);
        turn.filter(|&slot| step + period - u64::from(self.own.written(slot)) > age && !self.is_staged(slot))
            .collect()
    }

    fn keeper(&self, slot: usize) -> Option<&Shard> {
        let shards = [Some(&self.own), self.mirror.as_ref()];
        shards.into_iter().flatten().find(|shard| shard.slots().contains(&slot))
    }

    /// The arrays of this rank's own slots.
    pub(crate) fn state(&self) -> Vec<Array<'_>> {
        self.own.state()
    }

    /// The arrays that the rank before this one would have written: what survives it.
    pub fn mirror_state(&self) -> Vec<Array<'_>> {
        self.mirror.as_ref().map(Shard::state).unwrap_or_default()
    }

    pub(crate) fn restore(&mut self, array: &Array<'_>) -> Result<(), Error> {
        let unknown = || Error::UnknownArray { name: array.name.clone() };
        let (stem, block) = parse_block_name(&array.name).ok_or_else(unknown)?;
        if ![ROWS, WRITTEN].contains(&stem) {
            return Err(unknown());
        }
        self.restored_entries = self.restored_entries.max(block.end);
        if block.end > self.spec.slots {
            return Err(self.other_count());
        }
        for shard in [Some(&mut self.own), self.mirror.as_mut()].into_iter().flatten() {
            shard.restore(stem, &block, array)?;
        }
        Ok(())
    }

    pub(crate) fn restored(&mut self) -> Result<(), Error> {
        // Both are asked, so that neither remembers half a restoration.
        let own = self.own.restored();
        let outcome = own.and(self.mirror.as_mut().map_or(Ok(()), Shard::restored));
        let outcome = match outcome {
            Err(Error::Incomplete { .. }) if (1..self.spec.slots).contains(&self.restored_entries) => {
                Err(self.other_count())
            }
            outcome => outcome,
        };
        self.restored_entries = 0;
        outcome
    }

    fn other_count(&self) -> Error {
        Error::OtherCount { entries: self.restored_entries, images: self.spec.slots }
    }
}
