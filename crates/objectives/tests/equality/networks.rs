//! Whole nets on many ranks: batch norm over the global batch, both ways, and the optimizers behind it.

use collective::{Communicator, GradientReducer};
use engine::models::{Arch, BatchNormScope, Head, ModelSpec, Stem};
use engine::network::{Network, NetworkOptions};
use engine::optim::{Optimizer, OptimizerKind, OptimizerSpec};
use engine::parameters::BufferUpdate;
use engine::parameters::{ParameterEntry, ParameterKind};
use kernels::{Convolution, Device, KernelPath};
use objectives::{Encoded, NtXent, Objective, TwoViews};

use crate::deal::{Deal, noise};
use crate::{NOTICED, WORLD_SIZES, distance, on_ranks};

const IMAGES: usize = 7;
const SIDE: usize = 4;
const STEPS: usize = 20;

/// What stays comparable over world sizes after a run.
struct Trained {
    losses: Vec<f64>,
    entries: Vec<ParameterEntry>,
    /// Of the last step, summed over ranks.
    gradients: Vec<f64>,
    values: Vec<f64>,
    buffer_values: Vec<f64>,
}

/// A run of some steps on the deal's ranks.
#[derive(Clone, Copy)]
struct Run {
    head: Head,
    optimizer: OptimizerSpec,
    lr: f64,
    steps: usize,
    mistake: Mistake,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// Batch norm's own parameters are reduced in the backward pass, and with all others once more.
    BatchNormReducedTwice,
    /// Each rank normalises by its own rows.
    LocalBatchNorm,
    /// Parameter gradients are averaged instead of summed.
    Average,
}

const SGD: OptimizerSpec =
    OptimizerSpec { kind: OptimizerKind::Sgd { momentum: 0.9 }, weight_decay: 1e-4, decay_all: false };

const ONE_STEP: Run =
    Run { head: Head::SimclrV1, optimizer: SGD, lr: 0.05, steps: 1, mistake: Mistake::None };

impl Run {
    fn on(self, deal: &Deal) -> Trained {
        let mut ranks =
            on_ranks(deal.world_size(), |rank, communicators| self.rank(rank, deal, communicators));
        for rank in &ranks[1..] {
            assert!(rank.values == ranks[0].values, "weights have the same bits on every rank");
            if self.mistake != Mistake::LocalBatchNorm {
                assert!(rank.buffer_values == ranks[0].buffer_values, "running statistics too");
            }
        }
        ranks.swap_remove(0)
    }

    fn rank(self, rank: usize, deal: &Deal, [mut small, mut large]: [Communicator; 2]) -> Trained {
        let rows = deal.rows();
        let images_per_rank: Vec<usize> = rows.iter().map(|rows| rows / 2).collect();
        let device = Device::of_threads(1, KernelPath::Reference);
        let mut network = Network::<f64>::new(&self.model(), options(rows[rank]), &device);
        let mut optimizer = Optimizer::new(self.optimizer, network.parameters());
        let mut objective = Objective::TwoViews(TwoViews::Simclr(NtXent::new(0.5)));
        let mut losses = Vec::new();
        let mut reducer = if self.mistake == Mistake::BatchNormReducedTwice {
            Reducer::TwiceForBatchNorm(&mut large)
        } else {
            Reducer::Overlapped(GradientReducer::new(large).unwrap())
        };
        for step in 0..self.steps {
            let width = SIDE * SIDE * 3;
            let images = deal.take(rank, &noise(100 + step as u64, 2 * deal.images() * width), width);
            let embeddings = network.forward_train(&images, rows[rank], &mut small).unwrap().to_vec();
            let encoded = Encoded::of_queries(step as u64 + 1, &images_per_rank, &embeddings);
            let outcome = objective.forward_backward(&device, &encoded, &mut small).unwrap();
            losses.push(outcome.loss);
            reducer.backward(&mut network, &outcome.d_queries, &mut small);
            if self.mistake == Mistake::Average {
                let gradients = network.parameters_mut().gradients.iter_mut();
                gradients.for_each(|gradient| *gradient /= deal.world_size() as f64);
            }
            network.commit_buffers(BufferUpdate::Momentum(0.1));
            optimizer.step(&device, network.parameters_mut(), self.lr);
        }
        let parameters = network.parameters().clone();
        Trained {
            losses,
            entries: parameters.entries,
            gradients: parameters.gradients,
            values: parameters.values,
            buffer_values: parameters.buffer_values,
        }
    }

    fn model(self) -> ModelSpec {
        ModelSpec {
            arch: Arch::ResNet20,
            stem: Stem::Cifar,
            head: self.head,
            batch_norm: match self.mistake {
                Mistake::LocalBatchNorm => BatchNormScope::Local,
                _ => BatchNormScope::Global,
            },
            image_size: SIDE,
            zero_init_residual: false,
            predictor: None,
            jigsaw: None,
        }
    }
}

fn options(max_rows: usize) -> NetworkOptions {
    NetworkOptions { max_rows, seed: 3, convolution: Convolution::Direct }
}

/// How gradients are summed over ranks: as the trainer does it, or with a mistake.
enum Reducer<'a> {
    Overlapped(GradientReducer<f64>),
    TwiceForBatchNorm(&'a mut Communicator),
}

