//! What can be wrong with a configuration.

use std::path::PathBuf;

use crate::resumable::RESUMABLE;
use crate::words::Meant;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No key has this name.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// What was given.
        key: String,
        /// What it stands for.
        meant: Option<Meant>,
    },
    /// There once was a key of this name.
    #[error("`{key}` was removed: {fate}")]
    RetiredKey {
        /// The key.
        key: &'static str,
        /// What became of it.
        fate: &'static str,
    },
    /// The value is not one that the key takes.
    #[error("{key} = {value}: expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was given, as TOML.
        value: String,
        /// What it takes.
        expected: String,
        /// The value that it stands for.
        meant: Option<&'static str>,
    },
    /// Two keys of one file exclude each other.
    #[error("`{0}` and `{1}` are both set")]
    Conflict(&'static str, &'static str),
    /// The key means nothing with the kind that is configured.
    #[error("`{key}` does not go with {owner} = {value}")]
    NotOfKind {
        /// The key.
        key: &'static str,
        /// The key that decides.
        owner: &'static str,
        /// What that is set to.
        value: String,
        /// With which of its values the key goes.
        belongs_to: &'static [&'static str],
    },
    /// A key without a default was not set.
    #[error("`{0}` is not set")]
    Missing(&'static str),
    /// No preset has this name.
    #[error("unknown preset `{name}`, expected one of {}", known.join(", "))]
    UnknownPreset {
        /// What was given.
        name: String,
        /// The presets that exist.
        known: Vec<&'static str>,
    },
    /// `--set` takes `key=value`.
    #[error("`{0}` is not of the form key=value")]
    Assignment(String),
    /// The text is not TOML.
    #[error("not valid TOML")]
    Syntax(#[source] Box<toml::de::Error>),
    /// Something is wrong in a file.
    #[error("failed to take {} as the configuration", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<Error>,
    },
    /// A run is resumed as it was configured, but for its length and cadences.
    #[error("`{key}` cannot change when a run is resumed")]
    NotResumable {
        /// The key.
        key: &'static str,
    },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::UnknownKey { meant: Some(Meant::Key(key)), .. } => Some(format!("did you mean `{key}`?")),
            Error::UnknownKey { meant: Some(Meant::Flag(flag)), .. } => {
                Some(format!("that is an option of the command, not a key: `{flag}`"))
            }
            Error::Value { meant: Some(meant), .. } => Some(format!("did you mean `{meant}`?")),
            Error::UnknownKey { meant: None, .. } => {
                Some("`himpun presets show quickstart` shows how keys are written".to_owned())
            }
            Error::RetiredKey { .. } => Some("leave it out".to_owned()),
            Error::NotOfKind { owner, belongs_to, .. } => {
                Some(format!("leave it out, or set {owner} = {}", belongs_to.join(" or ")))
            }
            Error::Missing("data.source") => Some("say where the images are: --data PATH".to_owned()),
            Error::NotResumable { key: "data.source" } => {
                Some("where the data set has moved, name it with --data PATH".to_owned())
            }
            Error::NotResumable { .. } => {
                Some(format!("these can: {}; start a new run to change anything else", RESUMABLE.join(", ")))
            }
            Error::File { source, .. } => source.hint(),
            _ => None,
        }
    }
}
