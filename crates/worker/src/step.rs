//! One optimizer update over the global batch: what `himpun train` repeats and `himpun bench step` times.

use collective::{Communicator, GradientReducer};
use engine::kernels::Pool;
use engine::network::{BufferUpdate, Network};
use engine::optim::Optimizer;
use objectives::{Compute, Encoded, Objective};
use std::ops::Range;
use std::sync::Arc;

use crate::Error;
use crate::evaluation::Encoder;
use crate::plan::VIEWS;

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

impl Trainer {
    /// Encodes this rank's `images` (`[rows, h, w, 3]`, `[view][image]`), and makes update `step` with the
    /// gradient of the whole batch. Returns the loss: the mean over the global rows, in nats, before it.
    ///
    /// Weights, optimizer and running statistics change only after the step's last collective has
    /// succeeded here: a step that fails leaves them as they were.
    ///
    /// # Errors
    /// If a peer is lost or the group is aborted, or the loss is not a finite number.
    pub fn step(&mut self, step: u64, images: &[f32], learning_rate: f64) -> Result<f64, Error> {
        self.communicator.set_step(step);
        if let Some(gradients) = &mut self.gradients {
            gradients.set_step(step);
        }
        let (n, path) = (self.rows[self.communicator.rank()], self.network.kernel_path());
        let embeddings =
            self.network.forward_train(images, n, &mut self.communicator).map_err(Error::from_peer)?;
        let compute = Compute { pool: &self.pool, path };
        let images_per_rank: Vec<usize> = self.rows.iter().map(|rows| rows / VIEWS).collect();
        let encoded = Encoded::of_queries(step, &images_per_rank, embeddings);
        let objective = self
            .objective
            .forward_backward(compute, &encoded, &mut self.communicator)
            .map_err(Error::from_objective)?;
        if !objective.loss.is_finite() {
            return Err(Error::Diverged { step, loss: objective.loss });
        }
        self.backward(&objective.d_queries)?;

        self.optimizer.step(&self.pool, self.network.parameters_mut(), learning_rate);
        self.network.commit_buffers(BufferUpdate::Momentum(BATCH_NORM_MOMENTUM));
        self.objective.commit();
        Ok(objective.loss)
    }

    /// Leaves the gradient of the whole batch in the network's parameters.
    fn backward(&mut self, d_embeddings: &[f32]) -> Result<(), Error> {
        let Some(reducer) = &mut self.gradients else {
            return self
                .network
                .backward(d_embeddings, &mut self.communicator, &mut |_, _| {})
                .map_err(Error::from_peer);
        };
        let mut bucket = Bucket::default();
        self.network
            .backward(d_embeddings, &mut self.communicator, &mut |range, gradient| {
                bucket.take(range, gradient, reducer);
            })
            .map_err(Error::from_peer)?;
        bucket.send(reducer);
        match self.objective.reduction() {
            // Each rank holds its own rows' share of the gradient of the mean over all rows, so that
            // nothing is divided by the world size, here or anywhere.
            objectives::Reduction::Sum => {}
        }
        let gradients = &mut self.network.parameters_mut().gradients;
        for (ranges, values) in reducer.finish().map_err(Error::Collective)? {
            scatter(ranges, &values, gradients);
        }
        Ok(())
    }

    /// The parts that an evaluation needs.
    pub fn encoder(&mut self) -> Encoder<'_> {
        Encoder { network: &mut self.network, communicator: &mut self.communicator, pool: &self.pool }
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
    fn add(&mut self, range: Range<usize>, gradient: &[f32]) {
        self.ranges.push(range);
        self.values.extend_from_slice(gradient);
    }

    /// Adds a gradient and sends the bucket if it is full.
    fn take(&mut self, range: Range<usize>, gradient: &[f32], to: &mut GradientReducer) {
        self.add(range, gradient);
        if self.values.len() >= BUCKET_LEN {
            self.send(to);
        }
    }

    fn send(&mut self, to: &mut GradientReducer) {
        if !self.ranges.is_empty() {
            to.submit(std::mem::take(&mut self.ranges), std::mem::take(&mut self.values));
        }
    }
}

