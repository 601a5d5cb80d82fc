//! Layer norm (Ba, Kiros & Hinton 2016, arXiv:1607.06450) of each token: `y = scale x^ + shift` with `x^ = (x - mean) /
//! sqrt(variance + eps)` over its `c` numbers. Backward, with `g = scale d_y`:
//!
//! `d_x += (g - mean(g) - x^ mean(g x^)) / sqrt(variance + eps)`, `d_scale = sum(d_y x^)`, `d_shift = sum(d_y)`.
//!
//! Mean and deviation are computed once more in the backward pass: a token is in the nearest cache then.
//!
//! The norm behind the last block is of the first token of each image alone, so tokens of `x` may lie further apart than
//! those of `y`.

use super::add_partials;
use super::passes::{groups, groups_mut, lanes};
use kernels::{ChannelPass, Cpu, Real, split, vectorized};

/// As timm and facebookresearch/moco-v3 have it, not PyTorch's default.
const EPSILON: f64 = 1e-6;

/// Tokens whose sums are taken in `T`.
const BLOCK: usize = 64;

/// Which numbers are normalised: tokens of `c`, `stride` numbers apart in `x`, and without gaps in `y`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerNormShape {
    pub c: usize,
    pub stride: usize,
}

/// Computes `y [tokens, c]`.
///
/// - `x`: `[tokens, stride]`; `scale`, `shift`: `[c]`
pub(crate) fn forward<T: Real>(
    cpu: &Cpu,
    LayerNormShape { c, stride }: LayerNormShape,
    x: &[T],
    (scale, shift): (&[T], &[T]),
    y: &mut [T],
) {
    cpu.pool.for_each_rows(y, c, |first, y| {
        let x = &x[first * stride..];
        vectorized(cpu.path, c, Forward { x, stride, scale, shift, y });
    });
}

/// Adds the gradient of `x` to `d_x`, and overwrites those of scale and shift.
///
/// - `x`, `d_x`: `[tokens, stride]`; `d_y`: `[tokens, c]`; `scale`: `[c]`
pub(crate) fn backward<T: Real>(
    cpu: &Cpu,
    LayerNormShape { c, stride }: LayerNormShape,
    (x, scale, d_y): (&[T], &[T], &[T]),
    d_x: &mut [T],
    (d_scale, d_shift): (&mut [T], &mut [T]),
) {
    let threads = cpu.threads();
    let tokens = d_y.len() / c;
    let mut partials = vec![0.0; threads * 2 * c];
    let mut rest = d_x;
    let parts = partials.chunks_exact_mut(2 * c).enumerate().map(|(thread, sums)| {
        let own = split(tokens, threads, thread);
        let d_x = rest.split_off_mut(..own.len() * stride).expect("the tokens tile the gradient");
        (own, d_x, sums)
    });
    cpu.pool.for_each_part(parts.collect(), |_, (own, d_x, sums)| {
        let (x, d_y) = (&x[own.start * stride..own.end * stride], &d_y[own.start * c..own.end * c]);
        let mut block = vec![T::ZERO; 2 * c];
        let blocks = x.chunks(BLOCK * stride).zip(d_y.chunks(BLOCK * c)).zip(d_x.chunks_mut(BLOCK * stride));
        for ((x, d_y), d_x) in blocks {
            block.fill(T::ZERO);
            vectorized(cpu.path, c, Backward { x, stride, scale, d_y, d_x, sums: &mut block });
            sums.iter_mut().zip(&block).for_each(|(sum, block)| *sum += block.to_f64());
        }
    });
    let mut sums = vec![0.0; 2 * c];
    add_partials(&partials, &mut sums);
    let sums = d_scale.iter_mut().chain(d_shift).zip(sums);
    sums.for_each(|(gradient, sum)| *gradient = T::from_f64(sum));
}

struct Forward<'a, T> {
    x: &'a [T],
    stride: usize,
    scale: &'a [T],
    shift: &'a [T],
    y: &'a mut [T],
}

impl<T: Real> ChannelPass for Forward<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let c = self.scale.len();
        let (scale, shift) = (groups::<L, T>(self.scale), groups::<L, T>(self.shift));
        for (x, y) in self.x.chunks(self.stride).zip(self.y.chunks_exact_mut(c)) {
            let x = groups::<L, T>(&x[..c]);
            let (mean, inverse) = moments(x);
            for (((&x, y), &scale), &shift) in x.iter().zip(groups_mut::<L, T>(y)).zip(scale).zip(shift) {
                *y = lanes(|l| (x[l] - mean) * inverse * scale[l] + shift[l]);
            }
        }
    }
}

struct Backward<'a, T> {
    x: &'a [T],
    stride: usize,
    scale: &'a [T],
    d_y: &'a [T],
    d_x: &'a mut [T],
    /// `[2, c]`: of scale, then of shift.
    sums: &'a mut [T],
}

impl<T: Real> ChannelPass for Backward<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let c = self.scale.len();
        let scale = groups::<L, T>(self.scale);
        let (d_scale, d_shift) = self.sums.split_at_mut(c);
        let (d_scale, d_shift) = (groups_mut::<L, T>(d_scale), groups_mut::<L, T>(d_shift));
        let tokens = self.x.chunks(self.stride).zip(self.d_y.chunks_exact(c));
        for ((x, d_y), d_x) in tokens.zip(self.d_x.chunks_mut(self.stride)) {
            let (x, d_y) = (groups::<L, T>(&x[..c]), groups::<L, T>(d_y));
            let (mean, inverse) = moments(x);
            let (mut plain, mut product) = ([T::ZERO; L], [T::ZERO; L]);
            for group in 0..x.len() {
                let (x, d_y, scale) = (x[group], d_y[group], scale[group]);
                let normal: [T; L] = lanes(|l| (x[l] - mean) * inverse);
                d_shift[group] = lanes(|l| d_shift[group][l] + d_y[l]);
                d_scale[group] = lanes(|l| d_scale[group][l] + d_y[l] * normal[l]);
                plain = lanes(|l| plain[l] + d_y[l] * scale[l]);
                product = lanes(|l| product[l] + d_y[l] * scale[l] * normal[l]);
            }
            let n = T::from_f64(c as f64);
            let (plain, product) = (total(plain) / n, total(product) / n);
            let d_x = groups_mut::<L, T>(&mut d_x[..c]);
            for group in 0..x.len() {
                let (x, d_y, scale, before) = (x[group], d_y[group], scale[group], d_x[group]);
                d_x[group] = lanes(|l| {
                    let normal = (x[l] - mean) * inverse;
                    before[l] + inverse * (d_y[l] * scale[l] - plain - normal * product)
                });
            }
        }
    }
}

/// A token's mean and the inverse of its deviation; its variance is that of the centred numbers.
#[inline(always)]
fn moments<T: Real, const L: usize>(x: &[[T; L]]) -> (T, T) {
    let n = T::from_f64((x.len() * L) as f64);
    let mut sum = [T::ZERO; L];
    for x in x {
        sum = lanes(|l| sum[l] + x[l]);
    }
    let mean = total(sum) / n;
    let mut squares = [T::ZERO; L];
    for x in x {
        squares = lanes(|l| squares[l] + (x[l] - mean) * (x[l] - mean));
    }
    (mean, T::ONE / (total(squares) / n + T::from_f64(EPSILON)).sqrt())
}

#[inline(always)]
fn total<T: Real, const L: usize>(lanes: [T; L]) -> T {
    let mut sum = T::ZERO;
    for lane in lanes {
        sum += lane;
    }
    sum
}
