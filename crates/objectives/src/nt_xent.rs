//! NT-Xent, the loss of SimCLR (equation 1 of Chen et al. 2020, arXiv:2002.05709), over the batch of all ranks.
//!
//! With unit rows `u_i`, `s_ij = u_i . u_j / temperature` and `p(i)` the other view of row `i`'s image,
//!
//! ```text
//! l_i = lse_i - s_ip(i),    lse_i = log sum_{j != i} exp(s_ij),    L = (1/M) sum_i l_i .
//! ```
//!
//! A row meets the others twice: as the anchor of `l_i`, and as a candidate in every `l_j`. With `P_ij =
//! exp(s_ij - lse_i)`, and because `s` is symmetric,
//!
//! ```text
//! dL/du_i = 1/(M temperature) [ sum_{j != i} (exp(s_ij - lse_i) + exp(s_ij - lse_j)) u_j  -  2 u_p(i) ] .
//! ```
//!
//! So a rank that has gathered all unit rows and then all `lse` computes its own rows of the gradient alone,
//! both terms included, and no gradient is exchanged. The similarity matrix is visited in tiles, twice, and
//! never stored: memory is `O(M d)`. It is symmetric: a tile between two blocks of this rank's own rows is
//! computed once for both, which halves the forward and takes a third off the backward of a rank alone.

use std::ops::Range;

use collective::{Communicator, Error, Number};
use engine::kernels::{PANEL, Packed, PackedGemm, Pool, Real, split};

use crate::exponential::{LogSumExp, add_two_exps};
use crate::tile::{needs_no_shift, sum_exps, weigh};
use crate::tournament::for_each_pair;
use crate::unit::{UnitRows, dot};
use crate::{Compute, ObjectiveStep};

/// The normalised-temperature cross entropy.
#[derive(Debug, Clone, PartialEq)]
pub struct NtXent {
    /// Divides the similarities; above 0.
    pub temperature: f64,
    /// How much of the similarity matrix is looked at at once.
    pub tile: Tile,
}

/// Sides of a tile of the similarity matrix. Results depend on them by rounding only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Rows, of this rank.
    pub rows: usize,
    /// Columns, of all ranks; rounded up to whole panels of [`Packed`].
    pub columns: usize,
}

impl Default for Tile {
    /// In `f32` and at 128 columns an embedding, tile, candidates and result fit a second-level cache of 512 KiB.
    fn default() -> Self {
        Self { rows: 128, columns: 256 }
    }
}

/// The loss and its gradient by this rank's unit rows.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitGradient<T> {
    /// Mean over the rows of all ranks, in nats; the same bits on every rank.
    pub loss: f64,
    /// `[n, d]`: `dL/du` of this rank's rows.
    pub d_unit: Vec<T>,
}

/// Rows that a block of this rank's has at least, if there are enough for four blocks.
const BLOCK_ROWS: usize = 128;

/// Own blocks at most; with more, the threads would meet more often than their work is long.
const MAX_BLOCKS: usize = 256;

/// The unit rows of all ranks, and which of them are this rank's.
struct Batch<'a, T> {
    /// `[m, d]`
    unit: &'a [T],
    width: usize,
    own: Range<usize>,
    own_blocks: Vec<Block<T>>,
    other_blocks: Vec<Block<T>>,
}

/// Consecutive unit rows, packed for both sides of a product.
struct Block<T> {
    /// In the global batch.
    rows: Range<usize>,
    /// `[d, rows]`: for similarities.
    columns: Packed<T>,
    /// `[rows, d]`: for weighted sums of rows.
    packed: Packed<T>,
}

impl NtXent {
    /// The loss at `temperature`, in tiles of the default size.
    pub fn new(temperature: f64) -> Self {
        Self { temperature, tile: Tile::default() }
    }

    /// Floating-point operations of the matrix products of [`NtXent::forward_backward`] on a rank alone.
    ///
    /// Without symmetry they would be `6 m^2 d`: similarities twice, and one weighted sum of rows.
    pub fn flops(m: usize, width: usize) -> f64 {
        let share_of_pairs = 0.5 * (1.0 + 1.0 / own_blocks(m) as f64);
        (2.0 * share_of_pairs + 1.0) * 2.0 * (m * m * width) as f64
    }

