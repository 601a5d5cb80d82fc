//! Convolution of maps that have fewer pixels than the kernel has taps, as one matrix product.
//!
//! Most of a window on such a map is padding. Here an image is one pixel instead, all of its pixels' channels side by
//! side as NHWC has them, and so is its output; the matrix between them holds, for each pair of an input and an output
//! pixel, the weights of the tap that joins them, or zeros. An output pixel then costs as many multiplications per pair of
//! channels as the map has pixels, and not as the kernel has taps: 4 instead of 9 on maps of 2 x 2, 1 on a single pixel.
//! The last layers have such maps over the patches of a jigsaw.

use super::direct::DirectConv;
use super::operands::{Backward, Forward};
use super::pool::Pool;
use super::prologue::{Input, Prologue};
use super::scratch::{cut, f64s, len_of};
use super::shape::ConvShape;
use super::simd::InstructionSet;

/// The three passes of one shape.
pub(super) struct DenseConv {
    shape: ConvShape,
    product: DirectConv,
    /// For each output pixel, the input pixels that it sees, each by a tap.
    seen: Vec<Vec<(usize, usize)>>,
}

/// The matrix and what else has an entry per pixel.
struct Spread<'a> {
    /// `[out_h, out_w, c_out, h, w, c_in]`
    weights: &'a mut [f32],
    d_weights: &'a mut [f32],
    /// The prologue's, `[h, w, c_in]`.
    multiplier: &'a mut [f32],
    offset: &'a mut [f32],
    /// `[2, out_h, out_w, c_out]`
    sums: &'a mut [f64],
}

impl DenseConv {
    /// Whether there are fewer multiplications than in a sum over windows.
    pub(super) fn pays(shape: &ConvShape) -> bool {
        shape.h * shape.w < shape.kernel * shape.kernel
    }

    pub(super) fn new(shape: ConvShape, isa: InstructionSet, threads: usize) -> Self {
        let seen = |to| (0..shape.h * shape.w).filter_map(move |from| Some((from, tap(&shape, from, to)?)));
        Self {
            shape,
            product: DirectConv::new(joined(&shape), isa, threads),
            seen: (0..shape.out_h() * shape.out_w()).map(|to| seen(to).collect()).collect(),
        }
    }

    /// Numbers of scratch for every pass.
    pub(super) fn scratch_len(&self) -> usize {
        len_of(&self.pieces()) + self.product.scratch_len()
    }

    /// Lengths of what [`Spread`] holds.
    fn pieces(&self) -> [usize; 5] {
        let (inputs, outputs) = (self.shape.input_len(), self.shape.output_len());
        [inputs * outputs, inputs * outputs, inputs, inputs, f64s(2 * outputs)]
    }

    pub(super) fn forward(&self, pool: &Pool, n: usize, forward: Forward<'_, f32>) {
        let Forward { input, w, y, sums, scratch } = forward;
        let (spread, scratch) = self.spread(pool, w, input.prologue, scratch);
        let Spread { weights, multiplier, offset, sums: of_pixels, .. } = spread;
        let Self { shape, product, .. } = self;
        let input = everywhere(input, multiplier, offset);
        let sums_of_pixels = sums.is_some().then_some(&mut of_pixels[..]);
        product.forward(pool, n, Forward { input, w: weights, y, sums: sums_of_pixels, scratch });
        if let Some(sums) = sums {
            sums.fill(0.0);
            let of_pixels = of_pixels.chunks_exact(shape.output_len());
            for (sums, of_pixels) in sums.chunks_exact_mut(shape.c_out).zip(of_pixels) {
                for of_pixel in of_pixels.chunks_exact(shape.c_out) {
                    sums.iter_mut().zip(of_pixel).for_each(|(sum, x)| *sum += x);
                }
            }
        }
    }

