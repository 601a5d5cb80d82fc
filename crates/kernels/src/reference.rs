//! Convolution and matrix product as plain loops, in `f32` and `f64`: the yardstick of the fast
//! kernels and the only path in `f64`.
//!
//! The one concession to speed is the layout of the repacked weights, `[kh, kw, a, b]`, which makes
//! every innermost loop run over contiguous channels.

use std::ops::Range;

use super::division::divide;
use super::gemm::Gemm;
use super::operands::{Backward, Forward, InputGradient, OutputGradient};
use super::pool::{Pool, split};
use super::prologue::Input;
use super::real::Real;
use super::shape::ConvShape;

/// Plain convolution.
pub(super) struct ReferenceConv {
    shape: ConvShape,
}

impl ReferenceConv {
    pub(super) fn new(shape: ConvShape) -> Self {
        Self { shape }
    }

    /// Numbers of scratch for every pass: a repacked copy of the weights, and the output's gradient.
    pub(super) fn scratch_len(&self) -> usize {
        self.shape.weight_len() + self.shape.n * self.shape.output_len()
    }

    pub(super) fn forward<T: Real>(&self, pool: &Pool, n: usize, forward: Forward<'_, T>) {
        let Forward { input, w, y, sums, scratch } = forward;
        let shape = self.shape;
        let weights = &mut scratch[..shape.weight_len()];
        let ConvShape { c_in, c_out, .. } = shape;
        for_each_weight(&shape, |oc, ic, tap, index| weights[(tap * c_in + ic) * c_out + oc] = w[index]);
        let weights = &*weights;
        pool.for_each_rows(&mut y[..n * shape.output_len()], shape.output_len(), |first, images| {
            images.fill(T::ZERO);
            for_each_tap(
                &shape,
                first..first + images.len() / shape.output_len(),
                |image, pixel, tap, source| {
                    let start = (image - first) * shape.output_len() + pixel * c_out;
                    let y = &mut images[start..start + c_out];
                    let x = input.pixel(image * shape.input_len() + source * c_in, c_in);
                    for (ic, x) in x.enumerate() {
                        add_scaled(y, x, &weights[(tap * c_in + ic) * c_out..][..c_out]);
                    }
                },
            );
        });
        if let Some(sums) = sums {
            channel_sums(pool, &y[..n * shape.output_len()], sums);
        }
    }

    pub(super) fn backward<T: Real>(&self, pool: &Pool, n: usize, backward: Backward<'_, T>) {
        let Backward { input, d_y, w, d_w, d_x, scratch } = backward;
        let (weights, scratch) = scratch.split_at_mut(self.shape.weight_len());
        let len = self.shape.output_len();
        let d_y = match d_y {
            OutputGradient::Plain(d_y) => d_y,
            OutputGradient::Made(make) => {
                let made = &mut scratch[..n * len];
                pool.for_each_rows(made, len, |first, part| make(first..first + part.len() / len, part));
                made
            }
        };
        self.backward_weights(pool, n, (input, d_y), weights, d_w);
        if let Some(InputGradient { d_x, accumulate, then }) = d_x {
            self.backward_data(pool, n, (d_y, w), weights, (d_x, accumulate));
            if let Some(then) = then {
                let mut threads = vec![(); pool.threads()];
                let parts = divide(pool, &mut threads, n, d_x, self.shape.input_len());
                pool.for_each_part(parts, |thread, (images, d_x, _)| then(thread, images, d_x));
            }
        }
    }

    fn backward_data<T: Real>(
        &self,
        pool: &Pool,
        n: usize,
        (dy, w): (&[T], &[T]),
        weights: &mut [T],
        (dx, accumulate): (&mut [T], bool),
    ) {
        let shape = self.shape;
        let ConvShape { c_in, c_out, .. } = shape;
        for_each_weight(&shape, |oc, ic, tap, index| weights[(tap * c_out + oc) * c_in + ic] = w[index]);
        let weights = &*weights;
        pool.for_each_rows(&mut dx[..n * shape.input_len()], shape.input_len(), |first, images| {
            if !accumulate {
                images.fill(T::ZERO);
            }
            for_each_tap(
                &shape,
                first..first + images.len() / shape.input_len(),
                |image, pixel, tap, source| {
                    let start = (image - first) * shape.input_len() + source * c_in;
                    let dx = &mut images[start..start + c_in];
                    let dy = &dy[image * shape.output_len() + pixel * c_out..][..c_out];
                    for (oc, &dy) in dy.iter().enumerate() {
                        add_scaled(dx, dy, &weights[(tap * c_out + oc) * c_in..][..c_in]);
                    }
                },
            );
        });
    }

