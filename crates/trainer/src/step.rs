//! One optimizer update over the global batch: what `himpun train` repeats and `himpun bench step` times.
//!
//! A step encodes what its objective needs, by the networks there are: the trained one, its momentum encoder, its
//! branch over patches. Where the batch is cut into chunks ([`Layout`]) every chunk is encoded twice, first for its
//! embeddings alone and then, with the loss over the whole batch known, for its share of the gradient (Gao et al.
//! 2021, arXiv:2101.06983): the memory of activations is that of one chunk, the negatives are those of the batch.

mod gradients;
pub mod layout;
pub mod momentum;
pub mod patches;
pub mod refresh;
mod rows;
mod statistics;
#[cfg(test)]
mod tests;

use collective::{Communicator, GradientReducer};
use data::Batch;
use engine::models::PATCHES;
use engine::network::Network;
use engine::optim::Optimizer;
use engine::parameters::BufferUpdate;
use kernels::Device;
use objectives::{Encoded, Needs, Objective, ObjectiveStep};
use std::ops::Range;

use crate::Error;
use crate::features::Encoder;
use gradients::{Bucket, scatter};
use layout::Layout;
use momentum::MomentumEncoder;
use patches::PatchBranch;
use refresh::{Fresh, Refresh};
use statistics::ChunkStatistics;

/// PyTorch's batch-norm momentum.
const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// Everything that one update reads and writes.
pub struct Trainer {
    /// The encoder, its head and what else is trained.
    pub network: Network<f32>,
    /// Encodes the keys, where the objective has any.
    pub momentum: Option<MomentumEncoder>,
    /// Encodes jigsaws, where the objective has any.
    pub patches: Option<PatchBranch>,
    /// Encodes slots anew, where the objective bounds their age.
    pub refresh: Option<Refresh>,
    /// Momentum and second moments.
    pub optimizer: Optimizer<f32>,
    /// What the embeddings are trained for.
    pub objective: Objective,
    /// See [`Group::control`](collective::Group::control).
    pub control: Communicator,
    /// See [`Group::activations`](collective::Group::activations).
    pub activations: Communicator,
    /// Sums parameter gradients beside the backward; absent in a world of one.
    pub gradients: Option<GradientReducer>,
    /// What this rank computes with.
    pub device: Device,
    /// Which images each rank encodes, in which pass.
    pub layout: Layout,
    /// The gradient of other passes than the last: of earlier chunks, of patches. Empty where there are none.
    pub others: Vec<f32>,
}

/// This rank's part of a global batch.
#[derive(Clone, Copy, Debug)]
pub struct StepBatch<'a> {
    /// `[chunk][view][image of the chunk]` rows of `[size, size, 3]`: every view up to the last that the objective needs.
    pub images: &'a [f32],
    /// The images' places in the global batch, as [`Layout::positions`].
    pub positions: &'a [usize],
    /// Their places in the data set.
    pub indices: &'a [usize],
    /// Their classes, where the objective needs them; else empty.
    pub labels: &'a [u32],
    /// `[image][patch]` rows, where the objective needs them; else empty.
    pub jigsaw: &'a [f32],
}

impl<'a> From<&'a Batch> for StepBatch<'a> {
    fn from(batch: &'a Batch) -> StepBatch<'a> {
        let Batch { positions, indices, labels, images, jigsaw, .. } = batch;
        StepBatch { positions, indices, labels, images, jigsaw }
    }
}

/// What a step tells of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The objective's mean over the global batch, in nats, before the update.
    pub loss: f64,
    /// What else the objective has to say, by name; the same on every rank.
    pub metrics: Vec<(&'static str, f64)>,
    /// Images of this rank's slots that were to be encoded anew and cannot be decoded: path and reason.
    pub corrupt: Vec<(String, String)>,
}

/// What the networks made of this rank's images.
struct Encodings {
    queries: Vec<f32>,
    keys: Vec<f32>,
    jigsaw: Vec<f32>,
}

impl Trainer {
    /// A world of one that trains a single network and encodes its `images` in one pass.
    pub fn alone(
        network: Network<f32>,
        optimizer: Optimizer<f32>,
        objective: Objective,
        device: Device,
        images: usize,
    ) -> Trainer {
        Trainer {
            control: Communicator::alone(),
            activations: Communicator::alone(),
            gradients: None,
            momentum: None,
            patches: None,
            refresh: None,
            layout: Layout::new(images, 0, 1),
            others: Vec::new(),
            network,
            optimizer,
            objective,
            device,
        }
    }

