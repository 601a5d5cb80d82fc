//! What ends a worker, and the exit code and remedy that go with it.

/// Why a worker ends before its last step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Training failed.
    #[error(transparent)]
    Trainer(#[from] trainer::Error),
    /// The coordinator is gone or refused a call.
    #[error("the session with the coordinator is over")]
    Session(#[from] crate::session::Error),
    /// The configuration is not one.
    #[error("the configuration is not valid")]
    Unresolved(#[from] config::Error),
    /// A checkpoint does not fit the run, or is damaged.
    #[error("the checkpoint of step {step} cannot be used")]
    Checkpoint {
        /// Its step.
        step: u64,
        /// What does not fit.
        #[source]
        source: checkpoint::Error,
    },
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
    /// What the coordinator sent as the key of this generation is none.
    #[error("the coordinator sent a group key of {got} bytes, not 32")]
    GroupKey {
        /// Its length.
        got: usize,
    },
}

impl From<collective::Error> for Error {
    fn from(error: collective::Error) -> Error {
        trainer::Error::from(error).into()
    }
}

impl From<data::Error> for Error {
    fn from(error: data::Error) -> Error {
        trainer::Error::from(error).into()
    }
}

impl Error {
    /// The process's exit code (`CONTRACT.md`: 2 configuration, 3 diverged or corrupt, 75 try again).
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Trainer(error) => error.exit_code(),
            Error::Session(error) => error.exit_code(),
            Error::Unresolved(_) => 2,
            Error::Checkpoint { source, .. } => source.exit_code(),
            Error::Sync { .. } | Error::Disagreement { .. } | Error::GroupKey { .. } => 1,
        }
    }

    /// Whether the cause is another process: its own report names it better than this one.
    pub fn is_peer(&self) -> bool {
        match self {
            Error::Trainer(error) => error.is_peer(),
            Error::Session(_) => true,
            _ => false,
        }
    }

    /// What the user can do about it where a run is resumed: its data set may have moved since.
    pub fn hint_on_resume(&self) -> Option<String> {
        match self {
            Error::Trainer(error) => error.hint_on_resume(),
            _ => self.hint(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Trainer(error) => error.hint(),
            Error::Disagreement { .. } => {
                Some("start every node with the same binary and configuration".into())
            }
            Error::Unresolved(error) => error.hint(),
            Error::Checkpoint { source, .. } => source.hint().map(Into::into),
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
        let error = Error::from(collective::Error::PeerLost { rank: 2, source: io });
        assert_eq!(proto::one_line(&error), "collective operation failed: rank 2 is gone: no route");
        assert!(error.is_peer());
    }
}
