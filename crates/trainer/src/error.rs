//! What ends training, and the exit code and remedy that go with it.

use kernels::peers::PeerError;

/// Updates in which a loss that is not finite may come from the temperature, before any learning rate could drive it there.
const FIRST_STEPS: u64 = 10;

/// Why training ends before its last step, or an evaluation fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A collective operation failed: a peer is gone, or the group was aborted.
    #[error("collective operation failed")]
    Collective(#[from] collective::Error),
    /// The objective cannot be computed from this batch, or restored from this state.
    #[error("the objective cannot go on")]
    Objective(#[source] objectives::Error),
    /// Batch norm's exchange failed for another reason than the collective's own.
    #[error("exchange of batch-norm sums failed")]
    Peer(#[source] PeerError),
    /// A data set could not be opened or read.
    #[error("failed to read the data")]
    Data(#[from] data::Error),
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
    /// A checkpoint cannot be found, trusted or used.
    #[error("failed to load the checkpoint")]
    Load(#[from] checkpoint::Error),
    /// Another data set than the one that the checkpoint was made from.
    #[error("{path} is not the data set of the checkpoint: {what}")]
    OtherImages {
        /// What is named now.
        path: String,
        /// The first difference.
        what: String,
        /// The objective, if it keeps an entry for each image.
        objective: Option<String>,
    },
    /// Two ranks see other images.
    #[error("{what} differ between rank {rank} ({node}) and rank 0 ({node_of_0}): {difference}")]
    OtherData {
        /// `the training images (PATH)`.
        what: String,
        /// The first rank that differs from rank 0.
        rank: usize,
        /// Its agent.
        node: String,
        /// Rank 0's agent.
        node_of_0: String,
        /// The first image on which they differ, as each sees it.
        difference: String,
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
    /// The machine lacks what training needs.
    #[error("failed to {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl From<PeerError> for Error {
    /// An error that came back through the engine, which knows no network.
    fn from(error: PeerError) -> Error {
        match error.downcast::<collective::Error>() {
            Ok(error) => Error::Collective(*error),
            Err(error) => Error::Peer(error),
        }
    }
}

impl From<objectives::Error> for Error {
    /// An error of an objective, which may be the network's.
    fn from(error: objectives::Error) -> Error {
        match error {
            objectives::Error::Collective(error) => Error::Collective(error),
            error => Error::Objective(error),
        }
    }
}

impl Error {
    /// The process's exit code (`CONTRACT.md`: 2 configuration, 3 diverged or corrupt, 75 try again).
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Collective(_) if self.is_peer() => 75,
            Error::Collective(_) | Error::Peer(_) => 1,
            Error::Config { .. }
            | Error::NoLabels
            | Error::NoTestLabels
            | Error::UnknownTestClass { .. }
            | Error::OtherImages { .. }
            | Error::OtherData { .. }
            | Error::Data(
                data::Error::NotFound { .. }
                | data::Error::Empty { .. }
                | data::Error::NoSuchSplit { .. }
                | data::Error::AmbiguousSplit { .. }
                | data::Error::TooLargeForMemory { .. }
                | data::Error::Malformed { .. }
                | data::Error::BatchTooLarge { .. }
                | data::Error::UnknownAugmentation { .. }
                | data::Error::NoLabels { .. },
            ) => 2,
            // Neither the run nor its images are at fault: it can go on once the machine answers again.
            Error::Data(data::Error::Machine { .. } | data::Error::RootGone { .. }) => 75,
            Error::Diverged { .. }
            | Error::NotFinite
            | Error::Objective(_)
            | Error::Data(data::Error::List { .. }) => 3,
            Error::Load(source) => source.exit_code(),
            // What was named is there; the rest came to light on the way.
            Error::Data(_) | Error::NothingDecoded { .. } | Error::System { .. } => 1,
        }
    }

    /// Whether the cause is another process: its own report names it better than this one.
    pub fn is_peer(&self) -> bool {
        use collective::Error::{Aborted, Failed, PeerLost, Timeout};
        matches!(self, Error::Collective(Aborted { .. } | Failed | PeerLost { .. } | Timeout { .. }))
    }

    /// What the user can do about it where a run is resumed: its data set may have moved since.
    pub fn hint_on_resume(&self) -> Option<String> {
        match self {
            Error::Data(data::Error::NotFound { .. }) => Some(
                "restore it; or name it where it has moved: the training images with --data NEW, the test images with \
                 --set eval.data=NEW"
                    .into(),
            ),
            _ => self.hint(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Diverged { step, .. } if *step <= FIRST_STEPS => Some(
                "lower optimizer.lr or lengthen schedule.warmup_steps; in the first steps it may as well be a tiny \
                 objective.temperature, which similarities are divided by: 0.05 to 0.5 are usual"
                    .into(),
            ),
            Error::Diverged { .. } | Error::NotFinite => {
                Some("lower optimizer.lr or lengthen schedule.warmup_steps".into())
            }
            Error::Objective(objectives::Error::OtherCount { .. }) => {
                Some("restore the data set as it was when the checkpoint was taken, or start a new run".into())
            }
            Error::OtherImages { objective: None, .. } => Some(
                "restore the data set; name it with --data PATH where it has moved; or take it as it is now with \
                 --accept-changed-data"
                    .into(),
            ),
            Error::OtherImages { objective: Some(objective), .. } => Some(format!(
                "objective.kind = {objective} keeps an entry for each image, which another image must not inherit: restore \
                 the data set, name it with --data PATH where it has moved, or start a new run"
            )),
            Error::OtherData { .. } => Some(
                "give every node the same files; an agent whose node has them elsewhere takes --data-root OLD=NEW".into(),
            ),
            Error::NoLabels => Some("give images in class folders".into()),
            Error::NoTestLabels => Some("give images in class folders, or leave the test images out".into()),
            Error::Data(data::Error::TooManyCorrupt { .. } | data::Error::NothingDecodes { .. })
            | Error::NothingDecoded { .. } => {
                Some("repair or remove the files, or raise data.max_corrupt_share".into())
            }
            Error::Data(data::Error::RootGone { .. }) => {
                Some("mount or restore it, then resume the run".into())
            }
            Error::Data(data::Error::Machine { .. }) => {
                Some("look at the disk, the file server and the limits (ulimit -n), then try again".into())
            }
            Error::Load(source) => source.hint().map(Into::into),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_is_not_finite_from_the_start_may_be_the_temperatures_fault() {
        let hint = |step| Error::Diverged { step, loss: f64::NAN }.hint().unwrap();
        assert!(
            hint(1).contains("optimizer.lr") && hint(10).contains("objective.temperature"),
            "{}",
            hint(1)
        );
        assert!(hint(11).contains("optimizer.lr") && !hint(11).contains("temperature"), "{}", hint(11));
    }

    #[test]
    fn a_resumed_run_is_told_how_to_name_a_data_set_that_has_moved() {
        let gone = Error::Data(data::Error::NotFound { path: "/gone".into() });
        let hint = gone.hint_on_resume().unwrap();
        assert!(hint.contains("--data NEW") && hint.contains("--set eval.data=NEW"), "{hint}");
        assert_eq!((gone.hint(), Error::NoLabels.hint_on_resume()), (None, Error::NoLabels.hint()));
    }

    #[test]
    fn exit_codes_say_whose_turn_it_is() {
        let config = Error::Config { key: "data.size", value: "1".into(), reason: "too small".into() };
        assert_eq!(config.exit_code(), 2);
        assert_eq!(Error::Diverged { step: 3, loss: f64::NAN }.exit_code(), 3);
        let aborted = Error::Collective(collective::Error::Aborted { reason: "x".into() });
        assert_eq!(aborted.exit_code(), 75);
        let source = std::io::Error::other("x");
        let machine = Error::Data(data::Error::Machine { path: "a".into(), attempts: 4, source });
        let gone = Error::Data(data::Error::RootGone { path: "a".into() });
        assert!([machine, gone].iter().all(|error| error.exit_code() == 75 && !error.is_peer()));
        let (path, needed) = ("a".into(), "more than 9 bytes".into());
        let large = Error::Data(data::Error::TooLargeForMemory { path, needed, available: 9 });
        assert_eq!(large.exit_code(), 2);
    }
}
