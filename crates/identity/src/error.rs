//! Why credentials cannot be used, or a connection does not come about.

use std::path::PathBuf;

/// What can go wrong with identities.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory that holds secrets is not private.
    #[error("{} {problem}", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
        /// What helps.
        remedy: String,
    },
    /// The file system refused.
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
    /// A file is not what it should be.
    #[error("{} is not {what}: {reason}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// How it is not.
        reason: String,
    },
    /// There is no home to keep credentials in.
    #[error("this user has no home directory to keep credentials in")]
    NoHome,
    /// Nothing proves this user to the coordinator.
    #[error("this user has no credentials for the coordinator at {address}")]
    NoCredentials {
        /// The coordinator.
        address: String,
        /// The role that is needed.
        role: crate::Role,
    },
    /// Nothing answers there.
    #[error("failed to reach the coordinator at {address}")]
    Unreachable {
        /// The coordinator.
        address: String,
        /// What the connection said.
        #[source]
        source: std::io::Error,
    },
    /// What answers there is not the coordinator that the credentials are for. It was told nothing.
    #[error("the process at {address} is not the coordinator that these credentials are for: {reason}")]
    Impostor {
        /// The coordinator's address.
        address: String,
        /// How that was seen.
        reason: String,
    },
    /// The coordinator does not take these credentials.
    #[error("the coordinator at {address} refused these credentials: {reason}")]
    Refused {
        /// The coordinator.
        address: String,
        /// Its reason.
        reason: String,
    },
    /// The coordinator speaks another version of the protocol.
    #[error("{0}")]
    OtherProtocol(String),
    /// A certificate cannot be made.
    #[error("failed to make a certificate")]
    Make(#[from] rcgen::Error),
    /// Certificates and keys do not go together.
    #[error("the certificate, key and authority in {} cannot be used", path.display())]
    Unusable {
        /// Where they lie.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Exit code as in `CONTRACT.md`: 75 where nothing answers, 2 for all that another try does not change.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Unreachable { .. } => 75,
            _ => 2,
        }
    }

    /// Whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unreachable { .. })
    }

    /// Whether the coordinator itself, having proven that it is, does not take these credentials.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Refused { .. })
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Exposed { remedy, .. } => remedy.clone(),
            Error::NoHome => "name a private directory by HIMPUN_CONFIG_DIR".to_owned(),
            Error::NoCredentials { role, .. } => format!(
                "copy credentials/{role}.token from the coordinator's directory and name the copy by --token-file or \
                 HIMPUN_TOKEN_FILE, or name a folder of certificates by --certs"
            ),
            Error::Unreachable { .. } => {
                "start one with `himpun coordinator`, or name another by --coordinator or HIMPUN_COORDINATOR"
                    .to_owned()
            }
            Error::Impostor { .. } => {
                "nothing was sent to it. If the coordinator was set up anew, copy its token file again"
                    .to_owned()
            }
            Error::Refused { .. } => {
                "copy the token file from the coordinator's directory again, or use a valid certificate"
                    .to_owned()
            }
            Error::OtherProtocol(_) => {
                "start coordinator, agents and commands from the same version of himpun".to_owned()
            }
            Error::Unusable { .. } => {
                "`himpun certs show` tells what a folder of certificates holds".to_owned()
            }
            _ => return None,
        })
    }

    pub(crate) fn io(what: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }
}

/// A stranger's text, for a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
