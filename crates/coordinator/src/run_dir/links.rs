//! A link, a FIFO or a directory at every name that is opened in a run's directory: nothing elsewhere is changed, and
//! nothing waits.

use super::tests::{directory, event, row, worker};
use super::*;
use checkpoint::Found;
use nix::sys::stat::Mode;
use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trap {
    SymbolicLink,
    HardLink,
    Fifo,
    Directory,
}
use Trap::{Directory as InTheWay, Fifo, HardLink, SymbolicLink};

const LOG: &str = "logs/rank-0.gen-1.log";

impl Trap {
    /// Lays the trap. What was at `path` becomes the `victim`: whoever follows a link finds what it looks for.
    fn lay(self, path: &Path, victim: &Path) {
        if path.exists() {
            std::fs::rename(path, victim).unwrap();
        } else {
            std::fs::write(victim, "of somebody else").unwrap();
        }
        match self {
            SymbolicLink => symlink(victim, path).unwrap(),
            HardLink => std::fs::hard_link(victim, path).unwrap(),
            Fifo => nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap(),
            InTheWay => std::fs::create_dir(path).unwrap(),
        }
    }
}

fn within_deadline<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, outcome) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    outcome.recv_timeout(Duration::from_secs(30)).expect("it neither waits nor panics")
}

/// Writes one line to every file of a run.
fn write(mut run: RunDir) -> Result<(), Error> {
    run.write_metrics(&row(1, 0.5))?;
    run.write_event(&event(1, "submitted", None))?;
    run.open_logs(1, &[(worker(0), 0)])?;
    run.write_log(&worker(0), &["chosen by a worker".to_owned()])
}

/// The directory of a run that wrote to every file.
fn written() -> tempfile::TempDir {
    let dir = directory();
    write(RunDir::create(dir.path(), "r", "old").unwrap()).unwrap();
    dir
}

#[track_caller]
fn check_named(error: &Error, path: &Path) {
    let is_named =
        matches!(error, Error::NotPlain(checkpoint::Error::NotPlain { path: named, .. }) if named == path);
    assert!(is_named, "{error}");
}

