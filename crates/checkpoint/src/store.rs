//! The checkpoints of a run as they lie on the disk: listed, verified, loaded, found.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::images::{list_file, named_list, open_list};
use crate::layout::{checkpoint_dir, complete, is_none, open_checkpoints, step_name, step_of};
use crate::manifest::{MANIFEST_FILE, Manifest, Shard};
use crate::shard::ShardDecoder;
use crate::state::{State, Tensor};
use crate::{Directory, Error, Part};

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

/// Opens the checkpoint of a run's `step`. No link is followed, neither to it nor in it.
///
/// # Errors
/// [`Error::Missing`] if there is none.
pub fn open(run: &Directory, step: u64) -> Result<Directory, Error> {
    let checkpoints = open_checkpoints(run)?;
    let file = checkpoint_dir(run.path(), step);
    checkpoints.ok_or(Error::Missing { file })?.open_directory(step_name(step)).map_err(Error::or_missing)
}

/// Opens a part of the checkpoint of a run's `step` for reading, and says which file it is; nothing where the
/// checkpoint has no such part.
///
/// # Errors
/// If the checkpoint or a file that it lists is not there, or is something else.
pub fn open_part(run: &Directory, step: u64, part: Part) -> Result<Option<(PathBuf, File)>, Error> {
    let dir = open(run, step)?;
    let manifest = Manifest::read(&dir)?;
    match part {
        Part::Shard(index) => {
            let Some(shard) = manifest.shards.get(index) else { return Ok(None) };
            let file = dir.read(&shard.file).map_err(Error::or_missing)?;
            Ok(Some((dir.path().join(&shard.file), file)))
        }
        Part::Images => {
            let Some(digest) = named_list(&manifest) else { return Ok(None) };
            let Some(checkpoints) = open_checkpoints(run)? else { return Ok(None) };
            let file = open_list(&checkpoints, digest)?;
            Ok(file.map(|file| (checkpoints.path().join(list_file(digest)), file)))
        }
    }
}

/// Lists a run's checkpoints by ascending step, and what is wrong with those whose manifest cannot be read.
/// Shards are not read: see [`verify`].
///
/// # Errors
/// If the directory cannot be read; a run without checkpoints has an empty list.
pub fn list(run: &Directory) -> Result<(Vec<CheckpointInfo>, Vec<Error>), Error> {
    let (mut checkpoints, mut problems) = (Vec::new(), Vec::new());
    let Some(directory) = open_checkpoints(run)? else { return Ok((checkpoints, problems)) };
    for step in complete(&directory)? {
        match directory.open_directory(step_name(step)).and_then(|dir| Manifest::read(&dir)) {
            Ok(manifest) => {
                checkpoints.push(CheckpointInfo::new(checkpoint_dir(run.path(), step), &manifest))
            }
            Err(problem) => problems.push(problem),
        }
    }
    Ok((checkpoints, problems))
}

/// Reads a whole checkpoint and returns everything that is wrong with it, by file. The path to it may lead through links.
pub fn verify(dir: &Path) -> Vec<Error> {
    match Directory::open(dir) {
        Err(problem) => vec![problem.or_missing()],
        Ok(dir) => verify_in(&dir),
    }
}

/// As [`verify`], of a directory that is open.
pub fn verify_in(dir: &Directory) -> Vec<Error> {
    match Manifest::read(dir) {
        Err(problem) => vec![problem],
        Ok(manifest) => read_shards(dir, &manifest, &mut |_| {}),
    }
}

/// Loads the tensors of a checkpoint that are `wanted` by their names, having compared every digest. The path to it may
/// lead through links.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn load(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<(Manifest, State), Error> {
    let dir = Directory::open(dir).map_err(Error::or_missing)?;
    let manifest = Manifest::read(&dir)?;
    let mut tensors = Vec::new();
    let problems = read_shards(&dir, &manifest, &mut |tensor| {
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
pub fn newest_good(run: &Directory) -> (Option<Directory>, Vec<Error>) {
    let mut problems = Vec::new();
    match find_good(run, &mut problems) {
        Ok(found) => (found, problems),
        Err(problem) => (None, vec![problem]),
    }
}

fn find_good(run: &Directory, problems: &mut Vec<Error>) -> Result<Option<Directory>, Error> {
    let Some(checkpoints) = open_checkpoints(run)? else { return Ok(None) };
    for step in complete(&checkpoints)?.into_iter().rev() {
        match checkpoints.open_directory(step_name(step)) {
            Ok(dir) => match verify_in(&dir) {
                found if found.is_empty() => return Ok(Some(dir)),
                found => problems.extend(found),
            },
            Err(problem) => problems.push(problem),
        }
    }
    Ok(None)
}

/// Finds the checkpoint that a user means: the directory itself, or the newest good one of a run. The path to either may
/// lead through links.
///
/// # Errors
/// If the directory is neither, or nothing in it is intact.
pub fn locate(path: &Path) -> Result<Located, Error> {
    // A checkpoint whose manifest is gone is still recognised by its name, and not taken for an empty run.
    let is_checkpoint = |dir: &Directory| dir.exists(MANIFEST_FILE) || step_of(path).is_some();
    let found = match Directory::open(path) {
        Ok(dir) if is_checkpoint(&dir) => {
            let mut problems = verify_in(&dir);
            return if problems.is_empty() {
                Ok(Located { dir: path.to_owned(), problems })
            } else {
                Err(problems.swap_remove(0))
            };
        }
        Ok(run) => newest_good(&run),
        Err(error) if is_none(&error) => (None, Vec::new()),
        Err(error) => (None, vec![error]),
    };
    match found {
        (Some(dir), problems) => Ok(Located { dir: dir.path().to_owned(), problems }),
        (None, problems) => Err(Error::NoneUsable { path: path.to_owned(), problems }),
    }
}

/// Hands over the tensors of every shard, and returns what is wrong with them.
fn read_shards(dir: &Directory, manifest: &Manifest, take: &mut dyn FnMut(Tensor<'_>)) -> Vec<Error> {
    let mut problems = Vec::new();
    let mut names = std::collections::HashSet::new();
    for shard in &manifest.shards {
        let mut repeated = None;
        let read = read_shard(dir, shard, &mut |tensor| {
            if !names.insert(tensor.name.clone()) {
                repeated = Some(tensor.name.clone());
            }
            take(tensor);
        });
        problems.extend(read.err());
        problems.extend(repeated.map(|name| Error::Malformed {
            file: dir.path().join(&shard.file),
            reason: format!("tensor `{name}` is also in another shard"),
        }));
    }
    problems
}

fn read_shard(dir: &Directory, shard: &Shard, take: &mut dyn FnMut(Tensor<'_>)) -> Result<(), Error> {
    let mut source = dir.read(&shard.file).map_err(Error::or_missing)?;
    let file = dir.path().join(&shard.file);
    // The length first: nobody waits for the digest of a file that has grown.
    let actual = source.metadata().map_err(Error::io("read", &file))?.len();
    if actual != shard.bytes {
        return Err(Error::Length { file, expected: shard.bytes, actual });
    }
    let mut decoder = ShardDecoder::new(shard, &file);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match source.read(&mut chunk).map_err(Error::io("read", &file))? {
            0 => return decoder.finish(),
            n => decoder.push(&chunk[..n])?,
        }
        while let Some(tensor) = decoder.next_tensor() {
            take(tensor);
        }
    }
}
