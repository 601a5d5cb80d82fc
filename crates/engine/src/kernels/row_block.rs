//! Blocks of rows that are multiplied with each other, each packed once for both sides of every product.
//!
//! A pairwise objective looks at the inner products of all rows with all rows, one block of each side at a time: a
//! *tile*. It makes weights of them, and adds the rows of each side, weighted, to sums that belong to the other:
//!
//! ```text
//! tile_ij = a_i . b_j,    sums_a_i += sum_j tile_ij b_j,    sums_b_j += sum_i tile_ij a_i .
//! ```
//!
//! Everything is cut into panels of [`PANEL`] columns, so that what one strip of registers walks through is one
//! stream: no row of 512 or 1024 bytes after the other, which would all fall into the same few sets of the nearest
//! cache. Rows and columns are filled up with zeros to whole panels, and so no strip has an edge.

#![expect(unsafe_code, reason = "bounds are asserted once per product instead of once per term")]

use super::aligned::AlignedVec;
use super::packed::PANEL;
use super::path::KernelPath;
use super::real::Real;
use super::simd::{InstructionSet, Simd, Task};

/// Consecutive rows of a matrix, packed.
pub struct RowBlock<T> {
    path: KernelPath,
    rows: usize,
    width: usize,
    /// `[panel of rows][width][PANEL]`: for inner products.
    transposed: AlignedVec<T>,
    /// `[panel of columns][stored rows][PANEL]`: for sums of rows.
    straight: AlignedVec<T>,
}

/// Sums of rows, one for each row of a block: `[panel of columns][stored rows][PANEL]`.
pub struct RowSums<T> {
    rows: usize,
    width: usize,
    values: AlignedVec<T>,
}

impl<T: Real> RowBlock<T> {
    /// Packs `rows`, row-major, `width` numbers each.
    ///
    /// # Panics
    /// If `rows` end within a row, or the machine lacks the instructions of `path`.
    pub fn new(path: KernelPath, rows: &[T], width: usize) -> Self {
        assert!(path.is_available(), "this machine cannot run the {path} path");
        assert!(rows.len().is_multiple_of(width), "{} numbers in rows of {width}", rows.len());
        let n = rows.len() / width;
        let mut block = Self {
            path,
            rows: n,
            width,
            transposed: AlignedVec::zeroed(n.next_multiple_of(PANEL) * width),
            straight: AlignedVec::zeroed(n.next_multiple_of(PANEL) * width.next_multiple_of(PANEL)),
        };
        let stored = block.stored_rows();
        for (i, row) in rows.chunks_exact(width).enumerate() {
            let columns = &mut block.transposed[i / PANEL * width * PANEL..][..width * PANEL];
            for (column, &value) in columns.chunks_exact_mut(PANEL).zip(row) {
                column[i % PANEL] = value;
            }
            for (panel, values) in row.chunks(PANEL).enumerate() {
                block.straight[(panel * stored + i) * PANEL..][..values.len()].copy_from_slice(values);
            }
        }
        block
    }

    /// Rows of the block.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows stored: those of the block, and zeros up to whole panels.
    pub fn stored_rows(&self) -> usize {
        self.rows.next_multiple_of(PANEL)
    }

    /// Numbers in a tile of this block's rows and those of `columns`: `[panel of columns][stored rows][PANEL]`.
    pub fn tile_len(&self, columns: &Self) -> usize {
        self.stored_rows() * columns.stored_rows()
    }

    /// Computes one panel of a tile: inner products of this block's rows and those of a panel of `columns`.
    ///
    /// # Panics
    /// If `tile` is no panel of the tile, or the widths differ.
    pub fn inner_products(&self, columns: &Self, panel: usize, tile: &mut [T]) {
        assert_eq!(tile.len(), self.stored_rows() * PANEL, "numbers in a panel of {} rows", self.rows);
        assert_eq!(self.width, columns.width, "widths of two blocks");
        let depth = self.width;
        let b = &columns.transposed[panel * depth * PANEL..][..depth * PANEL];
        let groups = tile.chunks_exact_mut(PANEL * PANEL).zip(self.transposed.chunks_exact(depth * PANEL));
        for (c, a) in groups {
            let product =
                Product { a, a_row: 1, a_term: PANEL, run: depth, next_run: 0, b, accumulate: false };
            product.run(self.path, c);
        }
    }

