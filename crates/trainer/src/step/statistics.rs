//! The running statistics' share of a batch that went through a network in several passes.

use engine::models::BatchNormScope;
use engine::network::Network;

/// The mean over chunks of their batch statistics, each counted by the images that they are of.
///
/// Batch norm spans a chunk, so the buffers are updated once a step, with this mean: as `num_batches_tracked` counts.
#[derive(Default)]
pub struct ChunkStatistics {
    sum: Vec<f64>,
    images: f64,
}

impl ChunkStatistics {
    /// Adds those of the pass that has just ended, in which every rank had so many `images`.
    pub fn add(&mut self, network: &Network<f32>, images: &[usize], rank: usize) {
        let images = counted(network.spec().batch_norm, images, rank) as f64;
        let staged = network.staged_statistics();
        self.sum.resize(staged.len(), 0.0);
        self.sum.iter_mut().zip(staged).for_each(|(sum, x)| *sum += images * x);
        self.images += images;
    }

    /// Stages the mean, to be committed.
    pub fn stage(mut self, network: &mut Network<f32>) {
        self.sum.iter_mut().for_each(|sum| *sum /= self.images);
        network.stage_statistics(&self.sum);
    }
}

/// Images over which a rank's statistics are taken.
fn counted(scope: BatchNormScope, images: &[usize], rank: usize) -> usize {
    match scope {
        BatchNormScope::Global | BatchNormScope::Frozen => images.iter().sum(),
        BatchNormScope::Local => images[rank],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_one_rank_count_its_images_alone() {
        assert_eq!(counted(BatchNormScope::Global, &[4, 3, 3], 1), 10);
        assert_eq!(counted(BatchNormScope::Local, &[4, 3, 3], 1), 3);
    }
}
