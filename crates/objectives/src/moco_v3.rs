//! MoCo v3 (Chen, Xie, He 2021, arXiv:2104.02057): the keys of the batch itself are the negatives.
//!
//! Each of two views is encoded by both encoders; with unit queries `q` and keys `k` of `N` images on all ranks,
//!
//! ```text
//! L = 2 t [ CE(q1, k2) + CE(q2, k1) ],    CE(q, k) = (1/N) sum_i [ log sum_j exp(q_i.k_j / t) - q_i.k_i / t ],
//! ```
//!
//! where the factor `2 t` makes the gradient's scale independent of the temperature.
//!
//! - **Keeps** nothing; the momentum encoder is the trainer's.
//! - **Gathers** the keys of all ranks, without gradient.
//! - **Reduction**: a rank's gradient is its own queries' and complete; divided by `N`, it is summed.
//! - **Chance**: `2 t` times twice `ln N`.

use collective::{Communicator, Number};
use kernels::{Device, Real};

use crate::candidates::Queries;
use crate::gather::gather_rows;
use crate::positives::check_temperature;
use crate::unit::UnitRows;
use crate::weigh::Estimator;
use crate::{Encoded, Error, ObjectiveStep, Reduction};

/// The symmetric InfoNCE within a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MocoV3 {
    temperature: f64,
}

impl MocoV3 {
    /// A rank's gradient is complete.
    pub const REDUCTION: Reduction = Reduction::Sum;

    /// The loss at `temperature`.
    ///
    /// # Panics
    /// If the temperature is below [`crate::MIN_TEMPERATURE`].
    pub fn new(temperature: f64) -> Self {
        check_temperature(temperature);
        Self { temperature }
    }

    /// See [`crate::Objective::forward_backward`].
    pub(crate) fn forward_backward<T: Real + Number>(
        &self,
        device: &Device,
        encoded: &Encoded<'_, T>,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error> {
        let rank = communicator.rank();
        let n = encoded.images[rank];
        let batch: usize = encoded.images.iter().sum();
        let first: usize = encoded.images[..rank].iter().sum();
        assert!(
            encoded.queries.len().is_multiple_of(2 * n),
            "{} queries of {n} pairs",
            encoded.queries.len()
        );
        assert_eq!(encoded.keys.len(), encoded.queries.len(), "keys of both views");
        let width = encoded.queries.len() / (2 * n);
        let local = UnitRows::new(encoded.queries, width);
        let keys = UnitRows::new(encoded.keys, width).unit;

        let shifts = vec![T::from_f64(1.0 / self.temperature); n];
        let positives: Vec<_> = (first..first + n).map(Some).collect();
        let mut loss = 0.0;
        let mut d_unit = Vec::with_capacity(local.unit.len());
        let ((q1, q2), (k1, k2)) = (local.unit.split_at(n * width), keys.split_at(n * width));
        for (rows, own_keys) in [(q1, k2), (q2, k1)] {
            let all_keys = gather_rows(communicator, encoded.images, width, own_keys)?;
            let (scale, estimator) = (1.0 / self.temperature, Estimator::Softmax);
            let queries = Queries { rows, width, scale, shifts: &shifts, estimator };
            let sums = queries.against_all(device, batch, &positives, |rows, out| {
                out.copy_from_slice(&all_keys[rows.start * width..rows.end * width]);
            });
            let of_view = queries.with_positives(own_keys, sums);
            loss += of_view.losses.iter().sum::<f64>();
            d_unit.extend(of_view.d_unit);
        }
        let factor = 2.0 * self.temperature / batch as f64;
        d_unit.iter_mut().for_each(|d| *d = T::from_f64(factor) * *d);
        let mut loss = [factor * loss];
        communicator.all_reduce_sum(&mut loss)?;
        Ok(ObjectiveStep::new(loss[0], local.project(d_unit)))
    }

    /// See [`crate::Objective::chance_loss`].
    pub(crate) fn chance_loss(&self, global_images: usize) -> f64 {
        4.0 * self.temperature * (global_images as f64).ln()
    }
}
