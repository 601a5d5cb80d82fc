//! The micro-kernel: strips of a matrix product, each held in registers while it is summed.
//!
//! A strip has one or two vectors of columns, and up to [`Simd::ROWS`] rows or, one vector wide, twice as many: sums
//! that are too few wait for each other. Each term loads one row of the packed panel `b` and multiplies it by one
//! number of `a` per row:
//!
//! ```text
//! c[row.c + column] = sum over runs, over l < len:
//!     a[row.a + run + l * step] * b[(run number * len + l) * width + column]
//! ```
//!
//! `a` is never packed: a row is wherever its offset says, so a convolution's output pixels read
//! their windows in place (`step` 1), and a weight gradient's rows read one pixel after the other
//! (`step` of a pixel).

#![expect(unsafe_code, reason = "bounds are asserted once per strip instead of once per term")]

use super::simd::{InstructionSet, MAX_LANES, Simd, Task, add_lanes};

/// The widest strip.
pub(super) const MAX_WIDTH: usize = 2 * MAX_LANES;

/// Distance of two pixels in images cut into planes of so many channels: one cache line.
pub(super) const PLANE_STEP: usize = 16;

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

impl Terms<'_> {
    /// How far behind a row's offset its last number lies; none if there are no terms.
    fn reach(&self) -> Option<usize> {
        let last = self.runs.iter().max().filter(|_| self.len > 0)?;
        Some(last + (self.len - 1) * self.step)
    }
}

/// Where a row of a product is read and written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    pub(super) a: usize,
    pub(super) c: usize,
}

/// Where strips go.
pub(super) struct Target<'a> {
    pub(super) c: &'a mut [f32],
    /// Columns that exist; the panel holds zeros in the others.
    pub(super) columns: usize,
    /// Adds to `c` instead of replacing it.
    pub(super) accumulate: bool,
    /// Sum and sum of squares of each column of `c`, to be added to.
    pub(super) sums: Option<[&'a mut [f64]; 2]>,
}

/// Computes some rows of a product, strip by strip.
///
/// # Panics
/// If a row or a run lies outside its slice, or the width is neither one nor two vectors.
pub(super) fn strips(
    isa: InstructionSet,
    terms: &Terms<'_>,
    rows: impl ExactSizeIterator<Item = Row>,
    target: &mut Target<'_>,
) {
    isa.run(Strips { terms, rows, target });
}

struct Strips<'a, 'b, 'c, I> {
    terms: &'a Terms<'b>,
    rows: I,
    target: &'a mut Target<'c>,
}

impl<I: ExactSizeIterator<Item = Row>> Task for Strips<'_, '_, '_, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (S::ROWS, self.terms.width / S::LANES) {
            (8, 2) => self.wide::<S, 8>(simd),
            (8, 1) => self.narrow::<S, 16, 8>(simd),
            (6, 2) => self.wide::<S, 6>(simd),
            (6, 1) => self.narrow::<S, 12, 6>(simd),
            _ => unreachable!("strips of {} columns", self.terms.width),
        }
    }
}

impl<I: ExactSizeIterator<Item = Row>> Strips<'_, '_, '_, I> {
    /// Strips of two vectors.
    #[inline(always)]
    fn wide<S: Simd, const ROWS: usize>(mut self, simd: S) {
        let terms = (self.terms, self.terms.reach());
        let (strips, rest) = (self.rows.len() / ROWS, self.rows.len() % ROWS);
        for _ in 0..strips {
            let rows = self.take::<ROWS>(ROWS);
            one_strip::<S, ROWS, 2>(simd, terms, (rows, ROWS), self.target);
        }
        if rest > 0 {
            let rows = self.take::<ROWS>(rest);
            one_strip::<S, ROWS, 2>(simd, terms, (rows, rest), self.target);
        }
    }

    /// Strips of one vector: of `LONG` rows if one register holds where they all begin, and otherwise of `SHORT` ones.
    #[inline(always)]
    fn narrow<S: Simd, const LONG: usize, const SHORT: usize>(mut self, simd: S) {
        let terms = (self.terms, self.terms.reach());
        let distance = if self.terms.step == 1 { S::LANES } else { 1 };
        let (strips, mut rest) = (self.rows.len() / LONG, self.rows.len() % LONG);
        for _ in 0..strips {
            let rows = self.take::<LONG>(LONG);
            let first = rows[0].a;
            if rows.iter().enumerate().all(|(row, at)| at.a == first + row * distance) {
                let sums: [[S::Vector; 1]; LONG] = match self.terms.step {
                    1 => sum(simd, terms, 1, &|row| first + row * S::LANES),
                    step => sum(simd, terms, step, &|row| first + row),
                };
                write(simd, &sums, (&rows, LONG), self.target);
            } else {
                for start in (0..LONG).step_by(SHORT) {
                    let mut short = [Row::default(); SHORT];
                    short.copy_from_slice(&rows[start..start + SHORT]);
                    one_strip::<S, SHORT, 1>(simd, terms, (short, SHORT), self.target);
                }
            }
        }
        while rest > 0 {
            let count = rest.min(SHORT);
            rest -= count;
            let rows = self.take::<SHORT>(count);
            one_strip::<S, SHORT, 1>(simd, terms, (rows, count), self.target);
        }
    }

    /// The next `count` rows. The others of a strip repeat the first one.
    #[inline(always)]
    fn take<const ROWS: usize>(&mut self, count: usize) -> [Row; ROWS] {
        let mut rows = [Row::default(); ROWS];
        for row in 0..ROWS {
            rows[row] = if row < count { self.rows.next().unwrap_or_default() } else { rows[0] };
        }
        rows
    }
}

