//! The file that a token is copied by: whom it proves, to which server, and how it is reached.

use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use std::path::Path;

use crate::{Error, Fingerprint, Role, Token, files};

/// Whether the bytes of a connection are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// TLS 1.3.
    Tls,
    /// As `himpun coordinator --insecure` has it.
    None,
}

/// A token with what its holder must know of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenFile {
    /// What the holder may do.
    pub role: Role,
    /// Whether to expect TLS.
    pub encryption: Encryption,
    /// Of the coordinator's key, by which it proves itself.
    pub fingerprint: Fingerprint,
    /// What the holder proves itself by.
    pub token: Token,
    /// The coordinator's directory, for people.
    pub directory: String,
}

impl TokenFile {
    /// Reads the file that `--token-file` names. It may be a link, and root's, as a mounted Secret is.
    ///
    /// # Errors
    /// If others can write it, or it is no such file.
    pub fn read(path: &Path) -> Result<TokenFile, Error> {
        TokenFile::parse(path, &files::read_named(path)?)
    }

    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<TokenFile, Error> {
        serde_json::from_slice(bytes).map_err(|error| Error::Malformed {
            path: path.to_owned(),
            what: "a token file of himpun",
            // Without serde's text: it repeats what it did not expect, which may be the token.
            reason: match error.classify() {
                Category::Data => format!("a field is missing, unknown or wrong (line {})", error.line()),
                Category::Io | Category::Syntax | Category::Eof => {
                    format!("it is no JSON (line {}, column {})", error.line(), error.column())
                }
            },
        })
    }

    pub(crate) fn to_json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("strings and enums are JSON");
        text.push('\n');
        text
    }
}
