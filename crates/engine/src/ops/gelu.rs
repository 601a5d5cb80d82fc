//! The Gaussian error linear unit (Hendrycks & Gimpel 2016, arXiv:1606.08415), exact as in PyTorch: `y = x P(x)`, with
//! `P` the normal distribution. Backward, `d_x = d_y (P(x) + x p(x))` with its density `p`.

use super::{pieces, pieces_mut};
use kernels::{ChannelPass, Cpu, LANES, Real};

/// Computes `y` of as many `x`.
pub(crate) fn forward<T: Real>(cpu: &Cpu, x: &[T], y: &mut [T]) {
    let passes = pieces(x, 1, cpu.threads()).zip(pieces_mut(y, 1, cpu.threads()));
    cpu.run(LANES, passes.map(|(x, y)| Forward { x, y }).collect());
}

/// Turns the gradient of `y`, in place, into that of `x`.
pub(crate) fn backward<T: Real>(cpu: &Cpu, x: &[T], d: &mut [T]) {
    let passes = pieces(x, 1, cpu.threads()).zip(pieces_mut(d, 1, cpu.threads()));
    cpu.run(LANES, passes.map(|(x, d)| Backward { x, d }).collect());
}

struct Forward<'a, T> {
    x: &'a [T],
    y: &'a mut [T],
}

impl<T: Real> ChannelPass for Forward<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let (x, rest) = self.x.as_chunks::<L>();
        let (y, rest_y) = self.y.as_chunks_mut::<L>();
        for (x, y) in x.iter().zip(y) {
            for (&x, y) in x.iter().zip(y) {
                *y = x * x.normal().0;
            }
        }
        for (&x, y) in rest.iter().zip(rest_y) {
            *y = x * x.normal().0;
        }
    }
}

struct Backward<'a, T> {
    x: &'a [T],
    d: &'a mut [T],
}

impl<T: Real> ChannelPass for Backward<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let slope = |x: T| {
            let (probability, density) = x.normal();
            probability + x * density
        };
        let (x, rest) = self.x.as_chunks::<L>();
        let (d, rest_d) = self.d.as_chunks_mut::<L>();
        for (x, d) in x.iter().zip(d) {
            for (&x, d) in x.iter().zip(d) {
                *d *= slope(x);
            }
        }
        for (&x, d) in rest.iter().zip(rest_d) {
            *d *= slope(x);
        }
    }
}
