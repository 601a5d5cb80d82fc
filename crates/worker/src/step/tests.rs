//! Whole steps: any number of ranks makes the same, a failure anywhere changes nothing.

use super::*;
use crate::plan::{self, Plan};
use crate::snapshot::Parts;
use crate::train::step_batch;
use checkpoint::State;
use config::RunConfig;
use data::Loader;
use std::collections::BTreeMap;

/// Every objective, small.
const METHODS: [(&str, &str, &str); 5] = [
    ("simclr", "head = \"mlp-16-8\"", "kind = \"simclr\""),
    ("npid", "head = \"linear-8\"", "kind = \"npid\"\nnegatives = 20"),
    ("npid-all", "head = \"linear-8\"", "kind = \"npid\"\nnegatives = 0\nestimator = \"softmax\""),
    ("moco", "head = \"mlp-16-8\"", "kind = \"moco\"\nqueue = 17\nmomentum = 0.9"),
    (
        "moco-v3",
        "head = \"moco-v3-16-8\"\npredictor = \"moco-v3\"",
        "kind = \"moco-v3\"\nmomentum = 0.9\nmomentum_schedule = \"cosine\"",
    ),
];

fn config(method: &str, arch: &str) -> RunConfig {
    let (_, model, objective) = METHODS.iter().find(|(name, ..)| *name == method).unwrap();
    let text = format!(
        "[run]\nsteps = 5\n[train]\nglobal_batch = 7\n[data]\nsize = 8\n[model]\narch = \"{arch}\"\nstem = \"cifar\"\n\
         {model}\n[objective]\n{objective}\n[optimizer]\nlr = LR\n"
    );
    RunConfig::from_toml(&text).unwrap()
}

fn trainer(plan: &Plan, small: Communicator, gradients: Communicator) -> Trainer {
    let compute = plan::Compute { threads: 1, cores: Vec::new() };
    plan.trainer(&compute, small, gradients).unwrap()
}

/// Where a step is to fail: on which rank, in which communicator, at which of its exchanges.
#[derive(Clone, Copy, Debug)]
struct Fault {
    rank: usize,
    communicator: usize,
    sequence: u64,
}

/// What a rank has seen: its losses, how often it failed, all that a checkpoint would hold of it, and the exchanges of
/// the small communicator after each step.
struct Seen {
    losses: Vec<f64>,
    failures: usize,
    state: BTreeMap<String, Vec<u8>>,
    sequences: Vec<u64>,
}

impl Seen {
    fn floats(&self, prefix: &str) -> Vec<f32> {
        let of_prefix = self.state.iter().filter(|(name, _)| name.starts_with(prefix));
        let bytes = of_prefix.filter(|(name, _)| !name.ends_with("num_batches_tracked"));
        bytes.flat_map(|(_, bytes)| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))).collect()
    }
}

const STEPS: u64 = 3;

