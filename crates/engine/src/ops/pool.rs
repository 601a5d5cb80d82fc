//! The max pool behind the ImageNet stem, and the mean over all pixels.

use super::passes::{groups, groups_mut, lanes};
use super::{pieces, pieces_mut};
use crate::graph::TensorShape;
use kernels::{ChannelPass, Cpu, Real};

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
    pub fn forward<T: Real>(&mut self, cpu: &Cpu, x: &[T], y: &mut [T]) {
        let (input, output, threads) = (self.input, self.output, cpu.threads());
        let taps = &mut self.taps[..y.len()];
        let passes = pieces(x, input.len(), threads)
            .zip(pieces_mut(y, output.len(), threads))
            .zip(pieces_mut(taps, output.len(), threads))
            .map(|((x, y), taps)| Largest { input, output, x, y, taps })
            .collect();
        cpu.run(input.c, passes);
    }

    /// Hands each output's gradient to the input that was the maximum.
    ///
    /// - `d_y`: `[n, h', w', c]`; `d_x`: `[n, h, w, c]`, overwritten
    pub fn backward<T: Real>(&self, cpu: &Cpu, d_y: &[T], d_x: &mut [T]) {
        let (input, output, threads) = (self.input, self.output, cpu.threads());
        let passes = pieces(d_y, output.len(), threads)
            .zip(pieces_mut(d_x, input.len(), threads))
            .zip(pieces(&self.taps[..d_y.len()], output.len(), threads))
            .map(|((d_y, d_x), taps)| LargestBackward { input, output, d_y, d_x, taps })
            .collect();
        cpu.run(input.c, passes);
    }
}

/// The largest of each window, and at which tap it was.
struct Largest<'a, T> {
    input: TensorShape,
    output: TensorShape,
    x: &'a [T],
    y: &'a mut [T],
    taps: &'a mut [u8],
}

impl<T: Real> ChannelPass for Largest<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let (input, output) = (self.input, self.output);
        let width = input.c / L;
        let x = groups::<L, T>(self.x).chunks_exact(input.len() / L);
        let y = groups_mut::<L, T>(self.y).chunks_exact_mut(output.len() / L);
        let taps = groups_mut::<L, u8>(self.taps).chunks_exact_mut(output.len() / L);
        for ((x, y), taps) in x.zip(y).zip(taps) {
            let pixels = y.chunks_exact_mut(width).zip(taps.chunks_exact_mut(width));
            for (pixel, (y, taps)) in pixels.enumerate() {
                let window = Window::new(input, output, pixel);
                for group in 0..width {
                    let (mut largest, mut at) = ([T::from_f64(f64::NEG_INFINITY); L], [0; L]);
                    for &(tap, source) in window.meets() {
                        let x = x[source * width + group];
                        let wins: [bool; L] =
                            std::array::from_fn(|l| x[l] > largest[l] || x[l].partial_cmp(&x[l]).is_none());
                        largest = lanes(|l| if wins[l] { x[l] } else { largest[l] });
                        at = std::array::from_fn(|l| if wins[l] { tap } else { at[l] });
                    }
                    (y[group], taps[group]) = (largest, at);
                }
            }
        }
    }
}

/// Each output's gradient at the tap of the largest.
struct LargestBackward<'a, T> {
    input: TensorShape,
    output: TensorShape,
    d_y: &'a [T],
    d_x: &'a mut [T],
    taps: &'a [u8],
}

impl<T: Real> ChannelPass for LargestBackward<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let (input, output) = (self.input, self.output);
        let width = input.c / L;
        let d_y = groups::<L, T>(self.d_y).chunks_exact(output.len() / L);
        let d_x = groups_mut::<L, T>(self.d_x).chunks_exact_mut(input.len() / L);
        let taps = groups::<L, u8>(self.taps).chunks_exact(output.len() / L);
        for ((d_y, d_x), taps) in d_y.zip(d_x).zip(taps) {
            d_x.fill([T::ZERO; L]);
            let pixels = d_y.chunks_exact(width).zip(taps.chunks_exact(width));
            for (pixel, (d_y, taps)) in pixels.enumerate() {
                for &(tap, source) in Window::new(input, output, pixel).meets() {
                    for ((d_y, at), d_x) in d_y.iter().zip(taps).zip(&mut d_x[source * width..]) {
                        let sum = *d_x;
                        *d_x = lanes(|l| sum[l] + if at[l] == tap { d_y[l] } else { T::ZERO });
                    }
                }
            }
        }
    }
}

/// The taps of a window that meet the image, and the input pixels that they meet.
struct Window {
    meetings: [(u8, usize); SIDE * SIDE],
    count: usize,
}

impl Window {
    /// The window of one output pixel.
    #[inline(always)]
    fn new(input: TensorShape, output: TensorShape, pixel: usize) -> Self {
        let (y, x) = (pixel / output.w * STRIDE, pixel % output.w * STRIDE);
        let mut window = Self { meetings: [(0, 0); SIDE * SIDE], count: 0 };
        for tap in 0..SIDE * SIDE {
            let (y, x) = (y + tap / SIDE, x + tap % SIDE);
            if (PAD..input.h + PAD).contains(&y) && (PAD..input.w + PAD).contains(&x) {
                window.meetings[window.count] = (tap as u8, (y - PAD) * input.w + x - PAD);
                window.count += 1;
            }
        }
        window
    }

    #[inline(always)]
    fn meets(&self) -> &[(u8, usize)] {
        &self.meetings[..self.count]
    }
}

/// Computes the mean over all pixels, `x [n, pixels, c]` to `y [n, c]`.
pub(crate) fn average<T: Real>(cpu: &Cpu, input: TensorShape, x: &[T], y: &mut [T]) {
    let share = T::from_f64(1.0 / (input.h * input.w) as f64);
    let parts = pieces(x, input.len(), cpu.threads()).zip(pieces_mut(y, input.c, cpu.threads())).collect();
    cpu.pool.for_each_part(parts, |_, (x, y)| {
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
pub(crate) fn average_backward<T: Real>(cpu: &Cpu, input: TensorShape, d_y: &[T], d_x: &mut [T]) {
    let share = T::from_f64(1.0 / (input.h * input.w) as f64);
    let parts =
        pieces(d_y, input.c, cpu.threads()).zip(pieces_mut(d_x, input.len(), cpu.threads())).collect();
    cpu.pool.for_each_part(parts, |_, (d_y, d_x)| {
        for (d_y, d_x) in d_y.chunks_exact(input.c).zip(d_x.chunks_exact_mut(input.len())) {
            for pixel in d_x.chunks_exact_mut(input.c) {
                for (d_x, &d_y) in pixel.iter_mut().zip(d_y) {
                    *d_x = share * d_y;
                }
            }
        }
    });
}
