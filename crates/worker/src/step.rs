//! One optimizer update over the global batch: what `himpun train` repeats and `himpun bench step` times.

use collective::{Communicator, GradientReducer};
use engine::kernels::Pool;
use engine::network::{BufferUpdate, Network};
use engine::optim::Optimizer;
use objectives::Objective;
use std::ops::Range;
use std::sync::Arc;

use crate::Error;

/// PyTorch's batch-norm momentum.
const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// Gradients travel in buckets of at least this many values: below it a frame's latency outweighs its
/// transfer, above it the last bucket has less of the backward left to hide behind.
const BUCKET_LEN: usize = 1 << 20;

/// Everything that one update reads and writes.
pub struct Trainer {
    /// The encoder and its head.
    pub network: Network<f32>,
    /// Momentum and second moments.
    pub optimizer: Optimizer<f32>,
    /// What the embeddings are trained for.
    pub objective: Objective,
    /// Gathers batch-norm sums, embeddings and orders: small and bound by latency.
    pub communicator: Communicator,
    /// Sums parameter gradients beside the backward; absent in a world of one.
    pub gradients: Option<GradientReducer>,
    /// Compute threads of this worker.
    pub pool: Arc<Pool>,
    /// Rows (views) of every rank, in rank order.
    pub rows: Vec<usize>,
}

/// What a step reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean over the global rows, in nats, of the batch before this step's update.
    pub loss: f64,
    /// Rows that this rank encoded.
    pub rows_encoded: u64,
}

impl Trainer {
    /// Encodes this rank's `images` (`[rows, h, w, 3]`), and updates the weights with the gradient of the
    /// whole batch.
    ///
    /// Weights, optimizer and running statistics change only after the step's last collective has
    /// succeeded here: a step that fails leaves them as they were.
    ///
    /// # Errors
    /// If a peer is lost or the group is aborted, or the loss is not a finite number.
    pub fn step(&mut self, images: &[f32], learning_rate: f64) -> Result<StepReport, Error> {
        let n = self.rows[self.communicator.rank()];
        let embeddings = self.network.forward_train(images, n, &mut self.communicator).map_err(Error::from_peer)?;
        let step = self
            .objective
            .forward_backward(&self.pool, embeddings, &self.rows, &mut self.communicator)
            .map_err(Error::Collective)?;
        if !step.loss.is_finite() {
            return Err(Error::Diverged { loss: step.loss });
        }

        let mut bucket = Bucket::default();
        let reducer = &mut self.gradients;
        let mut submitted = Ok(());
        self.network
            .backward(&step.d_z, &mut self.communicator, &mut |range, gradient| {
                if let (Some(reducer), true) = (reducer.as_mut(), submitted.is_ok()) {
                    submitted = bucket.add(range, gradient, reducer);
                }
            })
            .map_err(Error::from_peer)?;
        submitted.map_err(Error::Collective)?;
        if let Some(reducer) = &mut self.gradients {
            bucket.send(reducer).map_err(Error::Collective)?;
            let gradients = &mut self.network.parameters_mut().gradients;
            // Every objective of today declares a sum: each rank holds its own rows' share of the
            // gradient of the mean over all rows, so nothing is divided by the world size here.
            match self.objective.reduction() {
                objectives::Reduction::Sum => {}
            }
            for (ranges, values) in reducer.finish().map_err(Error::Collective)? {
                let mut values = &values[..];
                for range in ranges {
                    let (summed, rest) = values.split_at(range.len());
                    gradients[range].copy_from_slice(summed);
                    values = rest;
                }
            }
        }

        self.optimizer.step(&self.pool, self.network.parameters_mut(), learning_rate);
        self.network.commit_buffers(BufferUpdate::Momentum(BATCH_NORM_MOMENTUM));
        Ok(StepReport { loss: step.loss, rows_encoded: n as u64 })
    }

    /// Bytes that this rank has sent to its peers so far.
    pub fn bytes_sent(&self) -> u64 {
        self.communicator.bytes_sent() + self.gradients.as_ref().map_or(0, GradientReducer::bytes_sent)
    }
}

/// Gradients on their way out. All ranks fill their buckets in the same order, that of the backward.
#[derive(Default)]
struct Bucket {
    ranges: Vec<Range<usize>>,
    values: Vec<f32>,
}

impl Bucket {
    fn add(&mut self, range: Range<usize>, gradient: &[f32], to: &mut GradientReducer) -> Result<(), collective::Error> {
        self.ranges.push(range);
        self.values.extend_from_slice(gradient);
        if self.values.len() >= BUCKET_LEN { self.send(to) } else { Ok(()) }
    }

    fn send(&mut self, to: &mut GradientReducer) -> Result<(), collective::Error> {
        if self.ranges.is_empty() {
            return Ok(());
        }
        to.submit(std::mem::take(&mut self.ranges), std::mem::take(&mut self.values))
    }
}
