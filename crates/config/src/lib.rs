//! The configuration of a run: keys, defaults, presets, layers, validation.
//!
//! One [`RunConfig`] holds every key; `keys` is the one list of their names, ranges and descriptions, and reading,
//! writing, validation and the nearest known key all follow it. `owners` says which of them belong to some kinds only:
//! such a key is refused with any other kind, not ignored. A configuration is made of layers ([`resolve`]):
//! preset, then file, then `--data`, then `--set`.
//!
//! What it does not know: models, data, the network, the file system. The coordinator refuses a bad configuration
//! by it without linking the engine; the worker turns it into the engine's types.
//!
//! Where to start: [`RunConfig`] for what there is to set, `presets/quickstart.toml` for how it is set.

mod choices;
mod error;
mod keys;
mod layers;
mod lookup;
mod nearest;
mod owners;
pub mod presets;
mod relocate;
mod resumable;
mod retired;
mod run_config;
mod setting;
mod text;
mod words;

pub use choices::{
    Arch, Augment, BankDtype, BankStorage, BatchNorm, Convolution, Estimator, Head, MomentumSchedule,
    Normalizer, ObjectiveKind, OptimizerKind, Predictor, ScheduleKind, Stem, UnknownChoice,
};
pub use error::Error;
pub use layers::{Layers, resolve, resume};
pub use relocate::{DataRoot, relocate};
pub use resumable::RESUMABLE;
pub use retired::retired_notes;
pub use run_config::{
    Bank, Checkpoint, Cluster, Data, Eval, Length, Metrics, Model, ORPHAN_TTL, Objective, Optimizer, Run,
    RunConfig, Schedule, Train,
};
pub use words::{FLAGS, Meant};
