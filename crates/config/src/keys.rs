//! The one list of keys: name, range, meaning, and the field behind each.

use toml::Value;

use crate::run_config::{Length, RunConfig};
use crate::setting::Setting;

/// One key of the configuration.
pub(crate) struct Key {
    /// `section.field`.
    pub name: &'static str,
    /// A few words on what it sets, written beside it.
    pub doc: &'static str,
    /// The value as TOML; `None` if it is unset.
    pub write: fn(&RunConfig) -> Option<Value>,
    /// Sets the field, or says what it would take.
    pub read: fn(&mut RunConfig, &Value) -> Result<(), String>,
}

impl Key {
    pub(crate) fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    pub(crate) fn field(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, field)| field)
    }
}

/// Reads a value and holds it against its range, which `words` describe.
fn settle<T: Setting>(value: &Value, words: &str, in_range: fn(&T) -> bool) -> Result<T, String> {
    T::read(value).filter(in_range).ok_or_else(|| format!("{}{words}", T::expected()))
}

macro_rules! key {
    ($section:ident.$field:ident, $doc:literal) => {
        key!($section.$field, $doc, "", |_| true)
    };
    ($section:ident.$field:ident, $doc:literal, $words:literal, $in_range:expr) => {
        Key {
            name: concat!(stringify!($section), ".", stringify!($field)),
            doc: $doc,
            write: |config| config.$section.$field.write(),
            read: |config, value| {
                config.$section.$field = settle(value, $words, $in_range)?;
                Ok(())
            },
        }
    };
}

