//! What lies below a directory, none of it reached through a link.
//!
//! Others may be able to write to a run directory. A symbolic link there would choose which file of ours, anywhere, is
//! written to; a hard link does the same, and a FIFO would make us wait for ever. The path *to* a [`Directory`] may lead
//! through links where it is the user's own ([`Directory::open`]), and through none where others may have laid them since it
//! was chosen ([`Directory::open_resolved`]). Below it every name is opened relative to the open directory with `O_NOFOLLOW`,
//! and what was opened is examined through its descriptor before a byte is read or written. A name is one component, so
//! `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` would refuse nothing more, and some containers forbid it.

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{self, AtFlags, OFlag, RenameFlags};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Found};

/// An open directory. Its path is only what errors call it.
///
/// # Panics
/// All methods, if a name is not a single component. Names are ours or were listed or checked, so this is a bug.
#[derive(Debug)]
pub struct Directory {
    file: File,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory; the path to it may lead through links.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn open(path: &Path) -> Result<Directory, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = fcntl::open(path, flags, Mode::empty());
        let file = opened.map_err(|errno| Error::io("open", path)(errno.into()))?.into();
        Ok(Directory { file, path: path.to_owned() })
    }

    /// Opens a directory by an absolute path none of whose components is a symbolic link, as [`Path::canonicalize`] returns
    /// it: whoever may write to a directory on the way cannot choose another one by a link.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or a component is a link, `.` or `..`.
    pub fn open_resolved(path: &Path) -> Result<Directory, Error> {
        walk(path, "open", |_, _| Err(Errno::ENOENT))
    }

    /// As [`Directory::open_resolved`], after making it, and those that lead to it, unless they are there.
    ///
    /// # Errors
    /// If it cannot be made or opened, or a component is a link, `.` or `..`.
    pub fn create_resolved(path: &Path) -> Result<Directory, Error> {
        walk(path, "create", |above, name| match above.make(name) {
            // Somebody else makes it as well.
            Err(Errno::EEXIST) => Ok(()),
            made => made,
        })
    }

    /// By which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a directory in this one.
    ///
    /// # Errors
    /// If there is none, or something else.
    pub fn open_directory(&self, name: impl AsRef<OsStr>) -> Result<Directory, Error> {
        let name = component(name.as_ref());
        let opened = self.open_at(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let file = opened.map_err(|errno| self.refused("open", name, errno, Found::Directory))?;
        Ok(Directory { file, path: self.path.join(name) })
    }

    /// Opens a directory in this one after making it, unless it is there.
    ///
    /// # Errors
    /// If it cannot be made, or something else is there.
    pub fn create_directory(&self, name: impl AsRef<OsStr>) -> Result<Directory, Error> {
        let name = component(name.as_ref());
        match self.make(name) {
            Ok(()) | Err(Errno::EEXIST) => self.open_directory(name),
            Err(errno) => Err(self.io("create", name, errno)),
        }
    }

    /// Whether anything has that name, a link that leads nowhere included.
    pub fn exists(&self, name: impl AsRef<OsStr>) -> bool {
        self.stat(component(name.as_ref())).is_ok()
    }

    /// Opens a regular file for reading, whoever owns it and however many names it has: backups are made with hard links.
    ///
    /// # Errors
    /// If there is none, or something else.
    pub fn read(&self, name: impl AsRef<OsStr>) -> Result<File, Error> {
        Ok(self.open_file("read", component(name.as_ref()), OFlag::O_RDONLY)?.0)
    }

    /// Opens a file at whose end to write. One that is there already must be regular, ours, and have no other name.
    ///
    /// # Errors
    /// If something else is there.
    pub fn append(&self, name: impl AsRef<OsStr>) -> Result<File, Error> {
        let name = component(name.as_ref());
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND;
        // Of a new file the owner does not matter: some network file systems give it another than the process has.
        match self.open_at(name, flags | OFlag::O_CREAT | OFlag::O_EXCL) {
            Err(Errno::EEXIST) => {}
            opened => return opened.map_err(|errno| self.io("create", name, errno)),
        }
        let (file, stat) = self.open_file("write", name, flags)?;
        if stat.st_nlink != 1 {
            return Err(self.unfit(name, Found::HardLinked));
        }
        if stat.st_uid != geteuid().as_raw() {
            return Err(self.unfit(name, Found::Foreign));
        }
        Ok(file)
    }

    /// Creates a file. What had its name loses it and is not written to.
    ///
    /// # Errors
    /// If that was a directory, or the system refuses.
    pub fn create_file(&self, name: impl AsRef<OsStr>) -> Result<File, Error> {
        let name = component(name.as_ref());
        self.remove(name)?;
        let opened = self.open_at(name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL);
        opened.map_err(|errno| self.io("create", name, errno))
    }

    /// Replaces a file by a rename, after its bytes are on the disk, and waits until the rename is as well.
    ///
    /// # Errors
    /// If a directory is in the way, or the system refuses.
    pub fn replace(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> Result<(), Error> {
        let name = component(name.as_ref());
        let mut temporary = name.to_owned();
        temporary.push(".tmp");
        let mut file = self.create_file(&temporary)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        written.map_err(Error::io("write", &self.path.join(name)))?;
        self.rename(&temporary, self, name)?;
        self.sync()
    }

    /// Gives a file or directory another name, here or in another directory.
    ///
    /// # Errors
    /// If the new name is that of a directory with something in it, or the system refuses.
    pub fn rename(
        &self,
        name: impl AsRef<OsStr>,
        to: &Directory,
        new_name: impl AsRef<OsStr>,
    ) -> Result<(), Error> {
        let (name, new_name) = (component(name.as_ref()), component(new_name.as_ref()));
        fcntl::renameat(&self.file, name, &to.file, new_name).map_err(|errno| match errno {
            Errno::EISDIR => to.unfit(new_name, Found::Directory),
            _ => self.io("rename", name, errno),
        })
    }

    /// Lets two names here change places, which not every file system can.
    pub(crate) fn exchange(&self, a: &str, b: &str) -> nix::Result<()> {
        let (a, b) = (component(a.as_ref()), component(b.as_ref()));
        fcntl::renameat2(&self.file, a, &self.file, b, RenameFlags::RENAME_EXCHANGE)
    }

    /// Removes whatever has that name, unless it is a directory; if nothing has, that is fine.
    ///
    /// # Errors
    /// If it is a directory, or the system refuses.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), Error> {
        let name = component(name.as_ref());
        match unlinkat(&self.file, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.refused("remove", name, errno, Found::File)),
        }
    }

    /// Removes whatever has that name, of links only themselves; if nothing has, that is fine.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn remove_tree(&self, name: impl AsRef<OsStr>) -> Result<(), Error> {
        let name = component(name.as_ref());
        match unlinkat(&self.file, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EISDIR) => {}
            Err(errno) => return Err(self.io("remove", name, errno)),
        }
        let directory = match self.open_directory(name) {
            // Somebody else removes it as well.
            Err(error) if error.is_not_found() => return Ok(()),
            opened => opened?,
        };
        for entry in directory.entries()? {
            directory.remove_tree(entry)?;
        }
        match unlinkat(&self.file, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.io("remove", name, errno)),
        }
    }

    /// Names of everything in it.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn entries(&self) -> Result<Vec<OsString>, Error> {
        let read = || {
            // Opened once more, for a position of its own.
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let mut listing = Dir::openat(&self.file, ".", flags, Mode::empty())?;
            let names =
                listing.iter().map(|entry| Ok(OsStr::from_bytes(entry?.file_name().to_bytes()).into()));
            names.collect::<nix::Result<Vec<OsString>>>()
        };
        let mut names = read().map_err(|errno| Error::io("read", &self.path)(errno.into()))?;
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    /// Locks the directory itself until it is dropped, and says whether that was possible: no file of its own could be
    /// left behind or copied along, and the kernel releases it when the process is killed.
    ///
    /// # Errors
    /// If the file system knows no locks.
    pub fn try_lock(&self) -> Result<bool, Error> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(source)) => Err(Error::io("lock", &self.path)(source)),
        }
    }

    /// Waits until the names in it are on the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io("sync", &self.path))
    }

    fn open_file(&self, action: &'static str, name: &OsStr, flags: OFlag) -> Result<(File, FileStat), Error> {
        let file =
            self.open_at(name, flags).map_err(|errno| self.refused(action, name, errno, Found::File))?;
        let stat = fstat(&file).map_err(|errno| self.io(action, name, errno))?;
        match Found::of(&stat) {
            Found::File => Ok((file, stat)),
            found => Err(self.unfit(name, found)),
        }
    }

    fn open_at(&self, name: &OsStr, flags: OFlag) -> nix::Result<File> {
        // Not to block: a FIFO would until its other end is opened. Regular files do not heed it.
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        loop {
            match fcntl::openat(&self.file, name, flags, Mode::from_bits_truncate(0o666)) {
                Err(Errno::EINTR) => {}
                opened => return opened.map(File::from),
            }
        }
    }

    fn make(&self, name: &OsStr) -> nix::Result<()> {
        mkdirat(&self.file, name, Mode::from_bits_truncate(0o777))
    }

    fn stat(&self, name: &OsStr) -> nix::Result<FileStat> {
        fstatat(&self.file, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Why a name cannot be used. What lies there says more than the system's error, which is ELOOP or ENOTDIR for a
    /// symbolic link, ENXIO for a FIFO.
    fn refused(&self, action: &'static str, name: &OsStr, errno: Errno, expected: Found) -> Error {
        match self.stat(name).map(|stat| Found::of(&stat)) {
            Ok(found) if found != expected => self.unfit(name, found),
            _ => self.io(action, name, errno),
        }
    }

    fn unfit(&self, name: &OsStr, found: Found) -> Error {
        Error::NotPlain { path: self.path.join(name), found }
    }

    fn io(&self, action: &'static str, name: &OsStr, errno: Errno) -> Error {
        Error::io(action, &self.path.join(name))(errno.into())
    }
}

/// Opens the components of an absolute path one in the other; `absent` may make one that is not there.
fn walk(
    path: &Path,
    action: &'static str,
    absent: impl Fn(&Directory, &OsStr) -> nix::Result<()>,
) -> Result<Directory, Error> {
    let io = |errno: Errno| Error::io(action, path)(errno.into());
    let name_of = |component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    };
    let names = path.strip_prefix("/").ok().and_then(|path| path.components().map(name_of).collect());
    let names: Vec<&OsStr> = names.ok_or_else(|| io(Errno::EINVAL))?;
    let mut above = Directory::open(Path::new("/"))?;
    for (depth, name) in names.iter().enumerate() {
        // A directory on the way need not be readable.
        let access = if depth + 1 < names.len() { OFlag::O_PATH } else { OFlag::O_RDONLY };
        let open = || above.open_at(name, access | OFlag::O_DIRECTORY);
        let opened = match open() {
            Err(Errno::ENOENT) => absent(&above, name).and_then(|()| open()),
            opened => opened,
        };
        let file = opened.map_err(|errno| match above.stat(name).map(|stat| Found::of(&stat)) {
            Ok(Found::SymbolicLink) => above.unfit(name, Found::SymbolicLink),
            _ => io(errno),
        })?;
        above = Directory { file, path: above.path.join(name) };
    }
    Ok(above)
}

fn component(name: &OsStr) -> &OsStr {
    let first = Path::new(name).components().next();
    assert!(first == Some(Component::Normal(name)), "{name:?} is not a name in a directory");
    name
}

#[cfg(test)]
mod tests;
