//! The one place that opens files, and what a refusal of the system means.
//!
//! A refusal is the file's own (it is missing, not permitted, no regular file, too large) or the machine's (its disk,
//! its file server, its limits). The first makes an image that cannot be had; the second is tried again a few times, and
//! then ends the run. Nothing is read before `fstat` has shown a regular file, and opening never waits for a writer.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::malformed;
use crate::Error;

/// The largest file that is taken for an image, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 1 << 30;

/// What is waited before each further attempt at what the machine refused.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(800)];

/// Why an image's file cannot be had.
#[derive(Debug)]
pub enum Refusal {
    /// Its path leads nowhere, or not for this user.
    Unreachable(io::Error),
    /// There is something that is no image.
    Unfit(String),
    /// The machine is at fault.
    Machine(Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Unreachable(error)
    }
}

/// Reads the whole of a file that is to be an image.
pub fn read_image(path: &Path) -> Result<Vec<u8>, Refusal> {
    let outcome = persist(path, || match read_once(path) {
        Err(Refusal::Unreachable(error)) => Err(error),
        outcome => Ok(outcome),
    });
    outcome.map_err(Refusal::Machine)??
}

fn read_once(path: &Path) -> Result<Vec<u8>, Refusal> {
    let (file, len) = open(path)?;
    if len > MAX_IMAGE_BYTES {
        return Err(Refusal::Unfit(too_large(len)));
    }
    let mut bytes = Vec::with_capacity(len as usize + 1);
    file.take(len + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > len {
        return Err(Refusal::Unfit(format!("more than the {len} bytes that it had when it was opened")));
    }
    Ok(bytes)
}

/// Says that a file of `len` bytes is not taken for an image.
pub fn too_large(len: u64) -> String {
    format!("{len} bytes, more than the {MAX_IMAGE_BYTES} that an image may have")
}

/// Opens a file that holds a whole data set; gives its length in bytes as well.
pub fn open_source(path: &Path) -> Result<(File, u64), Error> {
    let opened = persist(path, || match open(path) {
        Err(Refusal::Unreachable(error)) => Err(error),
        outcome => Ok(outcome),
    })?;
    match opened.map_err(Refusal::from).flatten() {
        Ok(opened) => Ok(opened),
        Err(Refusal::Unfit(reason)) => Err(malformed(path, reason)),
        Err(Refusal::Unreachable(error)) => Err(of_source(path, error)),
        Err(Refusal::Machine(error)) => Err(error),
    }
}

/// The error of a path that was given for a data set.
pub fn of_source(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound { path: path.to_owned() },
        _ => Error::Io { path: path.to_owned(), source: error },
    }
}

fn open(path: &Path) -> Result<(File, u64), Refusal> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = match opened {
        Err(error) if matches!(errno(&error), Some(Errno::ENXIO | Errno::ENODEV)) => {
            return Err(Refusal::Unfit("a socket or a device, no regular file".to_owned()));
        }
        opened => opened?,
    };
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        Err(Refusal::Unfit(format!("{}, no regular file", kind_of(metadata.file_type()))))
    }
}

fn kind_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe (FIFO)"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// What a path that leads nowhere is called.
pub fn unreachable_because(path: &Path, error: &io::Error) -> String {
    match errno(error) {
        Some(Errno::ENOENT) if path.is_symlink() => "a link to a file that is not there".to_owned(),
        Some(Errno::ENOENT | Errno::ENOTDIR) => "there is no such file".to_owned(),
        Some(Errno::EACCES | Errno::EPERM) => "no permission to read it".to_owned(),
        Some(Errno::ELOOP) => "a loop of links".to_owned(),
        Some(errno) => errno.desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// Carries `operation` out on the file or folder `path`, again where the machine is at fault. What is not the machine's
/// fault is the caller's to judge.
///
/// # Errors
/// [`Error::Machine`] after the last attempt.
pub fn persist<T>(path: &Path, operation: impl FnMut() -> io::Result<T>) -> Result<io::Result<T>, Error> {
    match again(&mut pause, operation) {
        Err(error) if is_machines(&error) => Err(machine(path, error)),
        outcome => Ok(outcome),
    }
}

/// The machine's fault that was left after all attempts at `path`.
pub fn machine(path: &Path, source: io::Error) -> Error {
    Error::Machine { path: path.to_owned(), attempts: PAUSES.len() + 1, source }
}

/// The error of a file of a data set that was open and could not be read on.
pub fn of_content(path: &Path, error: io::Error) -> Error {
    if is_machines(&error) {
        machine(path, error)
    } else if error.kind() == io::ErrorKind::UnexpectedEof {
        malformed(path, "it is shorter than when it was opened")
    } else {
        Error::Io { path: path.to_owned(), source: error }
    }
}

/// A stream whose operations are tried again where the machine is at fault.
pub struct Patient<R>(pub R);

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        again(&mut pause, || self.0.read(into))
    }
}

impl<R: Seek> Seek for Patient<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        again(&mut pause, || self.0.seek(position))
    }
}

