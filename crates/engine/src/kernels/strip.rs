//! The micro-kernel: a strip of a matrix product, held in registers while it is summed.
//!
//! A strip has one or two vectors of columns, and up to [`InstructionSet::rows`] rows or, one vector wide, twice as
//! many ([`strip_rows`]): sums that are too few wait for each other. Each term loads one row of the packed panel `b`
//! and multiplies it by one number of `a` per row:
//!
//! ```text
//! c[c_offset(row) + column] = sum over runs, over l < len:
//!     a[a_offset(row) + run + l * step] * b[(run number * len + l) * width + column]
//! ```
//!
//! `a` is never packed: a row is wherever its offset says, so a convolution's output pixels read
//! their windows in place (`step` 1), and a weight gradient's rows read one pixel after the other
//! (`step` of a pixel).

#![expect(unsafe_code, reason = "bounds are asserted once per run instead of once per term")]

use std::ops::Range;

use super::simd::{InstructionSet, MAX_LANES, MAX_ROWS, Simd, Task, add_lanes};

/// The widest strip.
pub(super) const MAX_WIDTH: usize = 2 * MAX_LANES;

/// Rows of the longest strip.
const MAX_STRIP_ROWS: usize = 2 * MAX_ROWS;

/// Rows that a strip of `width` columns has at most. Long ones are worth it if the rows are `even`: runs of the window
/// whose pixels are a vector apart, or terms of a weight gradient that lie side by side.
pub(super) fn strip_rows(isa: InstructionSet, width: usize, even: bool) -> usize {
    if even && width == isa.lanes() { 2 * isa.rows() } else { isa.rows() }
}

/// What the numbers of a strip are sums of.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) a: &'a [f32],
    /// Where each run begins, relative to the row's offset.
    pub(super) runs: &'a [usize],
    /// Terms in a run.
    pub(super) len: usize,
    /// Distance of two terms of a run in `a`.
    pub(super) step: usize,
    /// One row of `width` numbers per term, the runs in their order without gaps.
    pub(super) b: &'a [f32],
    /// One or two vectors.
    pub(super) width: usize,
}

/// Where the rows of a strip are read and written.
#[derive(Clone, Copy, Default)]
pub(super) struct Rows {
    pub(super) count: usize,
    pub(super) a_offsets: [usize; MAX_STRIP_ROWS],
    pub(super) c_offsets: [usize; MAX_STRIP_ROWS],
}

impl Rows {
    /// Adds a row that reads at `a` and writes at `c`.
    #[inline]
    pub(super) fn push(&mut self, a: usize, c: usize) {
        self.a_offsets[self.count] = a;
        self.c_offsets[self.count] = c;
        self.count += 1;
    }

    /// Whether there are `count` rows, each of which begins `distance` behind the one before.
    #[inline(always)]
    fn are_even(&self, count: usize, distance: usize) -> bool {
        self.count == count && (0..count).all(|row| self.a_offsets[row] == self.a_offsets[0] + row * distance)
    }

    /// Some of the rows.
    fn part(&self, range: Range<usize>) -> Self {
        let mut part = Self::default();
        for row in range {
            part.push(self.a_offsets[row], self.c_offsets[row]);
        }
        part
    }
}

/// Where a strip goes.
pub(super) struct Target<'a> {
    pub(super) c: &'a mut [f32],
    /// Columns of the strip that exist; the panel holds zeros in the others.
    pub(super) columns: usize,
    /// Adds to `c` instead of replacing it.
    pub(super) accumulate: bool,
    /// Sum and sum of squares of each column of `c`, to be added to.
    pub(super) sums: Option<[&'a mut [f64]; 2]>,
}

/// Computes one strip.
///
/// # Panics
/// If a row or a run lies outside its slice, or the width is neither one nor two vectors.
#[inline]
pub(super) fn strip(isa: InstructionSet, terms: &Terms<'_>, rows: &Rows, target: &mut Target<'_>) {
    isa.run(Strip { terms, rows, target });
}

struct Strip<'a, 'b, 'c> {
    terms: &'a Terms<'b>,
    rows: &'a Rows,
    target: &'a mut Target<'c>,
}

