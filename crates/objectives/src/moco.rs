//! MoCo (He et al. 2020, arXiv:1911.05722), versions 1 and 2: InfoNCE against a queue of earlier keys.
//!
//! With unit queries `q_i`, the momentum encoder's unit key `k_i` of another view of the same image, and the keys `c_j`
//! that the queue holds,
//!
//! ```text
//! l_i = log( exp(q_i.k_i / t) + sum_j exp(q_i.c_j / t) ) - q_i.k_i / t,    L = (1/B) sum_i l_i,
//! dL/dq_i = 1/(B t) [ (p_i0 - 1) k_i + sum_j p_ij c_j ] .
//! ```
//!
//! - **Keeps** the queue, `K` rows, the same on every rank. Keys enter it when the step commits, after their logits.
//! - **Gathers** the keys of all ranks, for the queue only.
//! - **Reduction**: keys are constants, so a rank's gradient is its own queries' and complete; divided by `B`, it is summed.
//! - **Chance**: `ln(K + 1)`.
//!
//! The versions differ by head, augmentation and temperature (0.07, then 0.2), not by their loss.

use collective::{Communicator, Number};
use kernels::{Device, Real};

use crate::candidates::{Queries, widen};
use crate::gather::{by_position, gather_numbers, gather_rows};
use crate::positives::{Contrasted, check_temperature};
use crate::queue::Queue;
use crate::unit::UnitRows;
use crate::weigh::Estimator;
use crate::{Encoded, Error, ObjectiveStep, Reduction};

/// InfoNCE against a queue.
#[derive(Debug)]
pub struct Moco {
    temperature: f64,
    queue: Queue,
    /// Keys of the step that has not been committed, in the order of the global batch.
    staged: Vec<f32>,
}

impl Moco {
    /// A rank's gradient is complete.
    pub const REDUCTION: Reduction = Reduction::Sum;

    /// The loss at `temperature`, with keys to come in `queue`.
    ///
    /// # Panics
    /// If the temperature is below [`crate::MIN_TEMPERATURE`].
    pub fn new(temperature: f64, queue: Queue) -> Self {
        check_temperature(temperature);
        Self { temperature, queue, staged: Vec::new() }
    }

    /// The keys that queries are compared with.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(crate) fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// See [`crate::Objective::forward_backward`].
    pub(crate) fn forward_backward<T: Real + Number>(
        &mut self,
        device: &Device,
        encoded: &Encoded<'_, T>,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error> {
        self.staged.clear();
        let width = self.queue.width();
        let n = encoded.images[communicator.rank()];
        let batch: usize = encoded.images.iter().sum();
        assert_eq!(encoded.queries.len(), n * width, "queries of {n} images, one view of {width}");
        assert_eq!(encoded.keys.len(), n * width, "keys of {n} images, one view of {width}");
        let local = UnitRows::new(encoded.queries, width);
        let keys = UnitRows::new(encoded.keys, width).unit;

        let shifts = vec![T::from_f64(1.0 / self.temperature); n];
        let (scale, estimator) = (1.0 / self.temperature, Estimator::Softmax);
        let queries = Queries { rows: &local.unit, width, scale, shifts: &shifts, estimator };
        let sums = queries.against_all(device, self.queue.len(), &vec![None; n], |places, out| {
            widen(&self.queue.rows()[places.start * width..places.end * width], out);
        });
        let Contrasted { losses, mut d_unit } = queries.with_positives(&keys, sums);
        let factor = T::from_f64(1.0 / batch as f64);
        d_unit.iter_mut().for_each(|d| *d = factor * *d);

        let gathered = gather_rows(communicator, encoded.images, width, &keys)?;
        let positions = gather_numbers(communicator, encoded.images, encoded.positions)?;
        let mut loss = [losses.iter().sum::<f64>() / batch as f64];
        communicator.all_reduce_sum(&mut loss)?;
        self.stage(&gathered, &positions);
        Ok(ObjectiveStep::new(loss[0], local.project(d_unit)))
    }

    /// Puts the last step's keys into the queue.
    pub(crate) fn commit(&mut self) {
        self.queue.enqueue(&self.staged);
        self.staged.clear();
    }

    fn stage<T: Real>(&mut self, keys: &[T], positions: &[usize]) {
        let width = self.queue.width();
        for row in by_position(positions) {
            let key = &keys[row * width..(row + 1) * width];
            self.staged.extend(key.iter().map(|value| value.to_f64() as f32));
        }
    }
}
