//! Ends blocked collectives from another thread.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use crate::Error;

/// Ends all operations of the communicators it was given to, once and for good.
#[derive(Debug, Clone)]
pub struct AbortHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    reason: OnceLock<String>,
    /// One byte is written at the abort and never read: the pipe then stays readable for every `poll`, of
    /// any thread, that watches it. A group of one never waits and has none.
    pipe: Option<(PipeReader, PipeWriter)>,
}

impl AbortHandle {
    /// Makes a handle for the communicators of one generation.
    ///
    /// # Errors
    /// If the process is out of file descriptors.
    pub fn new() -> Result<Self, Error> {
        let pipe = io::pipe().map_err(|source| Error::Io { action: "open a pipe", source })?;
        Ok(Self(Arc::new(Shared { reason: OnceLock::new(), pipe: Some(pipe) })))
    }

    pub(crate) fn alone() -> Self {
        Self(Arc::new(Shared { reason: OnceLock::new(), pipe: None }))
    }

    /// Makes every blocked and every later operation return [`Error::Aborted`]. The first reason stays.
    pub fn abort(&self, reason: impl Into<String>) {
        if self.0.reason.set(reason.into()).is_ok()
            && let Some((_, writer)) = &self.0.pipe
        {
            let mut writer: &PipeWriter = writer;
            // An empty pipe takes one byte at once, and its reader lives as long as its writer.
            writer.write_all(&[1]).expect("an open and empty pipe takes a byte");
        }
    }

    /// Whether `abort` was called.
    pub fn is_aborted(&self) -> bool {
        self.0.reason.get().is_some()
    }

    /// `Err(Aborted)` once `abort` was called.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.0.reason.get() {
            Some(reason) => Err(Error::Aborted { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Becomes readable at the abort.
    pub(crate) fn signal(&self) -> Option<BorrowedFd<'_>> {
        self.0.pipe.as_ref().map(|(reader, _)| reader.as_fd())
    }
}
