//! Everything that can be set about a run, and what holds where nothing is set.

use std::time::Duration;

use crate::choices::{
    Arch, Augment, BankDtype, BankStorage, BatchNorm, Convolution, Estimator, Head, MomentumSchedule,
    Normalizer, ObjectiveKind, OptimizerKind, Predictor, ScheduleKind, Stem,
};

/// How long workers go on without their coordinator, unless set: `cluster.orphan_ttl` on a cluster.
pub const ORPHAN_TTL: Duration = Duration::from_secs(15 * 60);

/// The configuration of a run. Section `foo` holds the keys `foo.*`.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "each section is documented as a type")]
pub struct RunConfig {
    pub run: Run,
    pub train: Train,
    pub model: Model,
    pub objective: Objective,
    pub bank: Bank,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub data: Data,
    pub eval: Eval,
    pub checkpoint: Checkpoint,
    pub metrics: Metrics,
    pub cluster: Cluster,
}

/// Length and seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// `run.steps` or `run.epochs`: each unsets the other.
    pub length: Length,
    /// Ends cleanly at this step, the schedule unchanged. Set to 0 it is unset.
    pub stop_after: Option<u64>,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Optimizer updates.
    Steps(u64),
    /// Passes over the data set, each of whole batches.
    Epochs(u64),
}

/// The step.
#[derive(Clone, Debug, PartialEq)]
pub struct Train {
    /// Images of a step, over all ranks.
    pub global_batch: usize,
    /// Images of one pass of an accumulated step, over all ranks; 0: the whole batch at once. Chunk `c` is the
    /// positions `[c * chunk, (c + 1) * chunk)` of the global batch, whatever the number of ranks.
    pub chunk: usize,
    /// Which convolution algorithm.
    pub convolution: Convolution,
}

/// The network.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Backbone.
    pub arch: Arch,
    /// How images enter a residual network.
    pub stem: Stem,
    /// Side of the patches of a vision transformer, in pixels; it divides `data.size`.
    pub patch: usize,
    /// Whether the layer over the patches stays as it was drawn, in a vision transformer.
    pub freeze_patch: bool,
    /// Projection head.
    pub head: Head,
    /// Behind the head of the trained network only.
    pub predictor: Predictor,
    /// Rows over which batch norm takes its statistics.
    pub batch_norm: BatchNorm,
    /// Whether every residual block starts as the identity.
    pub zero_init_residual: bool,
}

/// The loss. Fields of other kinds keep their defaults, and are neither written nor to be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Which loss.
    pub kind: ObjectiveKind,
    /// Divides cosine similarities.
    pub temperature: f64,
    /// Slots of the bank that each image is told from; 0: all of them. Of `npid` and `pirl`, like all up to
    /// `exclude_positive`.
    pub negatives: usize,
    /// What is made of them.
    pub estimator: Estimator,
    /// Where the constant Z of `nce` comes from.
    pub normalizer: Normalizer,
    /// Share of Z that stays when a batch is averaged into it.
    pub normalizer_momentum: f64,
    /// Weight of the squared distance between a feature and its slot. Of `npid`.
    pub proximal: f64,
    /// Share of a slot that stays when its feature is averaged into it.
    pub feature_momentum: f64,
    /// Whether an image's own slot is never drawn as a negative of it.
    pub exclude_positive: bool,
    /// Share of the jigsaw's loss in the sum. Of `pirl`.
    pub jigsaw_weight: f64,
    /// Keys that are kept. Of `moco`.
    pub queue: usize,
    /// Share of the momentum encoder that stays at an update. Of `moco` and `moco-v3`.
    pub momentum: f64,
    /// Whether that share grows.
    pub momentum_schedule: MomentumSchedule,
}

/// The memory bank of `npid` and `pirl`: one slot per image, shared out over the ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Bank {
    /// How a slot's numbers are stored.
    pub dtype: BankDtype,
    /// Where a rank's slots are.
    pub storage: BankStorage,
    /// Steps after which a slot that was not seen is encoded anew, at least 2; 0: never.
    pub refresh_age: u64,
    /// Whether the next rank keeps a copy of each rank's slots.
    pub mirror: bool,
}

/// The update.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// Which rule.
    pub kind: OptimizerKind,
    /// Learning rate at the end of the warm-up.
    pub lr: f64,
    /// Of SGD and LARS.
    pub momentum: f64,
    /// Added to the gradient (SGD, LARS) or decoupled from it (AdamW).
    pub weight_decay: f64,
    /// Trust coefficient of LARS.
    pub eta: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// Added to AdamW's denominator.
    pub eps: f64,
    /// Whether biases and batch-norm parameters decay as well.
    pub decay_all: bool,
}

