//! A client's side: what it knows its coordinator by, and what it proves itself by.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use crate::authority::Folder;
use crate::{Encryption, Error, Fingerprint, Role, TokenFile, WorkerSecret, keyring};

/// How a client reaches a coordinator.
#[derive(Clone, Debug)]
pub enum Access {
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
    /// Finds what this user has for the coordinator at `address`: the named folder of certificates or token file, or what the
    /// coordinator left in this user's home.
    ///
    /// # Errors
    /// If there is nothing, naming the file to copy; or if it lies open to others.
    pub fn find(
        address: &str,
        certificates: Option<&Path>,
        token_file: Option<&Path>,
        role: Role,
    ) -> Result<Access, Error> {
        if let Some(folder) = certificates {
            return Ok(Access::Certificates(folder.to_owned()));
        }
        match token_file {
            Some(path) => TokenFile::read(path).map(Access::Token),
            None => keyring::find(address, role).map(Access::Token),
        }
    }

    /// What a worker of this client may know the coordinator by.
    ///
    /// # Errors
    /// If the folder of certificates cannot be read.
    pub fn trust(&self) -> Result<Trust, Error> {
        Ok(match self {
            Access::Token(file) if file.encryption == Encryption::None => Trust::Proof,
            Access::Token(file) => Trust::Key(file.fingerprint),
            Access::Certificates(folder) => {
                let authority = Folder::new(folder).authority()?;
                Trust::Authority(String::from_utf8_lossy(&authority).into_owned())
            }
            Access::Worker { trust, .. } => trust.clone(),
        })
    }
}
