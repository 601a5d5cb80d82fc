//! Which checkpoints stay.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::images::{images_of, is_images_file};
use crate::manifest::Manifest;
use crate::staging::{self, sync_dir};
use crate::store::{checkpoints_dir, complete, entries};

/// Removes a run's checkpoints but the `keep` newest, and returns the removed directories. Lists of images that only
/// those named go with them.
///
/// Step 0 (`checkpoint.at_start`) is never removed and not counted. Neither is a damaged checkpoint: it
/// must not push out a good one, and a person may want to look at it. `keep` of 0 counts as 1, for a run
/// must have something to go on from.
///
/// # Errors
/// If a directory cannot be read or removed.
pub fn retain(run_dir: &Path, keep: usize) -> Result<Vec<PathBuf>, Error> {
    let sound: Vec<PathBuf> = complete(run_dir)?
        .into_iter()
        .filter(|dir| {
            Manifest::read(dir).is_ok_and(|manifest| manifest.step > 0 && has_all_bytes(dir, &manifest))
        })
        .collect();
    let n_retired = sound.len().saturating_sub(keep.max(1));
    for dir in &sound[..n_retired] {
        remove(dir)?;
    }
    if n_retired > 0 {
        sync_dir(&checkpoints_dir(run_dir))?;
        remove_unnamed_lists(run_dir)?;
    }
    Ok(sound[..n_retired].to_vec())
}

/// Whether every shard has its length. Digests were compared when they were written, and reading all
/// checkpoints after each commit would cost more than writing one.
fn has_all_bytes(dir: &Path, manifest: &Manifest) -> bool {
    let has_length =
        |file: &str, bytes: u64| fs::metadata(dir.join(file)).is_ok_and(|metadata| metadata.len() == bytes);
    manifest.shards.iter().all(|shard| has_length(&shard.file, shard.bytes))
}

/// Removes the lists of images that no checkpoint names. A checkpoint that is being written may count on one of them:
/// they then stay until the next retirement.
fn remove_unnamed_lists(run_dir: &Path) -> Result<(), Error> {
    if unnamed_lists(run_dir)?.is_empty() {
        return Ok(());
    }
    let _lock = match staging::lock(&checkpoints_dir(run_dir)) {
        Err(Error::Busy { .. }) => return Ok(()),
        lock => lock?,
    };
    // Again, under the lock: a checkpoint may have been committed since.
    for list in unnamed_lists(run_dir)? {
        fs::remove_file(&list).map_err(Error::io("remove", &list))?;
    }
    Ok(())
}

/// None while a manifest cannot be read, for it may name any.
fn unnamed_lists(run_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut named = HashSet::new();
    for dir in complete(run_dir)? {
        let Ok(manifest) = Manifest::read(&dir) else { return Ok(Vec::new()) };
        named.extend(images_of(run_dir, &manifest).map(|(list, _)| list));
    }
    let is_unnamed = |path: &PathBuf| is_images_file(path) && !named.contains(path);
    Ok(entries(&checkpoints_dir(run_dir))?.into_iter().filter(is_unnamed).collect())
}

/// Takes the name away first: a directory that bears it is complete, also while it is being removed.
fn remove(dir: &Path) -> Result<(), Error> {
    let name = dir.file_name().and_then(|name| name.to_str()).expect("a checkpoint's name is ASCII");
    let retired = dir.with_file_name(format!(".{name}.retired.tmp"));
    fs::rename(dir, &retired).map_err(Error::io("rename", dir))?;
    match fs::remove_dir_all(&retired) {
        // A staging that begins now removes leftovers as well.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", &retired)(error))
        }
        _ => Ok(()),
    }
}
