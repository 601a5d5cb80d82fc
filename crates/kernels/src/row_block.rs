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
use super::device::Cpu;
use super::packed::PANEL;
use super::path::KernelPath;
use super::real::Real;
use super::simd::{InstructionSet, Simd, Task};

/// The rows of a matrix, packed block by block in one piece of memory.
pub struct RowBlocks<T> {
    path: KernelPath,
    width: usize,
    /// Of each block.
    rows: Vec<usize>,
    /// Where each block begins, and where the last one ends.
    starts: Vec<usize>,
    values: AlignedVec<T>,
}

/// Consecutive rows of a matrix, packed.
#[derive(Clone, Copy)]
pub struct RowBlock<'a, T> {
    path: KernelPath,
    rows: usize,
    width: usize,
    /// `[panel of columns][stored rows][PANEL]`
    straight: &'a [T],
    /// `[panel of rows][stored width][PANEL]`
    transposed: &'a [T],
}

/// Sums of rows, one for each row of a block.
pub struct RowSums<'a, T> {
    rows: usize,
    width: usize,
    /// `[panel of columns][stored rows][PANEL]`
    values: &'a mut [T],
}

impl<T: Real> RowBlocks<T> {
    /// Packs blocks of rows, row-major and `width` numbers each, on the threads of `cpu`.
    ///
    /// # Panics
    /// If a block ends within a row, or the machine lacks the instructions.
    pub fn new(cpu: &Cpu, blocks: &[&[T]], width: usize) -> Self {
        let Cpu { pool, path } = cpu.clone();
        assert!(path.is_available(), "this machine cannot run the {path} path");
        let mut rows = Vec::new();
        let mut starts = vec![0];
        for block in blocks {
            assert!(block.len().is_multiple_of(width), "{} numbers in rows of {width}", block.len());
            rows.push(block.len() / width);
            starts.push(starts[starts.len() - 1] + 2 * stored(block.len() / width) * stored(width));
        }
        // In one piece, because large pages are to be had only for those.
        let mut values = AlignedVec::zeroed(starts[rows.len()]);
        let mut rest = &mut values[..];
        let parts = blocks.iter().zip(starts.windows(2)).map(|(block, ends)| {
            (block, rest.split_off_mut(..ends[1] - ends[0]).expect("the blocks fit their memory"))
        });
        pool.for_each_part(parts.collect(), |_, (rows, packed)| pack(rows, width, packed));
        Self { path, width, rows, starts, values }
    }

    /// One of the blocks.
    pub fn block(&self, index: usize) -> RowBlock<'_, T> {
        let values = &self.values[self.starts[index]..self.starts[index + 1]];
        let (straight, transposed) = values.split_at(values.len() / 2);
        RowBlock { path: self.path, rows: self.rows[index], width: self.width, straight, transposed }
    }

    /// Memory for the sums of the first `n` blocks, all zero.
    pub fn zero_sums(&self, n: usize) -> AlignedVec<T> {
        AlignedVec::zeroed(self.starts[n] / 2)
    }

    /// Cuts what [`RowBlocks::zero_sums`] made into the sums of each block.
    pub fn sums<'a>(&self, mut memory: &'a mut [T]) -> Vec<RowSums<'a, T>> {
        let lens = self.starts.windows(2).map(|ends| (ends[1] - ends[0]) / 2);
        let sums = lens.zip(&self.rows).map_while(|(len, &rows)| {
            let values = memory.split_off_mut(..len)?;
            Some(RowSums { rows, width: self.width, values })
        });
        sums.collect()
    }
}

/// So many rows or columns are stored.
fn stored(count: usize) -> usize {
    count.next_multiple_of(PANEL)
}

