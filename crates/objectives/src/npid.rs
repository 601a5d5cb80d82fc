//! Non-parametric instance discrimination (Wu et al. 2018, arXiv:1805.01978): every image is a class of its own, and a
//! memory bank holds its last feature as the class's weight.
//!
//! With the unit feature `f_i` of image `i`, the slots `M`, and `P(j|f) = exp(M_j.f / t) / Z`,
//!
//! ```text
//! NCE:      l_i = -log h(i) - sum_k log(1 - h(k)),   h(j) = P(j|f_i) / (P(j|f_i) + K/n),   k drawn K times out of n;
//!           dl_i/df_i = 1/t [ -(1 - h(i)) M_i + sum_k h(k) M_k ]
//! softmax:  l_i = log( exp(M_i.f_i / t) + sum_k exp(M_k.f_i / t) ) - M_i.f_i / t,   k drawn, or all others;
//!           dl_i/df_i = 1/t [ (p_i - 1) M_i + sum_k p_k M_k ]
//! L = (1/B) sum_i ( l_i + proximal |f_i - M_i|^2 ),    then    M_i <- normalise(m M_i + (1 - m) f_i) .
//! ```
//!
//! - **Keeps** the bank, sharded over the ranks, and `Z`, the same on every rank.
//! - **Gathers** the features of all ranks; gets back sums over the slots that the others own. See [`crate::contrast`].
//! - **Reduction**: slots are constants, so a rank's gradient is its own features' and complete; divided by `B`, it is summed.
//! - **Chance**: softmax `ln(K + 1)`; NCE, at `P = 1/n`, `ln(K + 1) + K ln((K + 1) / K)`.
//!
//! NPID++ (Misra and van der Maaten 2020) is the same with 32,000 negatives, longer.

use collective::{Communicator, Number};
use kernels::{Device, Real};

use crate::bank::Bank;
use crate::contrast::{Contrast, ContrastSpec};
use crate::unit::UnitRows;
use crate::{Encoded, Error, ObjectiveStep, Reduction};

/// Instance discrimination with a memory bank.
#[derive(Debug)]
pub struct Npid {
    contrast: Contrast,
    proximal: f64,
}

impl Npid {
    /// A rank's gradient is complete.
    pub const REDUCTION: Reduction = Reduction::Sum;

    /// The loss with `spec`, against `bank`; `proximal` weighs the distance between a feature and its slot.
    ///
    /// # Panics
    /// If the temperature is below [`crate::MIN_TEMPERATURE`], or the bank has not two slots.
    pub fn new(spec: ContrastSpec, proximal: f64, bank: Bank) -> Self {
        Self { contrast: Contrast::new(spec, bank, 1), proximal }
    }

    pub(crate) fn contrast(&self) -> &Contrast {
        &self.contrast
    }

    pub(crate) fn contrast_mut(&mut self) -> &mut Contrast {
        &mut self.contrast
    }

    /// See [`crate::Objective::forward_backward`].
    pub(crate) fn forward_backward<T: Real + Number>(
        &mut self,
        device: &Device,
        encoded: &Encoded<'_, T>,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error> {
        let local = UnitRows::new(encoded.queries, self.contrast.bank().spec().width);
        let mut outcome = self.contrast.step(device, encoded, &local.unit, communicator)?;
        let batch: usize = encoded.images.iter().sum();
        let pull = 2.0 * self.proximal / batch as f64;
        for ((d, f), slot) in outcome.d_unit.iter_mut().zip(&local.unit).zip(&outcome.positives) {
            *d += T::from_f64(pull) * (*f - *slot);
        }
        Ok(ObjectiveStep {
            loss: outcome.losses[0] + self.proximal * outcome.distance,
            d_queries: local.project(outcome.d_unit),
            d_jigsaw: Vec::new(),
            metrics: outcome.metrics,
        })
    }
}
