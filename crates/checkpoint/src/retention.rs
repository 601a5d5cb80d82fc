//! Which checkpoints stay.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::images::{digest_in_name, named_list};
use crate::layout::{checkpoint_dir, complete, open_checkpoints, step_name};
use crate::manifest::Manifest;
use crate::{Directory, Error};

/// Removes a run's checkpoints but the `keep` newest, and returns the removed directories. Lists of images that only
/// those named go with them.
///
/// Step 0 (`checkpoint.at_start`) is never removed and not counted. Neither is a damaged checkpoint: it
/// must not push out a good one, and a person may want to look at it. `keep` of 0 counts as 1, for a run
/// must have something to go on from.
///
/// # Errors
/// If a directory cannot be read or removed.
pub fn retain(run: &Directory, keep: usize) -> Result<Vec<PathBuf>, Error> {
    let Some(checkpoints) = open_checkpoints(run)? else { return Ok(Vec::new()) };
    let mut retired = complete(&checkpoints)?;
    retired.retain(|step| *step > 0 && is_sound(&checkpoints, *step));
    retired.truncate(retired.len().saturating_sub(keep.max(1)));
    for step in &retired {
        remove(&checkpoints, *step)?;
    }
    if !retired.is_empty() {
        checkpoints.sync()?;
        remove_unnamed_lists(&checkpoints)?;
    }
    Ok(retired.into_iter().map(|step| checkpoint_dir(run.path(), step)).collect())
}

/// Whether every shard has its length. Digests were compared when they were written, and reading all
/// checkpoints after each commit would cost more than writing one.
fn is_sound(checkpoints: &Directory, step: u64) -> bool {
    let has_all_bytes = |dir: Directory| {
        let manifest = Manifest::read(&dir).ok()?;
        let length = |file: &str| Some(dir.read(file).ok()?.metadata().ok()?.len());
        Some(manifest.shards.iter().all(|shard| length(&shard.file) == Some(shard.bytes)))
    };
    checkpoints.open_directory(step_name(step)).ok().and_then(has_all_bytes).unwrap_or(false)
}

/// Removes the lists of images that no checkpoint names. A checkpoint that is being written may count on one of them:
/// they then stay until the next retirement.
fn remove_unnamed_lists(checkpoints: &Directory) -> Result<(), Error> {
    if unnamed_lists(checkpoints)?.is_empty() || !checkpoints.try_lock()? {
        return Ok(());
    }
    // Again, under the lock: a checkpoint may have been committed since.
    for list in unnamed_lists(checkpoints)? {
        checkpoints.remove(list)?;
    }
    Ok(())
}

/// None while a manifest cannot be read, for it may name any.
fn unnamed_lists(checkpoints: &Directory) -> Result<Vec<OsString>, Error> {
    let mut named = HashSet::new();
    for step in complete(checkpoints)? {
        let read = checkpoints.open_directory(step_name(step)).and_then(|dir| Manifest::read(&dir));
        let Ok(manifest) = read else { return Ok(Vec::new()) };
        named.extend(named_list(&manifest).map(str::to_owned));
    }
    let is_unnamed = |name: &OsString| {
        name.to_str().and_then(digest_in_name).is_some_and(|digest| !named.contains(digest))
    };
    Ok(checkpoints.entries()?.into_iter().filter(is_unnamed).collect())
}

/// Takes the name away first: a directory that bears it is complete, also while it is being removed.
fn remove(checkpoints: &Directory, step: u64) -> Result<(), Error> {
    let retired = format!(".{}.retired.tmp", step_name(step));
    checkpoints.rename(step_name(step), checkpoints, &retired)?;
    checkpoints.remove_tree(retired)
}