    fn backward_weights<T: Real>(
        &self,
        pool: &Pool,
        n: usize,
        (input, dy): (Input<'_, T>, &[T]),
        weights: &mut [T],
        dw: &mut [T],
    ) {
        let shape = self.shape;
        let ConvShape { c_in, c_out, .. } = shape;
        let taps = shape.kernel * shape.kernel;
        // Each thread owns some output channels, `[oc, kh, kw, ic]`, so that nothing is reduced.
        pool.for_each_rows(weights, taps * c_in, |first, rows| {
            rows.fill(T::ZERO);
            for_each_tap(&shape, 0..n, |image, pixel, tap, source| {
                let dy = &dy[image * shape.output_len() + pixel * c_out..][..c_out];
                let start = image * shape.input_len() + source * c_in;
                for (row, &dy) in rows.chunks_exact_mut(taps * c_in).zip(&dy[first..]) {
                    let sums = &mut row[tap * c_in..][..c_in];
                    for (sum, x) in sums.iter_mut().zip(input.pixel(start, c_in)) {
                        *sum += dy * x;
                    }
                }
            });
        });
        for_each_weight(&shape, |oc, ic, tap, index| dw[index] = weights[(oc * taps + tap) * c_in + ic]);
    }
}

/// Calls `f(image, output pixel, tap, input pixel)` wherever a tap of the kernel meets the input.
fn for_each_tap(shape: &ConvShape, images: Range<usize>, mut f: impl FnMut(usize, usize, usize, usize)) {
    for image in images {
        for oy in 0..shape.out_h() {
            for ox in 0..shape.out_w() {
                for tap in 0..shape.kernel * shape.kernel {
                    let row = oy * shape.stride + tap / shape.kernel;
                    let column = ox * shape.stride + tap % shape.kernel;
                    let inside = row >= shape.pad
                        && row - shape.pad < shape.h
                        && column >= shape.pad
                        && column - shape.pad < shape.w;
                    if inside {
                        let source = (row - shape.pad) * shape.w + column - shape.pad;
                        f(image, oy * shape.out_w() + ox, tap, source);
                    }
                }
            }
        }
    }
}

/// Calls `f(oc, ic, tap, index)` for every weight of the PyTorch layout `[oc, ic, kh, kw]`.
fn for_each_weight(shape: &ConvShape, mut f: impl FnMut(usize, usize, usize, usize)) {
    let taps = shape.kernel * shape.kernel;
    for index in 0..shape.weight_len() {
        f(index / (taps * shape.c_in), index / taps % shape.c_in, index % taps, index);
    }
}

fn add_scaled<T: Real>(sum: &mut [T], factor: T, terms: &[T]) {
    for (sum, &term) in sum.iter_mut().zip(terms) {
        *sum += factor * term;
    }
}

/// Per-channel sum and sum of squares of `y [pixels, channels]`, channels divided over the threads.
fn channel_sums<T: Real>(pool: &Pool, y: &[T], sums: &mut [f64]) {
    let channels = sums.len() / 2;
    let (sum, squares) = sums.split_at_mut(channels);
    let (mut sum, mut squares) = (sum, squares);
    let parts = (0..pool.threads())
        .map(|thread| {
            let range = split(channels, pool.threads(), thread);
            let len = range.len();
            let sum = sum.split_off_mut(..len).expect("the ranges tile the channels");
            let squares = squares.split_off_mut(..len).expect("the ranges tile the channels");
            (range, sum, squares)
        })
        .collect();
    pool.for_each_part(parts, |_, (range, sum, squares)| {
        sum.fill(0.0);
        squares.fill(0.0);
        for pixel in y.chunks_exact(channels) {
            for ((sum, square), value) in sum.iter_mut().zip(&mut *squares).zip(&pixel[range.clone()]) {
                let value = value.to_f64();
                *sum += value;
                *square += value * value;
            }
        }
    });
}

/// Rows `first..` of the product, as many as `c` holds.
pub(super) fn matmul_rows<T: Real>(gemm: Gemm, first: usize, a: &[T], b: &[T], c: &mut [T]) {
    let Gemm { m, n, k, .. } = gemm;
    for (row, c) in c.chunks_exact_mut(n).enumerate() {
        let row = first + row;
        let a = |l: usize| if gemm.a_transposed { a[l * m + row] } else { a[row * k + l] };
        if !gemm.accumulate {
            c.fill(T::ZERO);
        }
        if gemm.b_transposed {
            for (column, c) in c.iter_mut().enumerate() {
                let mut sum = T::ZERO;
                for (l, &b) in b[column * k..][..k].iter().enumerate() {
                    sum += a(l) * b;
                }
                *c += sum;
            }
        } else {
            for (l, b) in b.chunks_exact(n).enumerate() {
                add_scaled(c, a(l), b);
            }
        }
    }
}
