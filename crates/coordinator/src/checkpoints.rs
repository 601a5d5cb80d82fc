//! Checkpoints that are being written, from the first shard to the commit.
//!
//! Everything here blocks on the disk: callers are threads that may.

use checkpoint::{Description, Directory, Manifest, Part, ShardWriter, Staging};
use proto::v1::{CheckpointInfo, Fence};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::clock;

/// Most bytes of a list of images. Its names share prefixes and are compressed to some ten bytes an image, so that this is a
/// hundred million images; and a worker that goes on from the checkpoint reads all of it into memory.
const MAX_IMAGES_BYTES: u64 = 1 << 30;

/// The open checkpoints of all runs; at most one a run.
#[derive(Clone, Default)]
pub(crate) struct Checkpoints {
    runs: Arc<Mutex<Runs>>,
}

#[derive(Default)]
struct Runs {
    /// By run id.
    open: HashMap<String, Open>,
    /// The last generation of each run that has ended: whatever it still begins comes too late.
    ended: HashMap<String, u64>,
}

struct Open {
    id: String,
    fence: Fence,
    run: Directory,
    keep: usize,
    shard_limits: Vec<u64>,
    description: Description,
    staging: Staging,
}

/// What a new checkpoint is of.
pub(crate) struct Plan {
    pub fence: Fence,
    pub run_dir: PathBuf,
    pub step: u64,
    /// Most bytes of each shard, one a rank.
    pub shard_limits: Vec<u64>,
    /// Whether the step may be committed already.
    pub may_stand: bool,
    /// How many of the newest stay.
    pub keep: usize,
    pub config_toml: String,
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Digest of the list of images that the checkpoint names.
    pub images: Option<checkpoint::Digest>,
}

/// What became of a checkpoint that was to begin.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It is open.
    Open {
        id: String,
        /// The run does not have the list of images yet.
        wants_images: bool,
    },
    /// It is committed already: there is nothing to write.
    Stands(CheckpointInfo),
}

/// The part of a checkpoint that a message of the wire means.
pub(crate) fn part(shard: u32, images: bool) -> Part {
    if images { Part::Images } else { Part::Shard(shard as usize) }
}

/// Why a checkpoint cannot be taken or given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("checkpoint {0} is not open: it was committed, given up, or its run has ended")]
    NotOpen(String),
    #[error(
        "chunk at byte {offset} of {part} was damaged on the way: its CRC32C is {actual:08x} instead of {expected:08x}"
    )]
    Chunk { part: Part, offset: u64, expected: u32, actual: u32 },
    #[error("{part} has {actual} bytes instead of the {expected} that its header states")]
    Length { part: Part, expected: u64, actual: u64 },
    #[error("{part} would have {bytes} bytes, and {limit} are the most that this run's can come to")]
    TooLarge { part: Part, bytes: u64, limit: u64 },
    #[error("the checkpoint of step {step} lacks {part}")]
    NoPart { step: u64, part: Part },
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    #[error("failed to read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Checkpoints {
    /// Starts a checkpoint and names it, unless it stands already. One of the same run that was not committed is given up.
    pub fn begin(&self, plan: Plan) -> Result<Begun, Error> {
        self.discard(&plan.fence.run_id);
        let run = Directory::create_resolved(&plan.run_dir)?;
        if let Some(info) = standing(&run, &plan) {
            return Ok(Begun::Stands(info));
        }
        let n_shards = plan.shard_limits.len();
        let staging = Staging::begin(&run, plan.step, plan.fence.generation, n_shards)?;
        let wants_images = plan.images.is_some_and(|digest| staging.want_images(&digest));
        let id =
            format!("step-{}.gen-{}.{}", plan.step, plan.fence.generation, uuid::Uuid::new_v4().simple());
        let description = Description {
            run_id: plan.fence.run_id.clone(),
            world_size: n_shards as u32,
            config_digest: config_digest(&plan),
            time_ns: 0,
            metadata: plan.metadata,
        };
        let (run_id, generation) = (plan.fence.run_id.clone(), plan.fence.generation);
        let open = Open {
            id: id.clone(),
            fence: plan.fence,
            run,
            keep: plan.keep,
            shard_limits: plan.shard_limits,
            description,
            staging,
        };
        let mut runs = self.lock();
        if runs.ended.get(&run_id).is_some_and(|&ended| ended >= generation) {
            drop(runs);
            // The run has ended since this was admitted: nobody would remove it later.
            open.staging.abort()?;
            return Err(Error::NotOpen(id));
        }
        runs.open.insert(run_id, open);
        Ok(Begun::Open { id, wants_images })
    }

    /// Opens a part of an open checkpoint for writing; with it, the most bytes that it may have.
    pub fn part(&self, fence: &Fence, id: &str, part: Part) -> Result<(ShardWriter, u64), Error> {
        let runs = self.lock();
        let Open { staging, shard_limits, .. } = runs.find(fence, id)?;
        Ok(match part {
            // A shard that the staging opens has a limit.
            Part::Shard(shard) => (staging.shard(shard)?, shard_limits[shard]),
            Part::Images => (staging.images()?, MAX_IMAGES_BYTES),
        })
    }

    /// Publishes a checkpoint, then retires those that it makes superfluous.
    pub fn commit(&self, fence: &Fence, id: &str) -> Result<CheckpointInfo, Error> {
        let Open { run, keep, mut description, staging, .. } = self.take(fence, id)?;
        description.time_ns = clock::wall_ns();
        let info = staging.commit(description)?;
        // The new checkpoint stands whatever becomes of the old ones.
        if let Err(error) = checkpoint::retain(&run, keep) {
            tracing::warn!(run_id = fence.run_id, %error, "old checkpoints could not be removed");
        }
        Ok(to_proto(&info))
    }

    /// Gives a checkpoint up.
    pub fn abort(&self, fence: &Fence, id: &str) -> Result<(), Error> {
        Ok(self.take(fence, id)?.staging.abort()?)
    }

    /// Gives up whatever a run that has ended has not committed, and what its generation may yet begin.
    pub fn end(&self, run_id: &str, generation: u64) {
        self.lock().ended.insert(run_id.to_owned(), generation);
        self.discard(run_id);
    }

    /// Removes what a coordinator that was killed has left of a checkpoint.
    pub fn clean(&self, run_id: &str, run_dir: &Path) {
        match Directory::open_resolved(run_dir).and_then(|run| checkpoint::remove_abandoned(&run)) {
            Ok(0) => {}
            Ok(n) => tracing::info!(run_id, n, "abandoned checkpoints removed"),
            Err(error) => tracing::warn!(run_id, %error, "an abandoned checkpoint could not be removed"),
        }
    }

    fn discard(&self, run_id: &str) {
        let Some(open) = self.lock().open.remove(run_id) else { return };
        if let Err(error) = open.staging.abort() {
            tracing::warn!(run_id, %error, "an unfinished checkpoint could not be removed");
        }
    }

    fn take(&self, fence: &Fence, id: &str) -> Result<Open, Error> {
        let mut runs = self.lock();
        runs.find(fence, id)?;
        Ok(runs.open.remove(&fence.run_id).expect("it was found under the same lock"))
    }

    fn lock(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().expect("no holder of this lock panics")
    }
}