    /// See [`crate::Objective::forward_backward`].
    ///
    /// # Errors
    /// If a peer is lost or the group was aborted.
    ///
    /// # Panics
    /// If a rank has no image, or `embeddings` are not `rows[rank]` rows of one width.
    pub fn forward_backward<T: Real + Number>(
        &self,
        compute: Compute<'_>,
        embeddings: &[T],
        rows: &[usize],
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error> {
        let n = rows[communicator.rank()];
        assert!(n > 0 && embeddings.len().is_multiple_of(n), "{} embeddings in {n} rows", embeddings.len());
        let local = UnitRows::new(embeddings, embeddings.len() / n);
        let UnitGradient { loss, d_unit } = self.unit_gradient(compute, &local.unit, rows, communicator)?;
        Ok(ObjectiveStep::new(loss, local.project(d_unit)))
    }

    /// Computes the loss and this rank's rows of its gradient, complete, by the unit rows.
    ///
    /// Gathers `m * d` numbers, then `m`, then one loss per rank.
    ///
    /// - `unit`: `[n, d]`, this rank's rows, of norm 1; `rows`: rows of every rank
    ///
    /// # Errors
    /// If a peer is lost or the group was aborted.
    ///
    /// # Panics
    /// If a rank has an odd number of rows or none, or `unit` are not `rows[rank]` rows of one width.
    pub fn unit_gradient<T: Real + Number>(
        &self,
        compute: Compute<'_>,
        unit: &[T],
        rows: &[usize],
        communicator: &mut Communicator,
    ) -> Result<UnitGradient<T>, Error> {
        let rank = communicator.rank();
        assert!(rows.iter().all(|&n| n >= 2 && n % 2 == 0), "every rank has two views of an image: {rows:?}");
        assert!(unit.len().is_multiple_of(rows[rank]), "{} numbers in {} rows", unit.len(), rows[rank]);
        let m: usize = rows.iter().sum();
        let width = unit.len() / rows[rank];
        let first: usize = rows[..rank].iter().sum();

        let mut global = vec![T::ZERO; m * width];
        let counts: Vec<usize> = rows.iter().map(|n| n * width).collect();
        communicator.all_gather_counts(unit, &counts, &mut global)?;
        let batch = Batch::new(compute, &global, width, first..first + rows[rank]);

        let own_log_sums = self.log_sums(compute, &batch);
        let mut log_sums = vec![T::ZERO; m];
        let rounded: Vec<T> = own_log_sums.iter().map(|&value| T::from_f64(value)).collect();
        communicator.all_gather_counts(&rounded, rows, &mut log_sums)?;

        let mut loss = [self.loss(&batch, &own_log_sums)];
        communicator.all_reduce_sum(&mut loss)?;
        Ok(UnitGradient { loss: loss[0], d_unit: self.d_unit(compute, &batch, &log_sums) })
    }

    /// `lse_i` of this rank's rows.
    fn log_sums<T: Real>(&self, compute: Compute<'_>, batch: &Batch<'_, T>) -> Vec<f64> {
        if !needs_no_shift::<T>(self.temperature, batch.m()) {
            return self.shifted_log_sums(compute, batch);
        }
        let mut sums = vec![0.0; batch.own.len()];
        batch.for_each_pair(compute.pool, &mut sums, 1, |a, b, sums, mut mirrored| {
            let mut tile = self.empty_tile();
            for (rows, columns) in self.tiles(a, b) {
                let similarity = batch.similarity(a, b, (&rows, &columns), &mut tile);
                let mirrored = mirrored.as_mut().map(|sums| &mut sums[columns]);
                sum_exps(compute.path, similarity, 1.0 / self.temperature, &mut sums[rows], mirrored);
            }
        });
        sums.into_iter().map(f64::ln).collect()
    }

    /// `lse_i` at a temperature so low that each row's largest logit must be taken off first.
    fn shifted_log_sums<T: Real>(&self, compute: Compute<'_>, batch: &Batch<'_, T>) -> Vec<f64> {
        let mut sums = vec![LogSumExp::EMPTY; batch.own.len()];
        let mut parts = batch.parts(&mut sums, 1);
        compute.pool.for_each_part(parts.iter_mut().collect(), |a, sums| {
            let a = &batch.own_blocks[a];
            let mut tile = self.empty_tile();
            for b in batch.own_blocks.iter().chain(&batch.other_blocks) {
                for (rows, columns) in self.tiles(a, b) {
                    let similarity = batch.similarity(a, b, (&rows, &columns), &mut tile);
                    let rows = sums[rows].iter_mut().zip(similarity.chunks_exact(columns.len()));
                    rows.for_each(|(sum, row)| sum.add(compute.path, row, 1.0 / self.temperature));
                }
            }
        });
        sums.into_iter().map(LogSumExp::value).collect()
    }

    /// This rank's part of `L`: `(1/M) sum_i (lse_i - s_ip(i))` over its rows.
    fn loss<T: Real>(&self, batch: &Batch<'_, T>, log_sums: &[f64]) -> f64 {
        let row_loss = |(i, log_sum): (usize, &f64)| {
            log_sum - dot(batch.row(i), batch.row(batch.partner(i))) / self.temperature
        };
        batch.own.clone().zip(log_sums).map(row_loss).sum::<f64>() / batch.m() as f64
    }

    /// `dL/du_i` of this rank's rows, from the `lse` of all.
    fn d_unit<T: Real>(&self, compute: Compute<'_>, batch: &Batch<'_, T>, log_sums: &[T]) -> Vec<T> {
        let Compute { pool, path } = compute;
        let width = batch.width;
        let inverse_sums = self.inverse_sums(log_sums);
        let mut d_unit = vec![T::ZERO; batch.own.len() * width];
        batch.for_each_pair(pool, &mut d_unit, width, |a, b, d_a, mut d_b| {
            let mut tile = self.empty_tile();
            for (rows, columns) in self.tiles(a, b) {
                let weights = batch.similarity(a, b, (&rows, &columns), &mut tile);
                let (i, j) = (a.global(&rows), b.global(&columns));
                let scale = 1.0 / self.temperature;
                match &inverse_sums {
                    Some(inverse_sums) => weigh(path, weights, scale, &inverse_sums[i], &inverse_sums[j]),
                    None => {
                        for (row, &log_sum) in weights.chunks_exact_mut(columns.len()).zip(&log_sums[i]) {
                            add_two_exps(path, row, scale, log_sum, &log_sums[j.clone()]);
                        }
                    }
                }
                let numbers = |rows: &Range<usize>| rows.start * width..rows.end * width;
                b.add_weighted(&columns, weights, false, &mut d_a[numbers(&rows)]);
                if let Some(d_b) = &mut d_b {
                    a.add_weighted(&rows, weights, true, &mut d_b[numbers(&columns)]);
                }
            }
        });
        let scale = T::from_f64(1.0 / (batch.m() as f64 * self.temperature));
        let two = T::from_f64(2.0);
        pool.for_each_rows(&mut d_unit, width, |first, rows| {
            for (i, d_row) in (batch.own.start + first..).zip(rows.chunks_exact_mut(width)) {
                for (d, &u) in d_row.iter_mut().zip(batch.row(batch.partner(i))) {
                    *d = scale * (*d - two * u);
                }
            }
        });
        d_unit
    }

    /// `exp(-lse_j)`, if that needs no shift either.
    fn inverse_sums<T: Real>(&self, log_sums: &[T]) -> Option<Vec<T>> {
        let inverse = |log_sum: &T| T::from_f64((-log_sum.to_f64()).exp());
        needs_no_shift::<T>(self.temperature, log_sums.len()).then(|| log_sums.iter().map(inverse).collect())
    }

    fn empty_tile<T: Real>(&self) -> Vec<T> {
        vec![T::ZERO; self.tile.rows * self.tile.columns.next_multiple_of(PANEL)]
    }

    /// The rows of `a` and `b`, counted from their first, that make up each tile.
    fn tiles<T>(
        &self,
        a: &Block<T>,
        b: &Block<T>,
    ) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<T> {
        let cut =
            |len: usize, size: usize| (0..len).step_by(size).map(move |begin| begin..len.min(begin + size));
        let (rows, columns) = (self.tile.rows, self.tile.columns.next_multiple_of(PANEL));
        let n_columns = b.rows.len();
        cut(a.rows.len(), rows)
            .flat_map(move |rows| cut(n_columns, columns).map(move |columns| (rows.clone(), columns)))
    }
}

/// Into how many blocks a rank cuts its `n` rows.
fn own_blocks(n: usize) -> usize {
    // A multiple of 4, so that two threads have as many meetings as each other in every round.
    (n / BLOCK_ROWS).clamp(4, MAX_BLOCKS) / 4 * 4
}

impl<T: Real> Block<T> {
    fn new(compute: Compute<'_>, unit: &[T], width: usize, rows: Range<usize>) -> Self {
        let own = &unit[rows.start * width..rows.end * width];
        Self {
            rows,
            columns: Packed::transposed(compute.path, own, width),
            packed: Packed::new(compute.path, own, width),
        }
    }

