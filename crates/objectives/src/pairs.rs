//! All pairs of a rank's rows with the rows of all ranks, tile by tile.
//!
//! What pairwise objectives have in common: unit rows are packed in blocks, a tile of inner products is made of two
//! blocks, and a tile of weights is spread over the rows of both. The similarity matrix is symmetric, so that a
//! tile between two blocks of this rank's own rows is visited once, for the rows of both its sides.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use kernels::{AlignedVec, Device, PANEL, Real, RowBlock, RowBlocks, split};

use crate::tile::{LANES, Logits};
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
    /// The rows of each block, this rank's before all others.
    ranges: Vec<Range<usize>>,
    n_own: usize,
    packed: RowBlocks<T>,
    /// Whether a row and the other view of its image are left out, as a row and itself are.
    without_partners: bool,
    /// Tiles that nobody works on at the moment, for a new one each time would have to be zeroed.
    tiles: Mutex<Vec<AlignedVec<T>>>,
}

/// Consecutive unit rows.
pub(crate) struct Block<'a, T> {
    /// In the global batch.
    pub(crate) rows: Range<usize>,
    packed: RowBlock<'a, T>,
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
    // A multiple of 4 and of whole groups, so that two threads have as many meetings as each other in every round.
    let blocks = (n / block_rows).max(4);
    let groups = 4 * group_len(blocks);
    blocks / groups * groups
}

/// How many of `n_own` blocks meet others together: threads then meet less often, and find what they need again in
/// their caches.
fn group_len(n_own: usize) -> usize {
    // Still as many groups that each of eight threads has a meeting in every round.
    (n_own / 16).clamp(1, 4)
}

impl<'a, T: Real> Pairs<'a, T> {
    /// Packs the rows of all ranks, `unit`: `[m, width]`, of which `own` are this rank's.
    pub(crate) fn new(
        device: &Device,
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
        let blocks: Vec<&[T]> =
            ranges.iter().map(|rows| &unit[rows.start * width..rows.end * width]).collect();
        let packed = RowBlocks::new(device.cpu(), &blocks, width);
        Self {
            unit,
            width,
            own,
            ranges,
            n_own,
            packed,
            without_partners: false,
            tiles: Mutex::new(Vec::new()),
        }
    }

    /// Leaves out the pairs of two views of an image.
    pub(crate) fn without_partners(self) -> Self {
        Self { without_partners: true, ..self }
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

    fn block(&self, index: usize) -> Block<'_, T> {
        Block { rows: self.ranges[index].clone(), packed: self.packed.block(index) }
    }

    /// The rows of each of this rank's blocks.
    pub(crate) fn own_ranges(&self) -> &[Range<usize>] {
        &self.ranges[..self.n_own]
    }

    /// Calls `visit` with every pair of blocks of which the first is this rank's, and their outputs.
    ///
    /// Two different blocks of this rank are visited once, with both outputs; else there is no second output.
    pub(crate) fn for_each_pair<O: Send>(
        &self,
        device: &Device,
        outputs: &mut [O],
        visit: impl Fn(&Block<'_, T>, &Block<'_, T>, &mut O, Option<&mut O>) + Sync,
    ) {
        let (pool, group) = (&device.cpu().pool, group_len(self.n_own));
        let mut groups: Vec<&mut [O]> = outputs.chunks_mut(group).collect();
        for_each_pair(pool, &mut groups, |(a, of_a), (b, of_b)| {
            for (a, of_a) in (a * group..).zip(of_a.iter_mut()) {
                for (b, of_b) in (b * group..).zip(of_b.iter_mut()) {
                    visit(&self.block(a), &self.block(b), of_a, Some(of_b));
                }
            }
        });
        pool.for_each_part(groups, |first, of_group| {
            for a in 0..of_group.len() {
                let (of_a, of_later) = of_group[a..].split_first_mut().expect("the group has this block");
                let block = self.block(first * group + a);
                visit(&block, &block, of_a, None);
                for (b, of_b) in (first * group + a + 1..).zip(of_later) {
                    visit(&block, &self.block(b), of_a, Some(of_b));
                }
                for other in self.n_own..self.ranges.len() {
                    visit(&block, &self.block(other), of_a, None);
                }
            }
        });
    }

    /// Calls `visit` with each block of this rank and each block of all ranks, and the first one's output.
    pub(crate) fn for_each_row_block<O: Send>(
        &self,
        device: &Device,
        outputs: &mut [O],
        visit: impl Fn(&Block<'_, T>, &Block<'_, T>, &mut O) + Sync,
    ) {
        device.cpu().pool.for_each_part(outputs.iter_mut().collect(), |a, of_a: &mut O| {
            for b in 0..self.ranges.len() {
                visit(&self.block(a), &self.block(b), of_a);
            }
        });
    }

