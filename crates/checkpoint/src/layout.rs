//! What a run's checkpoints are called, and where they lie in its directory.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Directory, Error};

/// Where a run's checkpoints are, in its directory.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// The directory of a run's checkpoint of `step`.
pub fn checkpoint_dir(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(CHECKPOINTS).join(step_name(step))
}

pub(crate) fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step after which a checkpoint's directory is named.
pub(crate) fn step_of(dir: &Path) -> Option<u64> {
    let digits = dir.file_name()?.to_str()?.strip_prefix("step-")?;
    let step = digits.parse().ok()?;
    (format!("{step:08}") == digits).then_some(step)
}

/// Opens the directory of a run's checkpoints; nothing where there is none.
pub(crate) fn open_checkpoints(run: &Directory) -> Result<Option<Directory>, Error> {
    match run.open_directory(CHECKPOINTS) {
        Ok(checkpoints) => Ok(Some(checkpoints)),
        Err(error) if is_none(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Steps after which something in a run's `checkpoints` is named, ascending.
pub(crate) fn complete(checkpoints: &Directory) -> Result<Vec<u64>, Error> {
    let names = checkpoints.entries()?;
    let mut steps: Vec<u64> = names.iter().filter_map(|name| step_of(Path::new(name))).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Whether there is no directory of that name.
pub(crate) fn is_none(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        _ => false,
    }
}