    /// Where some of its rows are in the global batch.
    fn global(&self, rows: &Range<usize>) -> Range<usize> {
        self.rows.start + rows.start..self.rows.start + rows.end
    }

    /// Adds to each row of `sums` this block's `rows`, times one column of `weights` each, or one row if they
    /// are `transposed`.
    fn add_weighted(&self, rows: &Range<usize>, weights: &[T], transposed: bool, sums: &mut [T]) {
        let n_sums = weights.len() / rows.len();
        let product = PackedGemm {
            rows: n_sums,
            terms: rows.clone(),
            columns: 0..sums.len() / n_sums,
            a_transposed: transposed,
            accumulate: true,
        };
        self.packed.multiply(&product, weights, sums);
    }
}

impl<'a, T: Real> Batch<'a, T> {
    /// Packs the rows of all ranks.
    fn new(compute: Compute<'_>, unit: &'a [T], width: usize, own: Range<usize>) -> Self {
        let m = unit.len() / width;
        let n_own = own_blocks(own.len());
        let parts = (0..n_own).map(|part| split(own.len(), n_own, part));
        let mut ranges: Vec<_> = parts.map(|part| own.start + part.start..own.start + part.end).collect();
        for others in [0..own.start, own.end..m] {
            let end = others.end;
            ranges.extend(others.step_by(BLOCK_ROWS).map(|begin| begin..end.min(begin + BLOCK_ROWS)));
        }
        let mut blocks: Vec<Option<Block<T>>> = ranges.iter().map(|_| None).collect();
        compute.pool.for_each_part(blocks.iter_mut().zip(ranges).collect(), |_, (block, rows)| {
            *block = Some(Block::new(compute, unit, width, rows));
        });
        let mut own_blocks: Vec<_> =
            blocks.into_iter().map(|block| block.expect("every block was packed")).collect();
        let other_blocks = own_blocks.split_off(n_own);
        Self { unit, width, own, own_blocks, other_blocks }
    }

