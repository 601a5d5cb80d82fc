//! The cross entropy of a positive among candidates that are constants, which MoCo and the banks' softmax share.

use engine::kernels::Real;

use crate::candidates::{Queries, Sums};
use crate::unit::dot;

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

/// Loss and gradient of some queries.
pub(crate) struct InfoNce<T> {
    /// Sum over the queries.
    pub(crate) loss: f64,
    /// `[q, width]`: its gradient by the unit queries.
    pub(crate) d_unit: Vec<T>,
}

impl<T: Real> InfoNce<T> {
    /// Joins what the negatives do to the queries with `positives`, `[q, width]`.
    pub(crate) fn new(queries: &Queries<'_, T>, positives: &[T], negatives: Sums<T>) -> Self {
        let Queries { rows, width, scale, shifts, .. } = *queries;
        let Sums { exps, weighted: mut d_unit, .. } = negatives;
        let mut loss = 0.0;
        let both = rows.chunks_exact(width).zip(positives.chunks_exact(width));
        for (((q, positive), d_row), (sum, shift)) in
            both.zip(d_unit.chunks_exact_mut(width)).zip(exps.into_iter().zip(shifts))
        {
            let logit = scale * dot(q, positive) - shift.to_f64();
            let total = sum + logit.exp();
            loss += total.ln() - logit;
            // By the positive p - 1, by a negative p; p - 1 is taken so, or it would lose its digits when p is near 1.
            let (all, of_positive) = (T::from_f64(scale / total), T::from_f64(-scale * (sum / total)));
            for (d, &k) in d_row.iter_mut().zip(positive) {
                *d = all * *d + of_positive * k;
            }
        }
        Self { loss, d_unit }
    }
}
