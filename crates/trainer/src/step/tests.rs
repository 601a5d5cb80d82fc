//! Whole steps: any number of ranks makes the same, a failure anywhere changes nothing.

mod accumulation;
mod calculus;
mod shuffle;
mod sizes;

use super::*;
use crate::fixtures;
use crate::plan::Plan;
use crate::state_dict::{Parts, Restoration, shard_bytes};
use checkpoint::{Dtype, Tensor};
use collective::Group;
use config::RunConfig;
use data::{Batch, Loader};
use kernels::{DeviceOptions, KernelPath, Real};
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// Small enough that rounding does not grow from step to step.
const LR: f64 = 0.002;

/// Every objective, small: name, and what it sets of `train`, `model` and `objective`.
const METHODS: [(&str, &str, &str, &str); 12] = [
    ("simclr", "", "head = \"mlp-16-8\"", "kind = \"simclr\""),
    ("simclr in chunks", "chunk = 4", "head = \"mlp-16-8\"", "kind = \"simclr\""),
    ("supcon", "", "head = \"mlp-16-8\"", "kind = \"supcon\""),
    ("dcl in chunks", "chunk = 4", "head = \"simclr-v1\"", "kind = \"dcl\""),
    ("align-uniform", "", "head = \"mlp-16-8\"", "kind = \"align-uniform\""),
    ("npid", "", "head = \"linear-8\"", "kind = \"npid\"\nnegatives = 20"),
    (
        "npid with a moving normalizer",
        "",
        "head = \"linear-8\"",
        "kind = \"npid\"\nnegatives = 20\nnormalizer = \"ema\"\nproximal = 0.1",
    ),
    ("npid of all", "", "head = \"linear-8\"", "kind = \"npid\"\nnegatives = 0\nestimator = \"softmax\""),
    ("pirl in chunks", "chunk = 4", "head = \"moco-v3-16-8\"", "kind = \"pirl\"\nnegatives = 20"),
    ("moco", "", "head = \"mlp-16-8\"", MOCO),
    ("moco in chunks", "chunk = 4", "head = \"mlp-16-8\"", MOCO),
    (
        "moco-v3",
        "",
        "head = \"moco-v3-16-8\"\npredictor = \"moco-v3\"",
        "kind = \"moco-v3\"\nmomentum = 0.9\nmomentum_schedule = \"cosine\"",
    ),
];

const MOCO: &str = "kind = \"moco\"\nqueue = 17\nmomentum = 0.9";

fn config(method: &str, arch: &str) -> RunConfig {
    let (_, train, model, objective) = METHODS.iter().find(|(name, ..)| *name == method).unwrap();
    let of_arch = if arch.starts_with("vit") { "patch = 4" } else { "stem = \"cifar\"" };
    let text = format!(
        "[run]\nsteps = 20\n[train]\nglobal_batch = 7\n{train}\n[data]\nsize = 8\n[model]\narch = \"{arch}\"\n\
         {of_arch}\n{model}\n[objective]\n{objective}\n[optimizer]\nlr = {LR}\n"
    );
    RunConfig::from_toml(&text).unwrap()
}

fn trainer(plan: &Plan, group: Group) -> Trainer {
    let device = DeviceOptions::of_threads(1, KernelPath::detect());
    plan.trainer(&device, group).unwrap()
}

/// Where steps are to fail.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Never,
    /// Step by step one exchange of the activations' communicator later, by turns on each rank, from this one on; a step that
    /// has fewer exchanges does not fail.
    Everywhere {
        from: u64,
    },
    /// At an exchange of the gradients' communicator, on rank 1.
    Gradients {
        sequence: u64,
    },
}

