//! Files that hold secrets: made private whatever the umask, and refused when they are not.

use nix::unistd::geteuid;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::secret::{hex, random};

/// Larger than any certificate chain; a file that somebody else names must not fill the memory.
const MAX_BYTES: u64 = 1 << 20;

/// Makes `path` a directory for secrets of this user, or checks that it is one: 0700, ours, no link.
///
/// # Errors
/// If it is anything else.
pub fn private_directory(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => set_mode(path, 0o700)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io("create", path)(error)),
    }
    let found = std::fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    if !found.is_dir() {
        return Err(exposed(path, "is not a directory but a link or a file", "remove it"));
    }
    check_private(path, &found, 0o700)
}

/// Checks a directory that may be a mounted volume: ours or root's, and writable by no stranger.
///
/// # Errors
/// If it is anything else.
pub fn trusted_directory(path: &Path) -> Result<(), Error> {
    let found = std::fs::metadata(path).map_err(Error::io("look at", path))?;
    if found.uid() != 0 && found.uid() != geteuid().as_raw() {
        return Err(of_another(path, &found));
    }
    match found.mode() & 0o002 {
        0 => Ok(()),
        _ => Err(exposed(path, "is writable by everybody", format!("chmod o-w {}", path.display()))),
    }
}

/// Makes a file for a secret with `bytes` in it. False, and nothing changed, if there is one already: of two processes that
/// make it at once, one does.
///
/// # Errors
/// If the directory cannot be written.
pub fn create_secret(path: &Path, bytes: &[u8]) -> Result<bool, Error> {
    let temporary = write_temporary(path, bytes)?;
    // Unlike a rename, a link never replaces.
    let made = match std::fs::hard_link(&temporary, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("create", path)(error)),
    };
    std::fs::remove_file(&temporary).map_err(Error::io("remove", &temporary))?;
    made
}

/// Puts `bytes` in the place of whatever `path` names, which is not followed if it is a link.
///
/// # Errors
/// If the directory cannot be written.
pub fn replace_secret(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = write_temporary(path, bytes)?;
    std::fs::rename(&temporary, path).map_err(Error::io("rename", &temporary))
}

fn write_temporary(path: &Path, bytes: &[u8]) -> Result<PathBuf, Error> {
    let mut name = path.file_name().expect("a file has a name").to_owned();
    name.push(format!(".{}.tmp", hex(&random::<8>())));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .mode(0o600)
            .open(&temporary)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(Error::io("create", &temporary))?;
    Ok(temporary)
}

/// Reads a secret that this program made: a plain file of ours that nobody else can open.
///
/// # Errors
/// If it is anything else.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, Error> {
    let (bytes, found) = read(path, nix::libc::O_NOFOLLOW)?;
    check_private(path, &found, 0o600)?;
    Ok(bytes)
}

/// Reads a file that an option names: it may be a link, and root's, but nobody else may be able to write it.
///
/// # Errors
/// If somebody can, or it is no plain file.
pub fn read_named(path: &Path) -> Result<Vec<u8>, Error> {
    let (bytes, found) = read(path, 0)?;
    if found.uid() != 0 && found.uid() != geteuid().as_raw() {
        return Err(of_another(path, &found));
    }
    match found.mode() & 0o022 {
        0 => Ok(bytes),
        _ => Err(exposed(path, "is writable by others", format!("chmod go-w {}", path.display()))),
    }
}

fn read(path: &Path, flags: i32) -> Result<(Vec<u8>, Metadata), Error> {
    // A FIFO would be waited for.
    let flags = flags | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file: File = match file {
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            return Err(exposed(path, "is a link", "put the file itself there"));
        }
        file => file.map_err(Error::io("open", path))?,
    };
    let found = file.metadata().map_err(Error::io("look at", path))?;
    if !found.is_file() {
        return Err(exposed(path, "is not a plain file", "put a plain file there"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    // Not its beginning alone: a list of revoked certificates would lack its end.
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::Malformed {
            path: path.to_owned(),
            what: "a credential",
            reason: format!("it has more than {MAX_BYTES} bytes"),
        });
    }
    Ok((bytes, found))
}

fn check_private(path: &Path, found: &Metadata, mode: u32) -> Result<(), Error> {
    if found.uid() != geteuid().as_raw() {
        return Err(of_another(path, found));
    }
    match found.mode() & 0o077 {
        0 => Ok(()),
        _ => {
            let remedy = format!("chmod {mode:o} {}", path.display());
            Err(exposed(path, "is open to other users", remedy))
        }
    }
}

fn of_another(path: &Path, found: &Metadata) -> Error {
    let problem = format!("belongs to another user ({})", found.uid());
    exposed(path, problem, format!("use another place, or chown {} {}", geteuid(), path.display()))
}

fn exposed(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Exposed { path: path.to_owned(), problem: problem.into(), remedy: remedy.into() }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io("protect", path))
}

#[cfg(test)]
mod tests;
