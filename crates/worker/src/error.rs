//! What ends a worker, and the exit code and remedy that go with it.

use engine::peers::PeerError;

/// Why a worker ends before its last step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A collective operation failed: a peer is gone, or the group was aborted.
    #[error("collective operation failed")]
    Collective(#[source] collective::Error),
    /// Batch norm's exchange failed for another reason than the collective's own.
    #[error("exchange of batch-norm sums failed")]
    Peer(#[source] PeerError),
    /// A data set could not be opened or read.
    #[error("failed to read the data")]
    Data(#[source] data::Error),
    /// The configuration cannot be trained as it stands.
    #[error("{key} = {value}: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Training left the numbers.
    #[error("the loss of step {step} is {loss}")]
    Diverged {
        /// The update that was not applied.
        step: u64,
        /// NaN or an infinity.
        loss: f64,
    },
    /// A checkpoint does not fit the run.
    #[error("the checkpoint of step {step} does not fit")]
    Checkpoint {
        /// Its step.
        step: u64,
        /// What does not fit.
        #[source]
        source: checkpoint::Error,
    },
    /// A checkpoint cannot be found, trusted or used.
    #[error("failed to load the checkpoint")]
    Load(#[source] checkpoint::Error),
    /// The configuration in a checkpoint is not one that this program takes.
    #[error("failed to read the configuration stored in the checkpoint")]
    StoredConfig(#[source] config::Error),
    /// A file of results cannot be written.
    #[error("failed to write the results")]
    Output(#[source] checkpoint::Error),
    /// The ranks do not agree on what they train.
    #[error("rank {rank} runs {theirs}, this rank {ours}")]
    Disagreement {
        /// The first rank that differs.
        rank: usize,
        /// What it stated.
        theirs: String,
        /// What this rank states.
        ours: String,
    },
    /// None of the images to evaluate can be decoded.
    #[error("none of {} images could be decoded; the first: {}: {}", corrupt.len(), corrupt[0].0, corrupt[0].1)]
    NothingDecoded {
        /// Path and reason of each; not empty.
        corrupt: Vec<(String, String)>,
    },
    /// More corrupt images than `data.max_corrupt_share` allows.
    #[error("{} corrupt images, more than data.max_corrupt_share = {share} of {len}: {}", paths.len(), list(paths))]
    TooManyCorrupt {
        /// Paths of all that were met.
        paths: Vec<String>,
        /// The set share.
        share: f64,
        /// Images in the set.
        len: usize,
    },
    /// Images without labels cannot be compared with.
    #[error("the images have no labels")]
    NoLabels,
    /// Test images without labels cannot be evaluated on.
    #[error("the test images have no labels")]
    NoTestLabels,
    /// A class that the training images lack.
    #[error("the test images have class `{class}`, which the training images lack (they have {})", known.join(", "))]
    UnknownTestClass {
        /// The class.
        class: String,
        /// Classes of the training images.
        known: Vec<String>,
    },
    /// The machine lacks what the worker needs.
    #[error("failed to {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// An error that came back through the engine, which knows no network.
    pub(crate) fn from_peer(error: PeerError) -> Error {
        match error.downcast::<collective::Error>() {
            Ok(error) => Error::Collective(*error),
            Err(error) => Error::Peer(error),
        }
    }

    /// The process's exit code (`CONTRACT.md`: 2 configuration, 3 diverged or corrupt, 75 try again).
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Collective(_) | Error::Peer(_) => 75,
            Error::Config { .. } | Error::NoLabels | Error::NoTestLabels | Error::UnknownTestClass { .. } => {
                2
            }
            Error::Diverged { .. } | Error::Checkpoint { .. } | Error::StoredConfig(_) => 3,
            Error::Load(error) => error.exit_code(),
            // What was named is not there or not images; the rest came to light on the way.
            Error::Data(
                data::Error::NotFound { .. }
                | data::Error::Empty { .. }
                | data::Error::NoSuchSplit { .. }
                | data::Error::Malformed { .. },
            ) => 2,
            Error::Data(_) | Error::Output(_) => 1,
            Error::NothingDecoded { .. }
            | Error::TooManyCorrupt { .. }
            | Error::Disagreement { .. }
            | Error::System { .. } => 1,
        }
    }

    /// Whether the cause is another process: its own report names it better than this one.
    pub fn is_peer(&self) -> bool {
        matches!(self, Error::Collective(_) | Error::Peer(_))
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::Checkpoint { source, .. } | Error::Load(source) => source.hint(),
            Error::Diverged { .. } => Some("lower optimizer.lr or lengthen schedule.warmup_steps"),
            Error::Disagreement { .. } => Some("start every node with the same binary and configuration"),
            Error::NoLabels => Some("give images in class folders"),
            Error::NoTestLabels => Some("give images in class folders, or leave the test images out"),
            Error::TooManyCorrupt { .. } | Error::NothingDecoded { .. } => {
                Some("repair or remove the files, or raise data.max_corrupt_share")
            }
            _ => None,
        }
    }
}

fn list(paths: &[String]) -> String {
    const SHOWN: usize = 20;
    let more = if paths.len() > SHOWN { ", ..." } else { "" };
    format!("{}{more}", paths.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", "))
}