/// Puts a bucket's values back where they came from.
fn scatter(ranges: Vec<Range<usize>>, mut values: &[f32], gradients: &mut [f32]) {
    for range in ranges {
        let (summed, rest) = values.split_at(range.len());
        gradients[range].copy_from_slice(summed);
        values = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::plan::Plan;
    use config::RunConfig;
    use data::Loader;

    #[test]
    fn a_bucket_goes_back_to_its_places() {
        let mut bucket = Bucket::default();
        bucket.add(4..6, &[4.0, 5.0]);
        bucket.add(0..3, &[0.0, 1.0, 2.0]);
        let mut gradients = [9.0; 7];
        scatter(bucket.ranges, &bucket.values, &mut gradients);
        assert_eq!(gradients, [0.0, 1.0, 2.0, 9.0, 4.0, 5.0, 9.0]);
    }

    fn config(arch: &str) -> RunConfig {
        let text = format!(
            "[train]\nglobal_batch = 7\n[data]\nsize = 8\n[model]\narch = \"{arch}\"\n\
             stem = \"cifar\"\nhead = \"mlp-16-8\"\n[optimizer]\nlr = 0.01\n"
        );
        RunConfig::from_toml(&text).unwrap()
    }

    /// Three steps over the same global batches by `world_size` ranks: each rank's losses, and its weights,
    /// momentum and running statistics at the end.
    fn train(world_size: usize) -> Vec<(Vec<f64>, [Vec<f32>; 3])> {
        let config = config("resnet20");
        let groups = collective::loopback(world_size, 2).unwrap();
        std::thread::scope(|scope| {
            let ranks = groups.into_iter().map(|group| {
                let config = &config;
                scope.spawn(move || {
                    let [small, gradients] = <[_; 2]>::try_from(group).unwrap();
                    let plan = Plan::resolve(config, small.rank(), world_size).unwrap();
                    let compute = plan::Compute { threads: 1, cores: Vec::new() };
                    let mut trainer = plan.trainer(&compute, small, gradients).unwrap();
                    let mut loader =
                        Loader::new(plan.dataset.clone(), plan.augmentation.clone(), plan.loader_options(0))
                            .unwrap();
                    let losses = (1..=3).map(|step| {
                        let batch = loader.next_batch().unwrap();
                        trainer.step(step, &batch.images, 0.01).unwrap()
                    });
                    let losses = losses.collect();
                    let parameters = trainer.network.parameters();
                    let momentum = trainer.optimizer.state()[0].1.to_vec();
                    (losses, [parameters.values.clone(), momentum, parameters.buffer_values.clone()])
                })
            });
            let ranks: Vec<_> = ranks.collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
        let squared = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let difference = squared(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
        (difference / squared(&mut a.iter().map(|&a| f64::from(a)))).sqrt()
    }

    #[test]
    fn any_number_of_ranks_makes_the_same_steps() {
        let alone = train(1).remove(0);
        for world_size in [2, 3] {
            let ranks = train(world_size);
            // All ranks hold the same bits, or they would drift apart.
            assert!(ranks.iter().all(|rank| *rank == ranks[0]), "{world_size} ranks");
            for (a, b) in alone.0.iter().zip(&ranks[0].0) {
                assert!((a / b - 1.0).abs() < 1e-5, "losses {:?} {:?}", alone.0, ranks[0].0);
            }
            for (what, (a, b)) in
                ["weights", "momentum", "statistics"].iter().zip(alone.1.iter().zip(&ranks[0].1))
            {
                let difference = relative_difference(a, b);
                assert!(difference < 1e-3, "{what} of {world_size} ranks differ by {difference}");
            }
        }
    }

    #[test]
    fn buckets_travel_while_the_backward_runs() {
        let config = config("resnet18");
        std::thread::scope(|scope| {
            for group in collective::loopback(2, 2).unwrap() {
                let config = &config;
                scope.spawn(move || {
                    let [small, gradients] = <[_; 2]>::try_from(group).unwrap();
                    let plan = Plan::resolve(config, small.rank(), 2).unwrap();
                    let compute = plan::Compute { threads: 1, cores: Vec::new() };
                    let mut trainer = plan.trainer(&compute, small, gradients).unwrap();
                    let (network, communicator) = (&mut trainer.network, &mut trainer.communicator);
                    let n = trainer.rows[communicator.rank()];
                    let images: Vec<f32> = (0..n * 8 * 8 * 3).map(|i| (i % 17) as f32).collect();
                    network.forward_train(&images, n, communicator).unwrap();
                    let reducer = trainer.gradients.as_mut().unwrap();
                    let (mut bucket, mut arrived) = (Bucket::default(), None);
                    let mut on_gradient = |range: Range<usize>, gradient: &[f32]| {
                        // The first layer's gradient is the last: it waits until the peer has seen a bucket.
                        if range.start == 0 {
                            arrived = (0..10_000_000).find(|_| {
                                std::thread::yield_now();
                                reducer.bytes_sent() > 0
                            });
                        }
                        bucket.take(range, gradient, reducer);
                    };
                    network.backward(&vec![0.1; n * 8], communicator, &mut on_gradient).unwrap();
                    assert!(arrived.is_some(), "no bucket left before the end");
                    bucket.send(reducer);
                    assert!(reducer.finish().unwrap().len() > 2, "several buckets");
                });
            }
        });
    }

    #[test]
    fn a_loss_that_is_no_number_changes_nothing() {
        let config = config("resnet20");
        let plan = Plan::resolve(&config, 0, 1).unwrap();
        let compute = plan::Compute { threads: 1, cores: Vec::new() };
        let mut trainer = plan.trainer(&compute, Communicator::alone(), Communicator::alone()).unwrap();
        let before = trainer.network.parameters().clone();
        let images = vec![f32::NAN; 14 * 8 * 8 * 3];
        let error = trainer.step(5, &images, 0.01).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("the loss of step 5 is NaN", 3));
        let after = trainer.network.parameters();
        assert_eq!((&before.values, &before.buffer_values), (&after.values, &after.buffer_values));
        assert_eq!(trainer.optimizer.updates, 0);
    }
}
