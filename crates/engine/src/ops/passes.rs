//! The memory passes of batch norm: each visits its operands once, pixel by pixel.
//!
//! All are written over groups of `L` channels, so that the compiler makes each group a register. Sums are
//! taken in `T` over a block of pixels and then added in `f64`: as exact as needed, and as fast as memory.

use crate::kernels::{ChannelPass, Real};

/// Pixels whose sums are taken in `T`.
const BLOCK: usize = 64;

/// `multiplier * x + offset` per channel.
pub(super) struct Affine<T> {
    pub multiplier: Vec<T>,
    pub offset: Vec<T>,
}

/// `on_gradient * g + on_centred * (x - centre) + constant` per channel: a batch norm's input gradient.
pub(super) struct InputGradient<T> {
    pub on_gradient: Vec<T>,
    pub on_centred: Vec<T>,
    pub constant: Vec<T>,
}

/// What is added to a normalised value.
#[derive(Clone, Copy)]
pub(super) enum Addend<'a, T> {
    Nothing,
    Plain(&'a [T]),
    Affine(&'a [T], &'a Affine<T>),
}

/// The smallest value a ReLU lets through, and without one none is too small.
pub(super) fn floor<T: Real>(relu: bool) -> T {
    if relu { T::ZERO } else { T::from_f64(f64::NEG_INFINITY) }
}

/// `y = max(affine(x) + addend, floor)`; not-a-numbers pass through.
pub(super) struct Apply<'a, T> {
    pub x: &'a [T],
    pub affine: &'a Affine<T>,
    pub addend: Addend<'a, T>,
    pub floor: T,
    pub y: &'a mut [T],
}

impl<T: Real> ChannelPass for Apply<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let (scale, offset) = (groups::<L, T>(&self.affine.multiplier), groups::<L, T>(&self.affine.offset));
        let width = scale.len();
        let floor = self.floor;
        let x = groups::<L, T>(self.x).chunks_exact(width);
        let pixels = x.zip(groups_mut::<L, T>(self.y).chunks_exact_mut(width));
        match self.addend {
            Addend::Nothing => {
                for (x, y) in pixels {
                    for (((x, y), scale), offset) in x.iter().zip(y).zip(scale).zip(offset) {
                        for l in 0..L {
                            y[l] = at_least(floor, scale[l] * x[l] + offset[l]);
                        }
                    }
                }
            }
            Addend::Plain(addend) => {
                for ((x, y), addend) in pixels.zip(groups::<L, T>(addend).chunks_exact(width)) {
                    for ((((x, y), scale), offset), addend) in
                        x.iter().zip(y).zip(scale).zip(offset).zip(addend)
                    {
                        for l in 0..L {
                            y[l] = at_least(floor, scale[l] * x[l] + offset[l] + addend[l]);
                        }
                    }
                }
            }
            Addend::Affine(addend, affine) => {
                let scale_2 = groups::<L, T>(&affine.multiplier);
                let offset_2 = groups::<L, T>(&affine.offset);
                for ((x, y), addend) in pixels.zip(groups::<L, T>(addend).chunks_exact(width)) {
                    for group in 0..width {
                        let (x, y, addend) = (&x[group], &mut y[group], &addend[group]);
                        for l in 0..L {
                            let shortcut = scale_2[group][l] * addend[l] + offset_2[group][l];
                            y[l] = at_least(floor, scale[group][l] * x[l] + offset[group][l] + shortcut);
                        }
                    }
                }
            }
        }
    }
}

/// Sum and sum of squares of each channel of `x`, `[2, channels]`.
pub(super) struct Sums<'a, T> {
    pub x: &'a [T],
    pub sums: &'a mut [f64],
}

impl<T: Real> ChannelPass for Sums<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let width = self.sums.len() / 2 / L;
        self.sums.fill(0.0);
        for x in groups::<L, T>(self.x).chunks(BLOCK * width) {
            for group in 0..width {
                let mut sums = [[T::ZERO; L]; 2];
                for x in x[group..].iter().step_by(width) {
                    for l in 0..L {
                        sums[0][l] += x[l];
                        sums[1][l] += x[l] * x[l];
                    }
                }
                flush(&sums, group, self.sums);
            }
        }
    }
}

/// Sums of `g` and `g * (x - centre)`, where `g` is `d` wherever `affine(x)` passed its ReLU.
pub(super) struct MaskedSums<'a, T> {
    pub x: &'a [T],
    pub affine: &'a Affine<T>,
    pub centre: &'a [T],
    pub floor: T,
    pub d: &'a [T],
    pub sums: &'a mut [f64],
}

impl<T: Real> ChannelPass for MaskedSums<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let width = self.centre.len() / L;
        let floor = self.floor;
        self.sums.fill(0.0);
        let d = groups::<L, T>(self.d).chunks(BLOCK * width);
        for (x, d) in groups::<L, T>(self.x).chunks(BLOCK * width).zip(d) {
            for group in 0..width {
                let scale = groups::<L, T>(&self.affine.multiplier)[group];
                let offset = groups::<L, T>(&self.affine.offset)[group];
                let centre = groups::<L, T>(self.centre)[group];
                let mut sums = [[T::ZERO; L]; 2];
                let pixels = x[group..].iter().step_by(width);
                for (x, d) in pixels.zip(d[group..].iter().step_by(width)) {
                    for l in 0..L {
                        let g = if scale[l] * x[l] + offset[l] > floor { d[l] } else { T::ZERO };
                        sums[0][l] += g;
                        sums[1][l] += g * (x[l] - centre[l]);
                    }
                }
                flush(&sums, group, self.sums);
            }
        }
    }
}