impl Task for Strip<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { terms, rows, target } = self;
        match (S::ROWS, terms.width / S::LANES) {
            (8, 2) => run::<S, 8, 2>(simd, terms, rows, target),
            (8, 1) => run_narrow::<S, 16, 8>(simd, terms, rows, target),
            (6, 2) => run::<S, 6, 2>(simd, terms, rows, target),
            (6, 1) => run_narrow::<S, 12, 6>(simd, terms, rows, target),
            _ => unreachable!("a strip of {} columns", terms.width),
        }
    }
}

/// Computes a strip that is one vector wide: of `LONG` rows if one register holds where they all begin, and otherwise
/// of `SHORT` rows at a time.
#[inline(always)]
fn run_narrow<S: Simd, const LONG: usize, const SHORT: usize>(
    simd: S,
    terms: &Terms<'_>,
    rows: &Rows,
    target: &mut Target<'_>,
) {
    let distance = if terms.step == 1 { S::LANES } else { 1 };
    if rows.are_even(LONG, distance) {
        let first = rows.a_offsets[0];
        let mut tile = [[simd.splat(0.0); 1]; LONG];
        match terms.step {
            1 => sum(simd, terms, 1, &|row| first + row * S::LANES, &mut tile),
            step => sum(simd, terms, step, &|row| first + row, &mut tile),
        }
        return write_tile(simd, &tile, rows, target);
    }
    for first in (0..rows.count).step_by(SHORT) {
        let rows = rows.part(first..rows.count.min(first + SHORT));
        run::<S, SHORT, 1>(simd, terms, &rows, target);
    }
}

/// Sums a strip, with code of its own for each way to walk through `a`, and writes it.
#[inline(always)]
fn run<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    terms: &Terms<'_>,
    rows: &Rows,
    target: &mut Target<'_>,
) {
    // Rows that do not exist repeat the first one.
    let offsets: [usize; ROWS] =
        std::array::from_fn(|row| rows.a_offsets[if row < rows.count { row } else { 0 }]);
    let first = offsets[0];
    let mut tile = [[simd.splat(0.0); VECTORS]; ROWS];
    match terms.step {
        1 => sum(simd, terms, 1, &|row| offsets[row], &mut tile),
        step if (0..ROWS).all(|row| offsets[row] == first + row) => {
            sum(simd, terms, step, &|row| first + row, &mut tile);
        }
        step => sum(simd, terms, step, &|row| offsets[row], &mut tile),
    }
    write_tile(simd, &tile, rows, target);
}

/// Writes the rows and columns of a tile that exist.
#[inline(always)]
fn write_tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    tile: &[[S::Vector; VECTORS]; ROWS],
    rows: &Rows,
    target: &mut Target<'_>,
) {
    if target.columns == VECTORS * S::LANES {
        write(simd, tile, rows, target);
    } else {
        write_columns(simd, tile, rows, target);
    }
}

/// Sums a strip in registers and leaves it in `tile`.
#[inline(always)]
fn sum<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    terms: &Terms<'_>,
    step: usize,
    offset: &impl Fn(usize) -> usize,
    tile: &mut [[S::Vector; VECTORS]; ROWS],
) {
    let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
    let last = (0..ROWS).map(offset).max().unwrap_or(0);
    let reach = terms.len.saturating_sub(1) * step;
    let mut panel = terms.b;
    for &start in terms.runs {
        assert!(terms.len == 0 || last + start + reach < terms.a.len(), "a run leaves its matrix");
        let (b, rest) = panel.split_at(terms.len * VECTORS * S::LANES);
        panel = rest;
        let run = Run { a: terms.a.as_ptr().wrapping_add(start), step, b: b.as_ptr(), len: terms.len };
        // SAFETY: the ends of the run in `a` and in `b` have just been checked.
        unsafe { add_run(simd, run, offset, &mut sums) };
    }
    // Written row by row from a copy, because what is indexed at run time cannot live in registers.
    *tile = sums;
}

