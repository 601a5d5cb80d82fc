//! The resolved plan of a run on one rank: configuration and data set in, shapes and specifications out.
//!
//! Here, and nowhere else, the configuration's names become the engine's types. What can only be refused
//! with the data in sight is refused here, by the name of its key.

use collective::{GradientReducer, Group};
use config::{Length, RunConfig};
use data::{Augmentation, Dataset, EpochOrigin, Jigsaw, Limits, LoaderOptions, Parts, Sampler};
use engine::models::{ModelSpec, PATCHES, Role};
use engine::network::{Network, NetworkOptions};
use engine::optim::{Optimizer, OptimizerKind, OptimizerSpec};
use engine::schedule::{Schedule, ScheduleKind};
use kernels::DeviceOptions;
use objectives::{MIN_TEMPERATURE, Needs, TwoViews};
use std::sync::Arc;

use crate::images::Images;
use crate::objective::{self, Place};
use crate::step::Trainer;
use crate::step::layout::Layout;
use crate::step::momentum::{MomentumEncoder, MomentumSchedule};
use crate::step::patches::PatchBranch;
use crate::step::refresh::Refresh;
use crate::{Error, model};

/// Views of an image in a batch.
pub const VIEWS: usize = 2;

/// Batches that a rank prepares ahead of the step.
const PREFETCH: usize = 3;

/// Passes over the data as updates.
#[derive(Clone, Copy, Debug)]
pub struct Epochs {
    /// Updates in one pass.
    pub steps_per_epoch: u64,
    /// Where passes are counted from.
    pub origin: EpochOrigin,
}

impl Epochs {
    /// Counts the updates that complete `epochs` passes.
    pub fn updates(self, epochs: u64) -> u64 {
        match epochs.checked_sub(self.origin.epoch) {
            Some(since) => self.origin.step + since * self.steps_per_epoch,
            // Passes of another length, which are over.
            None => (epochs * self.steps_per_epoch).min(self.origin.step),
        }
    }

    /// Counts the passes after `step` updates.
    pub fn at(self, step: u64) -> f64 {
        let since = step.saturating_sub(self.origin.step);
        self.origin.epoch as f64 + since as f64 / self.steps_per_epoch as f64
    }
}

/// What one rank trains on, and how.
pub struct Plan {
    config: RunConfig,
    rank: usize,
    world_size: usize,
    /// The data sets, as they identify themselves.
    pub images: Images,
    /// The training images.
    pub dataset: Arc<Dataset>,
    /// The images of `eval.data`.
    pub test: Option<Arc<Dataset>>,
    /// How the views are made.
    pub augmentation: Augmentation,
    /// The encoder and its head.
    pub model: ModelSpec,
    /// Which images each rank encodes, in which pass.
    pub layout: Layout,
    /// What a step encodes.
    pub needs: Needs,
    /// Passes over the data as updates.
    pub epochs: Epochs,
    /// Updates of the whole run, and the learning rate of each.
    pub schedule: Schedule,
}

impl Plan {
    /// Opens the data, with all memory that is available to this process, and lays out this rank's part of a run that begins.
    ///
    /// # Errors
    /// If the data cannot be opened, or does not go with the rest of the configuration.
    pub fn resolve(config: &RunConfig, rank: usize, world_size: usize) -> Result<Plan, Error> {
        Plan::of(config, Images::open(config, limits(config), None)?, rank, world_size)
    }

    /// Lays out this rank's part of a run on `images`.
    ///
    /// # Errors
    /// If the images do not go with the rest of the configuration.
    pub fn of(config: &RunConfig, images: Images, rank: usize, world_size: usize) -> Result<Plan, Error> {
        let dataset = Arc::clone(&images.train);
        let global_batch = config.train.global_batch;
        check_batch(global_batch, dataset.len(), world_size)?;
        check_patch(config)?;
        check_temperature(config)?;
        check_bank(config, world_size)?;
        let needs = objective::needs(config)?;
        if needs.labels && !dataset.has_labels() {
            return Err(Error::Config {
                key: "objective.kind",
                value: config.objective.kind.to_string(),
                reason:
                    "it learns from classes, and the training images have none; put them into a folder each"
                        .into(),
            });
        }
        let steps_per_epoch = Sampler::new(config.run.seed, dataset.len()).steps_per_epoch(global_batch);
        let epochs = Epochs { steps_per_epoch, origin: images.origin };
        Ok(Plan {
            rank,
            world_size,
            augmentation: augmentation(config)?,
            model: model::spec(config),
            layout: layout(config, world_size)?,
            needs,
            epochs,
            schedule: schedule(config, epochs),
            config: config.clone(),
            dataset,
            test: images.test.as_ref().map(|(test, _)| Arc::clone(test)),
            images,
        })
    }