/// Sums a strip, with code of its own for each way to walk through `a`, and writes it.
#[inline(always)]
fn one_strip<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    terms: (&Terms<'_>, Option<usize>),
    (rows, count): ([Row; ROWS], usize),
    target: &mut Target<'_>,
) {
    let first = rows[0].a;
    let are_neighbours = || (0..ROWS).all(|row| rows[row].a == first + row);
    let sums: [[S::Vector; VECTORS]; ROWS] = match terms.0.step {
        1 => sum(simd, terms, 1, &|row| rows[row].a),
        PLANE_STEP if are_neighbours() => sum(simd, terms, PLANE_STEP, &|row| first + row),
        step if are_neighbours() => sum(simd, terms, step, &|row| first + row),
        step => sum(simd, terms, step, &|row| rows[row].a),
    };
    write(simd, &sums, (&rows, count), target);
}

/// Sums a strip in registers. `terms` come with their reach.
#[inline(always)]
fn sum<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    (terms, reach): (&Terms<'_>, Option<usize>),
    step: usize,
    offset: &impl Fn(usize) -> usize,
) -> [[S::Vector; VECTORS]; ROWS] {
    let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
    let Some(reach) = reach else { return sums };
    let last = (0..ROWS).map(offset).max().unwrap_or(0);
    assert!(last + reach < terms.a.len(), "a run leaves its matrix");
    let run_len = terms.len * VECTORS * S::LANES;
    assert!(terms.runs.len() * run_len <= terms.b.len(), "a panel of too few rows");
    let mut b = terms.b.as_ptr();
    for &start in terms.runs {
        let run = Run { a: terms.a.as_ptr().wrapping_add(start), step, b, len: terms.len };
        // SAFETY: the ends of the furthest run in `a` and of the last one in `b` have just been checked.
        unsafe { add_run(simd, run, offset, &mut sums) };
        b = b.wrapping_add(run_len);
    }
    sums
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
    const UNROLLED: usize = 4;
    let (mut a, mut b) = (run.a, run.b);
    for _ in 0..run.len / UNROLLED {
        for _ in 0..UNROLLED {
            // SAFETY: there are that many terms, and the rest is the caller's promise.
            unsafe { add_term(simd, a, offset, b, sums) };
            a = a.wrapping_add(run.step);
            b = b.wrapping_add(VECTORS * S::LANES);
        }
    }
    for _ in 0..run.len % UNROLLED {
        // SAFETY: these are the terms left, and the rest is the caller's promise.
        unsafe { add_term(simd, a, offset, b, sums) };
        a = a.wrapping_add(run.step);
        b = b.wrapping_add(VECTORS * S::LANES);
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

/// Writes the rows and columns of a strip that exist, and adds up what was written.
#[inline(always)]
fn write<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    strip: &[[S::Vector; VECTORS]; ROWS],
    (rows, count): (&[Row; ROWS], usize),
    target: &mut Target<'_>,
) {
    if target.columns < VECTORS * S::LANES {
        return write_columns(simd, strip, &rows[..count], target);
    }
    let mut sums = [[simd.splat(0.0); VECTORS]; 2];
    if count == ROWS {
        // What is indexed by constants alone can stay in registers.
        for row in 0..ROWS {
            write_row(simd, strip[row], rows[row], target, &mut sums);
        }
    } else {
        for (&values, &row) in strip.iter().zip(&rows[..count]) {
            write_row(simd, values, row, target, &mut sums);
        }
    }
    if let Some(totals) = &mut target.sums {
        for (sums, totals) in sums.iter().zip(totals) {
            for (&sum, totals) in sums.iter().zip(totals.chunks_exact_mut(S::LANES)) {
                add_lanes(simd, sum, totals);
            }
        }
    }
}

/// Writes a row of whole vectors, and adds it and its squares to `sums`.
#[inline(always)]
fn write_row<S: Simd, const VECTORS: usize>(
    simd: S,
    values: [S::Vector; VECTORS],
    row: Row,
    target: &mut Target<'_>,
    [sum, squares]: &mut [[S::Vector; VECTORS]; 2],
) {
    let c = &mut target.c[row.c..][..VECTORS * S::LANES];
    for (v, value) in values.into_iter().enumerate() {
        let c = &mut c[v * S::LANES..];
        let value = if target.accumulate { simd.add(simd.read(c), value) } else { value };
        simd.write(c, value);
        sum[v] = simd.add(sum[v], value);
        squares[v] = simd.mul_add(value, value, squares[v]);
    }
}

/// Writes rows of which not all columns exist, and adds up what was written.
#[inline(always)]
fn write_columns<S: Simd, const VECTORS: usize>(
    simd: S,
    strip: &[[S::Vector; VECTORS]],
    rows: &[Row],
    target: &mut Target<'_>,
) {
    for (values, row) in strip.iter().zip(rows) {
        let mut lanes = [0.0; MAX_WIDTH];
        for (v, &value) in values.iter().enumerate() {
            simd.write(&mut lanes[v * S::LANES..], value);
        }
        let c = &mut target.c[row.c..][..target.columns];
        for (column, (c, value)) in c.iter_mut().zip(lanes).enumerate() {
            *c = if target.accumulate { *c + value } else { value };
            if let Some([sums, squares]) = &mut target.sums {
                sums[column] += f64::from(*c);
                squares[column] += f64::from(*c * *c);
            }
        }
    }
}