/// What a rank has seen: its losses and other metrics, the images that it could not encode anew, how often it failed, all
/// that a checkpoint would hold of it, its shard of that, the size that it predicted for it before its first step, and the
/// exchanges of the activations' communicator after each step.
struct Seen {
    losses: Vec<f64>,
    metrics: Vec<Vec<(&'static str, f64)>>,
    corrupt: BTreeSet<String>,
    failures: usize,
    state: BTreeMap<String, Vec<u8>>,
    shard: Vec<Tensor<'static>>,
    predicted_bytes: u64,
    sequences: Vec<u64>,
}

impl Seen {
    /// What every rank has to hold alike: all but its own slots.
    fn replicated(&self) -> Vec<(&String, &Vec<u8>)> {
        self.state.iter().filter(|(name, _)| !name.contains(".slots-")).collect()
    }
}

/// Some steps by some ranks. A step that fails is made again by a new group.
struct Episode<'a> {
    config: &'a RunConfig,
    world_size: usize,
    steps: Range<u64>,
    /// The checkpoint that it goes on from.
    from: &'a [Tensor<'static>],
    fault: Fault,
}

/// The groups that replace failed ones, by how many have failed: `[rank]`.
type Spare = Mutex<BTreeMap<usize, Vec<Option<Group>>>>;

