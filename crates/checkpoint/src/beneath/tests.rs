use super::*;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

/// A directory, another beside it, and the first one open.
fn fixture() -> (tempfile::TempDir, tempfile::TempDir, Directory) {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(elsewhere.path().join("victim"), "victim").unwrap();
    let open = Directory::open(dir.path()).unwrap();
    (dir, elsewhere, open)
}

#[track_caller]
fn check_refused<T>(outcome: Result<T, Error>, path: &Path, expected: Found) {
    match outcome.err().unwrap() {
        Error::NotPlain { path: named, found } => assert_eq!((&*named, found), (path, expected)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_file_is_created_appended_to_replaced_and_read() {
    let (dir, _, open) = fixture();
    open.append("file").unwrap().write_all(b"one").unwrap();
    open.append("file").unwrap().write_all(b" two").unwrap();
    let mut text = String::new();
    open.read("file").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "one two");
    open.replace("file", b"three").unwrap();
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"three");
    assert_eq!(open.entries().unwrap(), ["file"]);
    open.remove("file").unwrap();
    assert!(open.read("file").unwrap_err().is_not_found() && !open.exists("file"));
    open.create_directory("sub").unwrap().create_file("file").unwrap();
    assert_eq!(open.create_directory("sub").unwrap().entries().unwrap(), ["file"], "it was there already");
}

#[test]
fn only_a_file_of_ours_with_one_name_is_appended_to() {
    let (dir, elsewhere, open) = fixture();
    let (file, victim) = (dir.path().join("file"), elsewhere.path().join("victim"));
    fs::hard_link(&victim, &file).unwrap();
    check_refused(open.append("file"), &file, Found::HardLinked);
    open.remove("file").unwrap();
    // Also where it leads nowhere: nothing is created there.
    for target in [victim.clone(), elsewhere.path().join("new")] {
        symlink(target, &file).unwrap();
        check_refused(open.append("file"), &file, Found::SymbolicLink);
        open.remove("file").unwrap();
    }
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    assert_eq!(fs::read(victim).unwrap(), b"victim");
    // Only root can give a file away.
    if geteuid().is_root() {
        fs::write(&file, "").unwrap();
        chown(&file, Some(12345), None).unwrap();
        check_refused(open.append("file"), &file, Found::Foreign);
        assert!(open.read("file").is_ok());
    }
}

#[test]
fn a_fifo_or_a_device_is_neither_read_nor_written() {
    let (sender, done) = std::sync::mpsc::channel();
    let checks = std::thread::spawn(move || {
        check_special_files();
        sender.send(()).unwrap();
    });
    match done.recv_timeout(std::time::Duration::from_secs(30)) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("a FIFO is waited for"),
        _ => checks.join().unwrap(),
    }
}

fn check_special_files() {
    let (dir, _, open) = fixture();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    check_refused(open.read("fifo"), &fifo, Found::Fifo);
    check_refused(open.append("fifo"), &fifo, Found::Fifo);
    // With a reader it can be opened for writing, too.
    let _reader = fcntl::open(&fifo, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty()).unwrap();
    check_refused(open.append("fifo"), &fifo, Found::Fifo);
    check_refused(open.open_directory("fifo"), &fifo, Found::Fifo);
    let devices = Directory::open(Path::new("/dev")).unwrap();
    check_refused(devices.read("null"), Path::new("/dev/null"), Found::Device);
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    check_refused(open.read("socket"), &socket, Found::Socket);
}

#[test]
fn a_tree_goes_without_what_its_links_lead_to() {
    let (dir, elsewhere, open) = fixture();
    fs::create_dir_all(dir.path().join("tree/deep/er")).unwrap();
    symlink(elsewhere.path(), dir.path().join("tree/deep/link")).unwrap();
    symlink(elsewhere.path(), dir.path().join("link")).unwrap();
    check_refused(open.remove("tree"), &dir.path().join("tree"), Found::Directory);
    for name in ["tree", "link", "nothing"] {
        open.remove_tree(name).unwrap();
    }
    assert_eq!(open.entries().unwrap(), Vec::<OsString>::new());
    assert_eq!(fs::read(elsewhere.path().join("victim")).unwrap(), b"victim");
}

#[test]
#[should_panic(expected = "\"../victim\" is not a name in a directory")]
fn a_name_is_no_path() {
    fixture().2.read("../victim").ok();
}

#[test]
fn a_resolved_path_leads_through_no_link() {
    let (dir, elsewhere, _) = fixture();
    let root = dir.path().canonicalize().unwrap();
    let made = root.join("a/b/run");
    assert!(Directory::open_resolved(&made).unwrap_err().is_not_found());
    assert!(!root.join("a").exists());
    Directory::create_resolved(&made).unwrap().append("file").unwrap();
    assert_eq!(
        Directory::create_resolved(&made).unwrap().entries().unwrap(),
        ["file"],
        "it was there already"
    );
    // A directory on the way may be one that can be passed and not listed.
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o111)).unwrap();
    assert_eq!(Directory::open_resolved(&made).unwrap().path(), made);
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o755)).unwrap();
    // A part of it is elsewhere now, with everything in it, and a link leads there.
    let target = elsewhere.path().join("target");
    let check_link = |link: &Path| {
        symlink(&target, link).unwrap();
        check_refused(Directory::open_resolved(&made), link, Found::SymbolicLink);
        check_refused(Directory::create_resolved(&made), link, Found::SymbolicLink);
        fs::remove_file(link).unwrap();
    };
    for link in ["a/b/run", "a/b", "a"].map(|name| root.join(name)) {
        fs::rename(&link, &target).unwrap();
        check_link(&link);
        fs::rename(&target, &link).unwrap();
    }
    // Also where it leads nowhere: nothing is created there.
    fs::remove_dir_all(root.join("a")).unwrap();
    check_link(&root.join("a"));
    assert!(!target.exists());
}

#[test]
fn what_is_no_resolved_path_is_refused() {
    let (dir, _, open) = fixture();
    open.create_file("file").unwrap();
    let root = dir.path().canonicalize().unwrap();
    for path in ["..", "new/../run", "file/run", "a\0b"] {
        let path = root.join(path);
        for refused in [Directory::open_resolved(&path), Directory::create_resolved(&path)] {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains(&path.display().to_string()), "{message}");
        }
    }
    assert!(Directory::create_resolved(Path::new("run")).is_err());
    assert!(!Path::new("run").exists() && !root.join("new").exists());
}
