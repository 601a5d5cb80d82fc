//! What ends a worker, and the exit code and remedy that go with it.

use engine::peers::PeerError;

/// Why a worker ends before its last step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A collective operation failed: a peer is gone, or the group was aborted.
    #[error("collective operation failed")]
    Collective(#[source] collective::Error),
    /// The objective cannot be computed from this batch, or restored from this state.
    #[error("the objective cannot go on")]
    Objective(#[source] objectives::Error),
    /// Batch norm's exchange failed for another reason than the collective's own.
    #[error("exchange of batch-norm sums failed")]
    Peer(#[source] PeerError),
    /// A data set could not be opened or read.
    #[error("failed to read the data")]
    Data(#[source] data::Error),
    /// The coordinator is gone or refused a call.
    #[error("the session with the coordinator is over")]
    Session(#[from] crate::session::Error),
    /// The configuration is not one.
    #[error("the configuration is not valid")]
    Unresolved(#[source] config::Error),
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
    /// A checkpoint does not fit the run, or is damaged.
    #[error("the checkpoint of step {step} cannot be used")]
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
    /// The coordinator would not take or give a checkpoint.
    #[error("failed to {what} the checkpoint of step {step}: {reason}")]
    Sync {
        /// `save` or `fetch`.
        what: &'static str,
        /// The checkpoint's step.
        step: u64,
        /// What the coordinator, or the connection to it, said.
        reason: String,
    },
    /// The ranks do not agree on what they train.
    #[error("rank {rank} has another {what} than this rank: {theirs} instead of {ours}")]
    Disagreement {
        /// The first rank that differs.
        rank: usize,
        /// What differs.
        what: &'static str,
        /// Digest of its.
        theirs: String,
        /// Digest of this rank's.
        ours: String,
    },
    /// None of the images to evaluate can be decoded.
    #[error("none of {} images could be decoded; the first: {}: {}", corrupt.len(), corrupt[0].0, corrupt[0].1)]
    NothingDecoded {
        /// Path and reason of each; not empty.
        corrupt: Vec<(String, String)>,
    },
    /// Features that no evaluation can compare.
    #[error("the features are NaN or infinite: the weights have diverged")]
    NotFinite,
    /// Images without labels cannot be compared with.
    #[error("the images have no labels")]
    NoLabels,
    /// Test images without labels cannot be evaluated on.
    #[error("the test images have no labels")]
    NoTestLabels,
    /// A class that the training images lack.
    #[error(
        "the test images have class `{class}`, which the training images lack (they have {})", known.join(", ")
    )]
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

    /// An error of an objective, which may be the network's.
    pub(crate) fn from_objective(error: objectives::Error) -> Error {
        match error {
            objectives::Error::Collective(error) => Error::Collective(error),
            error => Error::Objective(error),
        }
    }

    /// The process's exit code (`CONTRACT.md`: 2 configuration, 3 diverged or corrupt, 75 try again).
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Collective(_) if self.is_peer() => 75,
            Error::Collective(_) | Error::Peer(_) => 1,
            Error::Session(error) => error.exit_code(),
            Error::Unresolved(_)
            | Error::Config { .. }
            | Error::NoLabels
            | Error::NoTestLabels
            | Error::UnknownTestClass { .. }
            | Error::Data(
                data::Error::NotFound { .. }
                | data::Error::Empty { .. }
                | data::Error::NoSuchSplit { .. }
                | data::Error::Malformed { .. }
                | data::Error::BatchTooLarge { .. }
                | data::Error::UnknownAugmentation { .. }
                | data::Error::NoLabels { .. },
            ) => 2,
            Error::Diverged { .. } | Error::NotFinite | Error::StoredConfig(_) | Error::Objective(_) => 3,
            Error::Checkpoint { source, .. } | Error::Load(source) => source.exit_code(),
            // What was named is there; the rest came to light on the way.
            Error::Data(_)
            | Error::Output(_)
            | Error::NothingDecoded { .. }
            | Error::Sync { .. }
            | Error::Disagreement { .. }
            | Error::System { .. } => 1,
        }
    }

    /// Whether the cause is another process: its own report names it better than this one.
    pub fn is_peer(&self) -> bool {
        use collective::Error::{Aborted, Failed, PeerLost, Timeout};
        matches!(
            self,
            Error::Collective(Aborted { .. } | Failed | PeerLost { .. } | Timeout { .. }) | Error::Session(_)
        )
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Diverged { .. } | Error::NotFinite => {
                Some("lower optimizer.lr or lengthen schedule.warmup_steps".into())
            }
            Error::Disagreement { .. } => {
                Some("start every node with the same binary and configuration".into())
            }
            Error::NoLabels => Some("give images in class folders".into()),
            Error::NoTestLabels => Some("give images in class folders, or leave the test images out".into()),
            Error::Data(data::Error::TooManyCorrupt { .. } | data::Error::NothingDecodes { .. })
            | Error::NothingDecoded { .. } => {
                Some("repair or remove the files, or raise data.max_corrupt_share".into())
            }
            Error::Unresolved(error) => error.hint(),
            Error::Checkpoint { source, .. } | Error::Load(source) => source.hint().map(Into::into),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_everything_once() {
        let io = std::io::Error::other("no route");
        let error = Error::Collective(collective::Error::PeerLost { rank: 2, source: io });
        assert_eq!(proto::one_line(&error), "collective operation failed: rank 2 is gone: no route");
        assert!(error.is_peer());
    }

    #[test]
    fn exit_codes_say_whose_turn_it_is() {
        let config = Error::Config { key: "data.size", value: "1".into(), reason: "too small".into() };
        assert_eq!(config.exit_code(), 2);
        assert_eq!(Error::Diverged { step: 3, loss: f64::NAN }.exit_code(), 3);
        let aborted = Error::Collective(collective::Error::Aborted { reason: "x".into() });
        assert_eq!(aborted.exit_code(), 75);
    }
}
