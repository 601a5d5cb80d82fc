//! Winograd's convolution with stride 2, F(4x4, 3x3): four convolutions with stride 1.
//!
//! Along one axis, with stride 2 and padding 1, the odd pixels meet the outer taps and the even pixels the inner one:
//!
//! ```text
//! y_i = w_0 x_(2i-1) + w_2 x_(2i+1)  +  w_1 x_2i
//! ```
//!
//! The first part has two taps. With the points 0, 1, -1, 2 and infinity, four outputs of it are
//!
//! ```text
//! y = Aᵀ [(G g) ⊙ (Bᵀ d)]        d: 5 odd pixels, g: the taps 0 and 2
//!
//!      |2 -1 -2  1 0|       | 1/2   0  |
//!      |0 -2 -1  1 0|       |-1/2 -1/2 |       |1 1  1 1 0|
//! Bᵀ = |0  2 -3  1 0|   G = |-1/6  1/6 |  Aᵀ = |0 1 -1 2 0|
//!      |0 -1  0  1 0|       | 1/6  1/3 |       |0 1  1 4 0|
//!      |0  2 -1 -2 1|       |  0    1  |       |0 1 -1 8 1|
//! ```
//!
//! and the second part is the same with `g = (w_1, 0)`, for which the point at infinity has nothing to say: four points
//! are enough, and at these both parts share one sum. In two dimensions a pixel is of one of four phases, which have
//! 25, 20, 20 and 16 points: 81 multiplications in place of 144, summed at 25 points.
//!
//! The data gradient is the same backwards: `d_x_2i = w_1 d_y_i` and `d_x_(2i+1) = w_2 d_y_i + w_0 d_y_(i+1)`.

use super::lattice::Lattice;
use super::shape::ConvShape;
use super::simd::Simd;
use super::transforms::{Input, Map, Output, OutputGradient, WeightGradient, Weights, scaled};

/// What a convolution sees along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// All pixels and all taps.
    Whole,
    /// Every other pixel from the second on, and the outer taps.
    Odd,
    /// Every other pixel from the first on, and the inner tap.
    Even,
}

use Axis::{Even, Odd, Whole};

impl Axis {
    /// Points of the basis.
    fn points(self) -> usize {
        match self {
            Whole => 6,
            Odd => 5,
            Even => 4,
        }
    }

    /// Distance of two pixels, and of two taps.
    fn step(self) -> usize {
        if self == Whole { 1 } else { 2 }
    }

    fn first_pixel(self) -> usize {
        usize::from(self == Odd)
    }

    fn first_tap(self) -> usize {
        usize::from(self == Even)
    }
}

/// A part of a convolution, by what it sees down and across an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    pub(super) down: Axis,
    pub(super) across: Axis,
}

/// Stride 1: all at once.
const ONE: [Phase; 1] = [Phase { down: Whole, across: Whole }];

/// Stride 2, in such an order that those that have a point stand side by side.
const FOUR: [Phase; 4] = [
    Phase { down: Odd, across: Even },
    Phase { down: Odd, across: Odd },
    Phase { down: Even, across: Odd },
    Phase { down: Even, across: Even },
];

impl Phase {
    /// The phases of a convolution's input.
    pub(super) fn all(shape: &ConvShape) -> &'static [Self] {
        if shape.stride == 1 { &ONE } else { &FOUR }
    }

    /// The one that has all points, as the output of a convolution does.
    pub(super) fn full(shape: &ConvShape) -> Self {
        if shape.stride == 1 { ONE[0] } else { Self { down: Odd, across: Odd } }
    }

    /// Whether the phase has a point of a basis of `side` x `side`.
    pub(super) fn has(self, point: usize, side: usize) -> bool {
        point / side < self.down.points() && point % side < self.across.points()
    }

    /// The first of its taps, of nine.
    pub(super) fn first_tap(self) -> usize {
        3 * self.down.first_tap() + self.across.first_tap()
    }

    /// Distance of two of its taps, of two rows of them a third: the same down as across.
    pub(super) fn tap_step(self) -> usize {
        self.down.step()
    }

    /// All pixels of images `[h, w, channels]`.
    pub(super) fn all_pixels(sides: [usize; 2], channels: usize) -> Lattice {
        ONE[0].pixels(sides, channels)
    }

    /// Its pixels of images `[h, w, channels]`.
    pub(super) fn pixels(self, [h, w]: [usize; 2], channels: usize) -> Lattice {
        let (y, x) = (self.down.first_pixel(), self.across.first_pixel());
        let (down, across) = (self.down.step(), self.across.step());
        Lattice {
            h: (h - y.min(h)).div_ceil(down),
            w: (w - x.min(w)).div_ceil(across),
            channels,
            first: (y * w + x) * channels,
            row: down * w * channels,
            pixel: across * channels,
            image: h * w * channels,
        }
    }

    /// Pixels of the phase that its windows reach above and left of a tile.
    pub(super) fn before(self) -> [usize; 2] {
        [self.down, self.across].map(|axis| usize::from(axis != Even))
    }
}

