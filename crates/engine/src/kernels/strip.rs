//! The micro-kernel: a strip of a matrix product, held in registers while it is summed.
//!
//! A strip has up to [`InstructionSet::rows`] rows and one or two vectors of columns. Each term
//! loads one row of the packed panel `b` and multiplies it by one number of `a` per row:
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

use super::simd::{InstructionSet, MAX_ROWS, Simd, Task};

/// The widest strip: two vectors of sixteen lanes.
pub(super) const MAX_WIDTH: usize = 32;

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
    pub(super) a_offsets: [usize; MAX_ROWS],
    pub(super) c_offsets: [usize; MAX_ROWS],
}

impl Rows {
    /// Adds a row that reads at `a` and writes at `c`.
    #[inline]
    pub(super) fn push(&mut self, a: usize, c: usize) {
        self.a_offsets[self.count] = a;
        self.c_offsets[self.count] = c;
        self.count += 1;
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
        let mut tile = [[0.0; MAX_WIDTH]; MAX_ROWS];
        match (S::ROWS, terms.width / S::LANES) {
            (8, 2) => sum::<S, 8, 2>(simd, terms, rows, &mut tile),
            (8, 1) => sum::<S, 8, 1>(simd, terms, rows, &mut tile),
            (6, 2) => sum::<S, 6, 2>(simd, terms, rows, &mut tile),
            (6, 1) => sum::<S, 6, 1>(simd, terms, rows, &mut tile),
            _ => unreachable!("a strip of {} columns", terms.width),
        }
        if target.columns == 2 * S::LANES {
            // The same with a width that the compiler knows.
            write(&tile, rows, 2 * S::LANES, target);
        } else {
            write(&tile, rows, target.columns, target);
        }
    }
}

/// Sums a strip into `tile`, with code of its own for each way to walk through `a`.
#[inline(always)]
fn sum<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    terms: &Terms<'_>,
    rows: &Rows,
    tile: &mut [[f32; MAX_WIDTH]; MAX_ROWS],
) {
    // Rows that do not exist repeat the first one.
    let offsets: [usize; ROWS] =
        std::array::from_fn(|row| rows.a_offsets[if row < rows.count { row } else { 0 }]);
    let adjacent = (0..ROWS).all(|row| offsets[row] == offsets[0] + row);
    match (terms.step, adjacent) {
        (1, _) => sum_runs::<S, ROWS, VECTORS>(simd, terms, 1, &|row| offsets[row], tile),
        (step, true) => {
            let first = offsets[0];
            sum_runs::<S, ROWS, VECTORS>(simd, terms, step, &|row| first + row, tile);
        }
        (step, false) => sum_runs::<S, ROWS, VECTORS>(simd, terms, step, &|row| offsets[row], tile),
    }
}

#[inline(always)]
fn sum_runs<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    terms: &Terms<'_>,
    step: usize,
    offset: &impl Fn(usize) -> usize,
    tile: &mut [[f32; MAX_WIDTH]; MAX_ROWS],
) {
    let width = VECTORS * S::LANES;
    let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
    let last = (0..ROWS).map(offset).max().unwrap_or(0);
    let reach = terms.len.saturating_sub(1) * step;
    let mut panel = terms.b;
    for &run in terms.runs {
        assert!(terms.len == 0 || last + run + reach < terms.a.len(), "a run leaves its matrix");
        let (b, rest) = panel.split_at(terms.len * width);
        panel = rest;
        let a = terms.a.as_ptr().wrapping_add(run);
        let b = b.as_ptr();
        let mut l = 0;
        while l + 4 <= terms.len {
            for u in 0..4 {
                // SAFETY: term l + u < len; the run's ends in `a` and in `b` are asserted above.
                unsafe {
                    add_term(
                        simd,
                        a.wrapping_add((l + u) * step),
                        offset,
                        b.wrapping_add((l + u) * width),
                        &mut sums,
                    )
                };
            }
            l += 4;
        }
        while l < terms.len {
            // SAFETY: term l < len; the run's ends in `a` and in `b` are asserted above.
            unsafe { add_term(simd, a.wrapping_add(l * step), offset, b.wrapping_add(l * width), &mut sums) };
            l += 1;
        }
    }
    for (sums, row) in sums.iter().zip(tile) {
        for (&vector, lanes) in sums.iter().zip(row.chunks_exact_mut(S::LANES)) {
            // SAFETY: the chunk has as many numbers as the vector.
            unsafe { simd.store(lanes.as_mut_ptr(), vector) };
        }
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

/// Writes the rows and columns of the tile that exist, and adds up what was written.
#[inline(always)]
fn write(tile: &[[f32; MAX_WIDTH]; MAX_ROWS], rows: &Rows, columns: usize, target: &mut Target<'_>) {
    let mut sum = [0.0_f32; MAX_WIDTH];
    let mut squares = [0.0_f32; MAX_WIDTH];
    for (values, &offset) in tile.iter().zip(&rows.c_offsets[..rows.count]) {
        let c = &mut target.c[offset..][..columns];
        if target.accumulate {
            for (c, value) in c.iter_mut().zip(values) {
                *c += value;
            }
        } else {
            c.copy_from_slice(&values[..columns]);
        }
        if target.sums.is_some() {
            for ((sum, square), &value) in sum.iter_mut().zip(&mut squares).zip(&*c) {
                *sum += value;
                *square += value * value;
            }
        }
    }
    if let Some(totals) = &mut target.sums {
        for (totals, partial) in totals.iter_mut().zip([&sum, &squares]) {
            for (total, &partial) in totals.iter_mut().zip(&partial[..columns]) {
                *total += f64::from(partial);
            }
        }
    }
}