    /// Makes update `step`, counted from 1, with the gradient of the whole batch.
    ///
    /// Weights, optimizer, running statistics, momentum encoder and what the objective keeps change only after the
    /// step's last collective has succeeded here: a step that fails leaves them as they were.
    ///
    /// # Errors
    /// If a peer is lost or the group is aborted, or the loss is not a finite number.
    ///
    /// # Panics
    /// If the batch is not cut as the layout says.
    pub fn step(&mut self, step: u64, batch: &StepBatch<'_>, learning_rate: f64) -> Result<Outcome, Error> {
        assert_eq!(batch.positions, self.layout.positions(self.activations.rank()), "another layout");
        self.control.set_step(step);
        self.activations.set_step(step);
        if let Some(gradients) = &mut self.gradients {
            gradients.set_step(step);
        }
        if let Some(momentum) = &mut self.momentum {
            momentum.advance(&self.device, self.network.parameters(), step);
        }
        let outcome = self.gradient(step, batch);
        match &outcome {
            Ok(_) => self.commit(learning_rate),
            Err(_) => {
                if let Some(momentum) = &mut self.momentum {
                    momentum.go_back();
                }
            }
        }
        outcome
    }

    /// Makes everything that the step has staged so. Nothing here waits for a peer, and nothing can fail.
    fn commit(&mut self, learning_rate: f64) {
        self.optimizer.step(&self.device, self.network.parameters_mut(), learning_rate);
        self.network.commit_buffers(BufferUpdate::Momentum(BATCH_NORM_MOMENTUM));
        if let Some(momentum) = &mut self.momentum {
            momentum.commit();
        }
        self.objective.commit();
    }

    /// Leaves the gradient of the whole batch in the network's parameters.
    fn gradient(&mut self, step: u64, batch: &StepBatch<'_>) -> Result<Outcome, Error> {
        let needs = self.objective.needs();
        let encodings = self.encode(step, &needs, batch)?;
        let encoded = Encoded {
            step,
            images: &self.layout.images(),
            positions: batch.positions,
            indices: batch.indices,
            labels: batch.labels,
            queries: &encodings.queries,
            keys: &encodings.keys,
            jigsaw: &encodings.jigsaw,
        };
        let objective = self.objective.forward_backward(&self.device, &encoded, &mut self.activations)?;
        if !objective.loss.is_finite() {
            return Err(Error::Diverged { step, loss: objective.loss });
        }
        self.backward(&needs, batch, &objective)?;
        let corrupt = self.refresh_slots(step)?;
        Ok(Outcome { loss: objective.loss, metrics: objective.metrics, corrupt })
    }

    /// Stages fresh features of slots that would grow too old, by the weights before the update. The passes of the step
    /// are over: their activations make room. Returns the images that cannot be decoded.
    fn refresh_slots(&mut self, step: u64) -> Result<Vec<(String, String)>, Error> {
        let Some(refresh) = &self.refresh else { return Ok(Vec::new()) };
        let due = self.objective.due(step);
        let Fresh { slots, embeddings, corrupt } =
            refresh.encode(&mut self.network, self.device.cpu(), &due)?;
        self.objective.refresh(&slots, &embeddings, &mut self.activations)?;
        Ok(corrupt)
    }

    /// Encodes this rank's images, chunk by chunk; the activations of the last chunk stay.
    fn encode(&mut self, step: u64, needs: &Needs, batch: &StepBatch<'_>) -> Result<Encodings, Error> {
        let (n, width) = (self.own_images(), self.network.spec().embedding_width());
        let mut queries = vec![0.0; needs.queries.len() * n * width];
        let mut jigsaw = vec![0.0; if needs.jigsaw { n * width } else { 0 }];
        for own in self.layout.own(self.activations.rank()) {
            let (images, patches) = self.forward(needs, batch, &own)?;
            rows::place(&mut queries, (n, width), &own, images);
            rows::place(&mut jigsaw, (n, width), &own, patches);
        }
        let keys = match &mut self.momentum {
            None => Vec::new(),
            Some(momentum) => {
                momentum.encode((batch.images, needs.keys), (step, &self.layout), &mut self.activations)?
            }
        };
        Ok(Encodings { queries, keys, jigsaw })
    }

    /// Runs the forward passes of this rank's images `own`; returns the embeddings of their views and jigsaws.
    fn forward(
        &mut self,
        needs: &Needs,
        batch: &StepBatch<'_>,
        own: &Range<usize>,
    ) -> Result<(&[f32], &[f32]), Error> {
        let n = self.own_images();
        let Self { network, patches, activations, .. } = self;
        let image_len = network.spec().image_size.pow(2) * 3;
        let images = rows::of_chunk(batch.images, (n, image_len), needs.queries, own);
        network.forward_train(&images, needs.queries.len() * own.len(), activations)?;
        let jigsaw: &[f32] = match patches {
            None => &[],
            Some(patches) => {
                let len = patches.jigsaw_len();
                let rows = &batch.jigsaw[own.start * len..own.end * len];
                patches.encode(rows, own.len(), network.parameters(), activations)?
            }
        };
        Ok((network.embeddings(), jigsaw))
    }

