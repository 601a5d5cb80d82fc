//! Why a checkpoint cannot be written or trusted, and what to do about it.

use nix::sys::stat::{FileStat, SFlag};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Which of a checkpoint's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The shard of this index.
    Shard(usize),
    /// The list of images that it names.
    Images,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Shard(shard) => write!(f, "shard {shard}"),
            Part::Images => f.write_str("the list of images"),
        }
    }
}

/// What lies under a name, or what makes a file unfit for being appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, to whatever.
    SymbolicLink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A device, or something newer than this program.
    Device,
    /// A regular file that has other names as well.
    HardLinked,
    /// A regular file that another user owns.
    Foreign,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Found::File => "is a file instead of a directory",
            Found::Directory => "is a directory instead of a file",
            Found::SymbolicLink => "is a symbolic link, which is not followed here",
            Found::Fifo => "is a FIFO",
            Found::Socket => "is a socket",
            Found::Device => "is a device",
            Found::HardLinked => {
                "has another name (a hard link), so that writing to it would change that as well"
            }
            Found::Foreign => "belongs to another user",
        })
    }
}

impl Found {
    pub(crate) fn of(stat: &FileStat) -> Found {
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Found::File,
            SFlag::S_IFDIR => Found::Directory,
            SFlag::S_IFLNK => Found::SymbolicLink,
            SFlag::S_IFIFO => Found::Fifo,
            SFlag::S_IFSOCK => Found::Socket,
            _ => Found::Device,
        }
    }

    /// What the user can do about it.
    fn hint(self) -> &'static str {
        match self {
            Found::SymbolicLink => "replace it with a copy of what it leads to (`cp -rL`), or remove it",
            Found::HardLinked => "replace it with a copy (`cp FILE NEW; mv NEW FILE`), or remove it",
            Found::Foreign => "replace it with a copy of your own, or work as its owner",
            _ => "move it out of the way",
        }
    }
}