impl<'a> Episode<'a> {
    /// The first three steps.
    fn new(config: &'a RunConfig, world_size: usize) -> Episode<'a> {
        Episode { config, world_size, steps: 0..3, from: &[], fault: Fault::Never }
    }

    fn run(&self) -> Vec<Seen> {
        let spare = Spare::default();
        std::thread::scope(|scope| {
            let groups = Group::loopback(self.world_size).unwrap().into_iter();
            let ranks: Vec<_> = groups.map(|group| scope.spawn(|| self.run_rank(group, &spare))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    /// This rank's part of the next group.
    fn spare_group(&self, spare: &Spare, failures: usize, rank: usize) -> Group {
        let mut spare = spare.lock().unwrap();
        let groups = spare
            .entry(failures)
            .or_insert_with(|| Group::loopback(self.world_size).unwrap().into_iter().map(Some).collect());
        groups[rank].take().unwrap()
    }

    fn run_rank(&self, mut group: Group, spare: &Spare) -> Seen {
        let rank = group.control.rank();
        if let Fault::Gradients { sequence } = self.fault
            && rank == 1
        {
            group.gradients.fail_at(sequence);
        }
        let plan = Plan::resolve(self.config, rank, self.world_size).unwrap();
        let mut trainer = trainer(&plan, group);
        if !self.from.is_empty() {
            let mut restoration = Restoration::new(&mut trainer);
            self.from.iter().for_each(|tensor| restoration.take(tensor).unwrap());
            restoration.finish().unwrap();
        }
        let predicted_bytes = shard_bytes(&trainer);
        let options = plan.loader_options(self.steps.start);
        let mut loader = Loader::new(plan.dataset.clone(), plan.augmentation.clone(), options).unwrap();
        let (mut losses, mut metrics, mut corrupt) = (Vec::new(), Vec::new(), BTreeSet::new());
        let (mut sequences, mut failures) = (Vec::new(), 0);
        for step in self.steps.clone() {
            let batch = loader.next_batch().unwrap();
            if let Fault::Everywhere { from } = self.fault
                && step as usize % self.world_size == rank
            {
                trainer.activations.fail_at(trainer.activations.sequence() + from + step);
            }
            let before = state(&trainer);
            let lr = self.config.optimizer.lr;
            let outcome = trainer.step(step + 1, &StepBatch::from(&batch), lr).or_else(|error| {
                assert!(error.is_peer(), "{error:?}");
                assert!(state(&trainer) == before, "step {step} has changed something, and failed");
                failures += 1;
                let group = self.spare_group(spare, failures, rank);
                let Group { control, activations, gradients } = group;
                // What is dropped here tells the peers.
                (trainer.control, trainer.activations) = (control, activations);
                trainer.gradients = (self.world_size > 1).then(|| GradientReducer::new(gradients).unwrap());
                trainer.step(step + 1, &StepBatch::from(&batch), lr)
            });
            let outcome = outcome.unwrap();
            losses.push(outcome.loss);
            metrics.push(outcome.metrics);
            corrupt.extend(outcome.corrupt.into_iter().map(|(path, _)| path));
            sequences.push(trainer.activations.sequence());
        }
        let parts = Parts::of(&trainer);
        let shard = parts.shard(rank, self.world_size).into_iter().map(Tensor::into_owned).collect();
        let state = state(&trainer);
        Seen { losses, metrics, corrupt, failures, state, shard, predicted_bytes, sequences }
    }
}

/// A checkpoint of all ranks.
fn checkpoint(ranks: &[Seen]) -> Vec<Tensor<'static>> {
    ranks.iter().flat_map(|rank| rank.shard.clone()).collect()
}

/// Everything that a checkpoint would hold of this rank.
fn state(trainer: &Trainer) -> BTreeMap<String, Vec<u8>> {
    let parts = Parts::of(trainer);
    let tensors = parts.shard(0, 1).into_iter();
    tensors.map(|tensor| (tensor.name, tensor.data.into_owned())).collect()
}

fn relative_difference<T: Real>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squared = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = squared(&mut a.iter().zip(b).map(|(a, b)| a.to_f64() - b.to_f64()));
    (difference / squared(&mut a.iter().map(|a| a.to_f64()))).sqrt()
}

/// What is compared as one vector: by how much it may differ depends on where it comes from.
const GROUPS: [&str; 5] = ["weights", "momentum encoder", "running statistics", "optimizer", "objective"];

fn group(name: &str) -> &'static str {
    match name.split('.').next() {
        _ if name.contains(".running_") => GROUPS[2],
        Some("model") => GROUPS[0],
        Some("momentum") => GROUPS[1],
        Some("optimizer") => GROUPS[3],
        _ => GROUPS[4],
    }
}

/// Numbers of a checkpoint, those of a bank slot by slot.
fn numbers(tensors: &[Tensor<'_>], of: &str) -> Vec<f64> {
    let numbers = |(dtype, bytes): (Dtype, Vec<u8>)| -> Vec<f64> {
        match dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            _ => Vec::new(),
        }
    };
    let of_group = tensors.iter().filter(|tensor| group(&tensor.name) == of);
    rows(of_group).into_values().flat_map(numbers).collect()
}

/// Holds what two worlds have made of `start` against each other: changes to `bound`, and what is counted (updates,
/// batches, a queue's pointer, the step that last wrote each slot) to the bit.
#[track_caller]
fn check_same_state(what: &str, start: &[Tensor<'_>], [alone, ranks]: [&[Seen]; 2], bound: f64) {
    let (alone, whole) = (checkpoint(alone), checkpoint(ranks));
    for group in GROUPS {
        let [start, a, b] = [start, &alone, &whole].map(|tensors| numbers(tensors, group));
        if a == start {
            assert!(a.is_empty(), "{what}: {group} did not change");
            continue;
        }
        // Z is no number before the first step.
        let change = |now: &[f64]| {
            let change =
                now.iter().zip(&start).map(|(now, start)| now - if start.is_nan() { 0.0 } else { *start });
            change.collect::<Vec<f64>>()
        };
        let difference = relative_difference(&change(&a), &change(&b));
        assert!(difference < bound, "{what}: {group} differ by {difference}");
    }
    let counted = |tensors: &[Tensor<'_>]| {
        let is_float = |dtype| matches!(dtype, Dtype::F32 | Dtype::F64);
        rows(tensors.iter().filter(|tensor| !is_float(tensor.dtype)))
    };
    assert!(counted(&alone) == counted(&whole), "{what}: something was counted differently");
}

/// A checkpoint with one ulp more in a weight of the backbone, the `nth` of its tensors.
fn nudged(checkpoint: &[Tensor<'static>], nth: usize) -> Vec<Tensor<'static>> {
    let mut nudged = checkpoint.to_vec();
    let is_weight = |name: &str| name.starts_with("model.backbone.") && name.ends_with("weight");
    let mut weights = nudged.iter_mut().filter(|tensor| is_weight(&tensor.name));
    let weight = weights.nth(nth).unwrap().data.to_mut().first_chunk_mut().unwrap();
    *weight = (u32::from_le_bytes(*weight) + 1).to_le_bytes();
    nudged
}

/// What a trainer of one rank begins with.
fn start(config: &RunConfig) -> Vec<Tensor<'static>> {
    checkpoint(&Episode { steps: 0..0, ..Episode::new(config, 1) }.run())
}

/// The largest relative difference until each step.
fn differences(losses: &[f64], others: &[f64]) -> Vec<f64> {
    let mut most: f64 = 0.0;
    let until = |(a, b): (&f64, &f64)| {
        most = most.max((a / b - 1.0).abs());
        most
    };
    losses.iter().zip(others).map(until).collect()
}

/// Holds the losses of worlds of several sizes against those of one rank, by `CONTRACT.md`, "Across world sizes": they
/// agree to 1e-4, or differ by what one ulp in a weight does in one world.
fn check_same_losses(what: &str, config: &RunConfig, alone: &[f64], of_world_sizes: &[(usize, Vec<f64>)]) {
    let of_an_ulp = LazyCell::new(|| {
        let steps = 0..alone.len() as u64;
        let start = start(config);
        let losses = |from: &[Tensor<'static>]| {
            Episode { steps: steps.clone(), from, ..Episode::new(config, 1) }.run().remove(0).losses
        };
        [0, 3, 7, 11].map(|nth| differences(alone, &losses(&nudged(&start, nth))))
    });
    for (world_size, losses) in of_world_sizes {
        for (step, difference) in differences(alone, losses).into_iter().enumerate() {
            if difference > 1e-4 {
                let of_an_ulp = of_an_ulp.iter().map(|differences| differences[step]).fold(0.0, f64::max);
                let seen = format!("{difference} on {world_size} ranks, {of_an_ulp} by an ulp");
                assert!(difference < 1e-4 + 3.0 * of_an_ulp, "{what}, step {}: {seen}", step + 1);
            }
        }
    }
}

/// Makes some steps on one rank and on several, and holds what is kept against each other; the losses alone, and those
/// of each world size.
#[track_caller]
fn check_steps(
    method: &str,
    config: &RunConfig,
    steps: u64,
    bound: f64,
) -> (Vec<f64>, Vec<(usize, Vec<f64>)>) {
    let run = |world_size| Episode { steps: 0..steps, ..Episode::new(config, world_size) }.run();
    let (start, alone) = (start(config), run(1));
    let mut losses = Vec::new();
    for world_size in [2, 3, 4] {
        let (what, ranks) = (format!("{method} on {world_size} ranks"), run(world_size));
        // All ranks hold the same bits, or they would drift apart.
        for rank in &ranks {
            assert_eq!(rank.losses, ranks[0].losses, "{what}");
            assert!(rank.replicated() == ranks[0].replicated(), "{what}");
        }
        check_same_state(&what, &start, [&alone, &ranks], bound);
        losses.push((world_size, ranks[0].losses.clone()));
    }
    (alone[0].losses.clone(), losses)
}

/// A batch that is uneven over any number of ranks, each of which has an image in every chunk.
fn uneven(method: &str) -> RunConfig {
    let mut config = config(method, "resnet20");
    config.train.global_batch = 9;
    config.train.chunk = if config.train.chunk > 0 { 5 } else { 0 };
    config
}

#[test]
fn any_number_of_ranks_makes_the_same_steps() {
    for (method, ..) in METHODS {
        let (alone, of_world_sizes) = check_steps(method, &uneven(method), 3, 1e-3);
        for (world_size, losses) in of_world_sizes {
            let most = differences(&alone, &losses)[2];
            assert!(most < 1e-5, "{method} on {world_size} ranks: {losses:?} instead of {alone:?}");
        }
    }
}

/// In twenty steps rounding carries a few ReLUs over their kinks, which a momentum of gradients shows by some thousandths.
#[test]
fn any_number_of_ranks_makes_the_same_twenty_steps() {
    for (method, ..) in METHODS {
        let mut config = uneven(method);
        config.optimizer.lr = 1e-4;
        let (alone, of_world_sizes) = check_steps(method, &config, 20, 3e-2);
        check_same_losses(method, &config, &alone, &of_world_sizes);
    }
}

/// A vision transformer's rounding errors grow fast, with batch norm and AdamW behind them: at some seeds and rates to 1e-2
/// within twenty steps.
#[test]
fn any_number_of_ranks_trains_a_vision_transformer() {
    let config = RunConfig::from_toml(
        r#"
        [run]
        steps = 20
        seed = 1
        [train]
        global_batch = 32
        [data]
        size = 16
        augment = "moco-v3"
        [model]
        arch = "vit-24-2-3"
        patch = 4
        freeze_patch = true
        head = "moco-v3-vit-32-16"
        predictor = "moco-v3-vit"
        [objective]
        kind = "moco-v3"
        temperature = 0.2
        momentum = 0.99
        momentum_schedule = "cosine"
        [optimizer]
        kind = "adamw"
        lr = 1e-5
        weight_decay = 0.1
        decay_all = true
        "#,
    )
    .unwrap();
    let losses =
        |world_size| Episode { steps: 0..20, ..Episode::new(&config, world_size) }.run().remove(0).losses;
    check_same_losses(
        "moco-v3",
        &config,
        &losses(1),
        &[2, 3].map(|world_size| (world_size, losses(world_size))),
    );
}

/// As many steps as a step has collectives, each failing at the next one: nothing was applied, nothing twice.
#[test]
fn a_failure_at_any_collective_leaves_nothing_behind() {
    let mut shuffled = config("moco in chunks", "resnet20");
    shuffled.model.batch_norm = config::BatchNorm::Local;
    let methods = METHODS.map(|(method, ..)| (method, config(method, "resnet20")));
    for (method, config) in methods.into_iter().chain([("moco with shuffled batch norm", shuffled)]) {
        let first = Episode { steps: 0..2, ..Episode::new(&config, 2) }.run().remove(0);
        let (n_first, n) = (first.sequences[0], first.sequences[1] - first.sequences[0]);
        let everywhere = (0..n, Fault::Everywhere { from: 0 }, n as usize);
        // The first step may have more: it estimates the normalizer.
        let first =
            (1..if n_first == n { 1 } else { n_first }).map(|from| (0..1, Fault::Everywhere { from }, 1));
        // The gradients of a step travel in two exchanges.
        let gradients = [2, 3].map(|sequence| (0..3, Fault::Gradients { sequence }, 1));
        let mut undisturbed = BTreeMap::new();
        for (steps, fault, failures) in [everywhere].into_iter().chain(first).chain(gradients) {
            let episode = |fault| Episode { steps: steps.clone(), fault, ..Episode::new(&config, 2) }.run();
            let undisturbed = undisturbed.entry(steps.end).or_insert_with(|| episode(Fault::Never));
            for (rank, expected) in episode(fault).iter().zip(undisturbed) {
                assert_eq!(rank.failures, failures, "{method}, {fault:?}");
                assert_eq!(rank.losses, expected.losses, "{method}, {fault:?}");
                assert!(rank.state == expected.state, "{method}, {fault:?}: another state");
            }
        }
    }
}

/// NPID sees the same views: PIRL's running statistics are theirs, and of no patch.
#[test]
fn a_jigsaw_leaves_no_statistics() {
    let statistics = |method| {
        let config =
            RunConfig { train: config("pirl in chunks", "resnet20").train, ..config(method, "resnet20") };
        let seen = Episode { steps: 0..1, ..Episode::new(&config, 1) }.run().remove(0);
        let is_statistic = |name: &str| name.contains(".running_") || name.ends_with(".num_batches_tracked");
        let of_backbone = |name: &str| name.starts_with("model.backbone.") && is_statistic(name);
        seen.state.into_iter().filter(|(name, _)| of_backbone(name)).collect::<Vec<_>>()
    };
    let of_views = statistics("npid");
    assert!(!of_views.is_empty());
    assert!(statistics("pirl in chunks") == of_views);
}

/// In the middle of an epoch, by the state that a checkpoint holds alone.
#[test]
fn a_resumed_run_is_the_undisturbed_one() {
    for (method, ..) in METHODS {
        let config = config(method, "resnet20");
        let undisturbed = Episode::new(&config, 2).run();
        let first = Episode { steps: 0..2, ..Episode::new(&config, 2) }.run();
        let from = checkpoint(&first);
        let resumed = Episode { steps: 2..3, from: &from, ..Episode::new(&config, 2) }.run();
        for (rank, expected) in resumed.iter().zip(&undisturbed) {
            assert_eq!(rank.losses, expected.losses[2..], "{method}");
            assert!(rank.state == expected.state, "{method}: another state");
        }
    }
}

/// The type and bytes of every tensor, of a bank's those of every slot.
fn rows<'a>(
    tensors: impl IntoIterator<Item = &'a Tensor<'a>>,
) -> BTreeMap<(String, usize), (Dtype, Vec<u8>)> {
    let mut rows = BTreeMap::new();
    let mut add = |name: &str, place, dtype, bytes: &[u8]| {
        let before = rows.insert((name.to_owned(), place), (dtype, bytes.to_vec()));
        assert!(before.is_none(), "{name} {place} twice");
    };
    for tensor in tensors {
        let Some((name, range)) = tensor.name.split_once(".slots-") else {
            add(&tensor.name, 0, tensor.dtype, &tensor.data);
            continue;
        };
        let (start, end) = range.split_once('-').unwrap();
        let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
        for (slot, bytes) in (start..end).zip(tensor.data.chunks_exact(tensor.data.len() / (end - start))) {
            add(name, slot, tensor.dtype, bytes);
        }
    }
    rows
}

/// No slot is lost or changed when another number of ranks goes on, nor anything else; and it trains on as they would.
#[test]
fn another_number_of_ranks_goes_on_with_every_slot() {
    for (method, ..) in METHODS {
        let config = config(method, "resnet20");
        let undisturbed = Episode::new(&config, 2).run();
        let from = checkpoint(&Episode { steps: 0..2, ..Episode::new(&config, 2) }.run());
        for world_size in [1, 3] {
            let episode = |steps| Episode { steps, from: &from, ..Episode::new(&config, world_size) };
            let taken_over = checkpoint(&episode(2..2).run());
            assert!(rows(&taken_over) == rows(&from), "{method} on {world_size} ranks");
            let loss = episode(2..3).run()[0].losses[0];
            let expected = undisturbed[0].losses[2];
            assert!((loss / expected - 1.0).abs() < 1e-4, "{method}: {loss} instead of {expected}");
        }
    }
    let config = config("npid", "resnet20");
    let saved = rows(&checkpoint(&Episode::new(&config, 2).run())).into_keys();
    assert!(saved.filter(|(name, _)| name == "objective.bank").count() > 1);
}

/// 24 images of which a step takes 7; slots that were not seen are encoded anew before they are older than 2 steps.
#[test]
fn no_slot_that_is_read_is_older_than_its_bound() {
    let images = tempfile::tempdir().unwrap();
    fixtures::images(images.path(), &[("a", [200, 0, 0]), ("b", [0, 200, 0]), ("c", [0, 0, 200])], 8);
    let mut config = config("npid of all", "resnet20");
    config.data.source = images.path().to_str().unwrap().to_owned();
    let steps = 0..6;
    let oldest = |config: &RunConfig, world_size| {
        let ranks = Episode { steps: steps.clone(), ..Episode::new(config, world_size) }.run();
        let ages = ranks[0].metrics.iter().flatten().filter(|(name, _)| *name == "bank_age_max");
        ages.map(|(_, age)| *age).fold(0.0, f64::max)
    };
    assert!(oldest(&config, 1) > 2.0);
    config.bank.refresh_age = 2;
    assert_eq!((oldest(&config, 1), oldest(&config, 2)), (2.0, 2.0));

    // What the refresh has staged goes with the step: its collectives are the last.
    let episode = |fault| Episode { steps: 0..4, fault, ..Episode::new(&config, 2) }.run();
    let undisturbed = episode(Fault::Never);
    let from = undisturbed[0].sequences[0] - 4;
    for (rank, expected) in episode(Fault::Everywhere { from }).iter().zip(&undisturbed) {
        assert_eq!(rank.failures, 4);
        assert!(rank.state == expected.state, "another state");
    }
}

/// A batch brings a slot once an epoch, which is three steps: in six of them it is due at least once.
#[test]
fn a_slot_whose_image_cannot_be_decoded_stays_old_and_is_told() {
    let images = tempfile::tempdir().unwrap();
    fixtures::images(images.path(), &[("a", [200, 0, 0]), ("b", [0, 200, 0]), ("c", [0, 0, 200])], 8);
    let broken: BTreeSet<String> =
        ["a/001.png", "a/006.png", "b/000.png", "c/003.png", "c/007.png"].map(str::to_owned).into();
    broken.iter().for_each(|path| std::fs::write(images.path().join(path), "no image").unwrap());
    let mut config = config("npid of all", "resnet20");
    config.data.source = images.path().to_str().unwrap().to_owned();
    config.data.max_corrupt_share = 0.5;
    config.bank.refresh_age = 2;
    for world_size in [1, 2] {
        let ranks = Episode { steps: 0..6, ..Episode::new(&config, world_size) }.run();
        let told: BTreeSet<String> = ranks.iter().flat_map(|rank| rank.corrupt.clone()).collect();
        assert_eq!(told, broken, "{world_size} ranks");
        let ages = ranks[0].metrics.iter().flatten().filter(|(name, _)| *name == "bank_age_max");
        assert!(ages.map(|(_, age)| *age).fold(0.0, f64::max) > 2.0, "{world_size} ranks");
    }
}

#[test]
fn buckets_travel_while_the_backward_runs() {
    let config = config("simclr", "resnet18");
    std::thread::scope(|scope| {
        for group in Group::loopback(2).unwrap() {
            let config = &config;
            scope.spawn(move || {
                let plan = Plan::resolve(config, group.control.rank(), 2).unwrap();
                let mut trainer = trainer(&plan, group);
                let (network, communicator) = (&mut trainer.network, &mut trainer.activations);
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
    let mut trainer = trainer(&plan, Group::alone());
    let before = trainer.network.parameters().clone();
    let images = vec![f32::NAN; 14 * 8 * 8 * 3];
    let indices: Vec<usize> = (0..7).collect();
    let batch =
        StepBatch { positions: &indices, indices: &indices, labels: &[], images: &images, jigsaw: &[] };
    let error = trainer.step(5, &batch, LR).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.exit_code()), ("the loss of step 5 is NaN", 3));
    let after = trainer.network.parameters();
    assert_eq!((&before.values, &before.buffer_values), (&after.values, &after.buffer_values));
    assert_eq!(trainer.optimizer.updates, 0);
}