/// Every key, in the order in which it is written.
pub(crate) const KEYS: &[Key] = &[
    key!(run.seed, "of weights, order and augmentation"),
    Key {
        name: "run.steps",
        doc: "optimizer updates; unsets run.epochs",
        write: |config| match config.run.length {
            Length::Steps(steps) => steps.write(),
            Length::Epochs(_) => None,
        },
        read: |config, value| {
            config.run.length = Length::Steps(settle(value, ", at least 1", |steps| *steps >= 1)?);
            Ok(())
        },
    },
    Key {
        name: "run.epochs",
        doc: "passes over the data; unsets run.steps",
        write: |config| match config.run.length {
            Length::Epochs(epochs) => epochs.write(),
            Length::Steps(_) => None,
        },
        read: |config, value| {
            // The data room counts them in 32 bits.
            let in_range = |epochs: &u64| (1..=u64::from(u32::MAX)).contains(epochs);
            config.run.length = Length::Epochs(settle(value, " from 1 to 4294967295", in_range)?);
            Ok(())
        },
    },
    Key {
        name: "run.stop_after",
        doc: "ends cleanly at this step, schedule unchanged; 0 unsets it",
        write: |config| config.run.stop_after.write(),
        read: |config, value| {
            let step: Option<u64> = settle(value, "", |_| true)?;
            config.run.stop_after = step.filter(|step| *step > 0);
            Ok(())
        },
    },
    key!(train.global_batch, "images of a step, over all ranks", ", at least 2", |images| *images >= 2),
    key!(train.chunk, "images of a pass, over all ranks; 0: the whole batch at once"),
    key!(train.convolution, "auto (fastest) or direct"),
    key!(model.arch, "backbone"),
    key!(model.stem, "imagenet (7x7, max pool) or cifar (3x3)"),
    key!(model.patch, "side of a transformer's patches; divides data.size", " from 1 to 128", |patch| (1
        ..=128)
        .contains(patch)),
    key!(model.freeze_patch, "the patches' layer stays as it was drawn"),
    key!(model.head, "projection head"),
    key!(model.predictor, "none, moco-v3 or moco-v3-vit: behind the head of the trained network"),
    key!(
        model.batch_norm,
        "statistics over all ranks' rows (global), each rank's own (local), or none: mean 0 and variance 1 stay (frozen)"
    ),
    key!(model.zero_init_residual, "residual blocks start as the identity"),
    key!(objective.kind, "loss"),
    key!(objective.temperature, "divides cosine similarities", " greater than 0", |t| *t > 0.0),
    key!(objective.negatives, "slots that an image is told from; 0: all"),
    key!(objective.estimator, "nce or softmax"),
    key!(objective.normalizer, "nce's Z from the first batch (first-batch) or all (ema)"),
    key!(objective.normalizer_momentum, "share of Z that stays", " from 0 to below 1", |m| (0.0..1.0)
        .contains(m)),
    key!(objective.proximal, "weight of the way from the slot to the feature", " of at least 0", |w| *w
        >= 0.0),
    key!(objective.feature_momentum, "share of a slot that stays", " from 0 to below 1", |m| (0.0..1.0)
        .contains(m)),
    key!(objective.exclude_positive, "an image's own slot is no negative"),
    key!(objective.jigsaw_weight, "share of the jigsaw's loss", " from 0 to 1", |w| (0.0..=1.0).contains(w)),
    key!(objective.queue, "keys that are kept", ", at least 1", |n| *n >= 1),
    key!(objective.momentum, "share of the momentum encoder that stays", " from 0 to 1", |m| (0.0..=1.0)
        .contains(m)),
    key!(objective.momentum_schedule, "constant, or cosine: to 1 at the end"),
    key!(bank.dtype, "f32 or bf16"),
    key!(bank.storage, "memory, or mapped: in a file"),
    // At 1 every step would encode the whole data set, and a bank remembers nothing.
    key!(
        bank.refresh_age,
        "steps after which an unseen slot is encoded anew; 0: never",
        ", 0 or at least 2",
        |age| *age != 1
    ),
    key!(bank.mirror, "the next rank keeps a copy of each rank's slots"),
    key!(optimizer.kind, "update rule"),
    key!(optimizer.lr, "learning rate after the warm-up", " greater than 0", |lr| *lr > 0.0),
    key!(optimizer.momentum, "of sgd and lars", " from 0 to below 1", |m| (0.0..1.0).contains(m)),
    key!(optimizer.weight_decay, "not of biases and norms, unless decay_all", " of at least 0", |w| *w
        >= 0.0),
    key!(optimizer.eta, "trust coefficient of lars", " greater than 0", |eta| *eta > 0.0),
    key!(optimizer.beta1, "of adamw", " from 0 to below 1", |beta| (0.0..1.0).contains(beta)),
    key!(optimizer.beta2, "of adamw", " from 0 to below 1", |beta| (0.0..1.0).contains(beta)),
    key!(optimizer.eps, "of adamw", " greater than 0", |eps| *eps > 0.0),
    key!(optimizer.decay_all, "biases and norms decay as well"),
    key!(schedule.kind, "what follows the warm-up"),
    key!(schedule.final_lr, "at the end of the run", " of at least 0", |lr| *lr >= 0.0),
    key!(
        schedule.milestones,
        "epochs at which the rate falls",
        " of at least 1, ascending",
        |epochs: &Vec<u64>| {
            epochs.first().is_none_or(|first| *first >= 1) && epochs.is_sorted_by(|a, b| a < b)
        }
    ),
    key!(schedule.gamma, "what it is multiplied by there", " greater than 0, at most 1", |g| *g > 0.0
        && *g <= 1.0),
    key!(schedule.warmup_steps, "updates of linear warm-up; cut to the run"),
    key!(data.source, "builtin, a path, or path#split", " that is not empty", |source: &String| !source
        .is_empty()),
    key!(data.size, "side of a view, in pixels", " from 8 to 1024", |size| (8..=1024).contains(size)),
    key!(data.augment, "augmentation pipeline"),
    key!(data.mean, "subtracted from each channel in [0, 1]"),
    key!(data.std, "divides each channel", ", each greater than 0", |std: &Option<[f64; 3]>| {
        std.is_none_or(|channels| channels.iter().all(|channel| *channel > 0.0))
    }),
    key!(data.threads, "of each worker, decoding ahead", " from 1 to 256", |n| (1..=256).contains(n)),
    key!(data.max_corrupt_share, "of images that may fail to decode", " from 0 to 1", |s| (0.0..=1.0)
        .contains(s)),
    key!(data.max_pixels, "of an image; one with more is not decoded", ", at least 1", |n| *n >= 1),
    key!(eval.knn_every, "steps between kNN evaluations; 0: never"),
    key!(eval.data, "images to classify; unset: the training images"),
    key!(eval.k, "neighbours that vote; 0: half as many as a class has images, at most 200"),
    key!(checkpoint.every, "steps between checkpoints; 0: none by steps"),
    key!(
        checkpoint.every_minutes,
        "minutes between checkpoints; 0: none by time",
        " of at least 0",
        |minutes| *minutes >= 0.0
    ),
    key!(checkpoint.keep, "newest checkpoints that stay", ", at least 1", |n| *n >= 1),
    key!(checkpoint.at_start, "also one before the first forward pass"),
    key!(metrics.every, "steps between rows of metrics.jsonl", ", at least 1", |n| *n >= 1),
    key!(cluster.orphan_ttl, "how long workers go on without a coordinator"),
];
