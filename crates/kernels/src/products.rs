//! The matrix products of Winograd's convolution: all points of a block of tiles in one call,
//! because a strip of 16 channels is over too soon to be called by itself.
//!
//! A strip is as in [`strip`](super::strip), of twice as many rows where the panel is one vector wide.

#![expect(unsafe_code, reason = "bounds are asserted once per block instead of once per strip")]

use std::ops::Range;
use std::slice::Chunks;

use super::phases::{Phase, with_sizes};
use super::planes::{GAP, Planes};
use super::prefetch::{in_pieces, prefetch_far};
use super::simd::{MAX_ROWS, Simd, Task};
use super::strip::{MAX_WIDTH, Run, add_run};
use super::transforms::{Map, POINTS, WeightGradient};
use super::winograd_weights::CollectWeights;

/// Multiplies transformed tiles with one panel of transformed weights.
pub(super) struct Multiply<'a> {
    pub(super) tiles: usize,
    /// For each point the vectors of channels that have it.
    pub(super) terms: &'a [Range<usize>],
    /// In groups of [`Simd::ROWS`] tiles.
    pub(super) image_planes: Planes,
    pub(super) images: &'a [f32],
    /// A row for each channel of the images.
    pub(super) weight_planes: Planes,
    pub(super) weights: &'a [f32],
    /// In groups of [`Simd::ROWS`] tiles.
    pub(super) product_planes: Planes,
    pub(super) products: &'a mut [f32],
    /// Pixels that are read and written next. They are fetched meanwhile: a product is bound by arithmetic, the transforms
    /// around it by memory.
    pub(super) ahead: [&'a [f32]; 2],
}

impl Task for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (S::ROWS, self.product_planes.chunks) {
            (8, 2) => self.multiply::<S, 8, 2>(simd),
            (8, 1) => self.multiply::<S, 16, 1>(simd),
            (6, 2) => self.multiply::<S, 6, 2>(simd),
            (6, 1) => self.multiply::<S, 12, 1>(simd),
            _ => unreachable!("a panel of {:?}", self.product_planes),
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn multiply<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let Self { image_planes, weight_planes, product_planes, .. } = self;
        let (chunks, strips) = (image_planes.chunks, self.tiles.div_ceil(ROWS));
        assert!(self.images.len() >= image_planes.len() && strips * ROWS <= image_planes.tiles());
        assert!(self.products.len() >= product_planes.len() && strips * ROWS <= product_planes.tiles());
        assert!(self.weights.len() >= weight_planes.len() && chunks * S::LANES <= weight_planes.tiles());
        assert!(weight_planes.chunks == VECTORS && product_planes.chunks == VECTORS);
        let chunk = S::ROWS * S::LANES;
        let group = chunks * chunk;
        let n_strips = strips * self.terms.len();
        let mut ahead = self.ahead.map(|pixels| in_pieces(pixels, n_strips));
        for (point, terms) in self.terms.iter().enumerate() {
            assert!(terms.end <= chunks, "vectors {terms:?} of {chunks}");
            if terms.is_empty() {
                continue;
            }
            let images = self.images.as_ptr().wrapping_add(point * image_planes.plane);
            let weights = self.weights.as_ptr().wrapping_add(point * weight_planes.plane);
            let products = self.products.as_mut_ptr().wrapping_add(point * product_planes.plane);
            for strip in 0..strips {
                ahead.iter_mut().filter_map(Iterator::next).for_each(prefetch_far);
                let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
                let images = images.wrapping_add(strip * (ROWS / S::ROWS) * group);
                for index in terms.clone() {
                    let run = Run {
                        a: images.wrapping_add(index * chunk),
                        step: 1,
                        b: weights.wrapping_add(index * S::LANES * VECTORS * S::LANES),
                        len: S::LANES,
                    };
                    let offset = |row: usize| row / S::ROWS * group + row % S::ROWS * S::LANES;
                    // SAFETY: the planes hold so many tiles and channels, as asserted above.
                    unsafe { add_run(simd, run, &offset, &mut sums) };
                }
                let products = products.wrapping_add(strip * ROWS * VECTORS * S::LANES);
                for (row, sums) in sums.iter().enumerate() {
                    for (vector, &sum) in sums.iter().enumerate() {
                        // SAFETY: the planes hold so many tiles, as asserted above.
                        unsafe { simd.store(products.wrapping_add((vector * ROWS + row) * S::LANES), sum) };
                    }
                }
            }
        }
    }
}

