//! NT-Xent, the loss of SimCLR (equation 1 of Chen et al. 2020, arXiv:2002.05709), over the batch of all ranks.
//!
//! With unit rows `u_i`, `s_ij = u_i . u_j / temperature` and `p(i)` the other view of row `i`'s image,
//!
//! ```text
//! l_i = lse_i - s_ip(i),    lse_i = log sum_{j != i} exp(s_ij),    L = (1/M) sum_i l_i .
//! ```
//!
//! A row meets the others twice: as the anchor of `l_i`, and as a candidate in every `l_j`. With `P_ij =
//! exp(s_ij - lse_i)`, and because `s` is symmetric,
//!
//! ```text
//! dL/du_i = 1/(M temperature) [ sum_{j != i} (exp(s_ij - lse_i) + exp(s_ij - lse_j)) u_j  -  2 u_p(i) ] .
//! ```
//!
//! So a rank that has gathered all unit rows and then all `lse` computes its own rows of the gradient alone,
//! both terms included, and no gradient is exchanged. The similarity matrix is visited in tiles, twice, and
//! never stored: memory is `O(M d)`. It is symmetric: a tile between two blocks of this rank's own rows is
//! computed once for both, which halves the forward and takes a third off the backward of a rank alone.
//!
//! - **Keeps** nothing.
//! - **Gathers** the unit rows of all ranks, then their `lse`.
//! - **Reduction**: a rank's gradient is complete, divided by the rows `M` of all ranks; parameter gradients are summed.
//! - **Chance**: `ln(M - 1)`.

use collective::{Communicator, Number};
use kernels::{Device, Real};

use crate::pairs::{BLOCK_ROWS, Pairs, own_blocks, partner};
use crate::softmax::Softmax;
use crate::two_views::Loss;
use crate::unit::{UnitGradient, UnitRows};
use crate::{Encoded, Error, ObjectiveStep, Reduction};

/// The normalised-temperature cross entropy.
#[derive(Debug, Clone, PartialEq)]
pub struct NtXent {
    /// Divides the similarities; above 0.
    pub temperature: f64,
    /// About the sides of a tile of the similarity matrix. Results depend on it by rounding only.
    pub block_rows: usize,
}

impl NtXent {
    /// The loss at `temperature`, in tiles of the default size.
    pub fn new(temperature: f64) -> Self {
        Self { temperature, block_rows: BLOCK_ROWS }
    }

    /// Floating-point operations of the matrix products of [`NtXent::forward_backward`] on a rank alone.
    ///
    /// Without symmetry they would be `6 m^2 d`: similarities twice, and one weighted sum of rows.
    pub fn flops(m: usize, width: usize) -> f64 {
        let share_of_pairs = 0.5 * (1.0 + 1.0 / own_blocks(m, BLOCK_ROWS) as f64);
        (2.0 * share_of_pairs + 1.0) * 2.0 * (m * m * width) as f64
    }

    /// Loss and gradient of this rank's embeddings.
    ///
    /// - `embeddings`: `[rows[rank], d]`, not normalised; `rows`: of every rank
    ///
    /// # Errors
    /// If a peer is lost or the group was aborted.
    ///
    /// # Panics
    /// If a rank has no image, or `embeddings` are not `rows[rank]` rows of one width.
    pub fn forward_backward<T: Real + Number>(
        &self,
        device: &Device,
        embeddings: &[T],
        rows: &[usize],
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, collective::Error> {
        let n = rows[communicator.rank()];
        assert!(n > 0 && embeddings.len().is_multiple_of(n), "{} embeddings in {n} rows", embeddings.len());
        let local = UnitRows::new(embeddings, embeddings.len() / n);
        let UnitGradient { loss, d_unit } = self.unit_gradient(device, &local.unit, rows, communicator)?;
        Ok(ObjectiveStep::new(loss, local.project(d_unit)))
    }

    /// Computes the loss and this rank's rows of its gradient, complete, by the unit rows.
    ///
    /// Gathers `m * d` numbers, then `m`, then one loss per rank.
    ///
    /// - `unit`: `[n, d]`, this rank's rows, of norm 1; `rows`: rows of every rank
    ///
    /// # Errors
    /// If a peer is lost or the group was aborted.
    ///
    /// # Panics
    /// If a rank has an odd number of rows or none, or `unit` are not `rows[rank]` rows of one width.
    pub fn unit_gradient<T: Real + Number>(
        &self,
        device: &Device,
        unit: &[T],
        rows: &[usize],
        communicator: &mut Communicator,
    ) -> Result<UnitGradient<T>, collective::Error> {
        let rank = communicator.rank();
        assert!(rows.iter().all(|&n| n >= 2 && n % 2 == 0), "every rank has two views of an image: {rows:?}");
        assert!(unit.len().is_multiple_of(rows[rank]), "{} numbers in {} rows", unit.len(), rows[rank]);
        let m: usize = rows.iter().sum();
        let width = unit.len() / rows[rank];
        let first: usize = rows[..rank].iter().sum();

        let mut global = vec![T::ZERO; m * width];
        let counts: Vec<usize> = rows.iter().map(|n| n * width).collect();
        communicator.all_gather_counts(unit, &counts, &mut global)?;
        let own = first..first + rows[rank];
        let pairs = Pairs::new(device, &global, width, own.clone(), self.block_rows);
        Softmax { temperature: self.temperature }.unit_gradient(
            device,
            pairs,
            rows,
            communicator,
            |i, target| {
                target.copy_from_slice(&global[partner(&own, i) * width..][..width]);
            },
        )
    }
}

impl Loss for NtXent {
    const REDUCTION: Reduction = Reduction::Sum;
    fn new(temperature: f64) -> Self {
        Self::new(temperature)
    }

    fn forward_backward<T: Real + Number>(
        &self,
        device: &Device,
        encoded: &Encoded<'_, T>,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error> {
        let rows: Vec<usize> = encoded.images.iter().map(|n| 2 * n).collect();
        Ok(self.forward_backward(device, encoded.queries, &rows, communicator)?)
    }

    fn chance_loss(&self, global_images: usize) -> f64 {
        ((2 * global_images - 1) as f64).ln()
    }
}