    /// Updates of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.schedule.total_steps
    }

    /// The update after which this start of the run ends: its last, or `run.stop_after`.
    pub fn end_step(&self) -> u64 {
        self.config.run.stop_after.unwrap_or(u64::MAX).min(self.total_steps())
    }

    /// Passes over the data after `step` updates.
    pub fn epoch(&self, step: u64) -> f64 {
        self.epochs.at(step)
    }

    /// Images in a step, of all ranks.
    pub fn global_batch(&self) -> usize {
        self.config.train.global_batch
    }

    /// The share of the images that may be corrupt.
    pub fn max_corrupt_share(&self) -> f64 {
        self.config.data.max_corrupt_share
    }

    /// Views of each image that a step sees.
    pub fn views(&self) -> usize {
        views(&self.needs)
    }

    /// Builds everything that one update reads and writes. From then on the calling thread is pinned to the
    /// first of the device's cores.
    ///
    /// # Errors
    /// If the system starts no thread.
    pub fn trainer(&self, device: &DeviceOptions, group: Group) -> Result<Trainer, Error> {
        let Group { control, activations, gradients } = group;
        // Its thread must not inherit the pin of this one.
        let gradients = match self.world_size {
            1 => None,
            _ => Some(GradientReducer::new(gradients)?),
        };
        let device = device.open();
        let objective = objective::objective(&self.config, self.place())?;
        let build = |role| Network::with_role(&self.model, role, self.network_options(role), &device);
        let network = build(Role::Trained);
        let momentum = (!self.needs.keys.is_empty()).then(|| {
            let schedule = momentum_schedule(&self.config, self.total_steps());
            MomentumEncoder::new(build(Role::Momentum), network.parameters(), schedule, self.config.run.seed)
        });
        let patches = self.model.jigsaw.map(|_| PatchBranch::new(build(Role::Patches), network.parameters()));
        let has_others = patches.is_some() || self.layout.n_chunks() > 1;
        Ok(Trainer {
            optimizer: Optimizer::new(optimizer_spec(&self.config), network.parameters()),
            others: vec![0.0; if has_others { network.parameters().values.len() } else { 0 }],
            layout: self.layout.clone(),
            control,
            activations,
            objective,
            gradients,
            momentum,
            patches,
            refresh: self.refresh(),
            network,
            device,
        })
    }

    /// Bytes of numbers that [`Plan::trainer`] allocates on such a device; those of the passes are of one chunk.
    pub fn predicted_bytes(&self, device: &DeviceOptions) -> usize {
        let needs = self.needs;
        let mut roles = vec![Role::Trained];
        roles.extend((!needs.keys.is_empty()).then_some(Role::Momentum));
        roles.extend(self.model.jigsaw.map(|_| Role::Patches));
        let of_role = |&role: &Role| {
            let options = self.network_options(role);
            Network::<f32>::predicted_bytes_of(&self.model, role, &options, device)
        };
        let parameters = |role| size_of::<f32>() * self.model.n_parameters(role);
        let state = Optimizer::<f32>::bytes_per_parameter(optimizer_spec(&self.config).kind);
        let has_others = needs.jigsaw || self.layout.n_chunks() > 1;
        roles.iter().map(of_role).sum::<usize>()
            + self.model.n_parameters(Role::Trained) * state
            + if has_others { parameters(Role::Trained) } else { 0 }
            + if needs.keys.is_empty() { 0 } else { parameters(Role::Momentum) }
            + objective::kept_bytes(&self.config, self.place())
    }

    fn place(&self) -> Place {
        Place {
            images: self.dataset.len(),
            width: self.model.embedding_width(),
            rank: self.rank,
            world_size: self.world_size,
        }
    }

    fn refresh(&self) -> Option<Refresh> {
        use config::ObjectiveKind::{Npid, Pirl};
        let has_bank = matches!(self.config.objective.kind, Npid | Pirl);
        (has_bank && self.config.bank.refresh_age > 0).then(|| Refresh {
            dataset: Arc::clone(&self.dataset),
            preprocess: model::preprocess(&self.config),
        })
    }

    fn network_options(&self, role: Role) -> NetworkOptions {
        let needs = &self.needs;
        let rows_per_image = match role {
            Role::Trained => needs.queries.len(),
            Role::Momentum => needs.keys.len(),
            Role::Patches => PATCHES,
        };
        NetworkOptions {
            max_rows: rows_per_image * self.layout.max_images(self.rank),
            seed: self.config.run.seed,
            convolution: model::convolution(&self.config),
        }
    }

    /// How this rank's batches are read, `start_step` updates being done.
    pub fn loader_options(&self, start_step: u64) -> LoaderOptions {
        LoaderOptions {
            seed: self.config.run.seed,
            global_batch: self.config.train.global_batch,
            rank: self.rank,
            world_size: self.world_size,
            start_step,
            origin: self.epochs.origin,
            threads: self.config.data.threads,
            prefetch: PREFETCH,
            max_corrupt_share: self.config.data.max_corrupt_share,
            parts: parts(&self.config, &self.augmentation),
            labels: self.needs.labels,
            chunk: self.config.train.chunk,
        }
    }
}

