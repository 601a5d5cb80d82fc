//! What can go wrong between a path and a batch.

use std::path::PathBuf;

/// Everything this room can fail with. Messages name the file and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing lies at the path of a source.
    #[error("no data at {}: there is no such file or folder", path.display())]
    NotFound {
        /// The path that was looked for.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The operating system refused to write.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The machine, not the file, is at fault, and trying again did not help.
    #[error(
        "cannot read {} after {attempts} attempts: the disk, the file server or a limit of this machine is at fault, \
         not the data", path.display()
    )]
    Machine {
        /// The file or folder.
        path: PathBuf,
        /// How often it was tried.
        attempts: usize,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The folder of a data set that was open is gone, or holds none of its images any more.
    #[error("the data set is gone: {} (data.source or eval.data) or the images in it cannot be found any more", path.display())]
    RootGone {
        /// The folder.
        path: PathBuf,
    },
    /// What would have to be held in memory does not fit.
    #[error(
        "{} takes {needed} of memory, and {available} bytes are available to each worker: pack it with \
         `himpun data pack --data {} --out FILE` and train on FILE, or run fewer workers on this node",
        path.display(), path.display()
    )]
    TooLargeForMemory {
        /// The source as it was given; where no source is opened, the file that is held.
        path: PathBuf,
        /// Bytes that it takes, or more than how many.
        needed: String,
        /// Bytes that may be held.
        available: u64,
    },
    /// The source was read and holds no image.
    #[error(
        "{origin} holds no images ({skipped}): expected JPEG, PNG, WebP, BMP or GIF files, as class/name.jpg or \
         flat, a tar of those, IDX files or CIFAR .bin files"
    )]
    Empty {
        /// The source as it was given.
        origin: String,
        /// What was skipped, in words.
        skipped: String,
    },
    /// The split or folder named after `#` is not in the source.
    #[error("{origin} has no {wanted}: it has {available}")]
    NoSuchSplit {
        /// The source without the `#`.
        origin: String,
        /// What was asked for.
        wanted: String,
        /// What could have been.
        available: String,
    },
    /// Several splits could be meant.
    #[error("{origin} holds {candidates}, and {reason}: name one, as {origin}#{first}")]
    AmbiguousSplit {
        /// The source without the `#`.
        origin: String,
        /// The folders.
        candidates: String,
        /// Why none of them is taken.
        reason: String,
        /// The first of them.
        first: String,
    },
    /// A file that holds the whole data set is damaged or of another kind.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with expected and actual numbers, and what to do.
        reason: String,
    },
    /// The list of a run's images is damaged.
    #[error("the list of the run's images is damaged: {reason}")]
    List {
        /// What is wrong.
        reason: String,
    },
    /// One image cannot be had: it is missing, not permitted, a loop of links, no regular file, too large, or cannot be
    /// decoded. Training replaces it; see [`crate::decode_or_replace`].
    #[error("{path}: {reason}")]
    Image {
        /// The image, relative to its source.
        path: String,
        /// The system's or the decoder's reason.
        reason: String,
    },
    /// More images are corrupt than the run tolerates: see [`crate::tolerates`].
    #[error("{} of {len} images cannot be read or decoded, {}: {}", paths.len(), allowed(*max_share), listed(paths))]
    TooManyCorrupt {
        /// Every corrupt image met so far.
        paths: Vec<String>,
        /// Images in the data set.
        len: usize,
        /// The share that was allowed.
        max_share: f64,
    },
    /// Not a single image can be decoded.
    #[error("none of the {len} images can be decoded")]
    NothingDecodes {
        /// Images in the data set.
        len: usize,
    },
    /// A global batch needs more images than there are.
    #[error(
        "a global batch of {global_batch} images cannot be drawn from a data set of {len}: lower \
         train.global_batch or give more images"
    )]
    BatchTooLarge {
        /// Images per step over all ranks.
        global_batch: usize,
        /// Images in the data set.
        len: usize,
    },
    /// The objective asks for classes and the source has none.
    #[error(
        "{origin} has no classes, which objective.kind needs: give images as class/name.jpg, IDX or CIFAR files"
    )]
    NoLabels {
        /// The source as it was given.
        origin: String,
    },
    /// No augmentation has this name.
    #[error("unknown augmentation {name:?}: expected one of {}", crate::augment::PRESETS.join(", "))]
    UnknownAugmentation {
        /// The name that was given.
        name: String,
    },
    /// The operating system gave no thread.
    #[error("cannot start a data loader thread")]
    Thread(#[source] std::io::Error),
    /// A prefetch thread panicked: a bug, not an input error.
    #[error("a data loader thread panicked while preparing step {step}: {message}")]
    Panicked {
        /// The step (0-based) whose batch is lost.
        step: u64,
        /// The panic's message.
        message: String,
    },
}

/// What is exceeded.
fn allowed(max_share: f64) -> String {
    if max_share == 0.0 {
        "and data.max_corrupt_share = 0 tolerates none".to_owned()
    } else {
        let n = crate::replace::TOLERATED;
        format!("more than {n} and more than the share of {max_share} that data.max_corrupt_share allows")
    }
}

/// The first twenty paths, and how many more there are.
fn listed(paths: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = paths.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if paths.len() > SHOWN {
        text.push_str(&format!(", and {} more", paths.len() - SHOWN));
    }
    text
}
