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
use engine::kernels::{PANEL, Real};

use crate::exponential::LogSumExp;
use crate::pairs::{BLOCK_ROWS, Block, Pairs, Panel, own_blocks};
use crate::tile::{LANES, Logits, needs_no_shift};
use crate::unit::{UnitRows, dot};
use crate::{Compute, ObjectiveStep};

/// The normalised-temperature cross entropy.
#[derive(Debug, Clone, PartialEq)]
pub struct NtXent {
    /// Divides the similarities; above 0.
    pub temperature: f64,
    /// About the sides of a tile of the similarity matrix. Results depend on it by rounding only.
    pub block_rows: usize,
}

/// The loss and its gradient by this rank's unit rows.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitGradient<T> {
    /// Mean over the rows of all ranks, in nats; the same bits on every rank.
    pub loss: f64,
    /// `[n, d]`: `dL/du` of this rank's rows.
    pub d_unit: Vec<T>,
}

impl NtXent {
    /// The loss at `temperature`, in tiles of the default size.
    pub fn new(temperature: f64) -> Self {
        Self { temperature, block_rows: BLOCK_ROWS }
    }

    /// Floating-point operations of the matrix products of [`NtXent::forward_backward`] on a rank alone.
    ///
    /// Without symmetry they would be `6 m^2 d`: similarities twice, and one weighted sum of rows.
    pub fn flops(m: usize, width: usize) -> f64 {
        let share_of_pairs = 0.5 * (1.0 + 1.0 / own_blocks(m, BLOCK_ROWS) as f64);
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
        let own = first..first + rows[rank];
        let pairs = Pairs::new(compute, &global, width, own, self.block_rows);

        let own_log_sums = self.log_sums(compute, &pairs);
        let mut log_sums = vec![T::ZERO; m];
        let rounded: Vec<T> = own_log_sums.iter().map(|&value| T::from_f64(value)).collect();
        communicator.all_gather_counts(&rounded, rows, &mut log_sums)?;

        let mut loss = [self.loss(&pairs, &own_log_sums)];
        communicator.all_reduce_sum(&mut loss)?;
        Ok(UnitGradient { loss: loss[0], d_unit: self.d_unit(compute, pairs, &log_sums) })
    }

    /// `lse_i` of this rank's rows.
    fn log_sums<T: Real>(&self, compute: Compute<'_>, pairs: &Pairs<'_, T>) -> Vec<f64> {
        if !needs_no_shift::<T>(self.temperature, pairs.m()) {
            return self.shifted_log_sums(compute, pairs);
        }
        let mut sums = pairs.own_ranges().iter().map(|rows| vec![0.0; rows.len()]).collect::<Vec<_>>();
        pairs.for_each_pair(compute.pool, &mut sums, |a, b, of_a, mut of_b| {
            let mut row_lanes = vec![T::ZERO; of_a.len() * LANES];
            pairs.for_each_panel(a, b, |Panel { columns, similarity, excludes }| {
                let logits = Logits { path: compute.path, scale: 1.0 / self.temperature, excludes };
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
        sums.into_iter().flatten().map(f64::ln).collect()
    }

    /// `lse_i` at a temperature so low that each row's largest logit must be taken off first.
    fn shifted_log_sums<T: Real>(&self, compute: Compute<'_>, pairs: &Pairs<'_, T>) -> Vec<f64> {
        let mut sums =
            pairs.own_ranges().iter().map(|rows| vec![LogSumExp::EMPTY; rows.len()]).collect::<Vec<_>>();
        pairs.for_each_row_block(compute.pool, &mut sums, |a, b, sums| {
            pairs.for_each_panel(a, b, |Panel { columns, similarity, .. }| {
                for (sum, row) in sums.iter_mut().zip(similarity.chunks_exact(PANEL)) {
                    sum.add(compute.path, &row[..columns.len()], 1.0 / self.temperature);
                }
            });
        });
        sums.into_iter().flatten().map(LogSumExp::value).collect()
    }

    /// This rank's part of `L`: `(1/M) sum_i (lse_i - s_ip(i))` over its rows.
    fn loss<T: Real>(&self, pairs: &Pairs<'_, T>, log_sums: &[f64]) -> f64 {
        let row_loss = |(i, log_sum): (usize, &f64)| {
            log_sum - dot(pairs.row(i), pairs.row(partner(&pairs.own(), i))) / self.temperature
        };
        pairs.own().zip(log_sums).map(row_loss).sum::<f64>() / pairs.m() as f64
    }

    /// `dL/du_i` of this rank's rows, from the `lse` of all.
    fn d_unit<T: Real>(&self, compute: Compute<'_>, pairs: Pairs<'_, T>, log_sums: &[T]) -> Vec<T> {
        let inverse_sums = self.inverse_sums(log_sums);
        let weigh = |a: &Block<'_, T>, b: &Block<'_, T>, panel: Panel<'_, T>| {
            let Panel { columns, similarity, excludes } = panel;
            let logits = Logits { path: compute.path, scale: 1.0 / self.temperature, excludes };
            let (i, j) = (a.rows.clone(), b.rows.start + columns.start..b.rows.start + columns.end);
            match &inverse_sums {
                Some(inverse_sums) => logits.weigh(similarity, &inverse_sums[i], &inverse_sums[j]),
                None => logits.weigh_shifted(similarity, &log_sums[i], &log_sums[j]),
            }
        };
        let scale = T::from_f64(1.0 / (pairs.m() as f64 * self.temperature));
        let two = T::from_f64(2.0);
        let (unit, own) = (pairs.unit(), pairs.own());
        pairs.weighted_sums(compute.pool, weigh, |i, d_row| {
            let partner = &unit[partner(&own, i) * d_row.len()..][..d_row.len()];
            for (d, &u) in d_row.iter_mut().zip(partner) {
                *d = scale * (*d - two * u);
            }
        })
    }

    /// `exp(-lse_j)`, if that needs no shift either.
    fn inverse_sums<T: Real>(&self, log_sums: &[T]) -> Option<Vec<T>> {
        let inverse = |log_sum: &T| T::from_f64((-log_sum.to_f64()).exp());
        needs_no_shift::<T>(self.temperature, log_sums.len()).then(|| log_sums.iter().map(inverse).collect())
    }
}

/// `p(i)`: the first half of a rank's rows is one view of its images, the second half the other.
fn partner(own: &Range<usize>, i: usize) -> usize {
    own.start + (i - own.start + own.len() / 2) % own.len()
}