/// Three steps by `world_size` ranks. A step that fails is made again by a new group.
fn train(config: &RunConfig, world_size: usize, fault: Option<Fault>) -> Vec<Seen> {
    let spare = collective::loopback(world_size, 2).unwrap();
    let groups = collective::loopback(world_size, 2).unwrap().into_iter().zip(spare);
    std::thread::scope(|scope| {
        let ranks = groups.map(|(mut group, spare)| {
            scope.spawn(move || {
                let rank = group[0].rank();
                if let Some(fault) = fault.filter(|fault| fault.rank == rank) {
                    group[fault.communicator].fail_at(fault.sequence);
                }
                run(config, (rank, world_size), group, spare)
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn run(
    config: &RunConfig,
    (rank, world_size): (usize, usize),
    group: Vec<Communicator>,
    spare: Vec<Communicator>,
) -> Seen {
    let [small, gradients] = <[_; 2]>::try_from(group).unwrap();
    let plan = Plan::resolve(config, rank, world_size).unwrap();
    let mut trainer = trainer(&plan, small, gradients);
    let mut spare = Some(spare);
    let mut loader =
        Loader::new(plan.dataset.clone(), plan.augmentation.clone(), plan.loader_options(0)).unwrap();
    let mut seen = Seen { losses: Vec::new(), failures: 0, state: BTreeMap::new(), sequences: Vec::new() };
    for step in 1..=STEPS {
        let batch = loader.next_batch().unwrap();
        let before = state(&trainer);
        let outcome = trainer.step(step, &step_batch(&batch), LR).or_else(|error| {
            assert!(error.is_peer(), "{error:?}");
            assert!(state(&trainer) == before, "step {step} has changed something, and failed");
            seen.failures += 1;
            let [small, gradients] = <[_; 2]>::try_from(spare.take().unwrap()).unwrap();
            // What is dropped here tells the peers.
            trainer.communicator = small;
            trainer.gradients = (world_size > 1).then(|| GradientReducer::new(gradients).unwrap());
            trainer.step(step, &step_batch(&batch), LR)
        });
        seen.losses.push(outcome.unwrap().loss);
        seen.sequences.push(trainer.communicator.sequence());
    }
    seen.state = state(&trainer);
    seen
}

/// Everything that a checkpoint would hold of this rank.
fn state(trainer: &Trainer) -> BTreeMap<String, Vec<u8>> {
    let tensors = Parts::of(trainer).shard(0, 1);
    let state = State::new(tensors).unwrap();
    state.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.data.clone())).collect()
}

fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squared = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = squared(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (difference / squared(&mut a.iter().map(|&a| f64::from(a)))).sqrt()
}

/// Holds two worlds against each other: the bounds that rounding asks for.
#[track_caller]
fn check_same(what: &str, alone: &Seen, other: &Seen) {
    for (a, b) in alone.losses.iter().zip(&other.losses) {
        assert!((a / b - 1.0).abs() < 1e-5, "{what}: losses {:?} {:?}", alone.losses, other.losses);
    }
    for prefix in ["model.", "momentum.", "optimizer."] {
        let (a, b) = (alone.floats(prefix), other.floats(prefix));
        let difference = if a.is_empty() { 0.0 } else { relative_difference(&a, &b) };
        assert!(difference < 1e-3, "{what}: {prefix} differs by {difference}");
    }
}

#[test]
fn any_number_of_ranks_makes_the_same_steps() {
    for (method, ..) in METHODS {
        let config = config(method, "resnet20");
        let alone = train(&config, 1, None).remove(0);
        for world_size in [2, 3] {
            let ranks = train(&config, world_size, None);
            // All ranks hold the same bits, or they would drift apart.
            for rank in &ranks {
                assert_eq!(rank.losses, ranks[0].losses, "{method} on {world_size} ranks");
                assert!(rank.floats("m") == ranks[0].floats("m"), "{method} on {world_size} ranks");
            }
            check_same(&format!("{method} on {world_size} ranks"), &alone, &ranks[0]);
        }
    }
}

/// Wherever the second step fails, it is made again with the same result: nothing was applied, nothing twice.
#[test]
fn a_failure_at_any_collective_leaves_nothing_behind() {
    for (method, ..) in METHODS {
        let config = config(method, "resnet20");
        let undisturbed = train(&config, 2, None);
        let [begin, end] = [0, 1].map(|step| undisturbed[0].sequences[step]);
        // Gradients of a step travel in two exchanges.
        let small = (begin..end).map(|sequence| (0, sequence));
        for (number, (communicator, sequence)) in small.chain([(1, 2), (1, 3)]).enumerate() {
            let fault = Fault { rank: number % 2, communicator, sequence };
            let ranks = train(&config, 2, Some(fault));
            for (rank, expected) in ranks.iter().zip(&undisturbed) {
                assert_eq!(rank.failures, 1, "{method}, {fault:?}");
                assert_eq!(rank.losses, expected.losses, "{method}, {fault:?}");
                assert!(rank.state == expected.state, "{method}, {fault:?}: another state");
            }
        }
    }
}

#[test]
fn buckets_travel_while_the_backward_runs() {
    let config = config("simclr", "resnet18");
    std::thread::scope(|scope| {
        for group in collective::loopback(2, 2).unwrap() {
            let config = &config;
            scope.spawn(move || {
                let [small, gradients] = <[_; 2]>::try_from(group).unwrap();
                let plan = Plan::resolve(config, small.rank(), 2).unwrap();
                let mut trainer = trainer(&plan, small, gradients);
                let (network, communicator) = (&mut trainer.network, &mut trainer.communicator);
                let n = 2 * trainer.layout.images()[communicator.rank()];
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
                    bucket.take(range, gradient, None, reducer);
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
    let config = config("simclr", "resnet20");
    let plan = Plan::resolve(&config, 0, 1).unwrap();
    let mut trainer = trainer(&plan, Communicator::alone(), Communicator::alone());
    let before = trainer.network.parameters().clone();
    let images = vec![f32::NAN; 14 * 8 * 8 * 3];
    let indices: Vec<usize> = (0..7).collect();
    let batch = StepBatch { images: &images, indices: &indices, labels: &[], jigsaw: &[] };
    let error = trainer.step(5, &batch, LR).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.exit_code()), ("the loss of step 5 is NaN", 3));
    let after = trainer.network.parameters();
    assert_eq!((&before.values, &before.buffer_values), (&after.values, &after.buffer_values));
    assert_eq!(trainer.optimizer.updates, 0);
}