    /// Adds to the sum of each row of a tile this block's rows, which are the tile's columns, weighted.
    ///
    /// # Panics
    /// If tile and sums have not the same rows, or not this block's columns and width.
    pub fn add_weighted(&self, tile: &[T], sums: &mut RowSums<T>) {
        let (stored, columns) = (sums.stored_rows(), self.stored_rows());
        assert_eq!(tile.len(), stored * columns, "numbers in a tile of {} by {} rows", sums.rows, self.rows);
        assert_eq!(self.width, sums.width, "widths of a block and of sums");
        let panels = sums.values.chunks_exact_mut(stored * PANEL);
        for (sums, b) in panels.zip(self.straight.chunks_exact(columns * PANEL)) {
            let product = Product {
                a: tile,
                a_row: PANEL,
                a_term: 1,
                run: PANEL,
                next_run: stored * PANEL,
                b,
                accumulate: true,
            };
            product.run(self.path, sums);
        }
    }

    /// Adds to the sum of each column of a tile this block's rows, which are the tile's rows, weighted.
    ///
    /// # Panics
    /// If the tile's columns are not those of the sums, or its rows and width not this block's.
    pub fn add_weighted_transposed(&self, tile: &[T], sums: &mut RowSums<T>) {
        let (rows, stored) = (self.stored_rows(), sums.stored_rows());
        assert_eq!(tile.len(), rows * stored, "numbers in a tile of {} by {} rows", self.rows, sums.rows);
        assert_eq!(self.width, sums.width, "widths of a block and of sums");
        let panels = sums.values.chunks_exact_mut(stored * PANEL);
        for (sums, b) in panels.zip(self.straight.chunks_exact(rows * PANEL)) {
            for (c, a) in sums.chunks_exact_mut(PANEL * PANEL).zip(tile.chunks_exact(rows * PANEL)) {
                let product =
                    Product { a, a_row: 1, a_term: PANEL, run: rows, next_run: 0, b, accumulate: true };
                product.run(self.path, c);
            }
        }
    }
}

impl<T: Real> RowSums<T> {
    /// Sums that are zero, of as many rows and columns as a block's.
    pub fn zeros(block: &RowBlock<T>) -> Self {
        Self { rows: block.rows, width: block.width, values: AlignedVec::zeroed(block.straight.len()) }
    }

    fn stored_rows(&self) -> usize {
        self.rows.next_multiple_of(PANEL)
    }

    /// Copies the sum of a row to `to`.
    ///
    /// # Panics
    /// If there is no such row, or `to` has not the width of one.
    pub fn read(&self, row: usize, to: &mut [T]) {
        assert!(row < self.rows && to.len() == self.width, "row {row} of {} by {}", self.rows, self.width);
        for (panel, to) in self.values.chunks_exact(self.stored_rows() * PANEL).zip(to.chunks_mut(PANEL)) {
            to.copy_from_slice(&panel[row * PANEL..][..to.len()]);
        }
    }
}

/// A product whose result is one panel: `c_iv = sum over terms l: a_il b_lv`.
///
/// Term `l` of row `i` is `a[i * a_row + l % run * a_term + l / run * next_run]`, row `l` of `b` one of a panel.
struct Product<'a, T> {
    a: &'a [T],
    a_row: usize,
    a_term: usize,
    run: usize,
    next_run: usize,
    b: &'a [T],
    accumulate: bool,
}