/// `d = input gradient` in place, where `g` is `d` wherever `affine(x)` passed its ReLU.
pub(super) struct MaskedInputGradient<'a, T> {
    pub x: &'a [T],
    pub affine: &'a Affine<T>,
    pub centre: &'a [T],
    pub gradient: &'a InputGradient<T>,
    pub floor: T,
    pub d: &'a mut [T],
}

impl<T: Real> ChannelPass for MaskedInputGradient<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let (scale, offset) = (groups::<L, T>(&self.affine.multiplier), groups::<L, T>(&self.affine.offset));
        let centre = groups::<L, T>(self.centre);
        let a = groups::<L, T>(&self.gradient.on_gradient);
        let b = groups::<L, T>(&self.gradient.on_centred);
        let c = groups::<L, T>(&self.gradient.constant);
        let width = scale.len();
        let floor = self.floor;
        let d = groups_mut::<L, T>(self.d).chunks_exact_mut(width);
        for (x, d) in groups::<L, T>(self.x).chunks_exact(width).zip(d) {
            for group in 0..width {
                let (x, d) = (&x[group], &mut d[group]);
                for l in 0..L {
                    let passed = scale[group][l] * x[l] + offset[group][l] > floor;
                    let g = if passed { d[l] } else { T::ZERO };
                    d[l] = a[group][l] * g + b[group][l] * (x[l] - centre[group][l]) + c[group][l];
                }
            }
        }
    }
}

/// Masks `d` in place by the sign of the output `y`, and sums it and its products with `N` centred inputs.
pub(super) struct ResidualSums<'a, T, const N: usize> {
    pub x: [&'a [T]; N],
    pub centre: [&'a [T]; N],
    pub y: &'a [T],
    pub d: &'a mut [T],
    pub sums: &'a mut [f64],
}

impl<T: Real, const N: usize> ChannelPass for ResidualSums<'_, T, N> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let width = self.centre[0].len() / L;
        self.sums.fill(0.0);
        let y = groups::<L, T>(self.y).chunks(BLOCK * width);
        let d = groups_mut::<L, T>(self.d).chunks_mut(BLOCK * width);
        for (block, (y, d)) in y.zip(d).enumerate() {
            let x = self.x.map(|x| &groups::<L, T>(x)[block * BLOCK * width..][..y.len()]);
            for group in 0..width {
                let centre = self.centre.map(|centre| groups::<L, T>(centre)[group]);
                let mut plain = [[T::ZERO; L]; 1];
                let mut products = [[T::ZERO; L]; N];
                for at in (group..y.len()).step_by(width) {
                    let (y, d) = (&y[at], &mut d[at]);
                    for l in 0..L {
                        d[l] = if y[l] > T::ZERO { d[l] } else { T::ZERO };
                        plain[0][l] += d[l];
                    }
                    for n in 0..N {
                        let x = &x[n][at];
                        for l in 0..L {
                            products[n][l] += d[l] * (x[l] - centre[n][l]);
                        }
                    }
                }
                let (first, others) = self.sums.split_at_mut(width * L);
                flush(&plain, group, first);
                flush(&products, group, others);
            }
        }
    }
}

/// `d_x = input gradient` of one norm behind a residual sum whose gradient is `g`.
pub(super) struct ResidualInputGradient<'a, T> {
    pub x: &'a [T],
    pub centre: &'a [T],
    pub gradient: &'a InputGradient<T>,
    pub g: &'a [T],
    pub d_x: &'a mut [T],
}

impl<T: Real> ChannelPass for ResidualInputGradient<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let centre = groups::<L, T>(self.centre);
        let a = groups::<L, T>(&self.gradient.on_gradient);
        let b = groups::<L, T>(&self.gradient.on_centred);
        let c = groups::<L, T>(&self.gradient.constant);
        let width = centre.len();
        let g = groups::<L, T>(self.g).chunks_exact(width);
        let d_x = groups_mut::<L, T>(self.d_x).chunks_exact_mut(width);
        for ((x, g), d_x) in groups::<L, T>(self.x).chunks_exact(width).zip(g).zip(d_x) {
            for group in 0..width {
                let (x, g, d_x) = (&x[group], &g[group], &mut d_x[group]);
                for l in 0..L {
                    d_x[l] = a[group][l] * g[l] + b[group][l] * (x[l] - centre[group][l]) + c[group][l];
                }
            }
        }
    }
}

#[inline(always)]
fn at_least<T: Real>(floor: T, value: T) -> T {
    if value < floor { floor } else { value }
}

/// Adds `N` sums of one group of channels to `[N, channels]`.
#[inline(always)]
fn flush<T: Real, const L: usize, const N: usize>(block: &[[T; L]; N], group: usize, sums: &mut [f64]) {
    let channels = sums.len() / N;
    for n in 0..N {
        for l in 0..L {
            sums[n * channels + group * L + l] += block[n][l].to_f64();
        }
    }
}

#[inline(always)]
fn groups<const L: usize, T>(values: &[T]) -> &[[T; L]] {
    values.as_chunks().0
}

#[inline(always)]
fn groups_mut<const L: usize, T>(values: &mut [T]) -> &mut [[T; L]] {
    values.as_chunks_mut().0
}