/// Packs rows of `width` both ways into zeros.
fn pack<T: Real>(rows: &[T], width: usize, block: &mut [T]) {
    let n = stored(rows.len() / width);
    let (straight, transposed) = block.split_at_mut(block.len() / 2);
    for (i, row) in rows.chunks_exact(width).enumerate() {
        for (panel, values) in row.chunks(PANEL).enumerate() {
            straight[(panel * n + i) * PANEL..][..values.len()].copy_from_slice(values);
        }
    }
    // A panel at a time, and a few columns of all its rows: each line is written whole while it is near.
    for (panel, rows) in transposed.chunks_exact_mut(stored(width) * PANEL).zip(rows.chunks(PANEL * width)) {
        for (column, values) in panel.chunks_exact_mut(PANEL).take(width).enumerate() {
            for (value, row) in values.iter_mut().zip(rows.chunks_exact(width)) {
                *value = row[column];
            }
        }
    }
}

impl<T: Real> RowBlock<'_, T> {
    /// Rows stored: those of the block, and zeros up to whole panels.
    pub fn stored_rows(&self) -> usize {
        stored(self.rows)
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
        let stored_rows = self.stored_rows();
        assert_eq!(tile.len(), stored_rows * PANEL, "numbers in a panel of {} rows", self.rows);
        assert_eq!(self.width, columns.width, "widths of two blocks");
        let depth = stored(self.width) * PANEL;
        let product = Product {
            a: self.straight,
            a_row: PANEL,
            a_term: 1,
            run: PANEL,
            next_run: stored_rows * PANEL,
            b: &columns.transposed[panel * depth..][..depth],
            accumulate: false,
        };
        product.run(self.path, tile);
    }

    /// Adds to the sum of each row of a tile this block's rows, which are the tile's columns, weighted.
    ///
    /// # Panics
    /// If tile and sums have not the same rows, or not this block's columns and width.
    pub fn add_weighted(&self, tile: &[T], sums: &mut RowSums<'_, T>) {
        let (rows, columns) = (stored(sums.rows), self.stored_rows());
        assert_eq!(tile.len(), rows * columns, "numbers in a tile of {} by {} rows", sums.rows, self.rows);
        assert_eq!(self.width, sums.width, "widths of a block and of sums");
        if tile.is_empty() {
            return;
        }
        let panels = sums.values.chunks_exact_mut(rows * PANEL);
        for (sums, b) in panels.zip(self.straight.chunks_exact(columns * PANEL)) {
            let product = Product {
                a: tile,
                a_row: PANEL,
                a_term: 1,
                run: PANEL,
                next_run: rows * PANEL,
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
    pub fn add_weighted_transposed(&self, tile: &[T], sums: &mut RowSums<'_, T>) {
        let (rows, columns) = (self.stored_rows(), stored(sums.rows));
        assert_eq!(tile.len(), rows * columns, "numbers in a tile of {} by {} rows", self.rows, sums.rows);
        assert_eq!(self.width, sums.width, "widths of a block and of sums");
        if tile.is_empty() {
            return;
        }
        let panels = sums.values.chunks_exact_mut(columns * PANEL);
        for (sums, b) in panels.zip(self.straight.chunks_exact(rows * PANEL)) {
            for (c, a) in sums.chunks_exact_mut(PANEL * PANEL).zip(tile.chunks_exact(rows * PANEL)) {
                let product =
                    Product { a, a_row: 1, a_term: PANEL, run: rows, next_run: 0, b, accumulate: true };
                product.run(self.path, c);
            }
        }
    }
}

impl<T: Real> RowSums<'_, T> {
    /// Copies the sum of a row to `to`.
    ///
    /// # Panics
    /// If there is no such row, or `to` has not the width of one.
    pub fn read(&self, row: usize, to: &mut [T]) {
        assert!(row < self.rows && to.len() == self.width, "row {row} of {} by {}", self.rows, self.width);
        for (panel, to) in self.values.chunks_exact(stored(self.rows) * PANEL).zip(to.chunks_mut(PANEL)) {
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
            if !self.accumulate {
                c.fill(T::ZERO);
            }
            return;
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

#[cfg(test)]
mod tests {
    use super::{PANEL, RowBlocks};
    use crate::{Cpu, KernelPath, Real};

    fn matrix(len: usize, seed: usize) -> Vec<f64> {
        // Eighths, so that sums are exact in any order and both types.
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 33) as f64 / 8.0 - 2.0).collect()
    }

    /// Inner products, and both weighted sums, of all pairs of blocks against plain loops.
    fn check<T: Real>(path: KernelPath, blocks: &[usize], width: usize) {
        let n: usize = blocks.iter().sum();
        let rows = matrix(n * width, 1);
        let packed: Vec<T> = rows.iter().map(|&value| T::from_f64(value)).collect();
        let mut rest = &packed[..];
        let of_blocks: Vec<&[T]> = blocks.iter().map(|n| rest.split_off(..n * width).unwrap()).collect();
        let packed = RowBlocks::new(&Cpu::new(2, path), &of_blocks, width);
        let mut memory = packed.zero_sums(blocks.len());
        let mut sums = packed.sums(&mut memory);
        let row = |i: usize| &rows[i * width..(i + 1) * width];
        let mut expected = vec![0.0; n * width];
        let first = |block: usize| blocks[..block].iter().sum::<usize>();
        for (a, b) in (0..blocks.len()).flat_map(|a| (0..blocks.len()).map(move |b| (a, b))) {
            let what = format!("{path} blocks {a} and {b} of {blocks:?} by {width}");
            let (block_a, block_b) = (packed.block(a), packed.block(b));
            let mut tile = vec![T::from_f64(9.0); block_a.tile_len(&block_b)];
            let panel_len = block_a.stored_rows() * PANEL;
            for (panel, tile) in tile.chunks_exact_mut(panel_len.max(1)).enumerate() {
                block_a.inner_products(&block_b, panel, tile);
                for (place, tile) in tile.iter_mut().enumerate() {
                    let (i, j) = (place / PANEL, panel * PANEL + place % PANEL);
                    let exists = i < blocks[a] && j < blocks[b];
                    let (of_a, of_b) =
                        if exists { (row(first(a) + i), row(first(b) + j)) } else { (&[][..], &[][..]) };
                    let product: f64 = of_a.iter().zip(of_b).map(|(a, b)| a * b).sum();
                    assert_eq!(tile.to_f64(), product, "{what}: {i}, {j}");
                    let weight = (i * 5 + j * 3) % 4;
                    *tile = T::from_f64(weight as f64);
                    for (c, (a_c, b_c)) in of_a.iter().zip(of_b).enumerate() {
                        expected[(first(a) + i) * width + c] += weight as f64 * b_c;
                        expected[(first(b) + j) * width + c] += weight as f64 * a_c;
                    }
                }
            }
            block_b.add_weighted(&tile, &mut sums[a]);
            block_a.add_weighted_transposed(&tile, &mut sums[b]);
        }
        for (block, sums) in sums.iter().enumerate() {
            for i in 0..blocks[block] {
                let mut got = vec![T::ZERO; width];
                sums.read(i, &mut got);
                let got: Vec<f64> = got.into_iter().map(T::to_f64).collect();
                assert_eq!(
                    got,
                    expected[(first(block) + i) * width..][..width],
                    "{path} {blocks:?} row {i} of {block}"
                );
            }
        }
    }

    #[test]
    fn products_of_blocks_of_any_size_are_those_of_plain_loops_on_every_path() {
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            for (blocks, width) in [(&[1][..], 1), (&[3, 0, 40], 7), (&[32, 64], 32), (&[33, 70], 129)] {
                check::<f32>(path, blocks, width);
                check::<f64>(path, blocks, width);
            }
        }
    }

    #[test]
    #[should_panic(expected = "numbers in a panel of 3 rows")]
    fn a_panel_of_other_rows_is_refused() {
        let packed = RowBlocks::new(&Cpu::new(1, KernelPath::Portable), &[&[0f32; 12]], 4);
        packed.block(0).inner_products(&packed.block(0), 0, &mut [0.0; PANEL]);
    }
}
