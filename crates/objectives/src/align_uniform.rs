//! Alignment and uniformity (Wang & Isola 2020, arXiv:2005.10242), the worked example of adding an objective.
//!
//! With unit rows `u_i`, `p(i)` the other view of row `i`'s image, and both terms of the same weight (`alpha = 2`),
//!
//! ```text
//! L = L_align + L_uniform,    L_align = (1/M) sum_i |u_i - u_p(i)|^2,
//! L_uniform = log 1/(M (M - 1)) sum_i sum_{j != i} exp(-t |u_i - u_j|^2) .
//! ```
//!
//! On the sphere `|u_i - u_j|^2 = 2 - 2 u_i . u_j`: uniformity is made of exponentials of similarities, as a softmax is,
//! with the temperature `1 / (2 t)` (0.25 for the paper's `t = 2`), over one sum for all rows:
//!
//! ```text
//! S = sum_i sum_{j != i} exp(u_i . u_j / temperature),    L_uniform = log S / (M (M - 1)) - 1 / temperature,
//! dL/du_i = -(4/M) u_p(i) + 2 / (S temperature) sum_{j != i} exp(u_i . u_j / temperature) u_j    (and what points off the sphere).
//! ```
//!
//! - **Keeps** nothing.
//! - **Gathers** the unit rows of all ranks, and sums two numbers over them.
//! - **Reduction**: a rank's gradient is complete; parameter gradients are summed.
//! - **Chance**: `2 - 1 / temperature`, which is the loss of rows that are all orthogonal.

use collective::{Communicator, Number};
use kernels::{Device, Real};

use crate::gather::gather_rows;
use crate::pairs::{BLOCK_ROWS, Block, Pairs, Panel, own_rows, partner};
use crate::positives;
use crate::tile::Logits;
use crate::two_views::Loss;
use crate::unit::{UnitRows, dot};
use crate::{Encoded, Error, ObjectiveStep, Reduction};

/// Alignment and uniformity.
#[derive(Debug, Clone, PartialEq)]
pub struct AlignUniform {
    /// `1 / (2 t)`: the higher, the farther uniformity looks.
    pub temperature: f64,
}

impl Loss for AlignUniform {
    const REDUCTION: Reduction = Reduction::Sum;
    const MIN_TEMPERATURE: f64 = positives::MIN_TEMPERATURE;

    fn new(temperature: f64) -> Self {
        Self { temperature }
    }

    fn forward_backward<R: Real + Number>(
        &self,
        device: &Device,
        encoded: &Encoded<'_, R>,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<R>, Error> {
        let (rows, own) = own_rows(encoded.images, communicator.rank());
        let width = encoded.queries.len() / own.len();
        let local = UnitRows::new(encoded.queries, width);
        let global = gather_rows(communicator, &rows, width, &local.unit)?;
        let row = |i: usize| &global[i * width..(i + 1) * width];
        let scale = 1.0 / self.temperature;
        let pairs = Pairs::new(device, &global, width, own.clone(), BLOCK_ROWS);
        let m = pairs.m() as f64;

        let distances = own.clone().map(|i| 2.0 - 2.0 * dot(row(i), row(partner(&own, i))));
        let mut sums = [distances.sum::<f64>(), pairs.exp_sums(device, scale).into_iter().sum()];
        communicator.all_reduce_sum(&mut sums)?;
        let [distance, exp_sum] = sums;
        let align = distance / m;
        let uniform = (exp_sum / (m * (m - 1.0))).ln() - scale;

        // Each row of a pair brings half of what its exponential is multiplied by.
        let halves = vec![R::from_f64(scale / exp_sum); pairs.m()];
        let weigh =
            |a: &Block<'_, R>, _: &Block<'_, R>, Panel { columns, similarity, excludes }: Panel<'_, R>| {
                let logits = Logits { path: device.cpu().path, scale, excludes };
                logits.weigh(similarity, &halves[..a.rows.len()], &halves[..columns.len()]);
            };
        let pull = R::from_f64(4.0 / m);
        let d_unit = pairs.weighted_sums(device, weigh, |i, d_row| {
            d_row.iter_mut().zip(row(partner(&own, i))).for_each(|(d, &u)| *d -= pull * u);
        });
        let metrics = vec![("alignment", align), ("uniformity", uniform)];
        let step = ObjectiveStep::new(align + uniform, local.project(d_unit));
        Ok(ObjectiveStep { metrics, ..step })
    }

    /// The loss of rows that are all orthogonal.
    fn chance_loss(&self, _global_images: usize) -> f64 {
        2.0 - 1.0 / self.temperature
    }
}
