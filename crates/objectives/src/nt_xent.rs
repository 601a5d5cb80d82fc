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
//! never stored: memory is `O(M d)`.

use std::ops::Range;

use collective::{Communicator, Error, Number};
use engine::kernels::{Gemm, Real, matmul_serial};

use crate::exponential::{LogSumExp, add_two_exps};
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
    /// Columns, of all ranks.
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

/// The unit rows of all ranks, and which of them are this rank's.
struct Batch<'a, T> {
    /// `[m, d]`
    unit: &'a [T],
    width: usize,
    own: Range<usize>,
}

impl NtXent {
    /// The loss at `temperature`, in tiles of the default size.
    pub fn new(temperature: f64) -> Self {
        Self { temperature, tile: Tile::default() }
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
        Ok(ObjectiveStep { loss, d_embeddings: local.project(d_unit) })
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
        let batch = Batch { unit: &global, width, own: first..first + rows[rank] };

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
        let Compute { pool, path } = compute;
        let mut log_sums = vec![0.0; batch.own.len()];
        pool.for_each_rows(&mut log_sums, 1, |first, log_sums| {
            let mut tile = self.empty_tile(batch);
            for (rows, log_sums) in self.row_blocks(batch.own.start + first, log_sums, 1) {
                let mut sums = vec![LogSumExp::EMPTY; rows.len()];
                for columns in self.column_blocks(batch) {
                    let similarity = batch.similarity(compute, &rows, &columns, &mut tile);
                    for (sum, similarity) in sums.iter_mut().zip(similarity.chunks_exact(columns.len())) {
                        sum.add(path, similarity, 1.0 / self.temperature);
                    }
                }
                for (log_sum, sum) in log_sums.iter_mut().zip(sums) {
                    *log_sum = sum.value();
                }
            }
        });
        log_sums
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
        let mut d_unit = vec![T::ZERO; batch.own.len() * width];
        pool.for_each_rows(&mut d_unit, width, |first, d_unit| {
            let mut tile = self.empty_tile(batch);
            for (rows, d_unit) in self.row_blocks(batch.own.start + first, d_unit, width) {
                for columns in self.column_blocks(batch) {
                    let weights = batch.similarity(compute, &rows, &columns, &mut tile);
                    for (i, row) in rows.clone().zip(weights.chunks_exact_mut(columns.len())) {
                        let scale = 1.0 / self.temperature;
                        add_two_exps(path, row, scale, log_sums[i], &log_sums[columns.clone()]);
                    }
                    let product = Gemm { accumulate: true, ..Gemm::new(rows.len(), width, columns.len()) };
                    matmul_serial(path, product, weights, batch.rows(&columns), d_unit);
                }
                let scale = T::from_f64(1.0 / (batch.m() as f64 * self.temperature));
                let two = T::from_f64(2.0);
                for (i, d_row) in rows.zip(d_unit.chunks_exact_mut(width)) {
                    for (d, &u) in d_row.iter_mut().zip(batch.row(batch.partner(i))) {
                        *d = scale * (*d - two * u);
                    }
                }
            }
        });
        d_unit
    }

    fn empty_tile<T: Real>(&self, batch: &Batch<'_, T>) -> Vec<T> {
        vec![T::ZERO; self.tile.rows.min(batch.own.len()) * self.tile.columns.min(batch.m())]
    }

    /// Cuts `output`, `width` numbers a row from row `first` on, into the rows of one tile each.
    fn row_blocks<'a, T>(
        &self,
        first: usize,
        output: &'a mut [T],
        width: usize,
    ) -> impl Iterator<Item = (Range<usize>, &'a mut [T])> + use<'a, T> {
        let tile_rows = self.tile.rows;
        output.chunks_mut(tile_rows * width).enumerate().map(move |(block, output)| {
            let begin = first + block * tile_rows;
            (begin..begin + output.len() / width, output)
        })
    }

    fn column_blocks<T: Real>(&self, batch: &Batch<'_, T>) -> impl Iterator<Item = Range<usize>> + use<T> {
        let (m, columns) = (batch.m(), self.tile.columns);
        (0..m).step_by(columns).map(move |begin| begin..m.min(begin + columns))
    }
}

impl<T: Real> Batch<'_, T> {
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

    /// `u_i . u_j` for `i` in `rows` and `j` in `columns`, minus infinity where `i = j`.
    fn similarity<'t>(
        &self,
        compute: Compute<'_>,
        rows: &Range<usize>,
        columns: &Range<usize>,
        tile: &'t mut [T],
    ) -> &'t mut [T] {
        let similarity = &mut tile[..rows.len() * columns.len()];
        let product = Gemm { b_transposed: true, ..Gemm::new(rows.len(), columns.len(), self.width) };
        matmul_serial(compute.path, product, self.rows(rows), self.rows(columns), similarity);
        for i in rows.start.max(columns.start)..rows.end.min(columns.end) {
            similarity[(i - rows.start) * columns.len() + i - columns.start] = T::from_f64(f64::NEG_INFINITY);
        }
        similarity
    }
}
