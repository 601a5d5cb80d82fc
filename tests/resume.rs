//! A run stopped anywhere and resumed is the undisturbed run, byte for byte.

use crate::support::{
    Process, assert_quiet, checkpoints, children, endless, exported, fail, folder_of_images, freeze, himpun,
    metrics, output, signal, staged, succeed, tiny_run, until,
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
    let stderr = runs.resume(&stopped, &[]);
    assert!(stderr.contains("finished at step 8 of 8: nothing to do; give it a new length"), "{stderr}");
    runs.assert_equal(&undisturbed, &stopped);
    assert_quiet(&undisturbed, &[]);
    assert_quiet(&stopped, &["nothing to do"]);
}

#[test]
fn a_stop_that_is_reached_says_so_and_a_new_length_lifts_it() {
    let runs = Runs::new();
    let run = runs.train("run", &["run.stop_after=2"]);
    let mut command = himpun();
    let output = output(command.args(["train", "--json", "--resume"]).arg(&run));
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(
        stderr.contains("stands at step 2 of 8, and run.stop_after = 2 ends it there: nothing to do"),
        "{stderr}"
    );
    assert!(stderr.contains("--set run.stop_after=0"), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&report["steps"], output.status.code()), (&2.into(), Some(0)), "{stdout}");

    let stderr = runs.resume(&run, &["run.steps=4"]);
    // 0.0025 (1 + cos(pi 2 / n)) with n = 4 and 8.
    let expected = "run.steps = 4 instead of 8: the schedule is over the new length; the learning rate of step 3 is \
                    0.0025 instead of 0.004268";
    assert!(stderr.contains(expected), "{stderr}");
    let last = metrics(&run).pop().unwrap();
    assert_eq!(last["step"], 4, "{last}");
    assert_eq!(metrics(&run)[2]["lr"], 0.0025);
}

/// Checkpoints by time leave no trace in what is learned; a hang-up stops a run as SIGTERM does, unless whoever started
/// it had it ignored.
#[test]
fn saved_by_the_minute_until_the_terminal_hangs_up() {
    let runs = Runs::new();
    let start = |hang_up: &str, name: &str, set: &[&str]| {
        let run = runs.path(name);
        let mut command = std::process::Command::new("env");
        command.arg(format!("--{hang_up}-signal=HUP")).arg(himpun().get_program());
        command.args(["train", "--workers", "2", "--out"]).arg(&run).args(tiny_run(100_000));
        command.args(set.iter().flat_map(|pair| ["--set", pair])).env_remove("RUST_LOG");
        (Process::start(&mut command, runs.directory.path(), name), run)
    };
    let (mut train, saved) = start("default", "saved", &["checkpoint.every_minutes=0.002"]);
    until("checkpoints by time", || (checkpoints(&saved).len() >= 2).then_some(()));
    signal(train.id(), "HUP");
    assert_eq!(train.wait().code(), Some(85), "{}", train.stderr());
    let end = format!("run.stop_after={}", checkpoints(&saved).last().unwrap());
    assert_quiet(&saved, &[]);

    let (mut train, undisturbed) = start("ignore", "undisturbed", &[&end]);
    until("a trained step", || (!metrics(&undisturbed).is_empty()).then_some(()));
    signal(train.id(), "HUP");
    assert_eq!(train.wait().code(), Some(0), "{}", train.stderr());
    assert_eq!(checkpoints(&undisturbed), checkpoints(&saved)[checkpoints(&saved).len() - 1..]);
    let weights = |run: &Path| {
        let newest = checkpoint::locate(run).unwrap().dir;
        let (_, state) = checkpoint::load(&newest, checkpoint::export::is_exported).unwrap();
        checkpoint::encode_shard(&checkpoint::export::state_dict(&state).unwrap())
    };
    assert!(weights(&saved) == weights(&undisturbed), "checkpoints by time changed what was learned");
}

/// Resumes a run that was killed, for a few steps, and compares it with one that was not.
#[track_caller]
fn assert_goes_on(runs: &Runs, run: &Path, set: &[&str]) {
    let end = format!("run.stop_after={}", checkpoints(run).last().unwrap() + 4);
    runs.resume(run, &[&end]);
    let undisturbed = [&["run.steps=100000", &end], set].concat();
    let undisturbed = runs.train(&format!("{}-undisturbed", run.display()), &undisturbed);
    runs.assert_equal(&undisturbed, run);
}

