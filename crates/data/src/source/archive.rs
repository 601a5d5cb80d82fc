//! Image files in a tar.
//!
//! It is indexed once. A plain tar stays on disk and its files are read where they lie; of a compressed one,
//! which cannot be read from the middle, the images are held, still encoded.
//!
//! Its members are what extraction would leave: of two with one name the last, and links are the image that they lead to.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::access::{self, Patient};
use super::hold::{Bytes, Collector, Hold};
use super::listing::{self, Files, Found};
use super::malformed;
use super::skipped::Kind;
use crate::Error;

/// Links to links that are followed, as by the system.
const MAX_LINKS: usize = 40;

/// The files of a set that lies in a tar.
pub struct Archive {
    /// Relative to the tar, and where the content is.
    pub files: Files<Span>,
    pub bytes: Bytes,
}

/// Where a file's content lies.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    offset: u64,
    /// Of a link, until it is resolved, its number.
    len: usize,
}

/// Bytes that the headers of one member may take, with the long names and extensions that are read whole.
const MAX_HEADERS: u64 = 1 << 20;

/// What to say of an archive that was cut between two members, or written so.
const NO_END: &str =
    "the archive has no blocks of zeros at its end: it may have been cut, and images be missing";

/// The offset of a link that is not resolved.
const LINK: u64 = u64::MAX;

impl Archive {
    /// Copies an image's file out.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, Error> {
        let Span { offset, len } = self.files.known(index);
        let corrupt = |reason: String| {
            let path = listing::text(self.files.path(index).as_os_str());
            Err(Error::Image { path, reason })
        };
        if len as u64 > access::MAX_IMAGE_BYTES {
            return corrupt(access::too_large(len as u64));
        }
        match self.bytes.read(offset, len)? {
            Some(content) => Ok(content.into_owned()),
            None => corrupt("the archive is shorter than when it was opened".to_owned()),
        }
    }
}

/// Finds the image files in the tar at `path`; `as_version_0_1`, hidden ones are images and links are none.
pub fn index(path: &Path, hold: Hold<'_>, as_version_0_1: bool) -> Result<(Found<Span>, Bytes), Error> {
    let (file, file_len) = access::open_source(path)?;
    let mut start = Vec::new();
    Patient(&file).take(512).read_to_end(&mut start).map_err(damaged(path))?;
    let mut stream = Patient(&file);
    stream.seek(SeekFrom::Start(0)).map_err(damaged(path))?;
    let members = Members { found: Found::new(), links: Vec::new(), as_version_0_1 };
    match &start[..] {
        [0x1F, 0x8B, ..] => {
            unpack(path, members, hold, flate2::read::MultiGzDecoder::new(BufReader::new(stream)))
        }
        [0x28, 0xB5, 0x2F, 0xFD, ..] => {
            unpack(path, members, hold, zstd::stream::read::Decoder::new(stream).map_err(damaged(path))?)
        }
        _ if start.get(257..262) == Some(b"ustar") => {
            let found = locate(path, members, &file, file_len)?;
            Ok((found, Bytes::OnDisk { path: path.to_owned(), file }))
        }
        _ => Err(malformed(
            path,
            "neither a tar (plain, gzip or zstd) nor an IDX or CIFAR file: to train on single images, name the \
             folder they lie in",
        )),
    }
}

/// What a tar cannot be read for: the machine's fault, or damage.
fn damaged(path: &Path) -> impl Fn(io::Error) -> Error {
    move |error| {
        if access::is_machines(&error) {
            access::machine(path, error)
        } else {
            malformed(path, format!("cannot be read as a tar: {error}"))
        }
    }
}

fn locate(path: &Path, members: Members, file: &File, file_len: u64) -> Result<Found<Span>, Error> {
    let damaged = damaged(path);
    // Without this, a tar that was cut in the padding after a file would pass for a shorter one.
    if !file_len.is_multiple_of(512) {
        let reason = format!("{file_len} bytes are no number of blocks of 512: it is cut");
        return Err(damaged(io::Error::other(reason)));
    }
    let mut members = members;
    let allowed = Cell::new(MAX_HEADERS);
    let mut archive = tar::Archive::new(Bounded::new(BufReader::new(Patient(file)), &allowed));
    for entry in archive.entries_with_seek().map_err(&damaged)? {
        // Content is not read here, but passed over.
        allowed.set(MAX_HEADERS);
        let mut entry = entry.map_err(&damaged)?;
        let Some(name) = members.image(&mut entry).map_err(&damaged)? else { continue };
        let span = Span { offset: entry.raw_file_position(), len: entry.size() as usize };
        if span.offset + span.len as u64 > file_len {
            return Err(damaged(io::Error::other(format!("it ends within {}", name.display()))));
        }
        members.push(&name, span);
    }
    members.finish(path, archive.into_inner())
}

