//! All pairs of a rank's rows with the rows of all ranks, tile by tile.
//!
//! What pairwise objectives have in common: unit rows are packed in blocks, a tile of inner products is made of two
//! blocks, and a tile of weights is spread over the rows of both. The similarity matrix is symmetric, so that a
//! tile between two blocks of this rank's own rows is visited once, for the rows of both its sides.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use engine::kernels::{AlignedVec, PANEL, Pool, Real, RowBlock, RowSums, split};

use crate::Compute;
use crate::tournament::for_each_pair;

/// In `f32` and at 128 columns an embedding, a tile, the rows of both its sides and their sums fit a second-level
/// cache of 512 KiB.
pub(crate) const BLOCK_ROWS: usize = 128;

/// The unit rows of all ranks, and which of them are this rank's.
pub(crate) struct Pairs<'a, T> {
    /// `[m, d]`
    unit: &'a [T],
    width: usize,
    own: Range<usize>,
    own_blocks: Vec<Block<T>>,
    other_blocks: Vec<Block<T>>,
    /// Tiles that nobody works on at the moment, for a new one each time would have to be zeroed.
    tiles: Mutex<Vec<AlignedVec<T>>>,
}

/// Consecutive unit rows.
pub(crate) struct Block<T> {
    /// In the global batch.
    pub(crate) rows: Range<usize>,
    packed: RowBlock<T>,
}

/// A part of the similarity matrix: the rows of one block, and at most [`PANEL`] of another.
pub(crate) struct Panel<'a, T> {
    /// The other's rows, counted from its first one.
    pub(crate) columns: Range<usize>,
    /// `[rows, PANEL]`, minus infinity where both rows are the same one, and in columns that do not exist.
    pub(crate) similarity: &'a mut [T],
    /// Whether anything is minus infinity.
    pub(crate) excludes: bool,
}

/// Into how many blocks a rank cuts its `n` rows.
pub(crate) fn own_blocks(n: usize, block_rows: usize) -> usize {
    // A multiple of 4, so that two threads have as many meetings as each other in every round.
    (n / block_rows).max(4) / 4 * 4
}

impl<'a, T: Real> Pairs<'a, T> {
    /// Packs the rows of all ranks, `unit`: `[m, width]`, of which `own` are this rank's.
    pub(crate) fn new(
        compute: Compute<'_>,
        unit: &'a [T],
        width: usize,
        own: Range<usize>,
        block_rows: usize,
    ) -> Self {
        let m = unit.len() / width;
        let n_own = own_blocks(own.len(), block_rows);
        let parts = (0..n_own).map(|part| split(own.len(), n_own, part));
        let mut ranges: Vec<_> = parts.map(|part| own.start + part.start..own.start + part.end).collect();
        for others in [0..own.start, own.end..m] {
            let end = others.end;
            ranges.extend(others.step_by(block_rows).map(|begin| begin..end.min(begin + block_rows)));
        }
        let mut blocks: Vec<Option<Block<T>>> = ranges.iter().map(|_| None).collect();
        compute.pool.for_each_part(blocks.iter_mut().zip(ranges).collect(), |_, (block, rows)| {
            let packed = RowBlock::new(compute.path, &unit[rows.start * width..rows.end * width], width);
            *block = Some(Block { rows, packed });
        });
        let mut own_blocks: Vec<_> =
            blocks.into_iter().map(|block| block.expect("every block was packed")).collect();
        let other_blocks = own_blocks.split_off(n_own);
        Self { unit, width, own, own_blocks, other_blocks, tiles: Mutex::new(Vec::new()) }
    }

    /// Rows of all ranks.
    pub(crate) fn m(&self) -> usize {
        self.unit.len() / self.width
    }

    /// This rank's rows in the global batch.
    pub(crate) fn own(&self) -> Range<usize> {
        self.own.clone()
    }