fn again<T>(pause: &mut dyn FnMut(Duration), mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for length in PAUSES {
        match operation() {
            Err(error) if is_machines(&error) => pause(length),
            outcome => return outcome,
        }
    }
    operation()
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing wakes one up when a disk answers again: the one pause of the crate"
)]
fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// Whether a refusal is the machine's: EIO, ESTALE, ETIMEDOUT, EMFILE, ENFILE, ENOMEM and whatever else does not speak of
/// the path, such as the errors of a network that file systems pass on. A file that its file system cannot decrypt (no key,
/// or one that was withdrawn) or understand (EINVAL) is at fault itself.
pub fn is_machines(error: &io::Error) -> bool {
    use Errno::{EACCES, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM};
    use Errno::{EINVAL, EKEYEXPIRED, EKEYREVOKED, ENOKEY};
    let speaks_of_the_path =
        |errno| matches!(errno, ENOENT | ENOTDIR | EACCES | EPERM | ELOOP | ENAMETOOLONG | EISDIR);
    let speaks_of_the_file = |errno| matches!(errno, EINVAL | ENOKEY | EKEYEXPIRED | EKEYREVOKED);
    errno(error).is_some_and(|errno| !speaks_of_the_path(errno) && !speaks_of_the_file(errno))
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// The outcome of operations that fail by `errnos` one after the other and then succeed, and how long was waited.
    fn tried(errnos: &[Errno]) -> (String, Vec<Duration>) {
        let (mut waited, mut left) = (Vec::new(), errnos.iter());
        let outcome = again(&mut |length| waited.push(length), || {
            left.next().map_or(Ok("read"), |errno| Err(io::Error::from_raw_os_error(*errno as i32)))
        });
        let text = match outcome {
            Ok(read) => read.to_owned(),
            Err(error) if is_machines(&error) => machine(Path::new("a/b.png"), error).to_string(),
            Err(error) => unreachable_because(Path::new("a/b.png"), &error),
        };
        (text, waited)
    }

    #[test]
    fn what_is_the_machines_fault_is_tried_again_three_times() {
        use Errno::{EIO, EMFILE, ENFILE, ENOMEM, ENOTCONN, ESTALE, ETIMEDOUT};
        for errno in [EIO, ESTALE, ETIMEDOUT, EMFILE, ENFILE, ENOMEM, ENOTCONN] {
            assert_eq!(tried(&[errno]), ("read".to_owned(), PAUSES[..1].to_vec()));
            assert_eq!(tried(&[errno; 3]), ("read".to_owned(), PAUSES.to_vec()));
            let (text, waited) = tried(&[errno; 4]);
            assert!(text.starts_with("cannot read a/b.png after 4 attempts: the disk"), "{text}");
            assert_eq!(waited, PAUSES);
        }
    }

    #[test]
    fn what_is_the_paths_own_fault_is_not_tried_again() {
        #[track_caller]
        fn check(errno: Errno, expected: &str) {
            assert_eq!(tried(&[errno]), (expected.to_owned(), vec![]));
        }
        check(Errno::ENOENT, "there is no such file");
        check(Errno::ENOTDIR, "there is no such file");
        check(Errno::EACCES, "no permission to read it");
        check(Errno::EPERM, "no permission to read it");
        check(Errno::ELOOP, "a loop of links");
        check(Errno::ENAMETOOLONG, "file name too long");
        check(Errno::EINVAL, "invalid argument");
        check(Errno::ENOKEY, "required key not available");
        check(Errno::EKEYEXPIRED, "key has expired");
        check(Errno::EKEYREVOKED, "key has been revoked");
    }

    #[test]
    fn only_regular_files_of_at_most_a_gibibyte_are_read() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("file"), b"abc").unwrap();
        fs::create_dir(path("folder")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (target, name) in [
            ("/dev/zero", "device"),
            ("/proc/self/status", "growing"),
            ("nothing", "dangling"),
            ("loop", "loop"),
            ("file", "link"),
        ] {
            symlink(target, path(name)).unwrap();
        }
        // Without a byte on the disk.
        File::create(path("large")).unwrap().set_len(MAX_IMAGE_BYTES + 1).unwrap();
        let read = |name: &str| match read_image(&path(name)) {
            Ok(bytes) => format!("{bytes:?}"),
            Err(Refusal::Unfit(reason)) => reason,
            Err(Refusal::Unreachable(error)) => unreachable_because(&path(name), &error),
            Err(Refusal::Machine(error)) => panic!("{error}"),
        };
        assert_eq!(read("file"), "[97, 98, 99]");
        assert_eq!(read("link"), "[97, 98, 99]");
        assert_eq!(read("folder"), "a folder, no regular file");
        assert_eq!(read("fifo"), "a pipe (FIFO), no regular file");
        assert_eq!(read("socket"), "a socket or a device, no regular file");
        assert_eq!(read("device"), "a device, no regular file");
        assert_eq!(read("growing"), "more than the 0 bytes that it had when it was opened");
        assert_eq!(read("dangling"), "a link to a file that is not there");
        assert_eq!(read("loop"), "a loop of links");
        assert_eq!(read("large"), "1073741825 bytes, more than the 1073741824 that an image may have");
        drop(socket);
    }

    /// As a data set such a path is an error at once, and not a wait for ever.
    #[test]
    fn a_source_is_a_regular_file_too() {
        let error = open_source(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.to_string(), "/dev/zero: a device, no regular file");
    }
}
