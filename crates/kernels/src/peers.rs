//! What a training step needs of the other ranks, without knowing how they are reached.

use std::error::Error;

/// Why a collective failed; kernels and engine pass it on and never look inside.
pub type PeerError = Box<dyn Error + Send + Sync>;

/// The other ranks of the group, as global batch norm sees them.
///
/// A trait because neither kernels nor engine may know the network: `collective` implements it for its communicators,
/// [`Alone`] is the group of one, and the tests have one that runs over channels.
pub trait Peers {
    /// This rank's place, in `0..world_size`.
    fn rank(&self) -> usize;

    /// How many ranks take part.
    fn world_size(&self) -> usize;

    /// Gathers `local`, of the same length on every rank, into `[world_size * local.len()]` in rank order.
    ///
    /// # Errors
    /// If a peer is gone or the group was aborted; the step is then lost and nothing was applied.
    fn all_gather_f64(&mut self, local: &[f64]) -> Result<Vec<f64>, PeerError>;
}

/// A group of one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_gather_f64(&mut self, local: &[f64]) -> Result<Vec<f64>, PeerError> {
        Ok(local.to_vec())
    }
}
