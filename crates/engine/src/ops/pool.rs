//! The max pool behind the ImageNet stem, and the mean over all pixels.

use super::{Team, pieces, pieces_mut};
use crate::graph::TensorShape;
use crate::kernels::Real;

const SIDE: usize = 3;
const STRIDE: usize = 2;
const PAD: usize = 1;

/// 3x3 max pool of stride 2 and padding 1.
pub(crate) struct MaxPool {
    input: TensorShape,
    output: TensorShape,
    /// For each output, at which tap of its window the maximum was, 3 `row` + `column`.
    taps: Vec<u8>,
}

impl MaxPool {
    pub fn new(input: TensorShape, output: TensorShape, max_rows: usize) -> Self {
        assert_eq!(input.c, output.c, "channels of a pool");
        Self { input, output, taps: vec![0; max_rows * output.len()] }
    }

    /// Computes the largest of each window, the first of equals as in PyTorch; a not-a-number wins.
    ///
    /// - `x`: `[n, h, w, c]`; `y`: `[n, h', w', c]`
    pub fn forward<T: Real>(&mut self, team: &Team, x: &[T], y: &mut [T]) {
        let (input, output, threads) = (self.input, self.output, team.threads());
        let taps = &mut self.taps[..y.len()];
        let parts = pieces(x, input.len(), threads)
            .zip(pieces_mut(y, output.len(), threads))
            .zip(pieces_mut(taps, output.len(), threads))
            .collect();
        team.pool.for_each_part(parts, |_, ((x, y), taps)| {
            let images = x.chunks_exact(input.len()).zip(y.chunks_exact_mut(output.len()));
            for ((x, y), taps) in images.zip(taps.chunks_exact_mut(output.len())) {
                y.fill(T::from_f64(f64::NEG_INFINITY));
                for_each_tap(input, output, |tap, source, target| {
                    let (x, y) = (&x[source..][..input.c], &mut y[target..][..input.c]);
                    for ((x, y), at) in x.iter().zip(y).zip(&mut taps[target..][..input.c]) {
                        let is_no_number = x.partial_cmp(x).is_none();
                        if *x > *y || is_no_number {
                            (*y, *at) = (*x, tap);
                        }
                    }
                });
            }
        });
    }

    /// Hands each output's gradient to the input that was the maximum.
    ///
    /// - `d_y`: `[n, h', w', c]`; `d_x`: `[n, h, w, c]`, overwritten
    pub fn backward<T: Real>(&self, team: &Team, d_y: &[T], d_x: &mut [T]) {
        let (input, output, threads) = (self.input, self.output, team.threads());
        let parts = pieces(d_y, output.len(), threads)
            .zip(pieces_mut(d_x, input.len(), threads))
            .zip(pieces(&self.taps[..d_y.len()], output.len(), threads))
            .collect();
        team.pool.for_each_part(parts, |_, ((d_y, d_x), taps)| {
            d_x.fill(T::ZERO);
            let images = d_y.chunks_exact(output.len()).zip(d_x.chunks_exact_mut(input.len()));
            for ((d_y, d_x), taps) in images.zip(taps.chunks_exact(output.len())) {
                for_each_tap(input, output, |tap, source, target| {
                    let (d_x, d_y) = (&mut d_x[source..][..input.c], &d_y[target..][..input.c]);
                    for ((d_x, d_y), at) in d_x.iter_mut().zip(d_y).zip(&taps[target..][..input.c]) {
                        *d_x += if *at == tap { *d_y } else { T::ZERO };
                    }
                });
            }
        });
    }
}

/// Calls `f(tap, first input element, first output element)` wherever a tap of a window meets the image.
fn for_each_tap(input: TensorShape, output: TensorShape, mut f: impl FnMut(u8, usize, usize)) {
    for pixel in 0..output.h * output.w {
        let (y, x) = (pixel / output.w * STRIDE, pixel % output.w * STRIDE);
        for tap in 0..SIDE * SIDE {
            let (y, x) = (y + tap / SIDE, x + tap % SIDE);
            if (PAD..input.h + PAD).contains(&y) && (PAD..input.w + PAD).contains(&x) {
                let source = (y - PAD) * input.w + x - PAD;
                f(u8::try_from(tap).expect("nine taps"), source * input.c, pixel * output.c);
            }
        }
    }
}

/// Computes the mean over all pixels, `x [n, pixels, c]` to `y [n, c]`.
pub(crate) fn average<T: Real>(team: &Team, input: TensorShape, x: &[T], y: &mut [T]) {
    let share = T::from_f64(1.0 / (input.h * input.w) as f64);
    let parts = pieces(x, input.len(), team.threads()).zip(pieces_mut(y, input.c, team.threads())).collect();
    team.pool.for_each_part(parts, |_, (x, y)| {
        for (x, y) in x.chunks_exact(input.len()).zip(y.chunks_exact_mut(input.c)) {
            y.fill(T::ZERO);
            for pixel in x.chunks_exact(input.c) {
                for (y, &x) in y.iter_mut().zip(pixel) {
                    *y += x;
                }
            }
            for y in y {
                *y *= share;
            }
        }
    });
}

/// Computes the mean's gradient, `d_y [n, c]` to `d_x [n, pixels, c]`.
pub(crate) fn average_backward<T: Real>(team: &Team, input: TensorShape, d_y: &[T], d_x: &mut [T]) {
    let share = T::from_f64(1.0 / (input.h * input.w) as f64);
    let parts =
        pieces(d_y, input.c, team.threads()).zip(pieces_mut(d_x, input.len(), team.threads())).collect();
    team.pool.for_each_part(parts, |_, (d_y, d_x)| {
        for (d_y, d_x) in d_y.chunks_exact(input.c).zip(d_x.chunks_exact_mut(input.len())) {
            for pixel in d_x.chunks_exact_mut(input.c) {
                for (d_x, &d_y) in pixel.iter_mut().zip(d_y) {
                    *d_x = share * d_y;
                }
            }
        }
    });
}