fn unpack(
    path: &Path,
    members: Members,
    hold: Hold<'_>,
    stream: impl Read,
) -> Result<(Found<Span>, Bytes), Error> {
    let damaged = damaged(path);
    let (mut members, mut held) = (members, Collector::new(path, hold));
    let allowed = Cell::new(MAX_HEADERS);
    let mut archive = tar::Archive::new(Bounded::new(stream, &allowed));
    for entry in archive.entries().map_err(&damaged)? {
        let mut entry = entry.map_err(&damaged)?;
        // The rest of the content is read on the way to the next header.
        allowed.set(stored_bytes(&entry).saturating_add(MAX_HEADERS));
        let Some(name) = members.image(&mut entry).map_err(&damaged)? else { continue };
        let span = Span { offset: held.len(), len: entry.size() as usize };
        // What is too large is refused when its turn comes, and need not be kept for that.
        if span.len as u64 <= access::MAX_IMAGE_BYTES {
            let taken = held.take(&mut entry, span.len as u64)?.map_err(&damaged)?;
            if taken != span.len as u64 {
                return Err(damaged(io::Error::other(format!("it ends within {}", name.display()))));
            }
        }
        members.push(&name, span);
    }
    Ok((members.finish(path, archive.into_inner())?, held.finish()))
}

/// A stream of which no more is read than is allowed: what a header says of the length of a name is not to be believed.
struct Bounded<'a, R> {
    stream: R,
    allowed: &'a Cell<u64>,
    /// Whether the stream ended before the archive did.
    has_ended: bool,
}

impl<'a, R> Bounded<'a, R> {
    fn new(stream: R, allowed: &'a Cell<u64>) -> Bounded<'a, R> {
        Bounded { stream, allowed, has_ended: false }
    }
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowed.get();
        if allowed == 0 {
            let reason =
                format!("corrupt archive: the headers of a member take more than {MAX_HEADERS} bytes");
            return Err(io::Error::other(reason));
        }
        let wanted = into.len().min(usize::try_from(allowed).unwrap_or(usize::MAX));
        let n = self.stream.read(&mut into[..wanted])?;
        self.has_ended |= n == 0 && wanted > 0;
        self.allowed.set(allowed - n as u64);
        Ok(n)
    }
}

impl<R: Seek> Seek for Bounded<'_, R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.stream.seek(position)
    }
}

/// Bytes of a member's content in the archive: a file with holes has more when they are filled.
fn stored_bytes<R: Read>(entry: &tar::Entry<'_, R>) -> u64 {
    let header = entry.header();
    if header.entry_type().is_gnu_sparse() { header.entry_size().unwrap_or(0) } else { entry.size() }
}

/// The members of a tar, as far as it was read.
struct Members {
    found: Found<Span>,
    /// Those among `found` whose content is that of another member.
    links: Vec<Link>,
    as_version_0_1: bool,
}

struct Link {
    /// The path of the other.
    target: Vec<u8>,
    /// A hard link is what its target was when it came, a symbolic one what its target becomes.
    is_hard: bool,
}

impl Members {
    /// The path of an entry that is an image file with content of its own. Others are noted.
    fn image<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> io::Result<Option<PathBuf>> {
        let (path, is_inside) = normal(&entry.path_bytes());
        let name = path.file_name().unwrap_or_default().to_owned();
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(None);
        }
        if self.as_version_0_1 && kind.is_file() && listing::is_image(&name) {
            return Ok(Some(path));
        }
        let skipped = if !is_inside {
            Kind::Outside
        } else if path.iter().any(listing::is_hidden) {
            Kind::Hidden
        } else if kind.is_dir() {
            self.found.without_images.push(path);
            return Ok(None);
        } else if kind.is_hard_link() || kind.is_symlink() {
            match link(entry, &path).filter(|_| listing::is_image(&name) && !self.as_version_0_1) {
                Some(link) => {
                    self.push(&path, Span { offset: LINK, len: self.links.len() });
                    self.links.push(link);
                    return Ok(None);
                }
                None => Kind::Link,
            }
        } else if !(kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse()) {
            Kind::Special
        } else if !listing::is_image(&name) {
            Kind::of_name(&name)
        } else if kind.is_gnu_sparse() || is_pax_sparse(entry)? {
            Kind::Sparse
        } else {
            return Ok(Some(path));
        };
        self.found.skipped.add(path.parent().unwrap_or(Path::new("")), skipped);
        Ok(None)
    }

    fn push(&mut self, path: &Path, span: Span) {
        let folder = path.parent().unwrap_or(Path::new(""));
        self.found.push(folder, path.file_name().unwrap_or_default(), span);
    }

    /// Resolves links. `rest` is what follows the end of the archive at `path`.
    fn finish<R: Read>(mut self, path: &Path, rest: Bounded<'_, R>) -> Result<Found<Span>, Error> {
        self.resolve();
        let note = if rest.has_ended {
            Some(NO_END.to_owned())
        } else {
            note_of_rest(rest.stream).map_err(damaged(path))?
        };
        self.found.notes.extend(note);
        Ok(self.found)
    }

    fn resolve(&mut self) {
        let Members { found, links, .. } = self;
        if links.is_empty() {
            return;
        }
        let targets: HashSet<&[u8]> = links.iter().map(|link| link.target.as_slice()).collect();
        // Of each target, where it stands among the members and its content; later ones of one name come later.
        let mut members: HashMap<Vec<u8>, Vec<(usize, Span)>> = HashMap::new();
        let mut position = 0;
        found.visit(|path, span| {
            if targets.contains(path) {
                members.entry(path.to_vec()).or_default().push((position, *span));
            }
            position += 1;
        });
        let mut position = 0;
        found.visit(|_, span| {
            if span.offset == LINK {
                *span = follow(links, &members, position, *span).unwrap_or(*span);
            }
            position += 1;
        });
        found.drop_unless(&Kind::Link, |span| span.offset != LINK);
    }
}

