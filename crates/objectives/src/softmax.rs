//! What the softmax losses over all pairs have in common: the denominators of all rows, and the gradient through them.
//!
//! With unit rows `u_i`, `s_ij = u_i . u_j / temperature`, a set `D(i)` of rows in the denominator, `j in D(i)` exactly
//! if `i in D(j)`, and a target `t_i`, the mean of what the row is drawn to,
//!
//! ```text
//! l_i = lse_i - u_i . t_i / temperature,    lse_i = log sum_{j in D(i)} exp(s_ij),    L = (1/M) sum_i l_i .
//! ```
//!
//! A row is drawn to others as strongly as they are to it, so that the gradient by `u_i` is, both as an anchor and as
//! a candidate of others,
//!
//! ```text
//! dL/du_i = 1/(M temperature) [ sum_{j in D(i)} (exp(s_ij - lse_i) + exp(s_ij - lse_j)) u_j  -  2 t_i ] .
//! ```

use collective::{Communicator, Error, Number};
use kernels::{Device, PANEL, Real};

use crate::exponential::LogSumExp;
use crate::pairs::{Block, Pairs, Panel};
use crate::tile::{Logits, needs_no_shift};
use crate::unit::{UnitGradient, dot};

/// A softmax over all rows but the row itself.
pub(crate) struct Softmax {
    /// Divides the similarities; above 0.
    pub(crate) temperature: f64,
}

impl Softmax {
    /// Computes the loss and this rank's rows of its gradient. Gathers `m` numbers, then one loss per rank.
    ///
    /// - `rows`: of every rank; `target(i, t)` writes `t_i` of one of this rank's rows, numbered in the global batch
    pub(crate) fn unit_gradient<T: Real + Number>(
        &self,
        device: &Device,
        pairs: Pairs<'_, T>,
        rows: &[usize],
        communicator: &mut Communicator,
        target: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<UnitGradient<T>, Error> {
        let own_log_sums = self.log_sums(device, &pairs);
        let mut log_sums = vec![T::ZERO; pairs.m()];
        let rounded: Vec<T> = own_log_sums.iter().map(|&value| T::from_f64(value)).collect();
        communicator.all_gather_counts(&rounded, rows, &mut log_sums)?;

        let mut loss = [self.loss(&pairs, &own_log_sums, &target)];
        communicator.all_reduce_sum(&mut loss)?;
        Ok(UnitGradient { loss: loss[0], d_unit: self.d_unit(device, pairs, &log_sums, target) })
    }

    /// `lse_i` of this rank's rows.
    fn log_sums<T: Real>(&self, device: &Device, pairs: &Pairs<'_, T>) -> Vec<f64> {
        if !needs_no_shift::<T>(self.temperature, pairs.m()) {
            return self.shifted_log_sums(device, pairs);
        }
        pairs.exp_sums(device, 1.0 / self.temperature).into_iter().map(f64::ln).collect()
    }

    /// `lse_i` at a temperature so low that each row's largest logit must be taken off first.
    fn shifted_log_sums<T: Real>(&self, device: &Device, pairs: &Pairs<'_, T>) -> Vec<f64> {
        let mut sums =
            pairs.own_ranges().iter().map(|rows| vec![LogSumExp::EMPTY; rows.len()]).collect::<Vec<_>>();
        pairs.for_each_row_block(device, &mut sums, |a, b, sums| {
            pairs.for_each_panel(a, b, |Panel { columns, similarity, .. }| {
                for (sum, row) in sums.iter_mut().zip(similarity.chunks_exact(PANEL)) {
                    sum.add(device.cpu().path, &row[..columns.len()], 1.0 / self.temperature);
                }
            });
        });
        sums.into_iter().flatten().map(LogSumExp::value).collect()
    }

    /// This rank's part of `L`: `(1/M) sum_i (lse_i - u_i . t_i / temperature)` over its rows.
    fn loss<T: Real>(&self, pairs: &Pairs<'_, T>, log_sums: &[f64], target: impl Fn(usize, &mut [T])) -> f64 {
        let mut t = pairs.row(0).to_vec();
        let row_loss = |(i, log_sum): (usize, &f64)| {
            target(i, &mut t);
            log_sum - dot(pairs.row(i), &t) / self.temperature
        };
        pairs.own().zip(log_sums).map(row_loss).sum::<f64>() / pairs.m() as f64
    }

    /// `dL/du_i` of this rank's rows, from the `lse` of all.
    fn d_unit<T: Real>(
        &self,
        device: &Device,
        pairs: Pairs<'_, T>,
        log_sums: &[T],
        target: impl Fn(usize, &mut [T]) + Sync,
    ) -> Vec<T> {
        let inverse_sums = self.inverse_sums(log_sums);
        let weigh = |a: &Block<'_, T>, b: &Block<'_, T>, panel: Panel<'_, T>| {
            let Panel { columns, similarity, excludes } = panel;
            let logits = Logits { path: device.cpu().path, scale: 1.0 / self.temperature, excludes };
            let (i, j) = (a.rows.clone(), b.rows.start + columns.start..b.rows.start + columns.end);
            match &inverse_sums {
                Some(inverse_sums) => logits.weigh(similarity, &inverse_sums[i], &inverse_sums[j]),
                None => logits.weigh_shifted(similarity, &log_sums[i], &log_sums[j]),
            }
        };
        let scale = T::from_f64(1.0 / (pairs.m() as f64 * self.temperature));
        let two = T::from_f64(2.0);
        pairs.weighted_sums(device, weigh, |i, d_row| {
            let mut t = d_row.to_vec();
            target(i, &mut t);
            for (d, &t) in d_row.iter_mut().zip(&t) {
                *d = scale * (*d - two * t);
            }
        })
    }

    /// `exp(-lse_j)`, if that needs no shift either.
    fn inverse_sums<T: Real>(&self, log_sums: &[T]) -> Option<Vec<T>> {
        let inverse = |log_sum: &T| T::from_f64((-log_sum.to_f64()).exp());
        needs_no_shift::<T>(self.temperature, log_sums.len()).then(|| log_sums.iter().map(inverse).collect())
    }
}
