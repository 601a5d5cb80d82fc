//! Contrastive objectives: embeddings in, loss and exact gradients out. Knows no files.
//!
//! The batch is spread over ranks, and each rank holds some of its rows; what an objective needs of the others
//! it gathers through `collective`. The promise is that the gradients are those of one rank holding the whole
//! batch: an objective divides by the number of rows of *all* ranks, and says by [`Reduction`] how the ranks'
//! parameter gradients are to be joined, so that no caller can scale them wrongly.
//!
//! Rows are ordered `[rank][view][image]`: a rank with `n` images has `2 n` rows, and the other view of row
//! `i < n` is row `n + i` of the same rank. Start reading at [`nt_xent`].

mod exponential;
pub mod nt_xent;
mod pairs;
mod tile;
mod tournament;
pub mod unit;

use collective::{Communicator, Error, Number};
use engine::kernels::{KernelPath, Pool, Real};

pub use nt_xent::NtXent;

/// What the embeddings of a batch are trained towards.
#[derive(Debug, Clone, PartialEq)]
pub enum Objective {
    /// SimCLR: each view is to be told from all other views but its own pair's.
    Simclr(NtXent),
}

/// How parameter gradients of the ranks become the gradient of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// They are added: the objective has divided by the rows of all ranks already.
    Sum,
}

/// What an objective makes of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectiveStep<T> {
    /// Mean over the rows of all ranks, in nats; the same bits on every rank.
    pub loss: f64,
    /// `[n, d]`: gradient of `loss` by this rank's embeddings, complete.
    pub d_embeddings: Vec<T>,
}

/// The threads of this rank and the instructions they use.
#[derive(Clone, Copy)]
pub struct Compute<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions.
    pub path: KernelPath,
}

impl Objective {
    /// Computes loss and gradient of one batch.
    ///
    /// - `embeddings`: `[n, d]` of this rank, as the head gave them
    /// - `rows`: rows of every rank
    ///
    /// # Errors
    /// If a peer is lost or the group was aborted.
    ///
    /// # Panics
    /// If a rank has no image, or `embeddings` are not `rows[rank]` rows of one width.
    pub fn forward_backward<T: Real + Number>(
        &self,
        pool: &Pool,
        path: KernelPath,
        embeddings: &[T],
        rows: &[usize],
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error> {
        match self {
            Self::Simclr(nt_xent) => {
                nt_xent.forward_backward(Compute { pool, path }, embeddings, rows, communicator)
            }
        }
    }

    /// How the parameter gradients of the ranks are joined.
    pub fn reduction(&self) -> Reduction {
        match self {
            Self::Simclr(_) => Reduction::Sum,
        }
    }

    /// The loss of embeddings that say nothing, with `global_rows` rows over all ranks.
    pub fn chance_loss(&self, global_rows: usize) -> f64 {
        match self {
            Self::Simclr(_) => ((global_rows - 1) as f64).ln(),
        }
    }
}