    /// Runs the backward passes, and sums the gradients over chunks, branches and ranks.
    fn backward(
        &mut self,
        needs: &Needs,
        batch: &StepBatch<'_>,
        objective: &ObjectiveStep<f32>,
    ) -> Result<(), Error> {
        let (n, width) = (self.own_images(), self.network.spec().embedding_width());
        let views: Vec<usize> = (0..needs.queries.len()).collect();
        let n_chunks = self.layout.n_chunks();
        let mut statistics = ChunkStatistics::default();
        self.others.fill(0.0);
        let rank = self.activations.rank();
        for (chunk, own) in self.layout.own(rank).iter().enumerate() {
            if n_chunks > 1 {
                self.forward(needs, batch, own)?;
            }
            if let Some(patches) = &mut self.patches {
                let d_jigsaw = &objective.d_jigsaw[own.start * width..own.end * width];
                patches.backward(d_jigsaw, &mut self.activations, &mut self.others)?;
            }
            let d_queries = rows::select(&objective.d_queries, (n, width), &views, own);
            if chunk + 1 < n_chunks {
                self.network.backward(&d_queries, &mut self.activations, &mut |range, gradient| {
                    gradients::add(&mut self.others[range], gradient);
                })?;
            } else {
                self.last_backward(&d_queries)?;
            }
            if n_chunks > 1 {
                statistics.add(&self.network, &self.layout.images_of(chunk), rank);
            }
        }
        if n_chunks > 1 {
            statistics.stage(&mut self.network);
        }
        Ok(())
    }

    /// Runs the step's last backward pass, during which the gradients leave for the other ranks.
    fn last_backward(&mut self, d_queries: &[f32]) -> Result<(), Error> {
        let Self { network, activations, others, .. } = self;
        let others = (!others.is_empty()).then_some(&others[..]);
        let without_layer: Vec<Range<usize>> =
            self.patches.iter().flat_map(PatchBranch::own_places).collect();
        let Some(reducer) = &mut self.gradients else {
            network.backward(d_queries, activations, &mut |_, _| {})?;
            let gradients = &mut network.parameters_mut().gradients;
            without_layer.into_iter().for_each(|range| gradients[range].fill(0.0));
            if let Some(others) = others {
                gradients::add(gradients, others);
            }
            return Ok(());
        };
        let mut bucket = Bucket::default();
        network.backward(d_queries, activations, &mut |range, gradient| {
            bucket.take(range, gradient, others, reducer);
        })?;
        for range in without_layer {
            let gradient = &self.others[range.clone()];
            bucket.take(range, gradient, None, reducer);
        }
        bucket.send(reducer);
        match self.objective.reduction() {
            // Each rank holds its own rows' share of the gradient of the mean over all rows, so that
            // nothing is divided by the world size, here or anywhere.
            objectives::Reduction::Sum => {}
        }
        let gradients = &mut network.parameters_mut().gradients;
        for (ranges, values) in reducer.finish()? {
            scatter(ranges, &values, gradients);
        }
        Ok(())
    }

    /// Images of this rank in a step.
    fn own_images(&self) -> usize {
        self.layout.images()[self.activations.rank()]
    }

    /// Rows (views, keys and patches) that this rank encodes for a step.
    pub fn rows_encoded(&self) -> usize {
        let needs = self.objective.needs();
        let patches = if needs.jigsaw { PATCHES } else { 0 };
        self.own_images() * (needs.queries.len() + needs.keys.len() + patches)
    }

    /// The parts that an evaluation needs.
    pub fn encoder(&mut self) -> Encoder<'_> {
        Encoder {
            network: &mut self.network,
            control: &mut self.control,
            activations: &mut self.activations,
            cpu: self.device.cpu(),
        }
    }

    /// Bytes that this rank has sent to its peers so far.
    pub fn bytes_sent(&self) -> u64 {
        self.control.bytes_sent()
            + self.activations.bytes_sent()
            + self.gradients.as_ref().map_or(0, GradientReducer::bytes_sent)
    }

    /// Exchanges of this rank's thread so far; the same on every rank between operations.
    pub fn sequence(&self) -> u64 {
        self.control.sequence() + self.activations.sequence()
    }
}