/// Terms that lie at equal distances.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// The first term of a row whose offset is zero.
    pub(super) a: *const f32,
    /// Distance of two terms in `a`.
    pub(super) step: usize,
    /// As many vectors per term as the strip is wide.
    pub(super) b: *const f32,
    pub(super) len: usize,
}

/// Adds a run to every sum of a strip; for use within a [`Task`], where it is inlined.
///
/// # Safety
/// `a` plus the offset of every row and all steps, and all vectors of `b`, lie in live slices.
#[inline(always)]
pub(super) unsafe fn add_run<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    run: Run,
    offset: &impl Fn(usize) -> usize,
    sums: &mut [[S::Vector; VECTORS]; ROWS],
) {
    let a = |l: usize| run.a.wrapping_add(l * run.step);
    let b = |l: usize| run.b.wrapping_add(l * VECTORS * S::LANES);
    let mut l = 0;
    while l + 4 <= run.len {
        for l in l..l + 4 {
            // SAFETY: l < len, and the rest is the caller's promise.
            unsafe { add_term(simd, a(l), offset, b(l), sums) };
        }
        l += 4;
    }
    while l < run.len {
        // SAFETY: l < len, and the rest is the caller's promise.
        unsafe { add_term(simd, a(l), offset, b(l), sums) };
        l += 1;
    }
}

/// Adds one term to every sum of the strip.
///
/// # Safety
/// `a` plus the offset of every row, and `VECTORS` vectors at `b`, lie in live slices.
#[inline(always)]
unsafe fn add_term<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    a: *const f32,
    offset: &impl Fn(usize) -> usize,
    b: *const f32,
    sums: &mut [[S::Vector; VECTORS]; ROWS],
) {
    let mut panel = [simd.splat(0.0); VECTORS];
    for (v, vector) in panel.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *vector = unsafe { simd.load(b.wrapping_add(v * S::LANES)) };
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let factor = simd.splat(unsafe { *a.wrapping_add(offset(row)) });
        for (sum, &vector) in sums.iter_mut().zip(&panel) {
            *sum = simd.mul_add(factor, vector, *sum);
        }
    }
}

/// Writes the rows of a full tile that exist, and adds up what was written.
#[inline(always)]
fn write<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    tile: &[[S::Vector; VECTORS]; ROWS],
    rows: &Rows,
    target: &mut Target<'_>,
) {
    let mut sum = [simd.splat(0.0); VECTORS];
    let mut squares = [simd.splat(0.0); VECTORS];
    for (values, &offset) in tile.iter().zip(&rows.c_offsets[..rows.count]) {
        let c = &mut target.c[offset..][..VECTORS * S::LANES];
        for (v, &value) in values.iter().enumerate() {
            let c = &mut c[v * S::LANES..];
            let value = if target.accumulate { simd.add(simd.read(c), value) } else { value };
            simd.write(c, value);
            sum[v] = simd.add(sum[v], value);
            squares[v] = simd.mul_add(value, value, squares[v]);
        }
    }
    if let Some([sums, all_squares]) = &mut target.sums {
        for v in 0..VECTORS {
            add_lanes(simd, sum[v], &mut sums[v * S::LANES..]);
            add_lanes(simd, squares[v], &mut all_squares[v * S::LANES..]);
        }
    }
}

/// Writes the rows and columns of a tile that exist, and adds up what was written.
#[inline(always)]
fn write_columns<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    tile: &[[S::Vector; VECTORS]; ROWS],
    rows: &Rows,
    target: &mut Target<'_>,
) {
    for (values, &offset) in tile.iter().zip(&rows.c_offsets[..rows.count]) {
        let mut lanes = [0.0; MAX_WIDTH];
        for (v, &value) in values.iter().enumerate() {
            simd.write(&mut lanes[v * S::LANES..], value);
        }
        let c = &mut target.c[offset..][..target.columns];
        for (column, (c, value)) in c.iter_mut().zip(lanes).enumerate() {
            *c = if target.accumulate { *c + value } else { value };
            if let Some([sums, squares]) = &mut target.sums {
                sums[column] += f64::from(*c);
                squares[column] += f64::from(*c * *c);
            }
        }
    }
}