/// Resumes a run with a trap in its directory and writes to every file. Either the trap is named in the error, or it
/// loses its name.
#[track_caller]
fn check_writing(name: &str, trap: Trap, is_refused: bool) {
    let (run, elsewhere) = (written(), directory());
    let (path, victim) = (run.path().join(name), elsewhere.path().join("victim"));
    trap.lay(&path, &victim);
    let file = if victim.is_dir() { victim.join("rank-0.gen-1.log") } else { victim };
    let before = std::fs::read(&file).unwrap();
    let run_dir = run.path().to_owned();
    let outcome = within_deadline(move || RunDir::resume(&run_dir, "r", "new", Some(9)).and_then(write));
    assert_eq!(std::fs::read(&file).unwrap(), before, "{name} {trap:?}");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    match outcome {
        Ok(()) => assert!(!is_refused, "{name} {trap:?}"),
        Err(error) => {
            assert!(is_refused, "{name} {trap:?}: {error}");
            check_named(&error, &path);
        }
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let all = [SymbolicLink, HardLink, Fifo, InTheWay];
    // What is replaced by a rename loses its name, unless it is a directory; what is read or appended to first is refused.
    for (name, replaced) in [
        ("config.toml", &all[..3]),
        ("config.toml.tmp", &all[..3]),
        (METRICS, &[HardLink]),
        ("metrics.jsonl.tmp", &all[..3]),
        (EVENTS, &[HardLink]),
        ("events.jsonl.tmp", &all[..3]),
        (LOG, &[]),
    ] {
        for trap in all {
            check_writing(name, trap, !replaced.contains(&trap));
        }
    }
    for trap in [SymbolicLink, Fifo] {
        check_writing("logs", trap, true);
    }
}

/// A trap that is there before the run is.
#[test]
fn a_new_run_takes_nothing_that_is_there() {
    for trap in [SymbolicLink, HardLink, Fifo, InTheWay] {
        for name in ["config.toml", METRICS, EVENTS] {
            let (run, elsewhere) = (directory(), directory());
            trap.lay(&run.path().join(name), &elsewhere.path().join("victim"));
            // A link that leads nowhere is there as well.
            std::fs::remove_file(elsewhere.path().join("victim")).unwrap();
            assert!(
                matches!(RunDir::create(run.path(), "r", ""), Err(Error::Occupied(_))),
                "{name} {trap:?}"
            );
        }
        let (run, elsewhere) = (directory(), directory());
        let log = run.path().join(LOG);
        std::fs::create_dir(run.path().join("logs")).unwrap();
        trap.lay(&log, &elsewhere.path().join("victim"));
        let run_dir = run.path().to_owned();
        let outcome = within_deadline(move || RunDir::create(&run_dir, "r", "").and_then(write));
        check_named(&outcome.unwrap_err(), &log);
        assert_eq!(std::fs::read(elsewhere.path().join("victim")).unwrap(), b"of somebody else");
    }
}

#[track_caller]
fn check_reading(name: &str, trap: Trap) {
    let (run, elsewhere) = (written(), directory());
    let path = run.path().join(name);
    trap.lay(&path, &elsewhere.path().join("victim"));
    let run_dir = run.path().to_owned();
    let (past, summary, logs) = within_deadline(move || {
        let read = |logs: Vec<Log>| logs[0].open().map(|_| logs[0].bytes);
        (past(&run_dir), summary(&run_dir, 9), logs(&run_dir).and_then(read))
    });
    // Backups are made with hard links, and reading one changes nothing.
    let is_refused = trap != HardLink;
    match past {
        Err(error) if name == EVENTS && is_refused => check_named(&error, &path),
        past => assert_eq!(past.unwrap().run_id, "r"),
    }
    assert_eq!(summary.step == 0, name == METRICS && is_refused, "{name} {trap:?}");
    match logs {
        Err(error) if name.starts_with("logs") && is_refused => check_named(&error, &path),
        logs => assert_eq!(logs.unwrap(), "chosen by a worker\n".len() as u64),
    }
}

#[test]
fn nothing_is_read_through_a_link() {
    for trap in [SymbolicLink, HardLink, Fifo, InTheWay] {
        for name in [METRICS, EVENTS, LOG] {
            check_reading(name, trap);
        }
    }
    check_reading("logs", SymbolicLink);
    check_reading("logs", Fifo);
}

#[test]
fn the_path_to_a_run_leads_through_no_link() {
    let (dir, elsewhere) = (written(), directory());
    let link = elsewhere.path().join("link");
    symlink(dir.path(), &link).unwrap();
    let refused = [
        RunDir::create(&link.join("new"), "r", "").err(),
        RunDir::resume(&link, "r", "", None).err(),
        past(&link).err(),
        logs(&link).err(),
    ];
    for error in refused {
        let error = error.expect("it is refused");
        assert!(matches!(error, Error::NotPlain(_)) && error.to_string().contains("link"), "{error}");
    }
    assert_eq!(summary(&link, 9), Summary::default());
    assert_ne!(summary(dir.path(), 9), Summary::default());
    assert!(!dir.path().join("new").exists());
    let (read, kept) = (std::fs::read(dir.path().join("config.toml")).unwrap(), logs(dir.path()).unwrap());
    assert_eq!((&read[..], kept.len()), (&b"old"[..], 1));
}

#[test]
fn what_is_in_the_way_is_named_with_what_helps() {
    let status = tonic::Status::from(Error::NotPlain(checkpoint::Error::NotPlain {
        path: "run/logs/rank-0.gen-1.log".into(),
        found: Found::SymbolicLink,
    }));
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    let refusal = proto::Refusal::from(&status);
    assert_eq!(refusal.reason, "not_a_plain_file");
    assert!(
        refusal.message.starts_with("run/logs/rank-0.gen-1.log is a symbolic link"),
        "{}",
        refusal.message
    );
    assert!(refusal.hint.contains("cp -rL"));
}