    /// Calls `visit` with every pair of blocks of which the first is this rank's, and their parts of `output`,
    /// which has `width` numbers for each of this rank's rows.
    ///
    /// Two different blocks of this rank are visited once, with both parts; else there is no second part.
    fn for_each_pair<O: Send>(
        &self,
        pool: &Pool,
        output: &mut [O],
        width: usize,
        visit: impl Fn(&Block<T>, &Block<T>, &mut [O], Option<&mut [O]>) + Sync,
    ) {
        let own = &self.own_blocks;
        let mut parts = self.parts(output, width);
        for_each_pair(pool, &mut parts, |(a, of_a), (b, of_b)| visit(&own[a], &own[b], of_a, Some(of_b)));
        pool.for_each_part(parts, |a, of_a| {
            for b in std::iter::once(&own[a]).chain(&self.other_blocks) {
                visit(&own[a], b, of_a, None);
            }
        });
    }

    /// Each own block's part of an output with `width` numbers for each row.
    fn parts<'o, O>(&self, mut output: &'o mut [O], width: usize) -> Vec<&'o mut [O]> {
        let len = |block: &Block<T>| block.rows.len() * width;
        let mut cut = |len| output.split_off_mut(..len).expect("the blocks are all of the rows");
        self.own_blocks.iter().map(|block| cut(len(block))).collect()
    }

    fn m(&self) -> usize {
        self.unit.len() / self.width
    }

    fn rows(&self, range: &Range<usize>) -> &[T] {
        &self.unit[range.start * self.width..range.end * self.width]
    }

    fn row(&self, i: usize) -> &[T] {
        self.rows(&(i..i + 1))
    }

    /// `p(i)`: the first half of a rank's rows is one view of its images, the second half the other.
    fn partner(&self, i: usize) -> usize {
        let n = self.own.len();
        self.own.start + (i - self.own.start + n / 2) % n
    }

    /// `u_i . u_j` for some rows `i` of `a` and `j` of `b`, minus infinity where they are the same row.
    fn similarity<'t>(
        &self,
        a: &Block<T>,
        b: &Block<T>,
        (rows, columns): (&Range<usize>, &Range<usize>),
        tile: &'t mut [T],
    ) -> &'t mut [T] {
        let similarity = &mut tile[..rows.len() * columns.len()];
        let product = PackedGemm {
            rows: rows.len(),
            terms: 0..self.width,
            columns: columns.clone(),
            a_transposed: false,
            accumulate: false,
        };
        let (i, j) = (a.global(rows), b.global(columns));
        b.columns.multiply(&product, self.rows(&i), similarity);
        for same in i.start.max(j.start)..i.end.min(j.end) {
            similarity[(same - i.start) * columns.len() + same - j.start] = T::from_f64(f64::NEG_INFINITY);
        }
        similarity
    }
}
