//! A checkpoint while it is written: under a name that nobody reads.
//!
//! Shards are written and synced in `.step-00000012.gen-3.tmp`; the manifest comes after them, and the
//! rename to `step-00000012` after it. A crash at any point leaves either the complete checkpoint or a
//! leftover under the other name, which the next staging removes. The generation is part of that name, so
//! that a late writer of an older group cannot write into its successor's files.

use nix::errno::Errno;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::images::{IMAGES_FILE, list_file};
use crate::layout::{CHECKPOINTS, open_checkpoints, step_name};
use crate::manifest::{Description, Digest, MANIFEST_FILE, Manifest, Shard, hex, shard_file};
use crate::store::CheckpointInfo;
use crate::{Directory, Error, Part};

/// A checkpoint that is being written. Dropped without a commit it leaves files that the next one removes.
#[derive(Debug)]
pub struct Staging {
    /// The run's, locked until the staging ends.
    checkpoints: Directory,
    /// The one that is written to, and its name.
    dir: Directory,
    name: String,
    step: u64,
    generation: u64,
    progress: Shared,
}

/// What has become of each file. The writers report to it.
type Shared = Arc<Mutex<Files>>;

#[derive(Debug)]
struct Files {
    shards: Vec<Progress>,
    /// Of the list of images; none where the run has it.
    images: Option<Progress>,
}

impl Files {
    fn lock(shared: &Shared) -> MutexGuard<'_, Files> {
        shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&mut self, part: Part) -> Option<&mut Progress> {
        match part {
            Part::Shard(index) => self.shards.get_mut(index),
            Part::Images => self.images.as_mut(),
        }
    }
}

#[derive(Debug, Clone)]
enum Progress {
    Awaited,
    Open,
    Durable(Shard),
}

impl Staging {
    /// Starts a checkpoint of `n_shards` files and removes what crashed ones have left.
    ///
    /// # Errors
    /// [`Error::Busy`] while another staging of the same run is alive, in this process or another.
    pub fn begin(run: &Directory, step: u64, generation: u64, n_shards: usize) -> Result<Staging, Error> {
        let checkpoints = run.create_directory(CHECKPOINTS)?;
        run.sync()?;
        if !checkpoints.try_lock()? {
            return Err(Error::Busy { path: checkpoints.path().to_owned() });
        }
        remove_leftovers(&checkpoints)?;
        let name = format!(".{}.gen-{generation}.tmp", step_name(step));
        let dir = checkpoints.create_directory(&name)?;
        let files = Files { shards: vec![Progress::Awaited; n_shards], images: None };
        let progress = Arc::new(Mutex::new(files));
        Ok(Staging { checkpoints, dir, name, step, generation, progress })
    }

    /// Completed updates of the state that is being written.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Membership version of the group that writes.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Opens shard `index` for writing. A writer that is dropped before it finished can be replaced.
    ///
    /// # Errors
    /// If there is no such shard, or it is being written or has arrived.
    pub fn shard(&self, index: usize) -> Result<ShardWriter, Error> {
        let n_shards = self.n_shards();
        self.open(Part::Shard(index), shard_file(index, n_shards))
    }

    /// Requires the list of images that has this digest, unless the run has it already. True if it is required.
    pub fn want_images(&self, digest: &Digest) -> bool {
        // Something that is no list is replaced by one.
        let wanted = self.checkpoints.read(list_file(&hex(digest))).is_err();
        if wanted {
            self.lock().images = Some(Progress::Awaited);
        }
        wanted
    }

    /// Opens the list of images for writing.
    ///
    /// # Errors
    /// If it is not wanted, or is being written or has arrived.
    pub fn images(&self) -> Result<ShardWriter, Error> {
        self.open(Part::Images, IMAGES_FILE.to_owned())
    }

    fn n_shards(&self) -> usize {
        self.lock().shards.len()
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        Files::lock(&self.progress)
    }

    fn open(&self, part: Part, name: String) -> Result<ShardWriter, Error> {
        let mut files = self.lock();
        let n_shards = files.shards.len();
        let refused = |reason: String| Err(Error::Refused { part, reason });
        let progress = match (files.get(part), part) {
            (Some(progress), _) => progress,
            (None, Part::Shard(_)) => {
                return refused(format!("is none of the {n_shards} of this checkpoint"));
            }
            (None, Part::Images) => return refused("is not wanted: the run has it".to_owned()),
        };
        match progress {
            Progress::Open => return refused("is being written already".to_owned()),
            Progress::Durable(_) => return refused("has arrived already".to_owned()),
            Progress::Awaited => {}
        }
        let (path, file) = (self.dir.path().join(&name), self.dir.create_file(&name)?);
        *progress = Progress::Open;
        let hasher = blake3::Hasher::new();
        Ok(ShardWriter { part, name, path, file, bytes: 0, hasher, progress: Arc::clone(&self.progress) })
    }

    /// Publishes the checkpoint: afterwards it exists under its own name, on the disk.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if a file is missing; the staging is then over.
    pub fn commit(self, description: Description) -> Result<CheckpointInfo, Error> {
        let manifest = Manifest::new(self.step, self.generation, description, self.durable()?);
        self.keep_images()?;
        let mut file = self.dir.create_file(MANIFEST_FILE)?;
        let written = file.write_all(manifest.to_json().as_bytes()).and_then(|()| file.sync_all());
        written.map_err(Error::io("write", &self.dir.path().join(MANIFEST_FILE)))?;
        self.dir.sync()?;

        let target = step_name(self.step);
        publish(&self.checkpoints, &self.name, &target)?;
        self.checkpoints.sync()?;
        // What the name stood for before has changed places with the new one.
        if let Err(error) = self.checkpoints.remove_tree(&self.name) {
            // The checkpoint stands all the same, and the next staging tries again.
            tracing::warn!(path = %self.dir.path().display(), %error, "a replaced checkpoint could not be removed");
        }
        Ok(CheckpointInfo::new(self.checkpoints.path().join(target), &manifest))
    }

