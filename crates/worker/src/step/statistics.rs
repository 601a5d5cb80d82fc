//! The running statistics' share of a batch that went through a network in several passes.

use engine::network::Network;

/// The mean over chunks of their batch statistics, each counted by its images on all ranks.
///
/// Batch norm spans a chunk, so the buffers are updated once a step, with this mean: as `num_batches_tracked` counts.
#[derive(Default)]
pub struct ChunkStatistics {
    sum: Vec<f64>,
    images: f64,
}

impl ChunkStatistics {
    /// Adds those of the pass that has just ended, over `images` of all ranks.
    pub fn add(&mut self, network: &Network<f32>, images: usize) {
        let staged = network.staged_statistics();
        self.sum.resize(staged.len(), 0.0);
        self.sum.iter_mut().zip(staged).for_each(|(sum, x)| *sum += images as f64 * x);
        self.images += images as f64;
    }

    /// Stages the mean, to be committed.
    pub fn stage(mut self, network: &mut Network<f32>) {
        self.sum.iter_mut().for_each(|sum| *sum /= self.images);
        network.stage_statistics(&self.sum);
    }
}
