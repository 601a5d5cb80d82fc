//! How a session with the coordinator ends other than by being closed.

use proto::Refusal;

/// Refusals that no other try changes: another version, and who this worker is not.
const ENDS_WITH_2: [&str; 3] = ["protocol_mismatch", "unauthenticated", "wrong_role"];

/// Why there is no session, or none any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nothing answers there.
    #[error("the coordinator at {coordinator} cannot be reached: {reason}")]
    Unreachable {
        /// Its address.
        coordinator: String,
        /// What the connection said.
        reason: String,
    },
    /// The coordinator understood, and said no.
    #[error("the coordinator at {coordinator} refused: {}", refusal.message)]
    Refused {
        /// Its address.
        coordinator: String,
        /// Its reason.
        refusal: Box<Refusal>,
    },
    /// Neither side knows the other.
    #[error("{0}")]
    Unproven(String),
    /// The coordinator ended this generation.
    #[error("told to abort: {reason}")]
    Aborted {
        /// As it was told.
        reason: String,
    },
    /// The coordinator closed the stream, as it does when the run has ended.
    #[error("the coordinator closed the session: the run has ended")]
    Ended,
    /// The coordinator was gone for longer than `cluster.orphan_ttl`.
    #[error("the coordinator is gone: {reason}")]
    Lost {
        /// What the stream last said.
        reason: String,
    },
    /// The threads of the session could not be started.
    #[error("failed to start the session's threads: {0}")]
    Runtime(#[source] std::sync::Arc<std::io::Error>),
}

impl Error {
    pub(crate) fn from_identity(coordinator: &str, error: identity::Error) -> Error {
        match error {
            identity::Error::Unreachable { source, .. } => {
                Error::Unreachable { coordinator: coordinator.to_owned(), reason: proto::one_line(&source) }
            }
            other => Error::Unproven(proto::one_line(&other)),
        }
    }

    pub(crate) fn from_status(coordinator: &str, status: &tonic::Status) -> Error {
        let refusal = Refusal::from(status);
        if is_transient(&refusal) {
            Error::Unreachable { coordinator: coordinator.to_owned(), reason: refusal.message }
        } else {
            Error::Refused { coordinator: coordinator.to_owned(), refusal: Box::new(refusal) }
        }
    }

    /// Whether the same call may succeed later. A stranger may hold the port of a coordinator that is being started again.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Unproven(_))
    }

    /// `CONTRACT.md`: 2 for a coordinator that speaks another protocol or does not know this worker, 75 for one that is not
    /// there.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Refused { refusal, .. } if ENDS_WITH_2.contains(&&refusal.reason[..]) => 2,
            Error::Unproven(_) => 2,
            Error::Runtime(_) => 1,
            _ => 75,
        }
    }
}

/// Whether a call failed for a reason that passes. What a dying coordinator or a broken connection leaves
/// behind has no typed reason, and one of the codes that HTTP/2's own errors become.
pub(crate) fn is_transient(refusal: &Refusal) -> bool {
    use tonic::Code::{Aborted, Cancelled, Internal, Unknown};
    refusal.retryable
        || (refusal.reason.is_empty() && matches!(refusal.code, Aborted | Cancelled | Internal | Unknown))
}
