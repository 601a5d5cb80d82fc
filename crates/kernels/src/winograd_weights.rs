//! Transformed weights, and the gradients of weights that are transformed back.

use std::ops::Range;

use super::phases::{Phase, with_sizes};
use super::planes::{Planes, ReadPoints, WritePoints};
use super::simd::{MAX_LANES, Simd, Task};
use super::transforms::{Map, WeightGradient, Weights, transform};

/// Transforms the weights of a phase into rows of the planes of one panel.
pub(super) struct SpreadWeights<'a> {
    pub(super) phase: Phase,
    pub(super) w: &'a [f32],
    /// Distance of two columns of the panel in `w`.
    pub(super) column: usize,
    /// Distance of two rows of the panel in `w`.
    pub(super) depth: usize,
    /// The taps are read backwards.
    pub(super) flipped: bool,
    /// Numbers in a row of the panel.
    pub(super) width: usize,
    /// One tile per row.
    pub(super) planes: Planes,
    /// The rows of the phase.
    pub(super) rows: Range<usize>,
    pub(super) panel: &'a mut [f32],
}

impl Task for SpreadWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let phase = self.phase;
        with_sizes!(phase, [R, C, TR, TC, SIDE], self.spread::<S, R, C, TR, TC, SIDE>(simd));
    }
}

impl SpreadWeights<'_> {
    #[inline(always)]
    fn spread<S: Simd, const R: usize, const C: usize, const TR: usize, const TC: usize, const SIDE: usize>(
        self,
        simd: S,
    ) where
        Weights: Map<TR, R> + Map<TC, C>,
    {
        for (index, row) in self.rows.enumerate() {
            for first in (0..self.width).step_by(S::LANES) {
                let mut taps = [[0.0; MAX_LANES]; 9];
                for lane in 0..S::LANES {
                    let w = &self.w[(first + lane) * self.column + index * self.depth..][..9];
                    for (tap, lanes) in taps.iter_mut().enumerate() {
                        lanes[lane] = w[if self.flipped { 8 - tap } else { tap }];
                    }
                }
                let of_phase = &taps.as_flattened()[self.phase.first_tap() * MAX_LANES..];
                let taps =
                    ReadPoints::<3>::new::<S>(of_phase, self.phase.tap_step() * MAX_LANES, 0, [TR, TC]);
                let offset = self.planes.offset(row, first / S::LANES);
                let mut points =
                    WritePoints::<SIDE, false>::new::<S>(self.panel, self.planes.plane, offset, [R, C]);
                transform::<S, TR, TC, R, C, 6, 0>(simd, Weights, &taps, &mut points);
            }
        }
    }
}

/// Transforms the gradients of some rows of a transformed panel into those of the taps of a phase.
pub(super) struct CollectWeights<'a> {
    /// `[points, rows, width]`
    pub(super) products: &'a [f32],
    /// Distance of two points in `products`.
    pub(super) plane: usize,
    /// Numbers to transform.
    pub(super) len: usize,
    /// The panel's gradient, `[9, channels, width]`, from the first tap and of these rows on, to be added to.
    pub(super) d_weights: &'a mut [f32],
    /// Distance of two taps of the phase in `d_weights`.
    pub(super) tap: usize,
}

impl CollectWeights<'_> {
    #[inline(always)]
    pub(super) fn run<
        S: Simd,
        const R: usize,
        const C: usize,
        const TR: usize,
        const TC: usize,
        const SIDE: usize,
    >(
        self,
        simd: S,
    ) where
        WeightGradient: Map<R, TR> + Map<C, TC>,
    {
        for offset in (0..self.len).step_by(S::LANES) {
            let products = ReadPoints::<SIDE>::new::<S>(self.products, self.plane, offset, [R, C]);
            let mut sums = WritePoints::<3, true>::new::<S>(self.d_weights, self.tap, offset, [TR, TC]);
            transform::<S, R, C, TR, TC, 3, 0>(simd, WeightGradient, &products, &mut sums);
        }
    }
}