/// Adds to the gradient of one panel of weights the products of a block of tiles.
///
/// The gradient of the transformed weights never reaches memory: the sums of a strip are
/// transformed back at once.
pub(super) struct AddGradient<'a> {
    pub(super) phase: Phase,
    pub(super) tiles: usize,
    /// The phase's vectors of channels in the images.
    pub(super) chunks: Range<usize>,
    /// In one group.
    pub(super) image_planes: Planes,
    pub(super) images: &'a [f32],
    /// A row for each tile.
    pub(super) d_output_planes: Planes,
    pub(super) d_outputs: &'a [f32],
    /// `[9, channels of the phase, width of the panel]`
    pub(super) d_weights: &'a mut [f32],
    /// Scratch of [`AddGradient::PRODUCTS`] numbers: the gradients of a strip of transformed weights.
    pub(super) products: &'a mut [f32],
    /// Pixels that are read next, fetched meanwhile as in [`Multiply`].
    pub(super) ahead: &'a [f32],
}

impl Task for AddGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let phase = self.phase;
        with_sizes!(phase, [R, C, TR, TC, SIDE], {
            match (S::ROWS, self.d_output_planes.chunks) {
                (8, 2) => self.add::<S, 8, 2, R, C, TR, TC, SIDE>(simd),
                (8, 1) => self.add::<S, 16, 1, R, C, TR, TC, SIDE>(simd),
                (6, 2) => self.add::<S, 6, 2, R, C, TR, TC, SIDE>(simd),
                (6, 1) => self.add::<S, 12, 1, R, C, TR, TC, SIDE>(simd),
                _ => unreachable!("a panel of {:?}", self.d_output_planes),
            }
        })
    }
}

impl AddGradient<'_> {
    /// Numbers in the transformed gradients of the largest strip.
    pub(super) const PRODUCTS: usize = POINTS * (MAX_ROWS * MAX_WIDTH + GAP);

    #[inline(always)]
    fn add<
        S: Simd,
        const ROWS: usize,
        const VECTORS: usize,
        const R: usize,
        const C: usize,
        const TR: usize,
        const TC: usize,
        const SIDE: usize,
    >(
        mut self,
        simd: S,
    ) where
        WeightGradient: Map<R, TR> + Map<C, TC>,
    {
        let width = VECTORS * S::LANES;
        let channels = self.chunks.len() * S::LANES;
        assert!(self.chunks.end <= self.image_planes.chunks, "vectors {:?}", self.chunks);
        let mut ahead = in_pieces(self.ahead, channels.div_ceil(ROWS) * R * C);
        for first in (0..channels).step_by(ROWS) {
            // Rows that do not exist repeat the last one.
            let channel = |row: usize| (first + row).min(channels - 1);
            let chunk = |channel: usize| self.chunks.start + channel / S::LANES;
            if S::LANES.is_multiple_of(ROWS) {
                let start = self.image_planes.offset(0, chunk(first)) + first % S::LANES;
                self.multiply::<S, ROWS, VECTORS>(simd, SIDE, &|row| start + row, &mut ahead);
            } else {
                let offsets: [usize; ROWS] = std::array::from_fn(|row| {
                    self.image_planes.offset(0, chunk(channel(row))) + channel(row) % S::LANES
                });
                self.multiply::<S, ROWS, VECTORS>(simd, SIDE, &|row| offsets[row], &mut ahead);
            }
            let tap = channels * width;
            let collect = CollectWeights {
                products: self.products,
                plane: ROWS * width + GAP,
                len: ROWS.min(channels - first) * width,
                d_weights: &mut self.d_weights[self.phase.first_tap() * tap + first * width..],
                tap: self.phase.tap_step() * tap,
            };
            collect.run::<S, R, C, TR, TC, SIDE>(simd);
        }
    }

    /// Sums the strip of the rows at some offsets at every point.
    #[inline(always)]
    fn multiply<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &mut self,
        simd: S,
        side: usize,
        offset: &impl Fn(usize) -> usize,
        ahead: &mut Chunks<'_, f32>,
    ) {
        let &mut Self { phase, image_planes, d_output_planes, tiles, .. } = self;
        assert!(self.images.len() >= image_planes.len() && tiles <= image_planes.tiles());
        assert!(self.d_outputs.len() >= d_output_planes.len() && tiles <= d_output_planes.tiles());
        assert!(d_output_planes.chunks == VECTORS);
        for point in (0..side * side).filter(|&point| phase.has(point, side)) {
            if let Some(pixels) = ahead.next() {
                prefetch_far(pixels);
            }
            let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
            let run = Run {
                a: self.images.as_ptr().wrapping_add(point * image_planes.plane),
                step: S::LANES,
                b: self.d_outputs.as_ptr().wrapping_add(point * d_output_planes.plane),
                len: tiles,
            };
            // SAFETY: the planes hold so many tiles, as asserted above, and rows are channels of theirs.
            unsafe { add_run(simd, run, offset, &mut sums) };
            let products = &mut self.products[point * (ROWS * VECTORS * S::LANES + GAP)..];
            for (row, sums) in sums.iter().enumerate() {
                for (vector, &sum) in sums.iter().enumerate() {
                    simd.write(&mut products[(row * VECTORS + vector) * S::LANES..], sum);
                }
            }
        }
    }
}
