//! How a session with the coordinator ends other than by being closed.

use proto::Refusal;

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
    pub(crate) fn unreachable(coordinator: &str, error: &dyn std::error::Error) -> Error {
        Error::Unreachable { coordinator: coordinator.to_owned(), reason: proto::one_line(error) }
    }

    pub(crate) fn from_status(coordinator: &str, status: &tonic::Status) -> Error {
        let refusal = Refusal::from(status);
        if is_transient(&refusal) {
            Error::Unreachable { coordinator: coordinator.to_owned(), reason: refusal.message }
        } else {
            Error::Refused { coordinator: coordinator.to_owned(), refusal: Box::new(refusal) }
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unreachable { .. })
    }

    /// `CONTRACT.md`: 2 for a coordinator that speaks another protocol, 75 for one that is not there.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Refused { refusal, .. } if refusal.reason == "protocol_mismatch" => 2,
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
