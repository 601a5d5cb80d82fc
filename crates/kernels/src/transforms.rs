//! The linear maps of Winograd's convolution F(4x4, 3x3), Lavin and Gray 2015 (arXiv:1509.09308).
//!
//! With the points 0, 1, -1, 2, -2 and infinity, a tile `y` of 4 x 4 outputs is
//!
//! ```text
//! y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A        d: 6 x 6 inputs, g: 3 x 3 weights
//!
//!      |4  0 -5  0 1 0|       |  1/4     0     0|
//!      |0 -4 -4  1 1 0|       | -1/6  -1/6  -1/6|       |1 1  1 1  1 0|
//! Bᵀ = |0  4 -4 -1 1 0|   G = | -1/6   1/6  -1/6|  Aᵀ = |0 1 -1 2 -2 0|
//!      |0 -2 -1  2 1 0|       | 1/24  1/12   1/6|       |0 1  1 4  4 0|
//!      |0  2 -1 -2 1 0|       | 1/24 -1/12   1/6|       |0 1 -1 8 -8 1|
//!      |0  4  0 -5 0 1|       |    0     0     1|
//! ```
//!
//! and the gradient of the weights, being linear in the product, is `Gᵀ [(Bᵀ d B) ⊙ (A dy Aᵀ)] G`.
//! Each map works on the lines of a tile of vectors, a vector holding one number of many channels.

use super::planes::{Sink, Tile};
use super::simd::Simd;

/// Numbers in a transformed tile, at most.
pub(super) const POINTS: usize = 36;

/// A matrix with `M` rows and `N` columns, applied to a line.
pub(super) trait Map<const N: usize, const M: usize>: Copy {
    fn map<S: Simd>(self, simd: S, line: [S::Vector; N]) -> [S::Vector; M];
}

/// `Bᵀ`
#[derive(Clone, Copy)]
pub(super) struct Input;
/// `G`
#[derive(Clone, Copy)]
pub(super) struct Weights;
/// `Aᵀ`
#[derive(Clone, Copy)]
pub(super) struct Output;
/// `A`
#[derive(Clone, Copy)]
pub(super) struct OutputGradient;
/// `Gᵀ`
#[derive(Clone, Copy)]
pub(super) struct WeightGradient;

impl Map<6, 6> for Input {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, d: [S::Vector; 6]) -> [S::Vector; 6] {
        let (even, odd) = (scaled(simd, -4.0, d[2], d[4]), scaled(simd, -4.0, d[1], d[3]));
        let (outer, inner) = (simd.sub(d[4], d[2]), simd.sub(d[3], d[1]));
        [
            scaled(simd, 4.0, d[0], scaled(simd, -5.0, d[2], d[4])),
            simd.add(even, odd),
            simd.sub(even, odd),
            scaled(simd, 2.0, inner, outer),
            scaled(simd, -2.0, inner, outer),
            scaled(simd, 4.0, d[1], scaled(simd, -5.0, d[3], d[5])),
        ]
    }
}

impl Map<3, 6> for Weights {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, g: [S::Vector; 3]) -> [S::Vector; 6] {
        let zero = simd.splat(0.0);
        let outer = scaled(simd, -1.0 / 6.0, simd.add(g[0], g[2]), zero);
        let far = scaled(simd, 1.0 / 24.0, g[0], scaled(simd, 1.0 / 6.0, g[2], zero));
        [
            scaled(simd, 0.25, g[0], zero),
            scaled(simd, -1.0 / 6.0, g[1], outer),
            scaled(simd, 1.0 / 6.0, g[1], outer),
            scaled(simd, 1.0 / 12.0, g[1], far),
            scaled(simd, -1.0 / 12.0, g[1], far),
            g[2],
        ]
    }
}

impl Map<6, 4> for Output {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, m: [S::Vector; 6]) -> [S::Vector; 4] {
        let (near, near_odd) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]));
        let (far, far_odd) = (simd.add(m[3], m[4]), simd.sub(m[3], m[4]));
        [
            simd.add(simd.add(m[0], near), far),
            scaled(simd, 2.0, far_odd, near_odd),
            scaled(simd, 4.0, far, near),
            scaled(simd, 8.0, far_odd, simd.add(near_odd, m[5])),
        ]
    }
}

impl Map<4, 6> for OutputGradient {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, y: [S::Vector; 4]) -> [S::Vector; 6] {
        let (even, odd) = (simd.add(y[0], y[2]), simd.add(y[1], y[3]));
        let (far_even, far_odd) = (scaled(simd, 4.0, y[2], y[0]), scaled(simd, 4.0, y[3], y[1]));
        [
            y[0],
            simd.add(even, odd),
            simd.sub(even, odd),
            scaled(simd, 2.0, far_odd, far_even),
            scaled(simd, -2.0, far_odd, far_even),
            y[3],
        ]
    }
}

