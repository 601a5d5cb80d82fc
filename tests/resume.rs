//! A run stopped anywhere and resumed is the undisturbed run, byte for byte.

use crate::support::{
    Process, children, exported, fail, himpun, metrics, output, signal, succeed, tiny_run, until,
};
use std::path::{Path, PathBuf};

const STEPS: u64 = 8;

struct Runs {
    directory: tempfile::TempDir,
}

impl Runs {
    fn new() -> Runs {
        Runs { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn train(&self, name: &str, set: &[&str]) -> PathBuf {
        let run = self.path(name);
        let mut command = himpun();
        command.args(["train", "--workers", "2", "--out"]).arg(&run).args(tiny_run(STEPS));
        command.args(set.iter().flat_map(|pair| ["--set", pair]));
        succeed(&mut command);
        run
    }

    fn resume(&self, run: &Path, set: &[&str]) -> String {
        let mut command = himpun();
        command.args(["train", "--resume"]).arg(run).args(set.iter().flat_map(|pair| ["--set", pair]));
        let output = output(&mut command);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        stderr
    }

    #[track_caller]
    fn assert_equal(&self, a: &Path, b: &Path) {
        assert!(
            exported(a, self.directory.path()) == exported(b, self.directory.path()),
            "{a:?} and {b:?} differ"
        );
        let losses = |run: &Path| -> Vec<_> {
            metrics(run).iter().map(|row| (row["step"].clone(), row["loss"].clone())).collect()
        };
        assert_eq!(losses(a), losses(b));
    }
}

#[test]
fn stopped_cleanly() {
    let runs = Runs::new();
    let undisturbed = runs.train("undisturbed", &[]);
    let stopped = runs.train("stopped", &["run.stop_after=3"]);
    assert_eq!(metrics(&stopped).last().unwrap()["step"], 3);
    runs.resume(&stopped, &["run.stop_after=5"]);
    assert_eq!(metrics(&stopped).last().unwrap()["step"], 5);
    runs.resume(&stopped, &["run.stop_after=0"]);
    runs.assert_equal(&undisturbed, &stopped);
    // A finished run: nothing to do.
    runs.resume(&stopped, &[]);
    runs.assert_equal(&undisturbed, &stopped);
}

#[test]
fn killed_worker_and_killed_train() {
    let runs = Runs::new();
    let undisturbed = runs.train("undisturbed", &["run.steps=40"]);
    for (name, victim) in [("worker", 1), ("train", 0)] {
        let run = runs.path(name);
        let mut command = himpun();
        command
            .args(["train", "--workers", "2", "--out"])
            .arg(&run)
            .args(tiny_run(40))
            .args(["--set", "checkpoint.every=2"]);
        let mut train = Process::start(&mut command, runs.directory.path(), name);
        // Checkpoints follow each other closely, so that a kill often falls into the middle of one.
        until("a second checkpoint", || run.join("checkpoints/step-00000004").is_dir().then_some(()));
        if victim == 1 {
            signal(children(train.id())[1].0, "KILL");
            assert_eq!(train.wait().code(), Some(1), "{}", train.stderr());
        } else {
            train.kill();
        }
        runs.resume(&run, &[]);
        runs.assert_equal(&undisturbed, &run);
    }
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name_and_the_one_before_used() {
    let runs = Runs::new();
    let undisturbed = runs.train("undisturbed", &[]);
    let run = runs.train("damaged", &["run.stop_after=6", "checkpoint.every=2"]);
    let shard = std::fs::read_dir(run.join("checkpoints/step-00000006"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, bytes).unwrap();

    let export = runs.path("export.safetensors");
    let mut command = himpun();
    command
        .args(["export", "--format", "state-dict", "--checkpoint"])
        .arg(run.join("checkpoints/step-00000006"))
        .arg("--out")
        .arg(&export);
    let stderr = fail(&mut command, 3);
    let name = shard.file_name().unwrap().to_str().unwrap();
    assert!(stderr.contains(name), "{stderr}");
    assert!(!export.exists());

    let stderr = runs.resume(&run, &["run.stop_after=0"]);
    assert!(stderr.contains(name) && stderr.contains("step-00000004"), "{stderr}");
    runs.assert_equal(&undisturbed, &run);
}

#[test]
fn another_world_size_says_so_and_goes_on() {
    let runs = Runs::new();
    let run = runs.train("run", &["run.stop_after=4"]);
    let mut command = himpun();
    command.args(["train", "--workers", "1", "--set", "run.stop_after=0", "--resume"]).arg(&run);
    let output = output(&mut command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("world size"), "{stderr}");
    assert_eq!(metrics(&run).last().unwrap()["step"], STEPS);
}

#[test]
fn only_lengths_and_cadences_may_change() {
    let runs = Runs::new();
    let run = runs.train("run", &["run.stop_after=2"]);
    let mut command = himpun();
    command.args(["train", "--set", "optimizer.lr=1.0", "--resume"]).arg(&run);
    let stderr = fail(&mut command, 2);
    assert!(stderr.contains("optimizer.lr"), "{stderr}");
}
