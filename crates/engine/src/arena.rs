//! The memory of a step: one allocation, made once and cut up as planned.

use std::ops::Range;

use crate::graph::plan::Plan;
use crate::graph::program::{BufferId, Program};
use kernels::{AlignedVec, Real};

/// All activations and their gradients.
pub(crate) struct Arena<T> {
    memory: AlignedVec<T>,
    max_rows: usize,
    offset: Vec<usize>,
    row_len: Vec<usize>,
}

impl<T: Real> Arena<T> {
    pub fn new(program: &Program, max_rows: usize) -> Self {
        let plan = Plan::new(&program.lifetimes);
        Self {
            memory: AlignedVec::zeroed(plan.row_len * max_rows),
            max_rows,
            offset: plan.offset,
            row_len: program.lifetimes.iter().map(|lifetime| lifetime.row_len).collect(),
        }
    }

    /// Bytes that [`Arena::new`] allocates for the data.
    pub fn predicted_bytes(program: &Program, max_rows: usize) -> usize {
        AlignedVec::<T>::bytes(Plan::new(&program.lifetimes).row_len * max_rows)
    }

    /// The first `rows` rows of a buffer.
    pub fn get(&self, buffer: BufferId, rows: usize) -> &[T] {
        &self.memory[self.range(buffer, rows)]
    }

    /// The first `rows` rows of several buffers at once.
    ///
    /// # Panics
    /// If two of them share memory: the plan keeps apart what one op touches.
    pub fn get_mut<const N: usize>(&mut self, buffers: [BufferId; N], rows: usize) -> [&mut [T]; N] {
        let ranges = buffers.map(|buffer| self.range(buffer, rows));
        self.memory.get_disjoint_mut(ranges).expect("buffers of one op are alive together")
    }

    /// As [`Arena::get_mut`], where some of the buffers need not be: in their place stands an empty slice.
    ///
    /// # Panics
    /// As [`Arena::get_mut`].
    pub fn get_mut_if<const N: usize>(
        &mut self,
        buffers: [Option<BufferId>; N],
        rows: usize,
    ) -> [&mut [T]; N] {
        let ranges = buffers.map(|buffer| buffer.map_or(0..0, |buffer| self.range(buffer, rows)));
        self.memory.get_disjoint_mut(ranges).expect("buffers of one op are alive together")
    }

    fn range(&self, buffer: BufferId, rows: usize) -> Range<usize> {
        let first = self.offset[buffer.0] * self.max_rows;
        first..first + rows * self.row_len[buffer.0]
    }
}
