//! A link, a FIFO or a directory at every name that is opened below a run's `checkpoints`: nothing elsewhere is read or
//! changed, and nothing waits.

use super::*;
use crate::{Found, Part, open, open_part, read_images, remove_abandoned, verify_in};
use nix::sys::stat::Mode;
use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::time::Duration;

const LIST: &[u8] = b"a list of images";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trap {
    SymbolicLink,
    HardLink,
    Fifo,
    Directory,
}

/// Where a file is expected.
const FOR_FILES: &[Trap] = &[Trap::SymbolicLink, Trap::HardLink, Trap::Fifo, Trap::Directory];

/// Where a directory is expected; none has a second name.
const FOR_DIRECTORIES: &[Trap] = &[Trap::SymbolicLink, Trap::Fifo];

impl Trap {
    /// Lays the trap. What was at `path` becomes the `victim`: whoever follows a link finds what it looks for.
    fn lay(self, path: &Path, victim: &Path) {
        if path.exists() {
            fs::rename(path, victim).unwrap();
        } else {
            fs::write(victim, LIST).unwrap();
        }
        match self {
            Trap::SymbolicLink => symlink(victim, path).unwrap(),
            Trap::HardLink => fs::hard_link(victim, path).unwrap(),
            Trap::Fifo => nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap(),
            Trap::Directory => fs::create_dir_all(path.join("with/something")).unwrap(),
        }
    }
}

/// Every file below `path`, or it alone.
fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    if path.is_file() {
        return vec![(path.to_owned(), fs::read(path).unwrap())];
    }
    let mut paths: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().flat_map(|path| contents(path)).collect()
}

fn within_deadline<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, outcome) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    outcome.recv_timeout(Duration::from_secs(30)).expect("it neither waits nor panics")
}

/// Writes a checkpoint and its list of images; `meanwhile` is done once it has begun.
fn write(run: &Path, step: u64, meanwhile: impl FnOnce()) -> Result<PathBuf, Error> {
    let staging = Staging::begin(&opened(run), step, 1, 2)?;
    let wanted = staging.want_images(&digest(LIST));
    meanwhile();
    let all = tensors(step);
    for (index, part) in [&all[..2], &all[2..]].into_iter().enumerate() {
        let bytes = encode_shard(part);
        let mut writer = staging.shard(index)?;
        writer.append(&bytes)?;
        writer.finish(&digest(&bytes))?;
    }
    if wanted {
        let mut writer = staging.images()?;
        writer.append(LIST)?;
        writer.finish(&digest(LIST))?;
    }
    let mut description = description();
    let named = serde_json::json!({ crate::LIST_KEY: crate::hex(&digest(LIST)) });
    description.metadata.insert(crate::IMAGES_KEY.to_owned(), named);
    Ok(staging.commit(description)?.path)
}

fn list_name() -> String {
    format!("checkpoints/images-{}.list", crate::hex(&digest(LIST)))
}

/// All that goes wrong when everything of a run is read, and its old checkpoints are retired.
fn problems(run: &Directory, manifest: &Manifest) -> Vec<Error> {
    let mut problems = match list(run) {
        Ok((_, problems)) => problems,
        Err(problem) => vec![problem],
    };
    problems.extend(newest_good(run).1);
    problems.extend(open(run, 2).map_or_else(|problem| vec![problem], |dir| verify_in(&dir)));
    for part in [Part::Shard(0), Part::Shard(1), Part::Images] {
        problems.extend(open_part(run, 2, part).err());
    }
    problems.extend(read_images(run, manifest).err());
    problems.extend(retain(run, 1).err());
    problems
}

