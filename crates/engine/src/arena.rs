//! The memory of a step: one allocation per slot of the plan, made once.

use crate::graph::plan::Plan;
use crate::graph::program::{BufferId, Program};
use crate::kernels::{AlignedVec, Real};

/// All activations and their gradients.
pub(crate) struct Arena<T> {
    slots: Vec<AlignedVec<T>>,
    slot_of: Vec<usize>,
    row_len: Vec<usize>,
}

impl<T: Real> Arena<T> {
    pub fn new(program: &Program, max_rows: usize) -> Self {
        let plan = Plan::new(&program.lifetimes);
        Self {
            slots: plan.slot_row_len.iter().map(|row_len| AlignedVec::zeroed(row_len * max_rows)).collect(),
            slot_of: plan.slot_of,
            row_len: program.lifetimes.iter().map(|lifetime| lifetime.row_len).collect(),
        }
    }

    /// Bytes that [`Arena::new`] allocates for the data.
    pub fn predicted_bytes(program: &Program, max_rows: usize) -> usize {
        let slots = Plan::new(&program.lifetimes).slot_row_len;
        slots.iter().map(|row_len| AlignedVec::<T>::bytes(row_len * max_rows)).sum()
    }

    /// The first `rows` rows of a buffer.
    pub fn get(&self, buffer: BufferId, rows: usize) -> &[T] {
        &self.slots[self.slot_of[buffer.0]][..rows * self.row_len[buffer.0]]
    }

    /// The first `rows` rows of several buffers at once.
    ///
    /// # Panics
    /// If two of them share memory: the plan keeps apart what one op touches.
    pub fn get_mut<const N: usize>(&mut self, buffers: [BufferId; N], rows: usize) -> [&mut [T]; N] {
        let slots = self
            .slots
            .get_disjoint_mut(buffers.map(|buffer| self.slot_of[buffer.0]))
            .expect("buffers of one op are alive together");
        let mut lens = buffers.map(|buffer| rows * self.row_len[buffer.0]).into_iter();
        slots.map(|slot| &mut slot[..lens.next().expect("one length per buffer")])
    }
}