impl Map<6, 3> for WeightGradient {
    #[inline(always)]
    fn map<S: Simd>(self, simd: S, u: [S::Vector; 6]) -> [S::Vector; 3] {
        let zero = simd.splat(0.0);
        let near = scaled(simd, -1.0 / 6.0, simd.add(u[1], u[2]), zero);
        let near_odd = simd.sub(u[2], u[1]);
        let (far, far_odd) = (simd.add(u[3], u[4]), simd.sub(u[3], u[4]));
        [
            scaled(simd, 0.25, u[0], scaled(simd, 1.0 / 24.0, far, near)),
            scaled(simd, 1.0 / 6.0, near_odd, scaled(simd, 1.0 / 12.0, far_odd, zero)),
            simd.add(scaled(simd, 1.0 / 6.0, far, near), u[5]),
        ]
    }
}

/// Applies a map to the `C` columns of `R` vectors of a tile and then to the rows, and writes `ROWS` rows of the
/// `M` x `N` of the result, from row `FIRST` on, as far as there are so many.
///
/// Only those are computed: the compiler leaves out what a column's map gives to the others. The
/// lines are written out, because a loop that it does not unroll keeps its vectors in memory.
#[inline(always)]
pub(super) fn transform<
    S: Simd,
    const R: usize,
    const C: usize,
    const M: usize,
    const N: usize,
    const ROWS: usize,
    const FIRST: usize,
>(
    simd: S,
    map: impl Map<R, M> + Map<C, N>,
    tile: &impl Tile<S>,
    sink: &mut impl Sink<S>,
) {
    let mut rows = [[simd.splat(0.0); C]; ROWS];
    map_column::<S, R, C, M, ROWS, FIRST>(simd, map, tile, 0, &mut rows);
    map_column::<S, R, C, M, ROWS, FIRST>(simd, map, tile, 1, &mut rows);
    map_column::<S, R, C, M, ROWS, FIRST>(simd, map, tile, 2, &mut rows);
    map_column::<S, R, C, M, ROWS, FIRST>(simd, map, tile, 3, &mut rows);
    map_column::<S, R, C, M, ROWS, FIRST>(simd, map, tile, 4, &mut rows);
    map_column::<S, R, C, M, ROWS, FIRST>(simd, map, tile, 5, &mut rows);
    write_row::<S, C, M, N, ROWS, FIRST>(simd, map, &rows, 0, sink);
    write_row::<S, C, M, N, ROWS, FIRST>(simd, map, &rows, 1, sink);
    write_row::<S, C, M, N, ROWS, FIRST>(simd, map, &rows, 2, sink);
    write_row::<S, C, M, N, ROWS, FIRST>(simd, map, &rows, 3, sink);
    write_row::<S, C, M, N, ROWS, FIRST>(simd, map, &rows, 4, sink);
    write_row::<S, C, M, N, ROWS, FIRST>(simd, map, &rows, 5, sink);
}

#[inline(always)]
fn map_column<
    S: Simd,
    const R: usize,
    const C: usize,
    const M: usize,
    const ROWS: usize,
    const FIRST: usize,
>(
    simd: S,
    map: impl Map<R, M>,
    tile: &impl Tile<S>,
    column: usize,
    rows: &mut [[S::Vector; C]; ROWS],
) {
    if column >= C {
        return;
    }
    let mut line = [simd.splat(0.0); R];
    for (row, vector) in line.iter_mut().enumerate() {
        *vector = tile.read(simd, row, column);
    }
    let mapped = map.map(simd, line);
    for (line, &vector) in rows.iter_mut().zip(mapped.iter().skip(FIRST)) {
        line[column] = vector;
    }
}

#[inline(always)]
fn write_row<
    S: Simd,
    const C: usize,
    const M: usize,
    const N: usize,
    const ROWS: usize,
    const FIRST: usize,
>(
    simd: S,
    map: impl Map<C, N>,
    rows: &[[S::Vector; C]; ROWS],
    row: usize,
    sink: &mut impl Sink<S>,
) {
    if row >= ROWS || FIRST + row >= M {
        return;
    }
    let mapped = map.map(simd, rows[row]);
    for (column, &vector) in mapped.iter().enumerate() {
        sink.write(simd, FIRST + row, column, vector);
    }
}

/// `factor * a + b`
#[inline(always)]
pub(super) fn scaled<S: Simd>(simd: S, factor: f32, a: S::Vector, b: S::Vector) -> S::Vector {
    simd.mul_add(simd.splat(factor), a, b)
}
