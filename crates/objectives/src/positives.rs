//! The positive among candidates that are constants: losses and gradients of queries, once their negatives are summed.

use kernels::Real;

use crate::candidates::{Queries, Sums};
use crate::unit::dot;
use crate::weigh::Estimator;

/// Logits are at most `1 / temperature`, and unlike NT-Xent's they are shifted by that instead of by their largest, so
/// that no rank need know another's. Below this temperature a logit near the lowest would be lost in `f32`.
pub const MIN_TEMPERATURE: f64 = 0.03;

#[track_caller]
pub(crate) fn check_temperature(temperature: f64) {
    assert!(
        temperature >= MIN_TEMPERATURE,
        "a temperature of {temperature}; at least {MIN_TEMPERATURE} is needed"
    );
}

/// What queries are to be trained by.
pub(crate) struct Contrasted<T> {
    /// `[q]`
    pub(crate) losses: Vec<f64>,
    /// `[q, width]`: gradient of each query's loss by the unit query.
    pub(crate) d_unit: Vec<T>,
}

impl<T: Real> Queries<'_, T> {
    /// `scale * q_i . k_i - shift_i`.
    pub(crate) fn logits<'p>(&'p self, positives: &'p [T]) -> impl Iterator<Item = f64> + 'p {
        let rows = self.rows.chunks_exact(self.width).zip(positives.chunks_exact(self.width));
        rows.zip(self.shifts).map(|((q, k), shift)| self.scale * dot(q, k) - shift.to_f64())
    }

    /// Joins what the negatives do to the queries with their `positives`, `[q, width]`.
    ///
    /// With a positive's `e = exp(logit)`, and sums over the negatives:
    ///
    /// - softmax: `log(e + sum e_j) - logit`, and by a candidate's logit its share of the sum, minus 1 for the positive;
    /// - NCE: `-log h + sum -log(1 - h_j)`, `h = e / (1 + e)`, and by the logits `h - 1` and `h_j`.
    pub(crate) fn with_positives(&self, positives: &[T], negatives: Sums<T>) -> Contrasted<T> {
        let Sums { exps, logs, weighted: mut d_unit } = negatives;
        let mut losses = Vec::with_capacity(self.len());
        for (i, logit) in self.logits(positives).enumerate() {
            let e = logit.exp();
            // By the positive's logit, taken so that it keeps its digits where the positive is all but certain.
            let (loss, of_negatives, of_positive) = match self.estimator {
                Estimator::Softmax => {
                    let total = exps[i] + e;
                    (total.ln() - logit, 1.0 / total, -exps[i] / total)
                }
                Estimator::Nce => ((-logit).exp().ln_1p() + logs[i], 1.0, -1.0 / (1.0 + e)),
            };
            losses.push(loss);
            let (of_negatives, of_positive) = (of_negatives * self.scale, of_positive * self.scale);
            let row = i * self.width..(i + 1) * self.width;
            for (d, k) in d_unit[row.clone()].iter_mut().zip(&positives[row]) {
                *d = T::from_f64(of_negatives * d.to_f64() + of_positive * k.to_f64());
            }
        }
        Contrasted { losses, d_unit }
    }
}