impl<T: Real> Product<'_, T> {
    fn run(&self, path: KernelPath, c: &mut [T]) {
        let runs = self.b.len() / PANEL / self.run.max(1);
        let rows = c.len() / PANEL;
        assert_eq!([self.b.len(), c.len()], [runs * self.run * PANEL, rows * PANEL], "whole runs and rows");
        if runs == 0 || rows == 0 {
            return if self.accumulate { () } else { c.fill(T::ZERO) };
        }
        let last = (rows - 1) * self.a_row + (self.run - 1) * self.a_term + (runs - 1) * self.next_run;
        assert!(rows.is_multiple_of(PANEL) && last < self.a.len(), "a product leaves its matrix");
        match (T::as_f32(self.a), T::as_f32(self.b), T::as_f32_mut(c)) {
            (Some(a), Some(b), Some(c)) if path != KernelPath::Reference => {
                let &Self { a_row, a_term, run, next_run, accumulate, .. } = self;
                let product = Product { a, a_row, a_term, run, next_run, b, accumulate };
                InstructionSet::new(path).run(Strips { product, runs, c });
            }
            _ => self.run_plain(c),
        }
    }

    fn run_plain(&self, c: &mut [T]) {
        for (i, c) in c.chunks_exact_mut(PANEL).enumerate() {
            if !self.accumulate {
                c.fill(T::ZERO);
            }
            for (l, b) in self.b.chunks_exact(PANEL).enumerate() {
                let a = self.a[i * self.a_row + l % self.run * self.a_term + l / self.run * self.next_run];
                c.iter_mut().zip(b).for_each(|(c, &b)| *c += a * b);
            }
        }
    }
}

/// A product in strips of registers; its bounds were asserted, and rows are a multiple of [`PANEL`].
struct Strips<'a, 'b> {
    product: Product<'a, f32>,
    runs: usize,
    c: &'b mut [f32],
}

impl Task for Strips<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Code of its own for each way to walk through `a`, so that its distances are in the instructions.
        match (S::LANES, self.product.a_row) {
            (16, 1) => self.all::<S, 8, 2>(simd, 1, PANEL),
            (16, _) => self.all::<S, 8, 2>(simd, PANEL, 1),
            // Fewer rows than other strips have, since they must divide a panel.
            (_, 1) => self.all::<S, 4, 2>(simd, 1, PANEL),
            _ => self.all::<S, 4, 2>(simd, PANEL, 1),
        }
    }
}

impl Strips<'_, '_> {
    #[inline(always)]
    fn all<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S, a_row: usize, a_term: usize) {
        let Self { product, runs, c } = self;
        assert!(product.a_row == a_row && product.a_term == a_term, "distances in a panel");
        for column in (0..PANEL).step_by(VECTORS * S::LANES) {
            for (group, c) in c.chunks_exact_mut(ROWS * PANEL).enumerate() {
                let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
                if product.accumulate {
                    for (row, sums) in sums.iter_mut().enumerate() {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = simd.read(&c[row * PANEL + column + v * S::LANES..]);
                        }
                    }
                }
                let mut b = product.b.as_ptr().wrapping_add(column);
                for run in 0..runs {
                    let mut a =
                        product.a.as_ptr().wrapping_add(group * ROWS * a_row + run * product.next_run);
                    for _ in 0..product.run {
                        let mut vectors = [simd.splat(0.0); VECTORS];
                        for (v, vector) in vectors.iter_mut().enumerate() {
                            // SAFETY: `b` has `runs * run` rows of a panel.
                            *vector = unsafe { simd.load(b.wrapping_add(v * S::LANES)) };
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            // SAFETY: the last term of the last row lies in `a`, as `Product::run` asserted.
                            let factor = simd.splat(unsafe { *a.wrapping_add(row * a_row) });
                            for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                                *sum = simd.mul_add(factor, vector, *sum);
                            }
                        }
                        a = a.wrapping_add(a_term);
                        b = b.wrapping_add(PANEL);
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    for (v, &sum) in sums.iter().enumerate() {
                        simd.write(&mut c[row * PANEL + column + v * S::LANES..], sum);
                    }
                }
            }
        }
    }
}
