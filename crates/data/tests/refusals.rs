//! What the system itself refuses: permission, which is the image's fault, and files beyond the limit, which is the
//! machine's.
//!
//! One test, alone in its process, since it changes what the whole process may do.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use data::{Dataset, Error};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Uid, seteuid};

/// Whom the system refuses things, where the test runs as root.
const NOBODY: u32 = 65534;

fn permit(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Does `work` as somebody whom permissions bind.
fn without_privilege<T>(work: impl FnOnce() -> T) -> T {
    let user = Uid::effective();
    if user.is_root() {
        seteuid(Uid::from_raw(NOBODY)).unwrap();
    }
    let outcome = work();
    if user.is_root() {
        seteuid(user).unwrap();
    }
    outcome
}

#[test]
fn permission_is_the_images_fault_and_a_limit_the_machines() {
    let root = tempfile::tempdir().unwrap();
    permit(root.path(), 0o755);
    for class in ["a", "b"] {
        fs::create_dir(root.path().join(class)).unwrap();
        for name in ["1.png", "2.png"] {
            image::RgbImage::new(2, 2).save(root.path().join(class).join(name)).unwrap();
        }
    }
    let open = || Dataset::open(root.path().to_str().unwrap()).unwrap();

    permit(&root.path().join("a/1.png"), 0);
    permit(&root.path().join("b"), 0);
    let (paths, notes, error) = without_privilege(|| {
        let dataset = open();
        let paths: Vec<String> = (0..dataset.len()).map(|index| dataset.path_of(index)).collect();
        (paths, dataset.notes().to_vec(), dataset.load(0).unwrap_err())
    });
    permit(&root.path().join("b"), 0o755);
    assert_eq!(paths, ["a/1.png", "a/2.png"]);
    assert_eq!(
        notes,
        [
            "skipped 1 file that is no image: 1 folder that cannot be read (among them b)",
            "no image in class b: only 1 folder that cannot be read",
        ]
    );
    assert!(matches!(&error, Error::Image { .. }), "{error:?}");
    assert_eq!(error.to_string(), "a/1.png: no permission to read it");

    permit(&root.path().join("a/1.png"), 0o644);
    let dataset = open();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
    let all: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let error = dataset.load(0).unwrap_err();
    drop(all);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let Error::Machine { path, attempts: 4, source } = &error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(nix::errno::Errno::EMFILE as i32));
    assert!(path.ends_with("a/1.png"), "{}", path.display());
    assert_eq!(dataset.load(0).unwrap().rgb, [0; 12], "the image itself is well");
}
