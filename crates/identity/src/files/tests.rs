//! Private files under every umask, and each way in which one is not private.

use super::*;
use nix::sys::stat::{Mode, umask};
use std::os::unix::fs::{chown, symlink};
use std::process::Command;
use tempfile::TempDir;

/// Names the directory in which a second process of this test works under the umask behind it.
const CHILD: &str = "TEST_UMASK_CHILD";

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn with_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[track_caller]
fn check_refused<T>(result: Result<T, Error>, problem: &str, remedy: &str) {
    let Err(error) = result else { panic!("not refused: {problem}") };
    assert!(matches!(error, Error::Exposed { .. }), "{error:?}");
    assert!(error.to_string().contains(problem), "{error}");
    assert!(error.hint().unwrap().starts_with(remedy), "{:?}", error.hint());
    assert_eq!(error.exit_code(), 2);
}

/// The umask belongs to a whole process, so that each is set in one of its own.
#[test]
fn secrets_are_private_whatever_the_umask() {
    if let Some(work) = std::env::var_os(CHILD) {
        let (path, bits) = work.to_str().unwrap().split_once(' ').unwrap();
        umask(Mode::from_bits_truncate(bits.parse().unwrap()));
        let folder = Path::new(path).join("folder");
        private_directory(&folder).unwrap();
        assert!(create_secret(&folder.join("made"), b"secret").unwrap());
        replace_secret(&folder.join("replaced"), b"secret").unwrap();
        return;
    }
    for bits in [0o000, 0o022, 0o777] {
        let directory = directory();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "files::tests::secrets_are_private_whatever_the_umask"])
            .env(CHILD, format!("{} {bits}", directory.path().display()))
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        let folder = directory.path().join("folder");
        assert_eq!(mode(&folder), 0o700, "umask {bits:o}");
        for name in ["made", "replaced"] {
            assert_eq!(mode(&folder.join(name)), 0o600, "{name} under umask {bits:o}");
            assert_eq!(read_secret(&folder.join(name)).unwrap(), b"secret");
        }
        // No temporary file is left.
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    }
}

#[test]
fn a_directory_of_secrets_is_ours_alone() {
    let directory = directory();
    let path = directory.path().join("secrets");
    for _ in 0..2 {
        private_directory(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }
    for open in [0o755, 0o710, 0o701, 0o1777] {
        with_mode(&path, open);
        check_refused(private_directory(&path), "is open to other users", "chmod 700 ");
        assert_eq!(mode(&path), open, "it is refused, not mended");
    }
    with_mode(&path, 0o700);
    let link = directory.path().join("link");
    symlink(&path, &link).unwrap();
    check_refused(private_directory(&link), "is not a directory", "remove it");
    if geteuid().is_root() {
        chown(&path, Some(65_534), None).unwrap();
        check_refused(private_directory(&path), "belongs to another user (65534)", "use another place");
    }
}

#[test]
fn a_mounted_volume_may_be_its_groups_but_not_everybodys() {
    let directory = directory();
    let path = directory.path();
    for good in [0o700, 0o755, 0o775, 0o2770] {
        with_mode(path, good);
        trusted_directory(path).unwrap();
    }
    for bad in [0o777, 0o1777, 0o702] {
        with_mode(path, bad);
        check_refused(trusted_directory(path), "is writable by everybody", "chmod o-w ");
    }
    with_mode(path, 0o755);
    if geteuid().is_root() {
        chown(path, Some(65_534), None).unwrap();
        check_refused(trusted_directory(path), "belongs to another user (65534)", "use another place");
    }
}

#[test]
fn of_those_that_make_a_secret_at_once_one_does() {
    for _ in 0..20 {
        let directory = directory();
        let path = directory.path().join("secret");
        let attempt = |bytes: &'static [u8]| {
            let made = create_secret(&path, bytes).unwrap();
            (made, bytes, read_secret(&path).unwrap())
        };
        let results = std::thread::scope(|scope| {
            let attempts = [b"one", b"two", b"six"].map(|bytes| scope.spawn(move || attempt(bytes)));
            attempts.map(|attempt| attempt.join().unwrap())
        });
        let makers: Vec<&[u8]> = results.iter().filter(|(made, ..)| *made).map(|(_, own, _)| *own).collect();
        assert_eq!(makers.len(), 1, "{results:?}");
        assert!(results.iter().all(|(_, _, read)| read == makers[0]), "{results:?}");
    }
}

#[test]
fn a_link_in_the_place_of_a_secret_is_neither_followed_nor_read() {
    let directory = directory();
    let [link, target] = ["link", "target"].map(|name| directory.path().join(name));
    symlink(&target, &link).unwrap();
    assert!(!create_secret(&link, b"secret").unwrap());
    assert!(!target.exists());
    check_refused(read_secret(&link), "is a link", "put the file itself there");
    replace_secret(&link, b"secret").unwrap();
    assert!(!target.exists() && link.symlink_metadata().unwrap().is_file());
    assert_eq!(read_secret(&link).unwrap(), b"secret");
}

#[test]
fn a_secret_is_read_from_a_plain_file_that_is_ours_alone() {
    let directory = directory();
    let path = directory.path().join("secret");
    create_secret(&path, b"secret").unwrap();
    for open in [0o644, 0o640, 0o602, 0o601] {
        with_mode(&path, open);
        check_refused(read_secret(&path), "is open to other users", "chmod 600 ");
    }
    with_mode(&path, 0o400);
    assert_eq!(read_secret(&path).unwrap(), b"secret");
    if geteuid().is_root() {
        chown(&path, Some(65_534), None).unwrap();
        check_refused(read_secret(&path), "belongs to another user (65534)", "use another place");
        check_refused(read_named(&path), "belongs to another user (65534)", "use another place");
    }
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    // Nobody writes there: a read that waited would never end.
    check_refused(read_secret(&fifo), "is not a plain file", "put a plain file there");
    check_refused(read_named(&fifo), "is not a plain file", "put a plain file there");
    check_refused(read_named(directory.path()), "is not a plain file", "put a plain file there");
}

#[test]
fn a_named_file_may_be_a_link_and_readable_but_not_writable_by_others() {
    let directory = directory();
    let [link, target] = ["link", "target"].map(|name| directory.path().join(name));
    std::fs::write(&target, "text").unwrap();
    symlink(&target, &link).unwrap();
    for good in [0o644, 0o600, 0o444, 0o400] {
        with_mode(&target, good);
        assert_eq!(read_named(&link).unwrap(), b"text", "{good:o}");
    }
    for bad in [0o666, 0o664, 0o602] {
        with_mode(&target, bad);
        check_refused(read_named(&link), "is writable by others", "chmod go-w ");
    }
}

#[test]
fn a_file_that_is_too_large_is_refused_as_a_whole() {
    let directory = directory();
    let path = directory.path().join("large");
    for (bytes, fits) in [(MAX_BYTES, true), (MAX_BYTES + 1, false)] {
        create_secret(&path, b"").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        match read_secret(&path) {
            Ok(read) => assert!(fits && read.len() as u64 == bytes),
            Err(error) => assert!(!fits && error.to_string().ends_with("more than 1048576 bytes"), "{error}"),
        }
    }
}