/// The learning rate over the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// What follows the warm-up.
    pub kind: ScheduleKind,
    /// The learning rate at the end of the run. Of `cosine`.
    pub final_lr: f64,
    /// Epochs after which the learning rate falls, ascending. Of `step`.
    pub milestones: Vec<u64>,
    /// What it is multiplied by at each of them. Of `step`.
    pub gamma: f64,
    /// Updates of linear warm-up; a warm-up longer than the run is cut to it.
    pub warmup_steps: u64,
}

/// Images and what is made of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// `builtin`, a path, or `path#split`.
    pub source: String,
    /// Side of the views, in pixels.
    pub size: usize,
    /// Augmentation pipeline.
    pub augment: Augment,
    /// Subtracted from each channel (of values in [0, 1]) after augmentation.
    pub mean: Option<[f64; 3]>,
    /// Divides each channel after that.
    pub std: Option<[f64; 3]>,
    /// Threads of each worker that decode and augment ahead of the step.
    pub threads: usize,
    /// Share of images that may fail to decode before the run fails.
    pub max_corrupt_share: f64,
    /// Pixels above which an image is not decoded, but taken for a corrupt one.
    pub max_pixels: usize,
}

/// kNN evaluation; never, unless set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Eval {
    /// Every so many steps, before the first and at the end; 0: never.
    pub knn_every: u64,
    /// Images to classify by the training images; unset: each training image by the others.
    pub data: Option<String>,
    /// Neighbours that vote; 0: half as many as a class has training images, at most 200.
    pub k: usize,
}

/// What is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Every so many steps; 0: none by steps.
    pub every: u64,
    /// Every so many minutes of training; 0: none by time. The coordinator decides when.
    pub every_minutes: f64,
    /// How many of the newest stay.
    pub keep: usize,
    /// Whether one is taken before the first forward pass; it is never retired.
    pub at_start: bool,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// A row every so many steps; the last step always has one.
    pub every: u64,
}

/// Many machines.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// How long workers go on without their coordinator.
    pub orphan_ttl: Duration,
}

impl Default for Run {
    fn default() -> Self {
        Run { seed: 0, length: Length::Epochs(100), stop_after: None }
    }
}

impl Default for Train {
    fn default() -> Self {
        Train { global_batch: 256, chunk: 0, convolution: Convolution::Auto }
    }
}

impl Default for Model {
    fn default() -> Self {
        Model {
            arch: Arch::ResNet18,
            stem: Stem::Imagenet,
            patch: 16,
            freeze_patch: true,
            head: Head::SimclrV1,
            predictor: Predictor::None,
            batch_norm: BatchNorm::Global,
            zero_init_residual: true,
        }
    }
}

impl Default for Objective {
    fn default() -> Self {
        Objective {
            kind: ObjectiveKind::Simclr,
            temperature: 0.1,
            negatives: 4096,
            estimator: Estimator::Nce,
            normalizer: Normalizer::FirstBatch,
            normalizer_momentum: 0.99,
            proximal: 0.0,
            feature_momentum: 0.5,
            exclude_positive: false,
            jigsaw_weight: 0.5,
            queue: 65_536,
            momentum: 0.999,
            momentum_schedule: MomentumSchedule::Constant,
        }
    }
}

impl Default for Bank {
    fn default() -> Self {
        Bank { dtype: BankDtype::F32, storage: BankStorage::Memory, refresh_age: 0, mirror: true }
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Optimizer {
            kind: OptimizerKind::Sgd,
            lr: 0.3,
            momentum: 0.9,
            weight_decay: 1e-4,
            eta: 0.001,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            decay_all: false,
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            kind: ScheduleKind::Cosine,
            final_lr: 0.0,
            milestones: vec![120, 160],
            gamma: 0.1,
            warmup_steps: 0,
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Data {
            source: "builtin".to_owned(),
            size: 32,
            augment: Augment::SimclrCifar,
            mean: None,
            std: None,
            threads: 2,
            max_corrupt_share: 0.01,
            max_pixels: 178_956_970,
        }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Checkpoint { every: 0, every_minutes: Checkpoint::minutes_beside(0), keep: 3, at_start: false }
    }
}

impl Checkpoint {
    /// Minutes between checkpoints where `checkpoint.every` is `every` and nothing sets `checkpoint.every_minutes`: a run
    /// whose steps set no cadence still loses no more than ten minutes to a killed worker.
    pub(crate) fn minutes_beside(every: u64) -> f64 {
        if every == 0 { 10.0 } else { 0.0 }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics { every: 1 }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster { orphan_ttl: ORPHAN_TTL }
    }
}