#[test]
fn killed_worker_and_killed_train() {
    let runs = Runs::new();
    for (name, victim) in [("worker", 1), ("train", 0)] {
        let (mut train, run) = endless(runs.directory.path(), name, &["checkpoint.every=2"]);
        until("a second checkpoint", || {
            checkpoints(&run).last().is_some_and(|step| *step >= 4).then_some(())
        });
        if victim == 1 {
            signal(children(train.id())[1].0, "KILL");
            assert_eq!(train.wait().code(), Some(1), "{}", train.stderr());
            let newest = checkpoint::checkpoint_dir(&run, *checkpoints(&run).last().unwrap());
            let hint =
                format!("go on from {} with `himpun train --resume {}`", newest.display(), run.display());
            assert!(train.stderr().contains(&hint), "{}", train.stderr());
        } else {
            train.kill();
        }
        assert_goes_on(&runs, &run, &[]);
    }
}

#[test]
fn from_before_the_first_step() {
    let runs = Runs::new();
    let images = folder_of_images(runs.directory.path(), 40);
    let [data, test] = ["data.source", "eval.data"].map(|key| format!("{key}={}", images.display()));
    let run = runs.train("run", &[&data, &test, "checkpoint.at_start=true", "eval.knn_every=4", "eval.k=3"]);
    assert_eq!(metrics(&run)[0]["knn_k"], 3);
    let events = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    assert_eq!(events.matches("every image finds itself").count(), 1, "said once: {events}");
    let evaluated = || -> Vec<_> {
        metrics(&run)
            .iter()
            .map(|row| (row["step"].clone(), row["loss"].clone(), row["knn_top1"].clone()))
            .collect()
    };
    let (rows, export) = (evaluated(), exported(&run, runs.directory.path()));
    assert_eq!(rows.len() as u64, 1 + STEPS);
    // As a kill leaves it that comes during the first evaluation.
    std::fs::remove_dir_all(run.join("checkpoints/step-00000008")).unwrap();
    std::fs::write(run.join("metrics.jsonl"), "").unwrap();
    runs.resume(&run, &[]);
    assert_eq!(evaluated(), rows);
    assert!(exported(&run, runs.directory.path()) == export);
}

#[test]
fn killed_before_the_first_checkpoint() {
    let runs = Runs::new();
    let run = runs.path("killed");
    let mut command = himpun();
    command.args(["train", "--workers", "3", "--out"]).arg(&run).args(tiny_run(100_000));
    let mut train = Process::start(&mut command, runs.directory.path(), "train");
    until("a trained step", || (!metrics(&run).is_empty()).then_some(()));
    train.kill();
    let stderr = runs.resume(&run, &["run.stop_after=3"]);
    assert!(stderr.contains("no checkpoint yet"), "{stderr}");
    let rows: Vec<_> = metrics(&run)
        .iter()
        .map(|row| (row["step"].as_u64().unwrap(), row["rows_encoded"].clone()))
        .collect();
    // The same ranks, from the beginning.
    let shares = serde_json::json!([12, 10, 10]);
    assert_eq!(rows, [(1, shares.clone()), (2, shares.clone()), (3, shares)]);
}

#[test]
fn killed_in_the_middle_of_a_checkpoint() {
    let runs = Runs::new();
    // A wide head takes a while to write, so that a checkpoint is often met half-way.
    let wide = "model.head=mlp-4096-512";
    let (mut train, run) = endless(runs.directory.path(), "killed", &[wide, "checkpoint.every=1"]);
    until("a checkpoint", || (!checkpoints(&run).is_empty()).then_some(()));
    let step = until("a checkpoint that is being written", || {
        staged(&run)?;
        // Half-way also once the process stands still? Else it goes on.
        freeze(train.id());
        let step = staged(&run);
        if step.is_none() {
            signal(train.id(), "CONT");
        }
        step
    });
    train.kill();
    let newest = *checkpoints(&run).last().unwrap();
    assert!(newest < step, "step {step} was not committed, yet there is {newest}");
    assert_goes_on(&runs, &run, &[wide]);
    assert_eq!(staged(&run), None, "what the killed one left is swept up");
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