impl Runs {
    fn find(&self, fence: &Fence, id: &str) -> Result<&Open, Error> {
        let found = self.open.get(&fence.run_id).filter(|open| open.id == id && open.fence == *fence);
        found.ok_or_else(|| Error::NotOpen(id.to_owned()))
    }
}

/// The checkpoint that stands where the plan's would, if it is of the same step, ranks, images and configuration: the run
/// came from it or has written it, and has made no step since. One that cannot be read is written anew.
fn standing(run: &Directory, plan: &Plan) -> Option<CheckpointInfo> {
    let directory = plan.may_stand.then(|| checkpoint::open(run, plan.step))?.ok()?;
    let manifest = Manifest::read(&directory).ok()?;
    let named = checkpoint::named_list(&manifest).map(str::to_owned);
    let has_list = || matches!(checkpoint::open_part(run, plan.step, Part::Images), Ok(Some(_)));
    let is_same = manifest.world_size as usize == plan.shard_limits.len()
        && manifest.config_digest == config_digest(plan)
        && named == plan.images.map(|digest| checkpoint::hex(&digest))
        && (named.is_none() || has_list());
    is_same.then(|| CheckpointInfo {
        step: manifest.step,
        path: directory.path().to_string_lossy().into_owned(),
        bytes: manifest.total_bytes(),
        time_ns: manifest.time_ns,
        world_size: manifest.world_size,
    })
}

fn config_digest(plan: &Plan) -> String {
    checkpoint::hex(&checkpoint::digest(plan.config_toml.as_bytes()))
}

/// The text of a committed checkpoint's manifest.
pub(crate) fn manifest_json(run: &Directory, step: u64) -> Result<String, Error> {
    Ok(Manifest::read(&checkpoint::open(run, step)?)?.to_json())
}

/// Reads a part of a committed checkpoint in pieces of `size` bytes, until `sink` wants no more. Nothing
/// is verified here: the reader compares the digest that the manifest states.
pub(crate) fn read_part(
    run: &Directory,
    step: u64,
    part: Part,
    size: usize,
    mut sink: impl FnMut(u64, Vec<u8>) -> bool,
) -> Result<(), Error> {
    let (path, mut file) = checkpoint::open_part(run, step, part)?.ok_or(Error::NoPart { step, part })?;
    let read_error = |source| Error::Read { path: path.clone(), source };
    let mut offset = 0;
    loop {
        let mut data = Vec::with_capacity(size);
        let n = Read::take(&mut file, size as u64).read_to_end(&mut data).map_err(read_error)?;
        if n == 0 || !sink(offset, data) {
            return Ok(());
        }
        offset += n as u64;
    }
}

/// A checkpoint as the wire describes it.
pub(crate) fn to_proto(info: &checkpoint::CheckpointInfo) -> CheckpointInfo {
    CheckpointInfo {
        step: info.step,
        path: info.path.to_string_lossy().into_owned(),
        bytes: info.bytes,
        time_ns: info.time_ns,
        world_size: info.world_size,
    }
}

#[cfg(test)]
mod tests;
