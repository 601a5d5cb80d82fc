//! Who asked what, and what became of it: one line for each call and each session that opens, `audit.jsonl`.
//!
//! It is written with what is at hand and never holds up a call: where the disk refuses a line, the log says so once.

use serde_json::json;
use std::fs::{File, OpenOptions, Permissions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, clock};

/// A file of this size gets the name `audit.jsonl.1`, and so on.
const ROTATE_BYTES: u64 = 16 << 20;

/// Rotated files that are kept.
const KEPT: u32 = 4;

/// Longest text of a line's fields: callers choose parts of it.
const MAX_TEXT: usize = 300;

/// The file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Audit {
    /// Nothing for a coordinator whose directory does not outlive it.
    inner: Option<Arc<Mutex<Inner>>>,
}

struct Inner {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// The last line could not be written.
    failing: bool,
    strangers: Strangers,
}

/// Bounds the lines of those who showed nothing: by noise nobody shall rotate everybody else's lines away.
#[derive(Default)]
struct Strangers {
    /// When the present period began, in nanoseconds.
    since: u64,
    lines: u32,
    /// Left out since the last line of a stranger.
    left_out: u64,
}

/// Lines of strangers in a period.
const STRANGERS_LINES: u32 = 100;

/// A period, in nanoseconds.
const PERIOD_NS: u64 = 60_000_000_000;

impl Strangers {
    /// How many lines were left out before this one; nothing if it is one too many itself.
    fn admit(&mut self, now: u64) -> Option<u64> {
        if now.saturating_sub(self.since) >= PERIOD_NS {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines == STRANGERS_LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// One line.
pub(crate) struct Entry<'a> {
    /// A role, a certificate's name, or a worker's nonce.
    pub who: &'a str,
    pub role: &'a str,
    pub from: SocketAddr,
    /// The method's path, or `connection`.
    pub what: &'a str,
    /// `ok`, or why not.
    pub outcome: &'a str,
}

impl Audit {
    /// Opens `directory/audit.jsonl`.
    pub fn open(directory: &Path) -> Result<Audit, Error> {
        let path = directory.join("audit.jsonl");
        let file = append(&path).map_err(|source| Error::Io { what: "open", path: path.clone(), source })?;
        let bytes = file.metadata().map_or(0, |found| found.len());
        Ok(Audit {
            inner: Some(Arc::new(Mutex::new(Inner {
                path,
                file,
                bytes,
                failing: false,
                strangers: Strangers::default(),
            }))),
        })
    }

    /// Keeps none.
    pub fn none() -> Audit {
        Audit { inner: None }
    }

    /// Writes a line.
    pub fn write(&self, entry: &Entry<'_>) {
        let Some(inner) = &self.inner else { return };
        let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::wall_ns();
        let is_stranger = matches!(entry.role, "nobody" | "clear-text");
        let admitted = if is_stranger { inner.strangers.admit(now) } else { Some(0) };
        let Some(left_out) = admitted else { return };
        let mut line = json!({
            "time_ns": now,
            "who": cut(entry.who),
            "role": entry.role,
            "from": entry.from.to_string(),
            "what": cut(entry.what),
            "outcome": cut(entry.outcome),
        });
        if left_out > 0 {
            line["left_out"] = left_out.into();
        }
        let written = inner.write(&format!("{line}\n"));
        if let Err(error) = &written
            && !inner.failing
        {
            tracing::error!(path = %inner.path.display(), %error, "the audit cannot be written");
        }
        inner.failing = written.is_err();
    }
}

impl Inner {
    fn write(&mut self, line: &str) -> std::io::Result<()> {
        if self.bytes >= ROTATE_BYTES {
            let numbered = |n: u32| self.path.with_extension(format!("jsonl.{n}"));
            for n in (1..KEPT).rev().filter(|n| numbered(*n).exists()) {
                std::fs::rename(numbered(n), numbered(n + 1))?;
            }
            std::fs::rename(&self.path, numbered(1))?;
            self.file = append(&self.path)?;
            self.bytes = 0;
        }
        self.file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// A file of our own that nobody else can read, and no link.
fn append(path: &Path) -> std::io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if found.is_file() && found.nlink() == 1 && found.uid() == nix::unistd::geteuid().as_raw() {
        file.set_permissions(Permissions::from_mode(0o600))?;
        return Ok(file);
    }
    Err(std::io::Error::other("it is not a plain file of this user with one name: remove it"))
}

fn cut(text: &str) -> &str {
    let end = text.char_indices().nth(MAX_TEXT).map_or(text.len(), |(end, _)| end);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(what: &'a str) -> Entry<'a> {
        Entry { who: "operator", role: "operator", from: ([127, 0, 0, 1], 9).into(), what, outcome: "ok" }
    }

    #[test]
    fn lines_are_private_and_rotate() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::open(directory.path()).unwrap();
        audit.write(&entry("/a"));
        audit.inner.as_ref().unwrap().lock().unwrap().bytes = ROTATE_BYTES;
        audit.write(&entry(&"é".repeat(1000)));
        let path = directory.path().join("audit.jsonl");
        let read = |path: &Path| -> serde_json::Value {
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
        };
        assert_eq!(read(&path.with_extension("jsonl.1"))["what"], "/a");
        assert_eq!(read(&path)["what"].as_str().unwrap().chars().count(), MAX_TEXT);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn strangers_fill_a_bounded_part() {
        let mut strangers = Strangers::default();
        let admitted = (0..150).filter_map(|_| strangers.admit(PERIOD_NS)).count();
        assert_eq!(admitted, 100);
        assert_eq!(strangers.admit(2 * PERIOD_NS), Some(50));
        assert_eq!(strangers.admit(2 * PERIOD_NS), Some(0));
    }

    #[test]
    fn a_link_is_not_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        let path = directory.path().join("audit.jsonl");
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(Audit::open(directory.path()).is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::hard_link(&victim, &path).unwrap();
        assert!(Audit::open(directory.path()).is_err());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    }
}
