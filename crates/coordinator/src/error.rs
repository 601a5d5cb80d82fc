//! What can go wrong in a coordinator as a whole; a refused call is a [`crate::state::Refused`].

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a coordinator could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another coordinator works in this directory.
    #[error("another coordinator uses {}", dir.display())]
    DirectoryInUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory or its database cannot be used.
    #[error("failed to {what} {}", path.display())]
    Io {
        /// Verb phrase.
        what: &'static str,
        /// What of.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database refused.
    #[error("failed to {what} in the coordinator's database")]
    Store {
        /// Verb phrase.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// A stored run that this version does not understand.
    #[error("the database holds a record that cannot be read")]
    Record(#[source] serde_json::Error),
    /// The address is taken or not one of this machine's.
    #[error("failed to listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Credentials that are not private, or certificates that cannot be used.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The server ended by itself.
    #[error("the gRPC server failed")]
    Serve(#[source] tonic::transport::Error),
    /// A thread or task of the coordinator ended that must not; it is a bug.
    #[error("the coordinator's {0} ended unexpectedly")]
    Ended(&'static str),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::DirectoryInUse { .. } => Some("stop it, or give this one a `--dir` of its own".to_owned()),
            Error::Identity(error) => error.hint(),
            Error::Bind { .. } => Some("choose another port; port 0 lets the system choose".to_owned()),
            _ => None,
        }
    }
}
