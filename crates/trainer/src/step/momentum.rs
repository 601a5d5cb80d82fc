//! The momentum encoder: a second network whose parameters follow the trained one's.

use collective::Communicator;
use data::Sampler;
use engine::average::moving_average;
use engine::models::BatchNormScope;
use engine::network::Network;
use engine::parameters::BufferUpdate;
use engine::parameters::Parameters;
use kernels::Device;
use std::f64::consts::PI;
use std::mem;

use super::BATCH_NORM_MOMENTUM;
use super::layout::Layout;
use super::rows;
use super::statistics::ChunkStatistics;
use crate::Error;

/// How much of the momentum encoder stays in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MomentumSchedule {
    /// The same share in every step.
    Constant(f64),
    /// From `base` to 1 at the end of the run, along half a cosine: `1 - (1 - base) (1 + cos(pi t / T)) / 2`
    /// with `t` the steps that are done, as facebookresearch/moco-v3 counts them.
    Cosine {
        /// In the first step.
        base: f64,
        /// `T`.
        total_steps: u64,
    },
}

impl MomentumSchedule {
    /// The share in update `step`, counted from 1.
    pub fn at(self, step: u64) -> f64 {
        match self {
            Self::Constant(momentum) => momentum,
            Self::Cosine { base, total_steps } => {
                let done = (step - 1) as f64 / total_steps as f64;
                1.0 - (1.0 - base) * 0.5 * (1.0 + (PI * done.min(1.0)).cos())
            }
        }
    }
}

/// The momentum encoder of one rank. Every rank has the same.
///
/// Its parameters are an average of the trained network's, its running statistics its own. Both are as they were
/// until [`MomentumEncoder::commit`]: a step that fails goes back.
pub struct MomentumEncoder {
    /// Backbone and head.
    pub network: Network<f32>,
    schedule: MomentumSchedule,
    /// Seed of the permutation of shuffled batch norm.
    seed: u64,
    /// The parameters before the step under way; what else they hold means nothing.
    before: Vec<f32>,
}

impl MomentumEncoder {
    /// Makes the momentum encoder of a trained network, with which `network` shares its first parameters.
    ///
    /// # Panics
    /// If the parameters are not the trained network's first.
    pub fn new(
        mut network: Network<f32>,
        trained: &Parameters<f32>,
        schedule: MomentumSchedule,
        seed: u64,
    ) -> MomentumEncoder {
        let len = network.parameters().values.len();
        assert_eq!(
            trained.places_of(network.parameters()),
            [(0..len, 0..len)],
            "backbone and head come first"
        );
        network.parameters_mut().values.copy_from_slice(&trained.values[..len]);
        MomentumEncoder { before: vec![0.0; len], network, schedule, seed }
    }

