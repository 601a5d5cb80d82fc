//! DCL, decoupled contrastive learning (Yeh et al. 2022, arXiv:2110.06848): SimCLR whose positive is not a candidate.
//!
//! With unit rows `u_i`, `s_ij = u_i . u_j / temperature` and `p(i)` the other view of row `i`'s image,
//!
//! ```text
//! l_i = lse_i - s_ip(i),    lse_i = log sum_{j != i, p(i)} exp(s_ij),    L = (1/M) sum_i l_i .
//! ```
//!
//! In SimCLR a positive that is found already weakens what its row learns from the negatives; here it does not. The loss
//! has no lower bound.
//!
//! - **Keeps** nothing.
//! - **Gathers** the unit rows of all ranks, then their `lse`. See `softmax.rs` for the gradient.
//! - **Reduction**: a rank's gradient is complete, divided by the rows `M` of all ranks; parameter gradients are summed.
//! - **Chance**: `ln(M - 2)`.

use collective::{Communicator, Number};
use kernels::{Device, Real};

use crate::gather::gather_rows;
use crate::pairs::{BLOCK_ROWS, Pairs, own_rows, partner};
use crate::softmax::Softmax;
use crate::two_views::Loss;
use crate::unit::UnitRows;
use crate::{Encoded, Error, ObjectiveStep, Reduction};

/// The decoupled contrastive loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Dcl {
    /// Divides the similarities; above 0.
    pub temperature: f64,
}

impl Loss for Dcl {
    const REDUCTION: Reduction = Reduction::Sum;
    fn new(temperature: f64) -> Self {
        Self { temperature }
    }

    /// # Panics
    /// Also if there is but one image on all ranks, which leaves no negative.
    fn forward_backward<T: Real + Number>(
        &self,
        device: &Device,
        encoded: &Encoded<'_, T>,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error> {
        assert!(encoded.images.iter().sum::<usize>() > 1, "one image has no negatives");
        let (rows, own) = own_rows(encoded.images, communicator.rank());
        let width = encoded.queries.len() / own.len();
        let local = UnitRows::new(encoded.queries, width);
        let global = gather_rows(communicator, &rows, width, &local.unit)?;
        let pairs = Pairs::new(device, &global, width, own.clone(), BLOCK_ROWS).without_partners();
        let softmax = Softmax { temperature: self.temperature };
        let step = softmax.unit_gradient(device, pairs, &rows, communicator, |i, target| {
            target.copy_from_slice(&global[partner(&own, i) * width..][..width]);
        })?;
        Ok(ObjectiveStep::new(step.loss, local.project(step.d_unit)))
    }

    fn chance_loss(&self, global_images: usize) -> f64 {
        ((2 * global_images - 2) as f64).ln()
    }
}
