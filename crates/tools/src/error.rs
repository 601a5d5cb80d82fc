//! Why a tool fails, and the exit code and remedy that go with it.

/// Why features, an evaluation or a benchmark could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What fails in training as well.
    #[error(transparent)]
    Trainer(#[from] trainer::Error),
    /// The configuration in a checkpoint is not one that this program takes.
    #[error("failed to read the configuration stored in the checkpoint")]
    StoredConfig(#[source] config::Error),
    /// A file of results cannot be written.
    #[error("failed to write the results")]
    Output(#[source] checkpoint::Error),
}

impl From<checkpoint::Error> for Error {
    fn from(error: checkpoint::Error) -> Error {
        trainer::Error::from(error).into()
    }
}

impl Error {
    /// The process's exit code (`CONTRACT.md`: 2 configuration, 3 diverged or corrupt, 75 try again).
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Trainer(error) => error.exit_code(),
            Error::StoredConfig(_) => 3,
            // What was named is there; the rest came to light on the way.
            Error::Output(_) => 1,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Trainer(error) => error.hint(),
            _ => None,
        }
    }
}