    /// Bytes that the step keeps beside the network.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.before[..])
    }

    /// Moves the parameters towards the trained network's, as the first thing of update `step`.
    pub fn advance(&mut self, device: &Device, trained: &Parameters<f32>, step: u64) {
        let parameters = self.network.parameters_mut();
        mem::swap(&mut parameters.values, &mut self.before);
        let latest = &trained.values[..self.before.len()];
        moving_average(device, self.schedule.at(step), (&self.before, latest), &mut parameters.values);
    }

    /// Undoes [`MomentumEncoder::advance`], and drops the statistics of the step.
    pub fn go_back(&mut self) {
        mem::swap(&mut self.network.parameters_mut().values, &mut self.before);
    }

    /// Applies the running statistics of the step.
    pub fn commit(&mut self) {
        self.network.commit_buffers(BufferUpdate::Momentum(BATCH_NORM_MOMENTUM));
    }

    /// Encodes the views `views` of this rank's images, rows as [`super::StepBatch::images`]: its keys, `[view][n]` rows.
    ///
    /// # Errors
    /// If a peer is lost.
    pub fn encode(
        &mut self,
        (images, views): (&[f32], &[usize]),
        (step, layout): (u64, &Layout),
        communicator: &mut Communicator,
    ) -> Result<Vec<f32>, Error> {
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        let n: usize = layout.images()[rank];
        let (width, len) = (self.network.spec().embedding_width(), self.image_len());
        let shuffled = self.network.spec().batch_norm == BatchNormScope::Local && world_size > 1;
        let mut keys = vec![0.0; views.len() * n * width];
        let mut statistics = ChunkStatistics::default();
        for (chunk, own) in layout.own(rank).iter().enumerate() {
            let of_ranks = layout.images_of(chunk);
            let rows = rows::of_chunk(images, (n, len), views, own);
            if shuffled {
                let sampler = Sampler::new(self.seed ^ SHUFFLE ^ chunk as u64, of_ranks.iter().sum());
                let order = sampler.order(step);
                let encoded = self.encode_shuffled(&rows, &of_ranks, &order, communicator)?;
                rows::place(&mut keys, (n, width), own, &encoded);
            } else {
                let encoded = self.network.forward_train(&rows, views.len() * own.len(), communicator);
                rows::place(&mut keys, (n, width), own, encoded?);
            }
            if layout.n_chunks() > 1 {
                statistics.add(&self.network, &of_ranks, rank);
            }
        }
        if layout.n_chunks() > 1 {
            statistics.stage(&mut self.network);
        }
        Ok(keys)
    }

    /// Encodes rows of other ranks, so that a rank's batch statistics do not tell which keys belong to its queries
    /// (He et al. 2019, section 3.3): all rows are gathered and dealt in `order`, and the keys find their way back.
    ///
    /// - `rows`: `[view][image]` of this rank; `images`: of every rank; `order`: the image at each place
    fn encode_shuffled(
        &mut self,
        rows: &[f32],
        images: &[usize],
        order: &[usize],
        communicator: &mut Communicator,
    ) -> Result<Vec<f32>, Error> {
        let (rank, width, len) =
            (communicator.rank(), self.network.spec().embedding_width(), self.image_len());
        let start: usize = images[..rank].iter().sum();
        let own = start..start + images[rank];
        let n_views = rows.len() / (own.len() * len);
        let mut dealt = Vec::with_capacity(rows.len());
        for view in rows.chunks_exact(own.len() * len) {
            let all = gather(view, images, len, communicator)?;
            dealt.extend(order[own.clone()].iter().flat_map(|&image| &all[image * len..(image + 1) * len]));
        }
        let encoded = self.network.forward_train(&dealt, n_views * own.len(), communicator);
        let encoded = encoded?;
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, &image)| place[image] = at);
        let mut keys = Vec::with_capacity(encoded.len());
        for view in encoded.chunks_exact(own.len() * width) {
            let all = gather(view, images, width, communicator)?;
            keys.extend(place[own.clone()].iter().flat_map(|&at| &all[at * width..(at + 1) * width]));
        }
        Ok(keys)
    }

    fn image_len(&self) -> usize {
        self.network.spec().image_size.pow(2) * 3
    }
}

/// Tells the shuffle's permutations from those that deal the data set.
pub(super) const SHUFFLE: u64 = 0x7368_7566_666c_6500;

/// The rows of all ranks, in rank order.
fn gather(
    rows: &[f32],
    images: &[usize],
    len: usize,
    communicator: &mut Communicator,
) -> Result<Vec<f32>, Error> {
    let counts: Vec<usize> = images.iter().map(|n| n * len).collect();
    let mut all = vec![0.0; counts.iter().sum()];
    communicator.all_gather_counts(rows, &counts, &mut all)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn momentum_is_constant_or_rises_to_one() {
        assert_eq!(MomentumSchedule::Constant(0.999).at(7), 0.999);
        let cosine = MomentumSchedule::Cosine { base: 0.99, total_steps: 100 };
        let expected = [(1, 0.99), (51, 0.995), (101, 1.0), (26, 1.0 - 0.005 * (1.0 + 0.5f64.sqrt()))];
        for (step, expected) in expected {
            assert!((cosine.at(step) - expected).abs() < 1e-15, "step {step}: {}", cosine.at(step));
        }
    }
}
