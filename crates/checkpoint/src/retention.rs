//! Which checkpoints stay.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::manifest::Manifest;
use crate::staging::sync_dir;
use crate::store::{checkpoints_dir, complete};

/// Removes a run's checkpoints but the `keep` newest, and returns the removed directories.
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
