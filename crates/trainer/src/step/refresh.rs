//! Fresh features of slots that no batch has brought for a while.
//!
//! A slot whose image cannot be decoded stays as it is, older than its bound, until the loader shows another image in
//! its place. It is tried again at each of its turns, and told like any corrupt image.

use data::{Dataset, Preprocess};
use engine::network::Network;
use kernels::Cpu;
use std::sync::Arc;

use crate::Error;
use crate::features::{Features, Images, Look};

/// Encodes images of the training set anew: prepared as for an evaluation, with running statistics.
pub struct Refresh {
    /// The training images, which are the bank's slots.
    pub dataset: Arc<Dataset>,
    /// How they are prepared.
    pub preprocess: Preprocess,
}

/// What was made of the slots that were due.
pub struct Fresh {
    /// Those whose images can be decoded.
    pub slots: Vec<usize>,
    /// `[slots, d]`, as the network gives them: not normalised.
    pub embeddings: Vec<f32>,
    /// The images of the others: path and reason.
    pub corrupt: Vec<(String, String)>,
}

impl Refresh {
    /// Encodes the images of the slots `due`. A training pass of `network` under way is lost; what it has staged is not.
    ///
    /// # Errors
    /// If a file cannot be read at all.
    pub fn encode(&self, network: &mut Network<f32>, cpu: &Cpu, due: &[usize]) -> Result<Fresh, Error> {
        let max_rows = network.max_rows();
        let mut images = Images::new(cpu, &self.dataset, Look::Plain(&self.preprocess), max_rows);
        let (mut found, mut embeddings) = (Features::default(), Vec::new());
        for slots in due.chunks(max_rows) {
            let n = images.fill_with(slots, &mut found)?;
            if n > 0 {
                embeddings.extend_from_slice(network.forward_eval(images.rows(n), n).embeddings);
            }
        }
        Ok(Fresh { slots: found.indices, embeddings, corrupt: found.corrupt })
    }
}