/// Everything that reading and writing checkpoints can fail with. Messages name the file, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// Verb phrase: `read`, `rename`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Below a run's directory lies something that is not read or written to.
    #[error("{} {found}", path.display())]
    NotPlain {
        /// Where.
        path: PathBuf,
        /// What it is.
        found: Found,
    },
    /// A file that the manifest lists, or the manifest itself, is gone.
    #[error("{} is missing", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// A file is shorter or longer than it was when it was written.
    #[error(
        "{} {}: {actual} bytes instead of {expected}",
        file.display(), if actual < expected { "is truncated" } else { "has grown" }
    )]
    Length {
        /// The file.
        file: PathBuf,
        /// Bytes that the manifest lists.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// A file's bytes are not those that were written.
    #[error("{} was altered: its BLAKE3 digest is {actual} instead of {expected}", file.display())]
    Altered {
        /// The file.
        file: PathBuf,
        /// Digest at the time of writing, in hexadecimal.
        expected: String,
        /// Digest of what is there.
        actual: String,
    },
    /// A file cannot be what it claims to be.
    #[error("{} is not valid: {reason}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Bytes of a shard are not a safetensors file that we would have written.
    #[error("not a valid shard: {reason}")]
    Shard {
        /// What is wrong.
        reason: String,
    },
    /// A tensor that is needed is not in the checkpoint.
    #[error("the checkpoint has no tensor `{name}`")]
    NoSuchTensor {
        /// Its name.
        name: String,
    },
    /// A tensor is there, but not as its reader needs it.
    #[error("tensor `{name}` is {actual} instead of {expected}")]
    WrongTensor {
        /// Its name.
        name: String,
        /// Type and shape that are needed.
        expected: String,
        /// Type and shape that it has.
        actual: String,
    },
    /// Nothing at a path is a checkpoint that can be used.
    #[error("no usable checkpoint at {}{}", path.display(), listed(problems))]
    NoneUsable {
        /// A run directory, or what was thought to be one.
        path: PathBuf,
        /// What is wrong with those that are there.
        problems: Vec<Error>,
    },
    /// Somebody else is writing a checkpoint of the same run.
    #[error("another checkpoint is being written in {}", path.display())]
    Busy {
        /// The run's `checkpoints` directory.
        path: PathBuf,
    },
    /// A file was sent that cannot be taken now.
    #[error("{part} {reason}")]
    Refused {
        /// Which one.
        part: Part,
        /// What is wrong.
        reason: String,
    },
    /// The digest of a received file is not the one that its sender stated.
    #[error("{part} arrived with BLAKE3 digest {actual} instead of {expected}")]
    Received {
        /// Which one.
        part: Part,
        /// What the sender stated.
        expected: String,
        /// What arrived.
        actual: String,
    },
    /// A commit before all files had arrived.
    #[error("{}", not_arrived(missing, *n_shards, *images))]
    Incomplete {
        /// Indices of the shards that are missing.
        missing: Vec<usize>,
        /// How many shards there must be.
        n_shards: usize,
        /// Whether the list of images is missing.
        images: bool,
    },
    /// A name that no export format has.
    #[error("unknown export format `{name}`, expected {expected}")]
    UnknownFormat {
        /// The name that was given.
        name: String,
        /// The names that exist.
        expected: String,
    },
    /// A format whose names are of another kind of backbone.
    #[error("the checkpoint is of {has}, which has no names of format {format}; use {instead}")]
    OtherFormat {
        /// The format that was asked for.
        format: &'static str,
        /// The kind of backbone.
        has: &'static str,
        /// The format that fits.
        instead: &'static str,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }

    /// Whether the system said that nothing is there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Of what a checkpoint must have, that nothing is there.
    pub(crate) fn or_missing(self) -> Error {
        match self {
            Self::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Self::Missing { file: path }
            }
            other => other,
        }
    }

    /// The process's exit code: 2 usage, 3 corrupt state, 75 try again, 1 otherwise.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotPlain { .. }
            | Self::Missing { .. }
            | Self::Length { .. }
            | Self::Altered { .. }
            | Self::Malformed { .. }
            | Self::Shard { .. }
            | Self::NoSuchTensor { .. }
            | Self::WrongTensor { .. } => 3,
            Self::NoneUsable { problems, .. } if !problems.is_empty() => 3,
            Self::NoneUsable { .. } | Self::UnknownFormat { .. } | Self::OtherFormat { .. } => 2,
            Self::Busy { .. } | Self::Received { .. } => 75,
            Self::Io { .. } | Self::Refused { .. } | Self::Incomplete { .. } => 1,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotPlain { found, .. } => Some(found.hint()),
            Self::Missing { .. } | Self::Length { .. } | Self::Altered { .. } | Self::Malformed { .. } => {
                Some(
                    "restore the file from a copy, or remove the checkpoint's directory: the one before is used then",
                )
            }
            Self::NoneUsable { problems, .. } if !problems.is_empty() => {
                Some("restore the named files from a copy, or start the run anew")
            }
            Self::NoneUsable { .. } => Some(
                "give a run directory, or one of its checkpoints/step-*; `himpun checkpoint list` shows them",
            ),
            Self::NoSuchTensor { .. } | Self::WrongTensor { .. } => {
                Some("use the configuration that the checkpoint was written with")
            }
            Self::Busy { .. } => Some("wait until it is done"),
            _ => None,
        }
    }
}

fn listed(problems: &[Error]) -> String {
    problems.iter().map(|problem| format!("; {problem}")).collect()
}

fn not_arrived(missing: &[usize], n_shards: usize, images: bool) -> String {
    match (missing, images) {
        ([], _) => "the list of images has not arrived".to_owned(),
        (missing, false) => format!("shards {missing:?} of {n_shards} have not arrived"),
        (missing, true) => {
            format!("shards {missing:?} of {n_shards} and the list of images have not arrived")
        }
    }
}
