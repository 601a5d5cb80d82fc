//! What of a configuration a resumed run may change.

/// The keys that may change when a run is resumed: its length, where its test images are, and how often it does what leaves
/// training untouched.
pub const RESUMABLE: &[&str] = &[
    "run.steps",
    "run.epochs",
    "run.stop_after",
    "eval.knn_every",
    "eval.data",
    "eval.k",
    "checkpoint.every",
    "checkpoint.every_minutes",
    "checkpoint.keep",
    "checkpoint.at_start",
    "metrics.every",
];