/// The update rule.
pub fn optimizer_spec(config: &RunConfig) -> OptimizerSpec {
    let config::Optimizer { momentum, eta, beta1, beta2, eps, .. } = config.optimizer;
    OptimizerSpec {
        kind: match config.optimizer.kind {
            config::OptimizerKind::Sgd => OptimizerKind::Sgd { momentum },
            config::OptimizerKind::Lars => OptimizerKind::Lars { momentum, eta },
            config::OptimizerKind::AdamW => OptimizerKind::AdamW { beta1, beta2, eps },
        },
        weight_decay: config.optimizer.weight_decay,
        decay_all: config.optimizer.decay_all,
    }
}

/// Views that have to be made: all up to the last that is looked at.
fn views(needs: &Needs) -> usize {
    needs.queries.iter().chain(needs.keys).max().map_or(0, |last| last + 1)
}

/// The pipeline that makes the views, which also says how images are prepared for evaluation.
///
/// # Errors
/// If the data room does not know the pipeline's name.
pub fn augmentation(config: &RunConfig) -> Result<Augmentation, Error> {
    let size = config.data.size;
    let augmentation = match config.data.augment {
        config::Augment::None => Augmentation::none(size),
        named => Augmentation::preset(&named.to_string(), size)?,
    };
    let data::Preprocess { mean, std, .. } = model::preprocess(config);
    Ok(augmentation.normalised(mean, std))
}

/// What the objective sees of each image.
pub fn parts(config: &RunConfig, augmentation: &Augmentation) -> Parts {
    match config.objective.kind {
        config::ObjectiveKind::Npid => Parts { views: 1, jigsaw: None },
        config::ObjectiveKind::Pirl => Parts { views: 1, jigsaw: Some(Jigsaw::of(augmentation)) },
        _ => Parts::VIEWS,
    }
}

/// What the run's data sets may take of the machine: all memory that is available to this process.
pub fn limits(config: &RunConfig) -> Limits {
    Limits { max_pixels: config.data.max_pixels, ..Limits::default() }
}

/// The learning rate over the whole run.
pub(crate) fn schedule(config: &RunConfig, epochs: Epochs) -> Schedule {
    let total_steps = match config.run.length {
        Length::Steps(steps) => steps,
        Length::Epochs(n) => epochs.updates(n),
    };
    Schedule {
        kind: match config.schedule.kind {
            config::ScheduleKind::Cosine => ScheduleKind::Cosine { final_lr: config.schedule.final_lr },
            config::ScheduleKind::Constant => ScheduleKind::Constant,
            config::ScheduleKind::Step => ScheduleKind::Step {
                milestones: config.schedule.milestones.iter().map(|&n| epochs.updates(n)).collect(),
                gamma: config.schedule.gamma,
            },
        },
        base_lr: config.optimizer.lr,
        warmup_steps: config.schedule.warmup_steps.min(total_steps),
        total_steps,
    }
}