impl Reducer<'_> {
    /// Runs the backward pass and leaves the gradients summed.
    fn backward(&mut self, network: &mut Network<f64>, d_embeddings: &[f64], peers: &mut Communicator) {
        match self {
            Self::Overlapped(reducer) => {
                network
                    .backward(d_embeddings, peers, &mut |range, values| {
                        reducer.submit(vec![range], values.to_vec());
                    })
                    .unwrap();
                for (ranges, values) in reducer.finish().unwrap() {
                    network.parameters_mut().gradients[ranges[0].clone()].copy_from_slice(&values);
                }
            }
            Self::TwiceForBatchNorm(communicator) => {
                network.backward(d_embeddings, peers, &mut |_, _| {}).unwrap();
                let parameters = network.parameters_mut();
                for entry in &parameters.entries {
                    let gradient = &mut parameters.gradients[entry.range()];
                    if entry.kind == ParameterKind::Norm {
                        communicator.all_reduce_sum(gradient).unwrap();
                    }
                    communicator.all_reduce_sum(gradient).unwrap();
                }
            }
        }
    }
}

/// Distance of each parameter's gradient, the worst with its name; parameters that hardly matter by the
/// standard of all.
fn worst_gradient(got: &Trained, expected: &Trained) -> (f64, String) {
    let overall = expected.gradients.iter().fold(0f64, |largest, g| largest.max(g.abs()));
    let distances = expected.entries.iter().map(|entry| {
        let (got, expected) = (&got.gradients[entry.range()], &expected.gradients[entry.range()]);
        let own = expected.iter().fold(0f64, |largest, g| largest.max(g.abs()));
        (distance(got, expected) * own / own.max(1e-3 * overall), entry.name.clone())
    });
    distances.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

#[test]
fn t1_t3_loss_every_gradient_and_running_statistics_are_those_of_one_rank() {
    for head in [Head::SimclrV1, Head::Mlp { hidden: 24, out: 16 }] {
        let run = Run { head, ..ONE_STEP };
        let alone = run.on(&Deal::even(IMAGES, 1));
        let check = |deal: &Deal| {
            let got = run.on(deal);
            let (worst, name) = worst_gradient(&got, &alone);
            assert!(worst < 1e-10, "{head} {deal:?}: {name} off by {worst:e}");
            assert!(distance(&got.losses, &alone.losses) < 1e-12, "{head} {deal:?}");
            assert!(distance(&got.buffer_values, &alone.buffer_values) < 1e-12, "{head} {deal:?}");
        };
        for world_size in WORLD_SIZES {
            check(&Deal::even(IMAGES, world_size));
        }
        check(&Deal::even(IMAGES, 3).shuffled(1));
        check(&Deal::with_counts(&[1, 4, 2]));
    }
}

#[test]
fn t6_mistakes_are_noticed_in_the_gradients_of_a_network() {
    let alone = ONE_STEP.on(&Deal::even(IMAGES, 1));
    for mistake in [Mistake::BatchNormReducedTwice, Mistake::LocalBatchNorm, Mistake::Average] {
        for world_size in WORLD_SIZES {
            let got = Run { mistake, ..ONE_STEP }.on(&Deal::even(IMAGES, world_size));
            let (worst, name) = worst_gradient(&got, &alone);
            if world_size == 1 {
                assert!(worst < 1e-10, "{mistake:?} is none alone: {name} off by {worst:e}");
            } else {
                assert!(worst > NOTICED, "{mistake:?}, {world_size} ranks: {name} off by {worst:e}");
            }
        }
    }
}

/// Relative to the largest weight's change, so that weights that hardly moved cannot hide anything.
#[track_caller]
fn check_twenty_steps(name: &str, kind: OptimizerKind, weight_decay: f64, lr: f64) {
    let optimizer = OptimizerSpec { kind, weight_decay, decay_all: false };
    let run = Run { optimizer, lr, steps: STEPS, ..ONE_STEP };
    let alone = run.on(&Deal::even(IMAGES, 1));
    let first = Network::<f64>::new(&run.model(), options(2), &Device::of_threads(1, KernelPath::Reference));
    let change = |values: &[f64]| -> Vec<f64> {
        values.iter().zip(&first.parameters().values).map(|(after, before)| after - before).collect()
    };
    let expected = change(&alone.values);
    let averaged = Run { mistake: Mistake::Average, ..run }.on(&Deal::even(IMAGES, 2));
    let weights = distance(&change(&averaged.values), &expected);
    assert!(weights > 1e-3, "{name}: averaged gradients move the weights by {weights:e} only");
    for world_size in [2, 3, 4] {
        let got = run.on(&Deal::even(IMAGES, world_size));
        let weights = distance(&change(&got.values), &expected);
        assert!(weights < 1e-8, "{name}, {world_size} ranks: weights off by {weights:e}");
        let losses = distance(&got.losses, &alone.losses);
        assert!(losses < 1e-8, "{name}, {world_size} ranks: losses off by {losses:e}");
        let statistics = distance(&got.buffer_values, &alone.buffer_values);
        assert!(statistics < 1e-8, "{name}, {world_size} ranks: running statistics off by {statistics:e}");
    }
}

#[test]
fn t4_twenty_steps_of_sgd_end_at_the_same_weights() {
    check_twenty_steps("sgd", OptimizerKind::Sgd { momentum: 0.9 }, 1e-4, 0.02);
}

#[test]
fn t4_twenty_steps_of_lars_end_at_the_same_weights() {
    let lars = OptimizerKind::Lars { momentum: 0.9, eta: 0.001 };
    check_twenty_steps("lars, decay 1e-6", lars, 1e-6, 0.5);
    check_twenty_steps("lars, decay 1e-4", lars, 1e-4, 0.5);
}

#[test]
fn t4_twenty_steps_of_adamw_end_at_the_same_weights() {
    let adamw = OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    check_twenty_steps("adamw", adamw, 1e-2, 1e-3);
}
