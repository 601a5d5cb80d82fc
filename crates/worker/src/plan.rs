//! The resolved plan of a run on one rank: configuration and data set in, shapes and specifications out.
//!
//! Here, and nowhere else, the configuration's names become the engine's types. What can only be refused
//! with the data in sight is refused here, by the name of its key.

use collective::{Communicator, GradientReducer};
use config::{Length, RunConfig};
use data::{Augmentation, Dataset, EpochOrigin, Jigsaw, Limits, LoaderOptions, Parts, Sampler};
use engine::kernels::{KernelPath, Pool};
use engine::models::{ModelSpec, PATCHES, Role};
use engine::network::{Network, NetworkOptions};
use engine::optim::{Optimizer, OptimizerKind, OptimizerSpec};
use engine::schedule::{Schedule, ScheduleKind};
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

/// What a rank computes with.
#[derive(Clone, Debug)]
pub struct Compute {
    /// Threads, at least 1.
    pub threads: usize,
    /// One core for each thread; empty: wherever the system puts them.
    pub cores: Vec<usize>,
    /// Bytes of memory that data sets may take which are held whole.
    pub data_bytes: u64,
}

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
    /// first of the rank's cores.
    ///
    /// # Errors
    /// If the system starts no thread.
    pub fn trainer(
        &self,
        compute: &Compute,
        small: Communicator,
        gradients: Communicator,
    ) -> Result<Trainer, Error> {
        // Its thread must not inherit the pin of this one.
        let gradients = match self.world_size {
            1 => None,
            _ => Some(GradientReducer::new(gradients).map_err(Error::Collective)?),
        };
        let pool = Arc::new(Pool::new(compute.threads.max(1), &compute.cores));
        let objective = objective::objective(&self.config, self.place())?;
        let build =
            |role| Network::with_role(&self.model, role, self.network_options(role), Arc::clone(&pool));
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
            communicator: small,
            objective,
            gradients,
            momentum,
            patches,
            refresh: self.refresh(),
            network,
            pool,
        })
    }

    /// Bytes of numbers that [`Plan::trainer`] allocates with `threads`; those of the passes are of one chunk.
    pub fn predicted_bytes(&self, threads: usize) -> usize {
        let needs = self.needs;
        let mut roles = vec![Role::Trained];
        roles.extend((!needs.keys.is_empty()).then_some(Role::Momentum));
        roles.extend(self.model.jigsaw.map(|_| Role::Patches));
        let of_role = |&role: &Role| {
            let options = self.network_options(role);
            Network::<f32>::predicted_bytes_of(&self.model, role, &options, threads)
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
            kernel_path: KernelPath::detect(),
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
        named => Augmentation::preset(&named.to_string(), size).map_err(Error::Data)?,
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
mod tests {
    use super::*;

    const SEVEN: Epochs = Epochs { steps_per_epoch: 7, origin: EpochOrigin { step: 0, epoch: 0 } };

    fn config(text: &str) -> RunConfig {
        RunConfig::from_toml(text).unwrap()
    }

    #[test]
    fn an_impossible_batch_is_refused_by_its_key() {
        #[track_caller]
        fn check(global_batch: usize, n_images: usize, world_size: usize, expected: &str) {
            let error = check_batch(global_batch, n_images, world_size).unwrap_err();
            assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 2));
        }
        check(64, 63, 1, "train.global_batch = 64: the data set has 63 images; use at most that many");
        check(2, 63, 3, "train.global_batch = 2: each of the 3 workers needs at least one image");
        assert!(check_batch(64, 64, 4).is_ok());
    }

    #[test]
    fn the_limit_of_pixels_holds_for_both_data_sets_and_for_views() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/0.png", "a/1.png"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::new(5, 3).save(path).unwrap();
        }
        let source = dir.path().display();
        let with = |max_pixels: usize| {
            config(&format!(
                "[data]\nsource = \"{source}\"\nmax_pixels = {max_pixels}\n[eval]\ndata = \"{source}\"\n\
                 [train]\nglobal_batch = 2\n[model]\narch = \"resnet20\"\n"
            ))
        };
        let decodes = |max_pixels| {
            let plan = Plan::resolve(&with(max_pixels), 0, 1).unwrap();
            let views = crate::views::views(&with(max_pixels), None, 0, 0);
            [plan.dataset.load(0).is_ok(), plan.test.unwrap().load(0).is_ok(), views.is_ok()]
        };
        assert_eq!(decodes(15), [true; 3]);
        assert_eq!(decodes(14), [false; 3]);
    }

    #[test]
    fn what_a_bank_cannot_do_is_refused() {
        let refused = |text: &str, world_size| {
            let text = format!("[objective]\nkind = \"npid\"\n{text}");
            check_bank(&config(&text), world_size).map_err(|error| error.to_string()).err()
        };
        assert_eq!(refused("negatives = 5\nexclude_positive = true\n", 2), None);
        let all = refused("negatives = 0\nexclude_positive = true\n", 2).unwrap();
        assert!(all.starts_with("objective.exclude_positive = true: with objective.negatives = 0"), "{all}");
        let local = "[bank]\nrefresh_age = 9\n[model]\nbatch_norm = \"local\"\n";
        assert_eq!(refused(local, 1), None);
        assert!(refused(local, 2).unwrap().starts_with("bank.refresh_age = 9: "));
    }

    #[test]
    fn a_temperature_whose_exponentials_overflow_is_refused() {
        let of_kind = |kind, t| {
            let text = format!("[objective]\nkind = \"{kind}\"\ntemperature = {t}\n");
            check_temperature(&config(&text)).map_err(|error| error.to_string())
        };
        assert_eq!(of_kind("moco", 0.03), Ok(()));
        assert_eq!(of_kind("simclr", 0.001), Ok(()));
        assert!(of_kind("moco-v3", 0.02).is_err());
        let refused = "objective.temperature = 0.01: objective.kind = pirl takes 0.03 or more";
        assert_eq!(of_kind("pirl", 0.01), Err(refused.to_owned()));
    }

    #[test]
    fn patches_tile_what_a_transformer_sees() {
        let of = |patch, size, kind: &str| {
            let text = format!(
                "[model]\narch = \"vit-24-2-3\"\npatch = {patch}\nhead = \"linear-8\"\n[data]\nsize = {size}\n\
                 [objective]\nkind = \"{kind}\"\n"
            );
            check_patch(&config(&text)).map_err(|error| error.to_string())
        };
        assert_eq!(of(4, 32, "simclr"), Ok(()));
        assert_eq!(of(16, 224, "pirl"), Ok(()));
        assert_eq!(of(5, 32, "simclr"), Err("model.patch = 5: it must divide data.size = 32".to_owned()));
        let jigsaw = of(16, 32, "pirl").unwrap_err();
        assert!(
            jigsaw.starts_with("model.patch = 16: objective.kind = pirl cuts views of 32 pixels"),
            "{jigsaw}"
        );
        assert!(check_patch(&config("[data]\nsize = 33\n")).is_ok(), "no transformer");
    }

    #[test]
    fn a_chunk_without_images_for_a_rank_is_refused() {
        let layout_of = |chunk| layout(&config(&format!("[train]\nglobal_batch = 9\nchunk = {chunk}\n")), 2);
        assert_eq!(layout_of(3).unwrap().n_chunks(), 3);
        let error = layout_of(4).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error.to_string().starts_with("train.chunk = 4: some chunk of the 9 images has none"),
            "{error}"
        );
    }

    /// Both networks of MoCo are planned for a chunk, and everything else stays.
    #[test]
    fn predicted_memory_follows_the_chunk() {
        let predicted = |chunk| {
            let text = format!(
                "[train]\nglobal_batch = 64\nchunk = {chunk}\n[model]\narch = \"resnet20\"\nstem = \"cifar\"\n\
                 [objective]\nkind = \"moco\"\nqueue = 1\n"
            );
            Plan::resolve(&config(&text), 0, 1).unwrap().predicted_bytes(1)
        };
        let [whole, half, quarter] = [0, 32, 16].map(predicted);
        // Weights, their gradients and the convolutions' scratch stay; activations are proportional to the chunk.
        let (first, second) = ((whole - half) as f64, (half - quarter) as f64);
        assert!((first / second - 2.0).abs() < 0.1, "{whole} {half} {quarter}");
        assert!(first > 0.3 * whole as f64, "{whole} {half} {quarter}");
    }

    #[test]
    fn epochs_count_whole_batches_and_the_warm_up_ends_with_the_run() {
        let epochs = config("[run]\nepochs = 3\n[schedule]\nwarmup_steps = 100\n[optimizer]\nlr = 0.5\n");
        let plan = schedule(&epochs, SEVEN);
        assert_eq!((plan.total_steps, plan.warmup_steps, plan.base_lr), (21, 21, 0.5));
        let steps = config("[run]\nsteps = 300\n[schedule]\nwarmup_steps = 100\n");
        let plan = schedule(&steps, SEVEN);
        assert_eq!((plan.total_steps, plan.warmup_steps), (300, 100));
    }

    /// The third pass began anew at step 10, with 5 updates each instead of 4.
    #[test]
    fn passes_of_another_length_are_counted_from_where_it_changed() {
        let epochs = Epochs { steps_per_epoch: 5, origin: EpochOrigin { step: 10, epoch: 2 } };
        assert_eq!([0, 1, 2, 3, 4].map(|n| epochs.updates(n)), [0, 5, 10, 15, 20]);
        assert_eq!([10, 15, 16].map(|step| epochs.at(step)), [2.0, 3.0, 3.2]);
        assert_eq!([0, 7, 10].map(|step| SEVEN.at(step)), [0.0, 1.0, 10.0 / 7.0]);
    }

    #[test]
    fn milestones_become_updates() {
        let steps =
            config("[schedule]\nkind = \"step\"\nmilestones = [2, 3]\ngamma = 0.5\n[optimizer]\nlr = 0.8\n");
        let plan = schedule(&steps, SEVEN);
        assert_eq!([13, 14, 20, 21].map(|update| plan.lr(update)), [0.8, 0.4, 0.4, 0.2]);
        let cosine = config("[run]\nsteps = 8\n[schedule]\nfinal_lr = 0.25\n");
        assert_eq!(schedule(&cosine, SEVEN).lr(8), 0.25);
    }

    #[test]
    fn names_become_the_engines_types() {
        let config = config(
            "[optimizer]\nkind = \"lars\"\nmomentum = 0.8\neta = 0.01\n[data]\nsize = 16\nstd = [0.5, 0.25, 0.125]\n",
        );
        assert_eq!(optimizer_spec(&config).kind, OptimizerKind::Lars { momentum: 0.8, eta: 0.01 });
        let preprocess = augmentation(&config).unwrap().preprocess();
        assert_eq!((preprocess.size, preprocess.mean, preprocess.std), (16, [0.0; 3], [0.5, 0.25, 0.125]));
    }

    #[test]
    fn every_pipeline_that_can_be_configured_exists() {
        for name in config::Augment::NAMES {
            assert!(augmentation(&config(&format!("[data]\naugment = \"{name}\"\n"))).is_ok(), "{name}");
        }
    }
}
