//! The memory passes of batch norm: each visits its operands once, pixel by pixel.
//!
//! All are written over groups of `L` channels, read as a whole, computed by [`lanes`] and written as a whole: so
//! the compiler makes each group a register. Sums are taken in `T` over a block of pixels and then added in `f64`:
//! as exact as needed, and as fast as memory.

use kernels::{ChannelPass, Real};

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
        let (affine, floor) = (self.affine.groups::<L>(), self.floor);
        let x = groups::<L, T>(self.x).iter().zip(affine.cycle());
        let values = x.zip(groups_mut::<L, T>(self.y));
        match self.addend {
            Addend::Nothing => {
                for ((&x, group), y) in values {
                    let normal = affine.at(group, x);
                    *y = lanes(|l| at_least(floor, normal[l]));
                }
            }
            Addend::Plain(addend) => {
                for (((&x, group), y), addend) in values.zip(groups::<L, T>(addend)) {
                    let normal = affine.at(group, x);
                    *y = lanes(|l| at_least(floor, normal[l] + addend[l]));
                }
            }
            Addend::Affine(addend, shortcut) => {
                let shortcut = shortcut.groups::<L>();
                for (((&x, group), y), &addend) in values.zip(groups::<L, T>(addend)) {
                    let (normal, addend) = (affine.at(group, x), shortcut.at(group, addend));
                    *y = lanes(|l| at_least(floor, normal[l] + addend[l]));
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
        self.sums.fill(0.0);
        let (plain, squares) = self.sums.split_at_mut(self.sums.len() / 2);
        let (plain, squares) = (groups_mut::<L, f64>(plain), groups_mut::<L, f64>(squares));
        let width = plain.len();
        for x in groups::<L, T>(self.x).chunks(BLOCK * width) {
            for group in 0..width {
                let (mut sum, mut square) = ([T::ZERO; L], [T::ZERO; L]);
                for &x in x[group..].iter().step_by(width) {
                    sum = lanes(|l| sum[l] + x[l]);
                    square = lanes(|l| square[l] + x[l] * x[l]);
                }
                flush(sum, &mut plain[group]);
                flush(square, &mut squares[group]);
            }
        }
    }
}

/// Adds up `g` and `g * (x - centre)`, where `g` is `d` wherever `affine(x)` passed its ReLU.
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
        let (plain, products) = self.sums.split_at_mut(self.sums.len() / 2);
        let (plain, products) = (groups_mut::<L, f64>(plain), groups_mut::<L, f64>(products));
        let (affine, width, floor) = (self.affine.groups::<L>(), plain.len(), self.floor);
        let d = groups::<L, T>(self.d).chunks(BLOCK * width);
        for (x, d) in groups::<L, T>(self.x).chunks(BLOCK * width).zip(d) {
            for group in 0..width {
                let centre = groups::<L, T>(self.centre)[group];
                let (mut sum, mut product) = ([T::ZERO; L], [T::ZERO; L]);
                for at in (group..x.len()).step_by(width) {
                    let (x, d) = (x[at], d[at]);
                    let normal = affine.at(group, x);
                    let g: [T; L] = lanes(|l| if normal[l] > floor { d[l] } else { T::ZERO });
                    sum = lanes(|l| sum[l] + g[l]);
                    product = lanes(|l| product[l] + g[l] * (x[l] - centre[l]));
                }
                flush(sum, &mut plain[group]);
                flush(product, &mut products[group]);
            }
        }
    }
}

/// `d_x = input gradient`, where `g` is `d` wherever `affine(x)` passed its ReLU.
pub(super) struct MaskedInputGradient<'a, T> {
    pub x: &'a [T],
    pub affine: &'a Affine<T>,
    pub centre: &'a [T],
    pub gradient: &'a InputGradient<T>,
    pub floor: T,
    pub d: &'a [T],
    pub d_x: &'a mut [T],
}

impl<T: Real> ChannelPass for MaskedInputGradient<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let (affine, gradient) = (self.affine.groups::<L>(), self.gradient.groups::<L>(self.centre));
        let floor = self.floor;
        let x = groups::<L, T>(self.x).iter().zip(affine.cycle());
        for (((&x, group), &d), d_x) in x.zip(groups::<L, T>(self.d)).zip(groups_mut::<L, T>(self.d_x)) {
            let normal = affine.at(group, x);
            let g = lanes(|l| if normal[l] > floor { d[l] } else { T::ZERO });
            *d_x = gradient.at(group, g, x);
        }
    }
}