/// Runs code with the sizes of a phase: points and taps down and across.
macro_rules! with_sizes {
    ($phase:expr, [$down:ident, $across:ident, $taps_down:ident, $taps_across:ident, $side:ident], $code:expr) => {{
        use crate::phases::{Axis::*, Phase};
        macro_rules! with {
            ($d:literal, $a:literal, $td:literal, $ta:literal, $s:literal) => {{
                const $down: usize = $d;
                const $across: usize = $a;
                #[allow(dead_code, reason = "not all code is about taps")]
                const $taps_down: usize = $td;
                #[allow(dead_code, reason = "not all code is about taps")]
                const $taps_across: usize = $ta;
                const $side: usize = $s;
                $code
            }};
        }
        match $phase {
            Phase { down: Odd, across: Odd } => with!(5, 5, 2, 2, 5),
            Phase { down: Odd, across: Even } => with!(5, 4, 2, 1, 5),
            Phase { down: Even, across: Odd } => with!(4, 5, 1, 2, 5),
            Phase { down: Even, across: Even } => with!(4, 4, 1, 1, 5),
            _ => with!(6, 6, 3, 3, 6),
        }
    }};
}
pub(super) use with_sizes;

impl Map<4, 4> for Input {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, d: [S::Vector; 4]) -> [S::Vector; 4] {
        let inner = simd.sub(d[3], d[1]);
        [
            scaled(simd, 2.0, simd.sub(d[0], d[2]), inner),
            scaled(simd, -2.0, d[1], simd.sub(d[3], d[2])),
            scaled(simd, -3.0, d[2], scaled(simd, 2.0, d[1], d[3])),
            inner,
        ]
    }
}

impl Map<5, 5> for Input {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, d: [S::Vector; 5]) -> [S::Vector; 5] {
        let finite: [S::Vector; 4] = self.map(simd, [d[0], d[1], d[2], d[3]]);
        let infinite = scaled(simd, -2.0, finite[3], simd.sub(d[4], d[2]));
        [finite[0], finite[1], finite[2], finite[3], infinite]
    }
}

impl Map<1, 4> for Weights {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, g: [S::Vector; 1]) -> [S::Vector; 4] {
        let zero = simd.splat(0.0);
        let sixth = scaled(simd, 1.0 / 6.0, g[0], zero);
        [scaled(simd, 0.5, g[0], zero), scaled(simd, -0.5, g[0], zero), simd.sub(zero, sixth), sixth]
    }
}

impl Map<2, 5> for Weights {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, g: [S::Vector; 2]) -> [S::Vector; 5] {
        let first: [S::Vector; 4] = self.map(simd, [g[0]]);
        [
            first[0],
            scaled(simd, -0.5, g[1], first[1]),
            scaled(simd, 1.0 / 6.0, g[1], first[2]),
            scaled(simd, 1.0 / 3.0, g[1], first[3]),
            g[1],
        ]
    }
}

impl Map<4, 4> for Output {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, m: [S::Vector; 4]) -> [S::Vector; 4] {
        let (near, near_odd) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]));
        [
            simd.add(simd.add(m[0], near), m[3]),
            scaled(simd, 2.0, m[3], near_odd),
            scaled(simd, 4.0, m[3], near),
            scaled(simd, 8.0, m[3], near_odd),
        ]
    }
}

impl Map<5, 4> for Output {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, m: [S::Vector; 5]) -> [S::Vector; 4] {
        let finite: [S::Vector; 4] = self.map(simd, [m[0], m[1], m[2], m[3]]);
        [finite[0], finite[1], finite[2], simd.add(finite[3], m[4])]
    }
}

impl Map<4, 5> for OutputGradient {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, y: [S::Vector; 4]) -> [S::Vector; 5] {
        let (even, odd) = (simd.add(y[0], y[2]), simd.add(y[1], y[3]));
        let (far_even, far_odd) = (scaled(simd, 4.0, y[2], y[0]), scaled(simd, 4.0, y[3], y[1]));
        [y[0], simd.add(even, odd), simd.sub(even, odd), scaled(simd, 2.0, far_odd, far_even), y[3]]
    }
}

impl Map<4, 1> for WeightGradient {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, u: [S::Vector; 4]) -> [S::Vector; 1] {
        let near = scaled(simd, 0.5, simd.sub(u[0], u[1]), simd.splat(0.0));
        [scaled(simd, 1.0 / 6.0, simd.sub(u[3], u[2]), near)]
    }
}

impl Map<5, 2> for WeightGradient {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, u: [S::Vector; 5]) -> [S::Vector; 2] {
        let [first] = self.map(simd, [u[0], u[1], u[2], u[3]]);
        let second = scaled(simd, -0.5, u[1], u[4]);
        [first, scaled(simd, 1.0 / 6.0, u[2], scaled(simd, 1.0 / 3.0, u[3], second))]
    }
}
