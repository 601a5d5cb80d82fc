//! The checkpoints of a run as they lie on the disk: listed, verified, loaded, found.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::manifest::{MANIFEST_FILE, Manifest, Shard};
use crate::shard::ShardDecoder;
use crate::state::{State, Tensor};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// One checkpoint, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Completed updates.
    pub step: u64,
    /// Its directory.
    pub path: PathBuf,
    /// Bytes of all its shards.
    pub bytes: u64,
    /// When it was committed, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Ranks that wrote it.
    pub world_size: u32,
}

impl CheckpointInfo {
    pub(crate) fn new(path: PathBuf, manifest: &Manifest) -> CheckpointInfo {
        CheckpointInfo {
            step: manifest.step,
            path,
            bytes: manifest.total_bytes(),
            time_ns: manifest.time_ns,
            world_size: manifest.world_size,
        }
    }
}

/// A checkpoint that was found and verified.
#[derive(Debug)]
pub struct Located {
    /// Its directory.
    pub dir: PathBuf,
    /// What is wrong with newer ones that it stands in for: worth a warning each.
    pub problems: Vec<Error>,
}

/// The directory of a run's checkpoint of `step`.
pub fn checkpoint_dir(run_dir: &Path, step: u64) -> PathBuf {
    checkpoints_dir(run_dir).join(format!("step-{step:08}"))
}

pub(crate) fn checkpoints_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("checkpoints")
}

/// The step after which a checkpoint's directory is named.
pub(crate) fn step_of(dir: &Path) -> Option<u64> {
    let digits = dir.file_name()?.to_str()?.strip_prefix("step-")?;
    let step = digits.parse().ok()?;
    (format!("{step:08}") == digits).then_some(step)
}

/// Lists a run's checkpoints by ascending step, and what is wrong with those whose manifest cannot be read.
/// Shards are not read: see [`verify`].
///
/// # Errors
/// If the directory cannot be read; a run without checkpoints has an empty list.
pub fn list(run_dir: &Path) -> Result<(Vec<CheckpointInfo>, Vec<Error>), Error> {
    let (mut checkpoints, mut problems) = (Vec::new(), Vec::new());
    for dir in complete(run_dir)? {
        match Manifest::read(&dir) {
            Ok(manifest) => checkpoints.push(CheckpointInfo::new(dir, &manifest)),
            Err(problem) => problems.push(problem),
        }
    }
    Ok((checkpoints, problems))
}

/// Reads a whole checkpoint and returns everything that is wrong with it, by file.
pub fn verify(dir: &Path) -> Vec<Error> {
    match Manifest::read(dir) {
        Err(problem) => vec![problem],
        Ok(manifest) => read_shards(dir, &manifest, &mut |_| {}),
    }
}

/// Loads the tensors of a checkpoint that are `wanted` by their names, having compared every digest.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn load(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<(Manifest, State), Error> {
    let manifest = Manifest::read(dir)?;
    let mut tensors = Vec::new();
    let problems = read_shards(dir, &manifest, &mut |tensor| {
        if wanted(&tensor.name) {
            tensors.push(tensor.into_owned());
        }
    });
    match problems.into_iter().next() {
        Some(problem) => Err(problem),
        None => Ok((manifest, State::new(tensors)?)),
    }
}

/// Finds a run's newest checkpoint in which every digest holds, and what is wrong with newer ones.
pub fn newest_good(run_dir: &Path) -> (Option<PathBuf>, Vec<Error>) {
    let mut dirs = match complete(run_dir) {
        Ok(dirs) => dirs,
        Err(problem) => return (None, vec![problem]),
    };
    let mut problems = Vec::new();
    while let Some(dir) = dirs.pop() {
        let found = verify(&dir);
        if found.is_empty() {
            return (Some(dir), problems);
        }
        problems.extend(found);
    }
    (None, problems)
}

/// Finds the checkpoint that a user means: the directory itself, or the newest good one of a run.
///
/// # Errors
/// If the directory is neither, or nothing in it is intact.
pub fn locate(path: &Path) -> Result<Located, Error> {
    // A checkpoint whose manifest is gone is still recognised by its name, and not taken for an empty run.
    if path.join(MANIFEST_FILE).exists() || (step_of(path).is_some() && path.is_dir()) {
        let mut problems = verify(path);
        return if problems.is_empty() {
            Ok(Located { dir: path.to_owned(), problems })
        } else {
            Err(problems.swap_remove(0))
        };
    }
    match newest_good(path) {
        (Some(dir), problems) => Ok(Located { dir, problems }),
        (None, problems) => Err(Error::NoneUsable { path: path.to_owned(), problems }),
    }
}

/// Directories that bear a checkpoint's name, by ascending step.
pub(crate) fn complete(run_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let checkpoints = checkpoints_dir(run_dir);
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let mut dirs: Vec<(u64, PathBuf)> =
        entries(&checkpoints)?.into_iter().filter_map(|dir| Some((step_of(&dir)?, dir))).collect();
    dirs.sort();
    Ok(dirs.into_iter().map(|(_, dir)| dir).collect())
}

pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(Error::io("read", dir))
}

/// Hands over the tensors of every shard, and returns what is wrong with them.
fn read_shards(dir: &Path, manifest: &Manifest, take: &mut dyn FnMut(Tensor<'_>)) -> Vec<Error> {
    let mut problems = Vec::new();
    let mut names = std::collections::HashSet::new();
    for shard in &manifest.shards {
        let file = dir.join(&shard.file);
        let mut repeated = None;
        let read = read_shard(&file, shard, &mut |tensor| {
            if !names.insert(tensor.name.clone()) {
                repeated = Some(tensor.name.clone());
            }
            take(tensor);
        });
        problems.extend(read.err());
        problems.extend(repeated.map(|name| Error::Malformed {
            file,
            reason: format!("tensor `{name}` is also in another shard"),
        }));
    }
    problems
}

fn read_shard(file: &Path, shard: &Shard, take: &mut dyn FnMut(Tensor<'_>)) -> Result<(), Error> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Error::Missing { file: file.to_owned() },
        _ => Error::io("read", file)(error),
    };
    let mut source = File::open(file).map_err(io)?;
    // The length first: nobody waits for the digest of a file that has grown.
    let actual = source.metadata().map_err(io)?.len();
    if actual != shard.bytes {
        return Err(Error::Length { file: file.to_owned(), expected: shard.bytes, actual });
    }
    let mut decoder = ShardDecoder::new(shard, file);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match source.read(&mut chunk).map_err(io)? {
            0 => return decoder.finish(),
            n => decoder.push(&chunk[..n])?,
        }
        while let Some(tensor) = decoder.next_tensor() {
            take(tensor);
        }
    }
}