    pub(super) fn backward(&self, pool: &Pool, n: usize, backward: Backward<'_, f32>) {
        let Backward { input, d_y, w, d_w, d_x, scratch } = backward;
        let (spread, scratch) = self.spread(pool, w, input.prologue, scratch);
        let Spread { weights, d_weights, multiplier, offset, .. } = spread;
        let Self { shape, product, seen } = self;
        let input = everywhere(input, multiplier, offset);
        product.backward(pool, n, Backward { input, d_y, w: weights, d_w: d_weights, d_x, scratch });

        let (shape, d_weights) = (*shape, &d_weights[..]);
        let (taps, inputs) = (shape.kernel * shape.kernel, shape.input_len());
        pool.for_each_rows(d_w, shape.c_in * taps, |first, d_w| {
            d_w.fill(0.0);
            for (channel, d_w) in (first..).zip(d_w.chunks_exact_mut(shape.c_in * taps)) {
                for (to, seen) in seen.iter().enumerate() {
                    let row = &d_weights[(to * shape.c_out + channel) * inputs..][..inputs];
                    for &(from, tap) in seen {
                        let row = &row[from * shape.c_in..][..shape.c_in];
                        d_w.chunks_exact_mut(taps).zip(row).for_each(|(d_w, d)| d_w[tap] += d);
                    }
                }
            }
        });
    }

    /// Writes the weights of every pair of pixels, and the prologue of every pixel; also returns the scratch that is left.
    fn spread<'a>(
        &self,
        pool: &Pool,
        w: &[f32],
        prologue: Option<Prologue<'_, f32>>,
        mut scratch: &'a mut [f32],
    ) -> (Spread<'a>, &'a mut [f32]) {
        let [weights, d_weights, multiplier, offset, sums] = cut(&mut scratch, self.pieces());
        let Self { shape, seen, .. } = self;
        let taps = shape.kernel * shape.kernel;
        pool.for_each_rows(weights, shape.input_len(), |first, weights| {
            for (row, weights) in (first..).zip(weights.chunks_exact_mut(shape.input_len())) {
                let seen = &seen[row / shape.c_out];
                if seen.len() < shape.h * shape.w {
                    weights.fill(0.0);
                }
                let w = &w[row % shape.c_out * shape.c_in * taps..][..shape.c_in * taps];
                for &(from, tap) in seen {
                    let weights = &mut weights[from * shape.c_in..][..shape.c_in];
                    weights.iter_mut().zip(w.chunks_exact(taps)).for_each(|(weight, w)| *weight = w[tap]);
                }
            }
        });
        if let Some(prologue) = prologue {
            for (everywhere, once) in
                [(&mut *multiplier, prologue.multiplier), (&mut *offset, prologue.offset)]
            {
                everywhere.chunks_exact_mut(shape.c_in).for_each(|pixel| pixel.copy_from_slice(once));
            }
        }
        let sums = bytemuck::cast_slice_mut(sums);
        (Spread { weights, d_weights, multiplier, offset, sums }, scratch)
    }
}

/// The shape as a matrix product has it.
fn joined(shape: &ConvShape) -> ConvShape {
    let (c_in, c_out) = (shape.input_len(), shape.output_len());
    ConvShape { n: shape.n, h: 1, w: 1, c_in, c_out, kernel: 1, stride: 1, pad: 0 }
}

/// The tap by which output pixel `to` sees input pixel `from`.
fn tap(shape: &ConvShape, from: usize, to: usize) -> Option<usize> {
    let along = |from: usize, to: usize| {
        (from + shape.pad).checked_sub(to * shape.stride).filter(|&tap| tap < shape.kernel)
    };
    let y = along(from / shape.w, to / shape.out_w())?;
    Some(y * shape.kernel + along(from % shape.w, to % shape.out_w())?)
}

/// The input with the prologue of every pixel.
fn everywhere<'a>(input: Input<'a, f32>, multiplier: &'a [f32], offset: &'a [f32]) -> Input<'a, f32> {
    let prologue = input.prologue.map(|prologue| Prologue { multiplier, offset, relu: prologue.relu });
    Input { prologue, ..input }
}