/// The content that the link at `position` among the members leads to.
fn follow(
    links: &[Link],
    members: &HashMap<Vec<u8>, Vec<(usize, Span)>>,
    mut position: usize,
    mut span: Span,
) -> Option<Span> {
    for _ in 0..MAX_LINKS {
        if span.offset != LINK {
            return Some(span);
        }
        let Link { target, is_hard } = &links[span.len];
        let all = members.get(target)?;
        let n_before = if *is_hard { all.partition_point(|(at, _)| *at < position) } else { all.len() };
        (position, span) = *all.get(n_before.checked_sub(1)?)?;
    }
    None
}

/// Where a link leads, if that is in the archive.
fn link<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Option<Link> {
    let target = entry.link_name_bytes()?;
    let target = Path::new(OsStr::from_bytes(&target));
    let is_hard = entry.header().entry_type().is_hard_link();
    let target = if is_hard { Some(normal(target.as_os_str().as_bytes()).0) } else { beside(path, target) }?;
    Some(Link { target: target.into_os_string().into_encoded_bytes(), is_hard })
}

/// What `target` is for a symbolic link at `path`. None if it lies outside of the archive.
fn beside(path: &Path, target: &Path) -> Option<PathBuf> {
    let mut folder = path.parent()?.to_owned();
    for component in target.components() {
        match component {
            Component::Normal(name) => folder.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !folder.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(folder)
}

/// A member's path without `.` and the slashes before it, as it would be extracted, and whether that is what it names:
/// extraction refuses `..`.
fn normal(path: &[u8]) -> (PathBuf, bool) {
    let path = Path::new(OsStr::from_bytes(path));
    let is_inside = path.components().all(|component| component != Component::ParentDir);
    let names = path.components().filter(|component| matches!(component, Component::Normal(_)));
    (names.collect(), is_inside)
}

/// The sparse files of POSIX archives: their content begins with a map, and their name stands in an extension.
fn is_pax_sparse<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<bool> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(false) };
    for extension in extensions {
        if extension?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A tar ends with zeros; other bytes behind it are members of an archive that was put behind it.
///
/// # Errors
/// The machine's. Damage here costs no image, and is noted.
fn note_of_rest(mut rest: impl Read) -> io::Result<Option<String>> {
    let mut block = [0; 1 << 13];
    // From the first byte on that is not zero.
    let mut n = 0;
    loop {
        match rest.read(&mut block) {
            Ok(0) => break,
            Ok(len) if n > 0 => n += len,
            Ok(len) => n = block[..len].iter().position(|&byte| byte != 0).map_or(0, |zeros| len - zeros),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if access::is_machines(&error) => return Err(error),
            Err(error) => return Ok(Some(format!("the archive is damaged behind its last member: {error}"))),
        }
    }
    Ok((n > 0).then(|| {
        format!("{n} bytes follow the end of the archive and are not read: put archives together with tar -A")
    }))
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    /// What is read fails at once.
    struct Failing(Option<Errno>);

    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(self.0.map_or_else(|| io::Error::other("corrupt"), io::Error::from))
        }
    }

    #[test]
    fn behind_the_end_the_machines_fault_is_an_error_and_damage_a_note() {
        let zeros = || io::Cursor::new([0; 1 << 14]);
        for errno in [Errno::EIO, Errno::ESTALE] {
            let error = note_of_rest(zeros().chain(Failing(Some(errno)))).unwrap_err();
            let error = damaged(Path::new("a.tar"))(error);
            assert!(matches!(&error, Error::Machine { .. }), "{error}");
        }
        let note = note_of_rest(zeros().chain(Failing(None))).unwrap().unwrap();
        assert_eq!(note, "the archive is damaged behind its last member: corrupt");
        assert_eq!(note_of_rest(zeros()).unwrap(), None);
        let behind = zeros().chain(&b"abc"[..]).chain(zeros());
        let note = note_of_rest(behind).unwrap().unwrap();
        assert!(note.starts_with("16387 bytes follow the end of the archive"), "{note}");
    }
}