    /// A unit row of the global batch.
    pub(crate) fn row(&self, i: usize) -> &'a [T] {
        &self.unit[i * self.width..(i + 1) * self.width]
    }

    /// One output for each block of this rank's rows.
    pub(crate) fn for_own_blocks<O>(&self, output: impl Fn(&Block<T>) -> O) -> Vec<O> {
        self.own_blocks.iter().map(output).collect()
    }

    /// Calls `visit` with every pair of blocks of which the first is this rank's, and their outputs.
    ///
    /// Two different blocks of this rank are visited once, with both outputs; else there is no second output.
    pub(crate) fn for_each_pair<O: Send>(
        &self,
        pool: &Pool,
        outputs: &mut [O],
        visit: impl Fn(&Block<T>, &Block<T>, &mut O, Option<&mut O>) + Sync,
    ) {
        let own = &self.own_blocks;
        for_each_pair(pool, outputs, |(a, of_a), (b, of_b)| visit(&own[a], &own[b], of_a, Some(of_b)));
        pool.for_each_part(outputs.iter_mut().collect(), |a, of_a: &mut O| {
            for b in std::iter::once(&own[a]).chain(&self.other_blocks) {
                visit(&own[a], b, of_a, None);
            }
        });
    }

    /// Calls `visit` with each block of this rank and each block of all ranks, and the first one's output.
    pub(crate) fn for_each_row_block<O: Send>(
        &self,
        pool: &Pool,
        outputs: &mut [O],
        visit: impl Fn(&Block<T>, &Block<T>, &mut O) + Sync,
    ) {
        pool.for_each_part(outputs.iter_mut().collect(), |a, of_a: &mut O| {
            for b in self.own_blocks.iter().chain(&self.other_blocks) {
                visit(&self.own_blocks[a], b, of_a);
            }
        });
    }

    /// Calls `visit` with all similarities of the rows of `a` and `b`.
    pub(crate) fn for_each_panel(&self, a: &Block<T>, b: &Block<T>, mut visit: impl FnMut(Panel<'_, T>)) {
        let mut tile = self.take_tile(a.packed.stored_rows() * PANEL);
        for first in (0..b.rows.len()).step_by(PANEL) {
            visit(panel(a, b, first, &mut tile[..a.packed.stored_rows() * PANEL]));
        }
        self.put_back(tile);
    }

    /// Adds `sum_j w_ij u_j` to the sums of the rows of `a`, and `sum_i w_ij u_i` to those of `b` if there are any.
    ///
    /// `weigh` replaces all similarities by `w_ij`, which is 0 where they are minus infinity.
    pub(crate) fn add_weighted(
        &self,
        (a, b): (&Block<T>, &Block<T>),
        mut weigh: impl FnMut(Panel<'_, T>),
        sums_a: &mut RowSums<T>,
        sums_b: Option<&mut RowSums<T>>,
    ) {
        let len = a.packed.tile_len(&b.packed);
        let mut tile = self.take_tile(len);
        let weights = &mut tile[..len];
        let panels = weights.chunks_exact_mut(a.packed.stored_rows() * PANEL);
        for (first, similarity) in (0..b.rows.len()).step_by(PANEL).zip(panels) {
            weigh(panel(a, b, first, similarity));
        }
        b.packed.add_weighted(weights, sums_a);
        if let Some(sums_b) = sums_b {
            a.packed.add_weighted_transposed(weights, sums_b);
        }
        self.put_back(tile);
    }

    /// Turns the sums of this rank's rows into rows: `rows [n, d]` one after the other, as `finish(i, row)` leaves
    /// them.
    pub(crate) fn unpack(
        &self,
        pool: &Pool,
        sums: &[RowSums<T>],
        finish: impl Fn(usize, &mut [T]) + Sync,
    ) -> Vec<T> {
        let mut rows = vec![T::ZERO; self.own.len() * self.width];
        let mut rest = &mut rows[..];
        let parts = self.own_blocks.iter().zip(sums).map(|(block, sums)| {
            let part = rest.split_off_mut(..block.rows.len() * self.width);
            (block, sums, part.expect("the blocks are all of the rows"))
        });
        pool.for_each_part(parts.collect(), |_, (block, sums, rows)| {
            for (local, row) in rows.chunks_exact_mut(self.width).enumerate() {
                sums.read(local, row);
                finish(block.rows.start + local, row);
            }
        });
        rows
    }

    fn take_tile(&self, len: usize) -> AlignedVec<T> {
        let tile = self.tiles.lock().unwrap_or_else(PoisonError::into_inner).pop();
        tile.filter(|tile| tile.len() >= len).unwrap_or_else(|| AlignedVec::zeroed(len))
    }

    fn put_back(&self, tile: AlignedVec<T>) {
        self.tiles.lock().unwrap_or_else(PoisonError::into_inner).push(tile);
    }
}

impl<T: Real> Block<T> {
    /// Sums that are zero, of as many rows as this block has.
    pub(crate) fn zero_sums(&self) -> RowSums<T> {
        RowSums::zeros(&self.packed)
    }
}

/// Computes `u_i . u_j` for all rows `i` of `a` and a panel of rows `j` of `b`, from `first` on.
///
/// `similarity` has the stored rows of `a`; those that do not exist stay zero and are not handed on.
fn panel<'t, T: Real>(a: &Block<T>, b: &Block<T>, first: usize, similarity: &'t mut [T]) -> Panel<'t, T> {
    a.packed.inner_products(&b.packed, first / PANEL, similarity);
    let columns = first..b.rows.len().min(first + PANEL);
    let similarity = &mut similarity[..a.rows.len() * PANEL];
    let excluded = T::from_f64(f64::NEG_INFINITY);
    let (i, j) = (&a.rows, b.rows.start + columns.start..b.rows.start + columns.end);
    let same = i.start.max(j.start)..i.end.min(j.end);
    let excludes = !same.is_empty() || columns.len() < PANEL;
    for same in same {
        similarity[(same - i.start) * PANEL + same - j.start] = excluded;
    }
    if columns.len() < PANEL {
        similarity.chunks_exact_mut(PANEL).for_each(|row| row[columns.len()..].fill(excluded));
    }
    Panel { columns, similarity, excludes }
}
