//! Checkpoints that are being written, from the first shard to the commit.
//!
//! Everything here blocks on the disk: callers are threads that may.

use checkpoint::{Description, Manifest, Part, ShardWriter, Staging};
use proto::v1::{CheckpointInfo, Fence};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::clock;

/// The open checkpoints of all runs; at most one a run.
#[derive(Clone, Default)]
pub(crate) struct Checkpoints {
    /// By run id.
    open: Arc<Mutex<HashMap<String, Open>>>,
}

struct Open {
    id: String,
    fence: Fence,
    run_dir: PathBuf,
    keep: usize,
    description: Description,
    staging: Staging,
}

/// What a new checkpoint is of.
pub(crate) struct Plan {
    pub fence: Fence,
    pub run_dir: PathBuf,
    pub step: u64,
    pub n_shards: usize,
    /// How many of the newest stay.
    pub keep: usize,
    pub world_size: u32,
    pub config_toml: String,
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Digest of the list of images that the checkpoint names.
    pub images: Option<checkpoint::Digest>,
}

/// A checkpoint that is open.
pub(crate) struct Begun {
    pub id: String,
    /// The run does not have the list of images yet.
    pub wants_images: bool,
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
    /// Starts a checkpoint and names it. One of the same run that was not committed is given up.
    pub fn begin(&self, plan: Plan) -> Result<Begun, Error> {
        self.discard(&plan.fence.run_id);
        let staging = Staging::begin(&plan.run_dir, plan.step, plan.fence.generation, plan.n_shards)?;
        let wants_images = plan.images.is_some_and(|digest| staging.want_images(&digest));
        let id =
            format!("step-{}.gen-{}.{}", plan.step, plan.fence.generation, uuid::Uuid::new_v4().simple());
        let description = Description {
            run_id: plan.fence.run_id.clone(),
            world_size: plan.world_size,
            config_digest: checkpoint::hex(&checkpoint::digest(plan.config_toml.as_bytes())),
            time_ns: 0,
            metadata: plan.metadata,
        };
        let run_id = plan.fence.run_id.clone();
        let open = Open {
            id: id.clone(),
            fence: plan.fence,
            run_dir: plan.run_dir,
            keep: plan.keep,
            description,
            staging,
        };
        self.lock().insert(run_id, open);
        Ok(Begun { id, wants_images })
    }

    /// Opens a part of an open checkpoint for writing.
    pub fn part(&self, fence: &Fence, id: &str, part: Part) -> Result<ShardWriter, Error> {
        let open = self.lock();
        let staging = &find(&open, fence, id)?.staging;
        Ok(match part {
            Part::Shard(shard) => staging.shard(shard)?,
            Part::Images => staging.images()?,
        })
    }

    /// Publishes a checkpoint, then retires those that it makes superfluous.
    pub fn commit(&self, fence: &Fence, id: &str) -> Result<CheckpointInfo, Error> {
        let Open { run_dir, keep, mut description, staging, .. } = self.take(fence, id)?;
        description.time_ns = clock::wall_ns();
        let info = staging.commit(description)?;
        // The new checkpoint stands whatever becomes of the old ones.
        if let Err(error) = checkpoint::retain(&run_dir, keep) {
            tracing::warn!(run_id = fence.run_id, %error, "old checkpoints could not be removed");
        }
        Ok(to_proto(&info))
    }

    /// Gives a checkpoint up.
    pub fn abort(&self, fence: &Fence, id: &str) -> Result<(), Error> {
        Ok(self.take(fence, id)?.staging.abort()?)
    }

    /// Gives up whatever a run has not committed.
    pub fn discard(&self, run_id: &str) {
        let Some(open) = self.lock().remove(run_id) else { return };
        if let Err(error) = open.staging.abort() {
            tracing::warn!(run_id, %error, "an unfinished checkpoint could not be removed");
        }
    }

    fn take(&self, fence: &Fence, id: &str) -> Result<Open, Error> {
        let mut open = self.lock();
        find(&open, fence, id)?;
        Ok(open.remove(&fence.run_id).expect("it was found under the same lock"))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().expect("no holder of this lock panics")
    }
}

fn find<'a>(open: &'a HashMap<String, Open>, fence: &Fence, id: &str) -> Result<&'a Open, Error> {
    let found = open.get(&fence.run_id).filter(|open| open.id == id && open.fence == *fence);
    found.ok_or_else(|| Error::NotOpen(id.to_owned()))
}

/// The text of a committed checkpoint's manifest.
pub(crate) fn manifest_json(run_dir: &Path, step: u64) -> Result<String, Error> {
    Ok(Manifest::read_in(&checkpoint::open(run_dir, step)?)?.to_json())
}

/// Reads a part of a committed checkpoint in pieces of `size` bytes, until `sink` wants no more. Nothing
/// is verified here: the reader compares the digest that the manifest states.
pub(crate) fn read_part(
    run_dir: &Path,
    step: u64,
    part: Part,
    size: usize,
    mut sink: impl FnMut(u64, Vec<u8>) -> bool,
) -> Result<(), Error> {
    let (path, mut file) = checkpoint::open_part(run_dir, step, part)?.ok_or(Error::NoPart { step, part })?;
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
