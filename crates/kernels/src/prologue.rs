//! What is done to each number of a convolution's input on the way into it.
//!
//! A normalised activation that only convolutions read is never stored: they read what is normalised, and
//! normalise it themselves.

use std::ops::Range;

use super::real::Real;
use super::simd::{Simd, Task};

/// The input of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a, T> {
    /// `[n, h, w, c_in]`
    pub x: &'a [T],
    /// What stands between these numbers and the convolution; the padding is zeros behind it.
    pub prologue: Option<Prologue<'a, T>>,
}

/// `multiplier * x + offset` per channel, and behind it a ReLU.
#[derive(Clone, Copy, Debug)]
pub struct Prologue<'a, T> {
    /// `[c_in]`
    pub multiplier: &'a [T],
    /// `[c_in]`
    pub offset: &'a [T],
    /// Whether what is negative becomes 0.
    pub relu: bool,
}

impl<'a, T: Real> Input<'a, T> {
    /// The numbers as they are.
    pub fn plain(x: &'a [T]) -> Self {
        Self { x, prologue: None }
    }

    /// The same prologue on a part of the numbers.
    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        Self { x: &self.x[range], ..*self }
    }

    /// What the convolution sees of the pixel that begins at `start`.
    pub(super) fn pixel(&self, start: usize, channels: usize) -> impl Iterator<Item = T> {
        let prologue = self.prologue;
        let see = move |channel, x| prologue.map_or(x, |prologue| prologue.at(channel, x));
        self.x[start..start + channels].iter().enumerate().map(move |(channel, &x)| see(channel, x))
    }

    /// As `f32`, for the fast methods.
    pub(super) fn as_f32(&self) -> Option<Input<'a, f32>> {
        let prologue = match self.prologue {
            Some(Prologue { multiplier, offset, relu }) => {
                Some(Prologue { multiplier: T::as_f32(multiplier)?, offset: T::as_f32(offset)?, relu })
            }
            None => None,
        };
        Some(Input { x: T::as_f32(self.x)?, prologue })
    }
}

impl<T: Real> Prologue<'_, T> {
    /// The smallest value that passes.
    #[inline(always)]
    fn floor(&self) -> T {
        if self.relu { T::ZERO } else { T::from_f64(f64::NEG_INFINITY) }
    }

    #[inline(always)]
    fn at(&self, channel: usize, x: T) -> T {
        let value = self.multiplier[channel] * x + self.offset[channel];
        if value < self.floor() { self.floor() } else { value }
    }
}

impl Prologue<'_, f32> {
    /// The prologue of the vector of channels that begins at `channel`.
    #[inline(always)]
    pub(super) fn vector<S: Simd>(&self, simd: S, channel: usize) -> VectorPrologue<S> {
        VectorPrologue {
            multiplier: simd.read(&self.multiplier[channel..]),
            offset: simd.read(&self.offset[channel..]),
            floor: simd.splat(self.floor()),
        }
    }
}

/// A prologue of as many channels as a vector has lanes.
#[derive(Clone, Copy)]
pub(super) struct VectorPrologue<S: Simd> {
    multiplier: S::Vector,
    offset: S::Vector,
    floor: S::Vector,
}

impl<S: Simd> VectorPrologue<S> {
    #[inline(always)]
    pub(super) fn see(self, simd: S, x: S::Vector) -> S::Vector {
        simd.max(self.floor, simd.mul_add(self.multiplier, x, self.offset))
    }
}

/// Writes what a convolution sees of some channels of some pixels.
pub(super) struct Apply<'a> {
    /// Without one the numbers are copied.
    pub(super) prologue: Option<Prologue<'a, f32>>,
    /// Those of the pixels, and of the prologue, that are written.
    pub(super) channels: Range<usize>,
    /// Pixels, `x_step` apart, of all channels.
    pub(super) x: &'a [f32],
    pub(super) x_step: usize,
    /// As many pixels, `y_step` apart, of these channels.
    pub(super) y: &'a mut [f32],
    pub(super) y_step: usize,
}

impl Task for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let count = self.channels.len();
        let mut done = 0;
        while done + 2 * S::LANES <= count {
            self.vectors::<S, 2>(simd, done);
            done += 2 * S::LANES;
        }
        if done + S::LANES <= count {
            self.vectors::<S, 1>(simd, done);
            done += S::LANES;
        }
        let Self { prologue, channels, x, x_step, y, y_step } = self;
        for (at, channel) in channels.enumerate().skip(done) {
            let values = x[channel..].iter().step_by(x_step);
            for (y, &value) in y[at..].iter_mut().step_by(y_step).zip(values) {
                *y = prologue.map_or(value, |prologue| prologue.at(channel, value));
            }
        }
    }
}

impl Apply<'_> {
    /// A few vectors of the channels of all pixels: what is done to them stays in registers.
    #[inline(always)]
    fn vectors<S: Simd, const VECTORS: usize>(&mut self, simd: S, first: usize) {
        let channel = self.channels.start + first;
        let seen = self.prologue.map(|prologue| -> [_; VECTORS] {
            std::array::from_fn(|v| prologue.vector(simd, channel + v * S::LANES))
        });
        let x = self.x[channel..].chunks(self.x_step);
        for (x, y) in x.zip(self.y[first..].chunks_mut(self.y_step)) {
            for v in 0..VECTORS {
                let value = simd.read(&x[v * S::LANES..]);
                let value = seen.map_or(value, |seen| seen[v].see(simd, value));
                simd.write(&mut y[v * S::LANES..], value);
            }
        }
    }
}