    /// Calls `visit` with all similarities of the rows of `a` and `b`.
    pub(crate) fn for_each_panel(
        &self,
        a: &Block<'_, T>,
        b: &Block<'_, T>,
        mut visit: impl FnMut(Panel<'_, T>),
    ) {
        let mut tile = self.take_tile(a.packed.stored_rows() * PANEL);
        for first in (0..b.rows.len()).step_by(PANEL) {
            visit(self.panel(a, b, first, &mut tile[..a.packed.stored_rows() * PANEL]));
        }
        self.put_back(tile);
    }

    /// `sum_j exp(scale * u_i . u_j)` of this rank's rows, over all that is not left out.
    pub(crate) fn exp_sums(&self, device: &Device, scale: f64) -> Vec<f64> {
        let mut sums = self.own_ranges().iter().map(|rows| vec![0.0; rows.len()]).collect::<Vec<_>>();
        self.for_each_pair(device, &mut sums, |a, b, of_a, mut of_b| {
            let mut row_lanes = vec![T::ZERO; of_a.len() * LANES];
            self.for_each_panel(a, b, |Panel { columns, similarity, excludes }| {
                let logits = Logits { path: device.cpu().path, scale, excludes };
                let column_sums = logits.sum_exps(similarity, &mut row_lanes);
                if let Some(of_b) = &mut of_b {
                    let totals = of_b[columns].iter_mut().zip(column_sums);
                    totals.for_each(|(total, sum)| *total += sum.to_f64());
                }
            });
            for (total, lanes) in of_a.iter_mut().zip(row_lanes.chunks_exact(LANES)) {
                *total += lanes.iter().map(|lane| lane.to_f64()).sum::<f64>();
            }
        });
        sums.into_iter().flatten().collect()
    }

    /// Computes `finish(i, sum_j w_ij u_j)` for each row `i` of this rank, `[n, d]`.
    ///
    /// The weights are symmetric: `weigh` replaces the similarities of some rows of two blocks by them, by 0 what is
    /// minus infinity.
    pub(crate) fn weighted_sums(
        self,
        device: &Device,
        weigh: impl Fn(&Block<'_, T>, &Block<'_, T>, Panel<'_, T>) + Sync,
        finish: impl Fn(usize, &mut [T]) + Sync,
    ) -> Vec<T> {
        let mut memory = self.packed.zero_sums(self.n_own);
        let mut sums = self.packed.sums(&mut memory);
        self.for_each_pair(device, &mut sums, |a, b, of_a, of_b| {
            let len = a.packed.tile_len(&b.packed);
            if len == 0 {
                return;
            }
            let mut tile = self.take_tile(len);
            let weights = &mut tile[..len];
            let panels = weights.chunks_exact_mut(a.packed.stored_rows() * PANEL);
            for (first, similarity) in (0..b.rows.len()).step_by(PANEL).zip(panels) {
                weigh(a, b, self.panel(a, b, first, similarity));
            }
            b.packed.add_weighted(weights, of_a);
            if let Some(of_b) = of_b {
                a.packed.add_weighted_transposed(weights, of_b);
            }
            self.put_back(tile);
        });
        // Nothing is multiplied any more, and the packed rows are most of the memory.
        let Self { width, own, ranges, n_own, packed, .. } = self;
        drop(packed);
        let mut rows = vec![T::ZERO; own.len() * width];
        let mut rest = &mut rows[..];
        let parts = ranges[..n_own].iter().zip(&sums).map(|(range, sums)| {
            let part = rest.split_off_mut(..range.len() * width).expect("the blocks are all of the rows");
            (range.start, sums, part)
        });
        device.cpu().pool.for_each_part(parts.collect(), |_, (start, sums, rows)| {
            for (local, row) in rows.chunks_exact_mut(width).enumerate() {
                sums.read(local, row);
                finish(start + local, row);
            }
        });
        rows
    }

    /// Computes `u_i . u_j` for all rows `i` of `a` and a panel of rows `j` of `b`, from `first` on.
    ///
    /// `similarity` has the stored rows of `a`; those that do not exist stay zero and are not handed on.
    fn panel<'t>(
        &self,
        a: &Block<'_, T>,
        b: &Block<'_, T>,
        first: usize,
        similarity: &'t mut [T],
    ) -> Panel<'t, T> {
        a.packed.inner_products(&b.packed, first / PANEL, similarity);
        let columns = first..b.rows.len().min(first + PANEL);
        let similarity = &mut similarity[..a.rows.len() * PANEL];
        let excluded = T::from_f64(f64::NEG_INFINITY);
        let mut excludes = columns.len() < PANEL;
        if excludes {
            similarity.chunks_exact_mut(PANEL).for_each(|row| row[columns.len()..].fill(excluded));
        }
        let (i, j) = (&a.rows, b.rows.start + columns.start..b.rows.start + columns.end);
        let mut exclude = |row: usize, column: usize| {
            similarity[(row - i.start) * PANEL + column - j.start] = excluded;
            excludes = true;
        };
        (i.start.max(j.start)..i.end.min(j.end)).for_each(|same| exclude(same, same));
        if self.without_partners && self.own.contains(&j.start) {
            let partners = i.clone().map(|row| (row, partner(&self.own, row)));
            partners
                .filter(|(_, partner)| j.contains(partner))
                .for_each(|(row, partner)| exclude(row, partner));
        }
        Panel { columns, similarity, excludes }
    }

    fn take_tile(&self, len: usize) -> AlignedVec<T> {
        let tile = self.tiles.lock().unwrap_or_else(PoisonError::into_inner).pop();
        tile.filter(|tile| tile.len() >= len).unwrap_or_else(|| AlignedVec::zeroed(len))
    }

    fn put_back(&self, tile: AlignedVec<T>) {
        self.tiles.lock().unwrap_or_else(PoisonError::into_inner).push(tile);
    }
}

/// `p(i)`: the first half of a rank's rows is one view of its images, the second half the other.
pub(crate) fn partner(own: &Range<usize>, i: usize) -> usize {
    own.start + (i - own.start + own.len() / 2) % own.len()
}

/// Rows of every rank, two views of each of its `images`; and which of all rows are those of `rank`.
pub(crate) fn own_rows(images: &[usize], rank: usize) -> (Vec<usize>, Range<usize>) {
    assert!(images.iter().all(|&n| n > 0), "every rank has an image: {images:?}");
    let rows: Vec<usize> = images.iter().map(|n| 2 * n).collect();
    let first = rows[..rank].iter().sum();
    let own = first..first + rows[rank];
    (rows, own)
}
