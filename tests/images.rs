//! A run and its images, when those move, change, come and go.

use crate::support::{assert_quiet, checkpoints, fail, folder_of_images, himpun, metrics, output, tiny_run};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The shards of a run's checkpoint of `step`: all of the state, the memory bank included.
fn shards(run: &Path, step: u64) -> BTreeMap<String, Vec<u8>> {
    let dir = run.join(format!("checkpoints/step-{step:08}"));
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let is_shard = |name: &str| name.ends_with(".safetensors");
    files
        .map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()))
        .filter(|(name, _)| is_shard(name))
        .collect()
}

fn train(arguments: &[&str], set: &[&str]) -> Command {
    let mut command = himpun();
    command.arg("train").args(arguments).args(set.iter().flat_map(|pair| ["--set", pair]));
    command
}

#[track_caller]
fn trained(command: &mut Command) -> String {
    let output = output(command);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    stderr
}

/// A memory bank has an entry for each image: it must stay that image's wherever the data set lies, whatever it is named
/// there, and whatever else is added.
#[test]
fn a_bank_goes_on_with_its_own_images() {
    let root = tempfile::tempdir().unwrap();
    let [undisturbed, stopped] = ["undisturbed", "stopped"].map(|name| root.path().join(name));
    let images = folder_of_images(root.path(), 64);
    let source = format!("data.source={}", images.display());
    let begin = |run: &Path, more: &[&str]| {
        let mut command = train(&["--workers", "2", "--out", run.to_str().unwrap()], &[]);
        command.args(tiny_run(8));
        let set = [&source, "objective.kind=npid", "objective.negatives=16"];
        command.args(set.iter().chain(more).flat_map(|pair| ["--set", pair]));
        trained(&mut command);
    };
    begin(&undisturbed, &[]);
    begin(&stopped, &["run.stop_after=5"]);

    // The set has moved, as a job's scratch directory does.
    let moved = root.path().join("elsewhere");
    fs::rename(&images, &moved).unwrap();
    let run = stopped.to_str().unwrap();
    trained(&mut train(&["--resume", run, "--data", moved.to_str().unwrap()], &["run.stop_after=0"]));
    assert!(shards(&stopped, 8) == shards(&undisturbed, 8), "the same bits as without the stop and the move");
    assert_quiet(&stopped, &[]);
    let config = fs::read_to_string(stopped.join("config.toml")).unwrap();
    assert!(config.contains(&format!("source = \"{}\"", moved.display())), "{config}");
    let lists = fs::read_dir(stopped.join("checkpoints")).unwrap().flatten();
    let lists = lists.filter(|file| file.file_name().to_str().is_some_and(|name| name.ends_with(".list")));
    assert_eq!(lists.count(), 1, "the list is kept once for all checkpoints");

    // The second image is renamed to the last, and one more comes before the first.
    fs::rename(moved.join("a/0001.png"), moved.join("b/zzzz.png")).unwrap();
    fs::copy(moved.join("b/0040.png"), moved.join("a/0000a.png")).unwrap();
    let stderr = trained(&mut train(&["--resume", run], &["run.steps=16"]));
    assert!(stderr.contains("image a/0001.png of the run's list is no longer in"), "{stderr}");
    assert!(stderr.contains("2 images, the first a/0000a.png, of"), "{stderr}");
    let rows = metrics(&stopped);
    assert_eq!(rows.last().unwrap()["step"], 16);
    // Eight steps of 16 show every image twice: the one that is gone is counted once.
    assert_eq!(rows.last().unwrap()["corrupt_images"], 1, "{:?}", rows.last());

    // Another image under an old name has an entry that is not its own.
    fs::copy(moved.join("b/0041.png"), moved.join("b/0040.png")).unwrap();
    let stderr = fail(&mut train(&["--resume", run], &["run.steps=24"]), 2);
    assert!(stderr.contains("b/0040.png is not the image that it was"), "{stderr}");
    assert!(stderr.contains("hint: objective.kind = npid keeps an entry for each image"), "{stderr}");
    assert_eq!(checkpoints(&stopped).last(), Some(&16), "nothing was touched");
}
