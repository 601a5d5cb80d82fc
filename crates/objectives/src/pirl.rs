//! PIRL (Misra and van der Maaten 2020, arXiv:1912.01991): an image and its jigsaw are both to be told from other images
//! by the image's slot in a memory bank.
//!
//! With the unit features `f_i` of the image and `g_i` of its jigsaw, and the image's slot `M_i`,
//!
//! ```text
//! L = (1/B) sum_i [ lambda l(M_i, g_i) + (1 - lambda) l(M_i, f_i) ],    M_i <- normalise(m M_i + (1 - m) f_i),
//! ```
//!
//! where `l` is one of [`crate::npid`]'s two estimators. Both features of an image are compared with the same negatives,
//! and noise contrastive estimation has a normalizer for each.
//!
//! - **Keeps** the bank, sharded over the ranks, written with `f` alone, and two `Z`.
//! - **Gathers** both features of all ranks; gets back sums over the slots that the others own. See [`crate::contrast`].
//! - **Reduction**: slots are constants, so a rank's gradient is its own features' and complete; divided by `B`, it is summed.
//! - **Chance**: that of the estimator, as [`crate::npid`]; the weights of both losses add to 1.

use collective::{Communicator, Number};
use kernels::{Device, Real};

use crate::bank::Bank;
use crate::contrast::{Contrast, ContrastSpec};
use crate::unit::UnitRows;
use crate::{Encoded, Error, ObjectiveStep, Reduction};

/// Pretext-invariant representations with a memory bank.
#[derive(Debug)]
pub struct Pirl {
    contrast: Contrast,
    jigsaw_weight: f64,
}

impl Pirl {
    /// A rank's gradient is complete.
    pub const REDUCTION: Reduction = Reduction::Sum;

    /// The loss with `spec`, against `bank`; `jigsaw_weight` is lambda.
    ///
    /// # Panics
    /// If the temperature is below [`crate::MIN_TEMPERATURE`], or the bank has not two slots.
    pub fn new(spec: ContrastSpec, jigsaw_weight: f64, bank: Bank) -> Self {
        Self { contrast: Contrast::new(spec, bank, 2), jigsaw_weight }
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
        let width = self.contrast.bank().spec().width;
        let branches = [encoded.queries, encoded.jigsaw].map(|rows| UnitRows::new(rows, width));
        let [f, g] = branches.each_ref().map(|branch| branch.unit.chunks_exact(width));
        let both: Vec<T> = f.zip(g).flat_map(|(f, g)| [f, g].concat()).collect();
        let outcome = self.contrast.step(device, encoded, &both, communicator)?;

        let weights = [1.0 - self.jigsaw_weight, self.jigsaw_weight];
        let [d_queries, d_jigsaw] = [0, 1].map(|branch| {
            let weight = T::from_f64(weights[branch]);
            let rows = outcome.d_unit.chunks_exact(width).skip(branch).step_by(2);
            branches[branch].project(rows.flatten().map(|&d| weight * d).collect())
        });
        let mut metrics = outcome.metrics;
        metrics.extend([("loss_image", outcome.losses[0]), ("loss_jigsaw", outcome.losses[1])]);
        Ok(ObjectiveStep {
            loss: weights[0] * outcome.losses[0] + weights[1] * outcome.losses[1],
            d_queries,
            d_jigsaw,
            metrics,
        })
    }
}
