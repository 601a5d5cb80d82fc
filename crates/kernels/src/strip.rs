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

/// Where a row of a product is read and written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
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
/// If a row or a run lies outside its slice, the width is neither one nor two vectors, or there are fewer rows than their
/// iterator said.
pub(super) fn strips(
    isa: InstructionSet,
    terms: &Terms<'_>,
    rows: impl ExactSizeIterator<Item = Place>,
    target: &mut Target<'_>,
) {
    isa.run(Strips { terms, rows, target });
}

struct Strips<'a, 'b, 'c, I> {
    terms: &'a Terms<'b>,
    rows: I,
    target: &'a mut Target<'c>,
}

impl<I: ExactSizeIterator<Item = Place>> Task for Strips<'_, '_, '_, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        assert!(self.terms.width.is_multiple_of(S::LANES), "strips of {} columns", self.terms.width);
        match (S::ROWS, self.terms.width / S::LANES) {
            (8, 2) => self.wide::<S, 8>(simd),
            (8, 1) => self.narrow::<S, 16, 8>(simd),
            (6, 2) => self.wide::<S, 6>(simd),
            (6, 1) => self.narrow::<S, 12, 6>(simd),
            _ => unreachable!("strips of {} columns", self.terms.width),
        }
    }
}

impl<I: ExactSizeIterator<Item = Place>> Strips<'_, '_, '_, I> {
    /// Strips of two vectors.
    #[inline(always)]
    fn wide<S: Simd, const ROWS: usize>(mut self, simd: S) {
        let terms = Checked::new(self.terms);
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
        let terms = Checked::new(self.terms);
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
                    let mut short = [Place::default(); SHORT];
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
    fn take<const ROWS: usize>(&mut self, count: usize) -> [Place; ROWS] {
        let mut rows = [Place::default(); ROWS];
        for row in 0..ROWS {
            rows[row] = if row < count {
                self.rows.next().expect("as many rows as their iterator said")
            } else {
                rows[0]
            };
        }
        rows
    }
}

/// Terms whose runs and panel lie in their slices for every row that begins before `room`.
#[derive(Clone, Copy)]
struct Checked<'a> {
    terms: &'a Terms<'a>,
    room: usize,
}

impl<'a> Checked<'a> {
    /// # Panics
    /// If the panel has too few rows, or the runs reach too far for any row.
    fn new(terms: &'a Terms<'a>) -> Self {
        let panel = [terms.runs.len(), terms.len, terms.width].into_iter().try_fold(1, usize::checked_mul);
        assert!(panel.is_some_and(|len| len <= terms.b.len()), "a panel of too few rows");
        let room = match terms.runs.iter().max() {
            Some(last) if terms.len > 0 => {
                let reach =
                    (terms.len - 1).checked_mul(terms.step).and_then(|reach| reach.checked_add(*last));
                reach.and_then(|reach| terms.a.len().checked_sub(reach)).unwrap_or(0)
            }
            // Nothing is read.
            _ => usize::MAX,
        };
        Self { terms, room }
    }
}

/// Sums a strip, with code of its own for each way to walk through `a`, and writes it.
#[inline(always)]
fn one_strip<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    terms: Checked<'_>,
    (rows, count): ([Place; ROWS], usize),
    target: &mut Target<'_>,
) {
    let first = rows[0].a;
    let sums: [[S::Vector; VECTORS]; ROWS] = match terms.terms.step {
        1 => sum(simd, terms, 1, &|row| rows[row].a),
        step if (0..ROWS).all(|row| rows[row].a == first + row) => sum(simd, terms, step, &|row| first + row),
        step => sum(simd, terms, step, &|row| rows[row].a),
    };
    write(simd, &sums, (&rows, count), target);
}

/// Sums a strip in registers.
///
/// - `step`: that of the terms, known to the compiler where that matters
#[inline(always)]
fn sum<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    Checked { terms, room }: Checked<'_>,
    step: usize,
    offset: &impl Fn(usize) -> usize,
) -> [[S::Vector; VECTORS]; ROWS] {
    debug_assert!(step == terms.step && VECTORS * S::LANES == terms.width, "code for other terms");
    let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
    let last = (0..ROWS).map(offset).max().unwrap_or(0);
    assert!(last < room, "a run leaves its matrix");
    let mut b = terms.b.as_ptr();
    for &start in terms.runs {
        let run = Run { a: terms.a.as_ptr().wrapping_add(start), step, b, len: terms.len };
        // SAFETY: the terms were checked for all rows that begin before `room`, as these do.
        unsafe { add_run(simd, run, offset, &mut sums) };
        b = b.wrapping_add(terms.len * VECTORS * S::LANES);
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
    (rows, count): (&[Place; ROWS], usize),
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
    row: Place,
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
    rows: &[Place],
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

#[cfg(test)]
mod tests {
    use super::{Place, Target, Terms, strips};
    use crate::KernelPath;
    use crate::simd::InstructionSet;

    /// A strip of three terms, a distance of `step` apart.
    fn three_terms(a: &[f32], step: usize, b: &[f32], row: Place) -> Vec<f32> {
        let isa = InstructionSet::new(KernelPath::Portable);
        let terms = Terms { a, runs: &[0], len: 3, step, b, width: isa.lanes() };
        let mut c = vec![0.0; isa.lanes()];
        let mut target = Target { c: &mut c, columns: 1, accumulate: false, sums: None };
        strips(isa, &terms, std::iter::once(row), &mut target);
        c
    }

    #[test]
    fn the_last_term_may_be_the_last_number() {
        let c = three_terms(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2, &[1.0; 12], Place { a: 1, c: 0 });
        assert_eq!(c, [9.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "leaves its matrix")]
    fn a_row_that_reaches_beyond_is_refused() {
        three_terms(&[1.0; 6], 2, &[1.0; 12], Place { a: 2, c: 0 });
    }

    #[test]
    #[should_panic(expected = "leaves its matrix")]
    fn a_distance_that_wraps_around_is_refused() {
        three_terms(&[1.0; 6], usize::MAX / 2 + 1, &[1.0; 12], Place { a: 1, c: 0 });
    }

    #[test]
    #[should_panic(expected = "too few rows")]
    fn a_panel_that_is_too_short_is_refused() {
        three_terms(&[1.0; 6], 2, &[1.0; 11], Place { a: 0, c: 0 });
    }
}
