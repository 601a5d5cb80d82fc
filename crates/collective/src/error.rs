//! What can go wrong between ranks.

use std::fmt;
use std::io;
use std::time::Duration;

/// Why a collective, or the forming of a group, failed. The step is lost and nothing was applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A peer's socket closed or its host stopped answering.
    #[error("rank {rank} is gone")]
    PeerLost {
        /// The peer.
        rank: usize,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// A peer is at another place of the program, so that its data must not be used.
    #[error("rank {rank} is out of step: expected {field} {expected}, got {got}")]
    Mismatch {
        /// The peer.
        rank: usize,
        /// What differs first.
        field: Field,
        /// The value on this rank.
        expected: u64,
        /// The value in the peer's frame.
        got: u64,
    },
    /// A peer sent bytes that are no frame.
    #[error("rank {rank} sent a damaged frame")]
    BadFrame {
        /// The peer.
        rank: usize,
    },
    /// [`crate::AbortHandle::abort`] was called.
    #[error("aborted: {reason}")]
    Aborted {
        /// As given to `abort`.
        reason: String,
    },
    /// A peer refused this rank's greeting, or answered with something else.
    #[error("no connection to rank {rank}: {refusal}")]
    BadHandshake {
        /// The peer.
        rank: usize,
        /// Its answer.
        refusal: Refusal,
    },
    /// The deadline of the forming passed before all peers had come.
    #[error("still waiting for ranks {waiting_for:?} after {after:?}")]
    Timeout {
        /// The peers that were late.
        waiting_for: Vec<usize>,
        /// The time that was allowed.
        after: Duration,
    },
    /// An earlier operation of this communicator failed, and left its streams anywhere.
    #[error("an earlier collective of this group failed")]
    Failed,
    /// This machine refused a system call.
    #[error("failed to {action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The refusal.
        #[source]
        source: io::Error,
    },
}

/// The parts of a frame's header that must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Which membership of the run.
    Generation,
    /// Completed optimizer updates.
    Step,
    /// Exchanges since the group was formed.
    Sequence,
    /// Which collective (by its number on the wire).
    Operation,
    /// Type of the elements (by its number on the wire).
    Element,
    /// Payload bytes.
    Length,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generation => "generation",
            Self::Step => "step",
            Self::Sequence => "sequence number",
            Self::Operation => "operation",
            Self::Element => "element type",
            Self::Length => "payload bytes",
        })
    }
}

/// Why a peer would not form a group with this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It speaks another version of the protocol.
    Version,
    /// Its MAC is not one by the key of this generation.
    Key,
    /// It is of another generation.
    Generation,
    /// It does not expect this rank or communicator, or has it already.
    Place,
    /// What listens there is no worker.
    NotAWorker,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "it speaks another version of the protocol",
            Self::Key => "it does not know the key of this generation",
            Self::Generation => "it is of another generation",
            Self::Place => "it does not expect this rank there",
            Self::NotAWorker => "what listens there is no worker",
        })
    }
}