/// Masks `d` in place by the sign of the output `y`, and adds up it and its products with `N` centred inputs.
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
        let (plain, products) = self.sums.split_at_mut(self.sums.len() / (1 + N));
        let (plain, products) = (groups_mut::<L, f64>(plain), groups_mut::<L, f64>(products));
        let width = plain.len();
        let y = groups::<L, T>(self.y).chunks(BLOCK * width);
        let d = groups_mut::<L, T>(self.d).chunks_mut(BLOCK * width);
        for (block, (y, d)) in y.zip(d).enumerate() {
            for (group, plain) in plain.iter_mut().enumerate() {
                let mut sum = [T::ZERO; L];
                for at in (group..y.len()).step_by(width) {
                    let (y, d_y) = (y[at], d[at]);
                    let g: [T; L] = lanes(|l| if y[l] > T::ZERO { d_y[l] } else { T::ZERO });
                    d[at] = g;
                    sum = lanes(|l| sum[l] + g[l]);
                }
                flush(sum, plain);
            }
            // The block is still in the nearest cache.
            for n in 0..N {
                let x = &groups::<L, T>(self.x[n])[block * BLOCK * width..][..y.len()];
                for group in 0..width {
                    let centre = groups::<L, T>(self.centre[n])[group];
                    let mut product = [T::ZERO; L];
                    for at in (group..y.len()).step_by(width) {
                        let (x, g) = (x[at], d[at]);
                        product = lanes(|l| product[l] + g[l] * (x[l] - centre[l]));
                    }
                    flush(product, &mut products[n * width + group]);
                }
            }
        }
    }
}

/// The coefficients of [`Affine`], by group.
struct AffineGroups<'a, T, const L: usize> {
    multiplier: &'a [[T; L]],
    offset: &'a [[T; L]],
}

impl<T: Real> Affine<T> {
    #[inline(always)]
    fn groups<const L: usize>(&self) -> AffineGroups<'_, T, L> {
        AffineGroups { multiplier: groups(&self.multiplier), offset: groups(&self.offset) }
    }
}

impl<T: Real, const L: usize> AffineGroups<'_, T, L> {
    /// The groups of one pixel after the other. One loop over both, because in a loop over the groups of a pixel
    /// the compiler would gather single numbers of many groups.
    #[inline(always)]
    fn cycle(&self) -> impl Iterator<Item = usize> {
        (0..self.multiplier.len()).cycle()
    }

    #[inline(always)]
    fn at(&self, group: usize, x: [T; L]) -> [T; L] {
        let (multiplier, offset) = (self.multiplier[group], self.offset[group]);
        lanes(|l| multiplier[l] * x[l] + offset[l])
    }
}

/// The coefficients of [`InputGradient`], by group.
struct GradientGroups<'a, T, const L: usize> {
    centre: &'a [[T; L]],
    on_gradient: &'a [[T; L]],
    on_centred: &'a [[T; L]],
    constant: &'a [[T; L]],
}

impl<T: Real> InputGradient<T> {
    #[inline(always)]
    fn groups<'a, const L: usize>(&'a self, centre: &'a [T]) -> GradientGroups<'a, T, L> {
        GradientGroups {
            centre: groups(centre),
            on_gradient: groups(&self.on_gradient),
            on_centred: groups(&self.on_centred),
            constant: groups(&self.constant),
        }
    }
}

impl<T: Real, const L: usize> GradientGroups<'_, T, L> {
    #[inline(always)]
    fn at(&self, group: usize, g: [T; L], x: [T; L]) -> [T; L] {
        let (a, b, c) = (self.on_gradient[group], self.on_centred[group], self.constant[group]);
        let centre = self.centre[group];
        lanes(|l| a[l] * g[l] + b[l] * (x[l] - centre[l]) + c[l])
    }
}

/// `f` of every lane.
#[inline(always)]
pub(super) fn lanes<T: Real, const L: usize>(f: impl Fn(usize) -> T) -> [T; L] {
    let mut values = [T::ZERO; L];
    for (l, value) in values.iter_mut().enumerate() {
        *value = f(l);
    }
    values
}

#[inline(always)]
fn at_least<T: Real>(floor: T, value: T) -> T {
    if value < floor { floor } else { value }
}

/// Adds the sums of one block to those of all.
#[inline(always)]
fn flush<T: Real, const L: usize>(block: [T; L], sums: &mut [f64; L]) {
    for (sum, block) in sums.iter_mut().zip(block) {
        *sum += block.to_f64();
    }
}

#[inline(always)]
pub(super) fn groups<const L: usize, T>(values: &[T]) -> &[[T; L]] {
    values.as_chunks().0
}

#[inline(always)]
pub(super) fn groups_mut<const L: usize, T>(values: &mut [T]) -> &mut [[T; L]] {
    values.as_chunks_mut().0
}