    /// Gives the checkpoint up and removes its files.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn abort(self) -> Result<(), Error> {
        self.checkpoints.remove_tree(&self.name)
    }

    fn durable(&self) -> Result<Vec<Shard>, Error> {
        let files = self.lock();
        let n_shards = files.shards.len();
        let mut durable = Vec::with_capacity(n_shards);
        let mut missing = Vec::new();
        for (index, progress) in files.shards.iter().enumerate() {
            match progress {
                Progress::Durable(shard) => durable.push(shard.clone()),
                Progress::Awaited | Progress::Open => missing.push(index),
            }
        }
        let images = matches!(files.images, Some(Progress::Awaited | Progress::Open));
        if missing.is_empty() && !images {
            return Ok(durable);
        }
        Err(Error::Incomplete { missing, n_shards, images })
    }

    /// Gives the list of images, if it came, the name by which all checkpoints of the run find it.
    fn keep_images(&self) -> Result<(), Error> {
        let Some(Progress::Durable(list)) = &self.lock().images else { return Ok(()) };
        self.dir.rename(IMAGES_FILE, &self.checkpoints, list_file(&list.blake3))?;
        self.checkpoints.sync()
    }
}

/// Writes one file, in order, and digests it on the way.
#[derive(Debug)]
pub struct ShardWriter {
    part: Part,
    name: String,
    path: PathBuf,
    file: File,
    bytes: u64,
    hasher: blake3::Hasher,
    progress: Shared,
}

impl ShardWriter {
    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a chunk that its sender placed at `offset`.
    ///
    /// # Errors
    /// If a chunk before it is missing or it repeats one.
    pub fn write_at(&mut self, offset: u64, chunk: &[u8]) -> Result<(), Error> {
        if offset != self.bytes {
            let reason = format!("continues at byte {offset} instead of {}", self.bytes);
            return Err(Error::Refused { part: self.part, reason });
        }
        self.append(chunk)
    }

    /// Appends a chunk.
    ///
    /// # Errors
    /// If the disk refuses it.
    pub fn append(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.file.write_all(chunk).map_err(Error::io("write", &self.path))?;
        self.hasher.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    /// Ends the file: it is then on the disk, and is what its sender digested.
    ///
    /// # Errors
    /// [`Error::Received`] if it is not; it can then be sent again.
    pub fn finish(self, expected: &Digest) -> Result<Shard, Error> {
        let actual = *self.hasher.finalize().as_bytes();
        if actual != *expected {
            return Err(Error::Received { part: self.part, expected: hex(expected), actual: hex(&actual) });
        }
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        let shard = Shard { file: self.name.clone(), bytes: self.bytes, blake3: hex(&actual) };
        self.report(Progress::Durable(shard.clone()));
        Ok(shard)
    }

    fn report(&self, progress: Progress) {
        if let Some(known) = Files::lock(&self.progress).get(self.part) {
            *known = progress;
        }
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if let Some(known @ Progress::Open) = Files::lock(&self.progress).get(self.part) {
            *known = Progress::Awaited;
        }
    }
}

/// Removes what stagings and retirements that ended half-way have left in a run's directory, unless a staging is alive.
/// Returns how many directories it removed.
///
/// # Errors
/// If the system refuses.
pub fn remove_abandoned(run: &Directory) -> Result<usize, Error> {
    match open_checkpoints(run)? {
        Some(checkpoints) if checkpoints.try_lock()? => remove_leftovers(&checkpoints),
        _ => Ok(0),
    }
}

/// Gives the complete directory `staged` the name `target`, at once.
///
/// That name may be taken: a run that went back to an older checkpoint comes by the same steps again, and
/// whoever orders a checkpoint right after a resume gets the step that the run came from. The two then
/// change places, so that a crash leaves the one or the other, never neither.
fn publish(checkpoints: &Directory, staged: &str, target: &str) -> Result<(), Error> {
    match checkpoints.exchange(staged, target) {
        Ok(()) => Ok(()),
        Err(Errno::ENOENT) => checkpoints.rename(staged, checkpoints, target),
        // Network file systems know no exchange: there the old one goes first.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            checkpoints.remove_tree(target)?;
            checkpoints.rename(staged, checkpoints, target)
        }
        Err(errno) => Err(Error::io("rename", &checkpoints.path().join(staged))(errno.into())),
    }
}

/// Only under the lock: nobody else writes then.
fn remove_leftovers(checkpoints: &Directory) -> Result<usize, Error> {
    let mut leftovers = checkpoints.entries()?;
    leftovers.retain(|name| {
        let name = name.to_str().unwrap_or_default();
        name.starts_with(".step-") && name.ends_with(".tmp")
    });
    for name in &leftovers {
        let path = checkpoints.path().join(name);
        tracing::info!(path = %path.display(), "removing the leftover of an unfinished checkpoint");
        checkpoints.remove_tree(name)?;
    }
    Ok(leftovers.len())
}
