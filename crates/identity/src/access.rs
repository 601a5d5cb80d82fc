//! A client's side: what it knows its coordinator by, and what it proves itself by.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use crate::authority::Folder;
use crate::{Encryption, Error, Fingerprint, Role, TokenFile, WorkerSecret, keyring};

/// How a client reaches a coordinator.
#[derive(Clone, Debug)]
pub enum Access {
    /// In this role, by what the coordinator has left in this user's home, looked up at every connection: it may start later.
    Home(Role),
    /// By a token, which came with the fingerprint of the coordinator's key.
    Token(TokenFile),
    /// By a folder of certificates, read at every connection: they may have been made anew.
    Certificates(PathBuf),
    /// As a worker, by what came with its spawn.
    Worker {
        /// What it knows the coordinator by.
        trust: Trust,
        /// Names the worker to the coordinator; no secret.
        nonce: String,
        /// Its agent handed it on.
        secret: WorkerSecret,
    },
}

/// What a client knows its server by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// By its key.
    Key(Fingerprint),
    /// By a certificate of this authority (PEM), for the name it is reached by.
    Authority(String),
    /// By the proof of the common secret, without encryption.
    Proof,
}

/// What an agent hands on to a worker, through a descriptor that only the two have.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spawn {
    /// What to know the coordinator by.
    pub trust: Trust,
    /// What to prove itself by.
    pub secret: WorkerSecret,
}

impl Access {
    /// What a user has: a folder of certificates or a token file that is named, or else what is in the home.
    ///
    /// # Errors
    /// If the token file cannot be read, or lies open to others.
    pub fn new(certificates: Option<&Path>, token_file: Option<&Path>, role: Role) -> Result<Access, Error> {
        Ok(match (certificates, token_file) {
            (Some(folder), _) => Access::Certificates(folder.to_owned()),
            (None, Some(path)) => Access::Token(TokenFile::read(path)?),
            (None, None) => Access::Home(role),
        })
    }

    /// With what is in the home now, for the coordinator at `address`.
    ///
    /// # Errors
    /// If there is nothing, naming the file to copy; or if it lies open to others.
    pub(crate) fn resolve(&self, address: &str) -> Result<Access, Error> {
        match self {
            Access::Home(role) => keyring::find(address, *role).map(Access::Token),
            other => Ok(other.clone()),
        }
    }

    /// What a worker of this client may know the coordinator at `address` by.
    ///
    /// # Errors
    /// If what this client knows it by cannot be read.
    pub fn trust(&self, address: &str) -> Result<Trust, Error> {
        Ok(match self.resolve(address)? {
            Access::Home(_) => unreachable!("resolved to a token"),
            Access::Token(file) if file.encryption == Encryption::None => Trust::Proof,
            Access::Token(file) => Trust::Key(file.fingerprint),
            Access::Certificates(folder) => {
                let authority = Folder::new(&folder).authority()?;
                Trust::Authority(String::from_utf8_lossy(&authority).into_owned())
            }
            Access::Worker { trust, .. } => trust,
        })
    }
}
