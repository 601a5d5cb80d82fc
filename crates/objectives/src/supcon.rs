//! SupCon, supervised contrastive learning (Khosla et al. 2020, arXiv:2004.11362), with the mean outside the logarithm.
//!
//! With unit rows `u_i`, `s_ij = u_i . u_j / temperature` and `P(i)` all other rows with the label of row `i`, the other
//! view of its image among them (equation 2, `L_out`),
//!
//! ```text
//! l_i = (1/|P(i)|) sum_{p in P(i)} (lse_i - s_ip),    lse_i = log sum_{j != i} exp(s_ij),    L = (1/M) sum_i l_i .
//! ```
//!
//! What a row is drawn to is the mean of its positives, and rows of a label have as many positives as each other. So
//! `t_i = (c - u_i) / |P(i)|`, `c` the sum of all rows of the label, and the sums over positives cost `O(M d)`.
//! Without labels that are shared this is SimCLR.
//!
//! - **Keeps** nothing.
//! - **Gathers** the unit rows of all ranks and their labels, then their `lse`. See `softmax.rs` for the
//!   gradient.
//! - **Reduction**: a rank's gradient is complete, divided by the rows `M` of all ranks; parameter gradients are summed.
//! - **Chance**: `ln(M - 1)`.

use std::collections::BTreeMap;

use collective::{Communicator, Number};
use kernels::{Device, Real};

use crate::gather::{gather_numbers, gather_rows};
use crate::pairs::{BLOCK_ROWS, Pairs, own_rows};
use crate::softmax::Softmax;
use crate::two_views::Loss;
use crate::unit::UnitRows;
use crate::{Encoded, Error, ObjectiveStep, Reduction};

/// The supervised contrastive loss.
#[derive(Debug, Clone, PartialEq)]
pub struct SupCon {
    /// Divides the similarities; above 0.
    pub temperature: f64,
}

/// All rows of a label.
#[derive(Default)]
struct Class {
    rows: usize,
    sum: Vec<f64>,
}

impl Loss for SupCon {
    const REDUCTION: Reduction = Reduction::Sum;
    const NEEDS_LABELS: bool = true;

    fn new(temperature: f64) -> Self {
        Self { temperature }
    }

    fn forward_backward<T: Real + Number>(
        &self,
        device: &Device,
        encoded: &Encoded<'_, T>,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error> {
        let (rows, own) = own_rows(encoded.images, communicator.rank());
        assert_eq!(2 * encoded.labels.len(), own.len(), "labels of an image's two rows");
        let width = encoded.queries.len() / own.len();
        let local = UnitRows::new(encoded.queries, width);
        let global = gather_rows(communicator, &rows, width, &local.unit)?;
        let of_rows: Vec<usize> = encoded.labels.repeat(2).into_iter().map(|label| label as usize).collect();
        let labels = gather_numbers(communicator, &rows, &of_rows)?;

        let mut classes = BTreeMap::<usize, Class>::new();
        for (label, row) in labels.iter().zip(global.chunks_exact(width)) {
            let class = classes.entry(*label).or_default();
            class.rows += 1;
            class.sum.resize(width, 0.0);
            class.sum.iter_mut().zip(row).for_each(|(sum, u)| *sum += u.to_f64());
        }
        let pairs = Pairs::new(device, &global, width, own, BLOCK_ROWS);
        let softmax = Softmax { temperature: self.temperature };
        let step = softmax.unit_gradient(device, pairs, &rows, communicator, |i, target| {
            let Class { rows, sum } = &classes[&labels[i]];
            let u = &global[i * width..][..width];
            for (target, (sum, u)) in target.iter_mut().zip(sum.iter().zip(u)) {
                *target = T::from_f64((sum - u.to_f64()) / (rows - 1) as f64);
            }
        })?;
        Ok(ObjectiveStep::new(step.loss, local.project(step.d_unit)))
    }

    fn chance_loss(&self, global_images: usize) -> f64 {
        ((2 * global_images - 1) as f64).ln()
    }
}