#[track_caller]
fn check_reading(name: &str, trap: Trap) {
    let (run, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(run.path(), 1, || ()).unwrap();
    let manifest = Manifest::read(&opened(&write(run.path(), 2, || ()).unwrap())).unwrap();
    let (path, victim) = (run.path().join(name), elsewhere.path().join("victim"));
    trap.lay(&path, &victim);
    let before = contents(&victim);
    let run_dir = run.path().to_owned();
    let found = within_deadline(move || problems(&opened(&run_dir), &manifest));
    assert_eq!(contents(&victim), before, "{name} {trap:?}");
    // Backups are made with hard links, and reading one changes nothing.
    assert_eq!(found.is_empty(), trap == Trap::HardLink, "{name} {trap:?}: {found:?}");
    for problem in found {
        assert!(matches!(&problem, Error::NotPlain { path: named, .. } if *named == path), "{problem}");
        assert!(problem.exit_code() == 3 && problem.hint().is_some());
    }
}

#[test]
fn nothing_is_read_through_a_link() {
    let shard = format!("checkpoints/step-00000002/{}", shard_file(1, 2));
    for (name, traps) in [
        ("checkpoints", FOR_DIRECTORIES),
        ("checkpoints/step-00000002", FOR_DIRECTORIES),
        ("checkpoints/step-00000002/manifest.json", FOR_FILES),
        (&shard, FOR_FILES),
        (&list_name(), FOR_FILES),
    ] {
        for trap in traps {
            check_reading(name, *trap);
        }
    }
}

/// A trap at `name`, laid before a checkpoint is begun or while it is written. Either the trap is named in the error, or it
/// loses its name and the checkpoint is whole.
#[track_caller]
fn check_writing(name: &str, trap: Trap, is_refused: bool) {
    let (run, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, victim) = (run.path().join(name), elsewhere.path().join("victim"));
    fs::create_dir_all(run.path().join("checkpoints")).unwrap();
    let is_staged = name.contains(".tmp/");
    if !is_staged {
        trap.lay(&path, &victim);
    }
    let (run_dir, trapped, laid) = (run.path().to_owned(), path.clone(), victim.clone());
    let written = within_deadline(move || {
        let meanwhile = || {
            if is_staged {
                trap.lay(&trapped, &laid)
            }
        };
        write(&run_dir, 3, meanwhile)
    });
    match contents(&victim)[..] {
        // It was the empty directory `checkpoints` itself.
        [] => assert_eq!(name, "checkpoints"),
        [(_, ref bytes)] => assert_eq!(bytes, LIST, "{name} {trap:?}"),
        ref more => panic!("{name} {trap:?}: {more:?}"),
    }
    match written {
        Ok(dir) => {
            assert!(!is_refused, "{name} {trap:?}");
            assert_eq!(newest_good(&opened(run.path())).0.map(|found| found.path().to_owned()), Some(dir));
            let read = read_images(
                &opened(run.path()),
                &Manifest::read(&opened(&checkpoint_dir(run.path(), 3))).unwrap(),
            );
            assert_eq!(read.unwrap().unwrap(), LIST);
        }
        Err(error) => {
            assert!(is_refused, "{name} {trap:?}: {error}");
            assert!(matches!(&error, Error::NotPlain { path: named, .. } if *named == path), "{error}");
        }
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let staged = "checkpoints/.step-00000003.gen-1.tmp";
    for trap in FOR_DIRECTORIES {
        check_writing("checkpoints", *trap, true);
    }
    for trap in FOR_FILES {
        check_writing(staged, *trap, false);
        check_writing("checkpoints/step-00000003", *trap, false);
        // A directory is in the way of a file.
        let is_refused = *trap == Trap::Directory;
        check_writing(&list_name(), *trap, is_refused);
        for file in [&shard_file(0, 2), "manifest.json", "images.list"] {
            check_writing(&format!("{staged}/{file}"), *trap, is_refused);
        }
    }
}

#[test]
fn the_path_to_a_run_or_a_checkpoint_may_lead_through_links() {
    let dir = tempfile::tempdir().unwrap();
    let (run, link, best) = (dir.path().join("run"), dir.path().join("link"), dir.path().join("best"));
    symlink(&run, &link).unwrap();
    fs::create_dir(&run).unwrap();
    let written = write(&link, 2, || ()).unwrap();
    assert_eq!(written, checkpoint_dir(&link, 2));
    assert_eq!(locate(&link).unwrap().dir, written);
    symlink(checkpoint_dir(&run, 2), &best).unwrap();
    assert_eq!(locate(&best).unwrap().dir, best);
    assert_eq!(load(&best, |_| true).unwrap().0.step, 2);
}

#[test]
fn what_was_abandoned_is_removed_unless_somebody_writes() {
    let (run, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(remove_abandoned(&opened(run.path())).unwrap(), 0);
    let staging = staged(run.path(), 2, 1);
    assert_eq!(remove_abandoned(&opened(run.path())).unwrap(), 0);
    drop(staging);
    let victim = elsewhere.path().join("victim");
    fs::write(&victim, "kept").unwrap();
    let leftover = run.path().join("checkpoints/.step-00000002.gen-1.tmp");
    symlink(elsewhere.path(), leftover.join("link")).unwrap();
    symlink(elsewhere.path(), leftover.with_file_name(".step-00000001.retired.tmp")).unwrap();
    assert_eq!(remove_abandoned(&opened(run.path())).unwrap(), 2);
    assert_eq!(names(run.path()), Vec::<String>::new());
    assert_eq!(fs::read(victim).unwrap(), b"kept");
}

#[test]
fn a_trap_is_named_with_what_helps() {
    for (found, message) in [
        (Found::SymbolicLink, "run/file is a symbolic link, which is not followed here"),
        (
            Found::HardLinked,
            "run/file has another name (a hard link), so that writing to it would change that as well",
        ),
        (Found::Directory, "run/file is a directory instead of a file"),
    ] {
        assert_eq!(Error::NotPlain { path: "run/file".into(), found }.to_string(), message);
    }
}