/// Which images each rank encodes.
fn layout(config: &RunConfig, world_size: usize) -> Result<Layout, Error> {
    let layout = Layout::new(config.train.global_batch, config.train.chunk, world_size);
    if layout.min_images() == 0 {
        let reason = format!(
            "some chunk of the {} images has none for some of the {world_size} workers; choose one that leaves at least \
             one each, the last and smallest chunk included",
            config.train.global_batch
        );
        return Err(Error::Config { key: "train.chunk", value: config.train.chunk.to_string(), reason });
    }
    Ok(layout)
}

/// How the momentum encoder follows.
fn momentum_schedule(config: &RunConfig, total_steps: u64) -> MomentumSchedule {
    let base = config.objective.momentum;
    match config.objective.momentum_schedule {
        config::MomentumSchedule::Constant => MomentumSchedule::Constant(base),
        config::MomentumSchedule::Cosine => MomentumSchedule::Cosine { base, total_steps },
    }
}

fn check_batch(global_batch: usize, n_images: usize, world_size: usize) -> Result<(), Error> {
    let refuse = |reason: String| {
        Err(Error::Config { key: "train.global_batch", value: global_batch.to_string(), reason })
    };
    if global_batch > n_images {
        return refuse(format!("the data set has {n_images} images; use at most that many"));
    }
    if global_batch < world_size {
        return refuse(format!("each of the {world_size} workers needs at least one image"));
    }
    Ok(())
}

/// A vision transformer's patches tile what it sees: the views, and with PIRL the patches of the jigsaw as well.
fn check_patch(config: &RunConfig) -> Result<(), Error> {
    let patch = config.model.patch;
    let is_vit = matches!(config.model.arch, config::Arch::Vit { .. });
    let refuse = |reason| Err(Error::Config { key: "model.patch", value: patch.to_string(), reason });
    if is_vit && !config.data.size.is_multiple_of(patch) {
        return refuse(format!("it must divide data.size = {}", config.data.size));
    }
    match model::spec(config).jigsaw {
        Some(jigsaw) if is_vit && !jigsaw.patch_size.is_multiple_of(patch) => refuse(format!(
            "objective.kind = pirl cuts views of {} pixels into a jigsaw of {} pixels a piece, which it must divide too",
            config.data.size, jigsaw.patch_size
        )),
        _ => Ok(()),
    }
}

/// What a bank cannot do: leave one slot out of all, or encode slots anew by statistics that differ between ranks.
fn check_bank(config: &RunConfig, world_size: usize) -> Result<(), Error> {
    use config::ObjectiveKind::{Npid, Pirl};
    let refuse =
        |key, value: String, reason: &str| Err(Error::Config { key, value, reason: reason.to_owned() });
    if !matches!(config.objective.kind, Npid | Pirl) {
        return Ok(());
    }
    if config.objective.exclude_positive && config.objective.negatives == 0 {
        let reason =
            "with objective.negatives = 0 an image's own slot is never among its negatives; leave it out";
        return refuse("objective.exclude_positive", "true".to_owned(), reason);
    }
    let is_local = config.model.batch_norm == config::BatchNorm::Local;
    if config.bank.refresh_age > 0 && is_local && world_size > 1 {
        let reason = "workers with statistics of their own would encode slots differently; set model.batch_norm = global";
        return refuse("bank.refresh_age", config.bank.refresh_age.to_string(), reason);
    }
    Ok(())
}

/// Where candidates are summed without a maximum, their exponentials must be numbers.
fn check_temperature(config: &RunConfig) -> Result<(), Error> {
    let config::Objective { kind, temperature, .. } = config.objective;
    let least = TwoViews::min_temperature(kind).unwrap_or(MIN_TEMPERATURE);
    if temperature < least {
        let reason = format!("objective.kind = {kind} takes {least} or more");
        return Err(Error::Config { key: "objective.temperature", value: temperature.to_string(), reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
