//! Bad input: one clear error that names the key, file or peer, and the remedy.

use crate::support::{fail, folder_of_images, himpun, metrics, output, succeed, tiny_run};

#[track_caller]
fn check(set: &str, words: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let stderr = fail(himpun().args(["train", "--out"]).arg(&run).args(tiny_run(1)).args(["--set", set]), 2);
    for word in words {
        assert!(stderr.contains(word), "{set}: `{word}` is not in\n{stderr}");
    }
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(!run.exists(), "{set} left a run directory");
}

#[test]
fn configuration() {
    check("optimizer.lrr=0.1", &["optimizer.lrr", "optimizer.lr"]);
    check("modle.arch=resnet20", &["modle", "model"]);
    check("model.arch=resnet2", &["resnet20"]);
    check("train.global_batch=1", &["train.global_batch"]);
    check("train.global_batch=many", &["train.global_batch", "many"]);
    check("objective.temperature=0", &["objective.temperature"]);
    check("data.augment=simclr-cifra", &["simclr-cifar"]);
}

#[test]
fn missing_data_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("no-such-folder");
    let mut command = himpun();
    command
        .args(["train", "--out"])
        .arg(directory.path().join("run"))
        .args(tiny_run(1))
        .arg("--data")
        .arg(&missing);
    let output = output(&mut command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(0));
    assert!(stderr.contains(missing.to_str().unwrap()), "{stderr}");
}

#[test]
fn a_batch_larger_than_the_data_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let images = folder_of_images(directory.path(), 10);
    let mut command = himpun();
    command
        .args(["train", "--out"])
        .arg(directory.path().join("run"))
        .args(tiny_run(1))
        .arg("--data")
        .arg(&images);
    let stderr = fail(&mut command, 2);
    assert!(stderr.contains("train.global_batch") && stderr.contains("10"), "{stderr}");
}

/// Damaged, missing, without an end, and what only looks like an image: the run goes on, and names each once.
#[test]
fn a_corrupt_image_is_reported_once_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let images = folder_of_images(directory.path(), 40);
    std::fs::write(images.join("a/0003.png"), b"\x89PNG\r\n\x1a\nno more").unwrap();
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, images.join(name)).unwrap();
    link("nothing", "a/dangling.png");
    link("/dev/zero", "a/endless.png");
    link("..", "a/loop");
    std::fs::create_dir(images.join("a/folder.png")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(images.join("b/fifo.png")).status().unwrap();
    assert!(fifo.success());
    std::fs::write(images.join("b/notes.txt"), b"no image").unwrap();
    let run = directory.path().join("run");
    let mut command = himpun();
    command.args(["train", "--workers", "2", "--out"]).arg(&run).args(tiny_run(6)).arg("--data").arg(&images);
    let output = output(&mut command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let skipped =
        "skipped 2 files that are no images: 1 .txt, 1 link to a folder that it lies in (among them a/loop)";
    assert_eq!(stderr.matches(skipped).count(), 1, "{stderr}");
    assert_eq!(metrics(&run).last().unwrap()["corrupt_images"], 4);
    let events = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    for name in ["a/0003.png", "a/dangling.png", "a/endless.png", "b/fifo.png"] {
        assert_eq!(events.matches(name).count(), 1, "{name}: {events}");
    }
}

/// Two batches of four leave most of the slots to be encoded anew in the second step.
#[test]
fn a_corrupt_image_that_only_a_refresh_has_met_is_reported_too() {
    let directory = tempfile::tempdir().unwrap();
    let images = folder_of_images(directory.path(), 40);
    for i in 0..20 {
        std::fs::write(images.join(format!("a/{i:04}.png")), b"not an image").unwrap();
    }
    let run = directory.path().join("run");
    let mut command = himpun();
    command.args(["train", "--workers", "2", "--out"]).arg(&run).args(tiny_run(2)).arg("--data").arg(&images);
    let set =
        ["objective.kind=npid", "bank.refresh_age=2", "train.global_batch=4", "data.max_corrupt_share=1"];
    succeed(command.args(set.iter().flat_map(|pair| ["--set", pair])));
    assert_eq!(metrics(&run).last().unwrap()["corrupt_images"], 20);
    let events = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    for i in 0..20 {
        assert_eq!(events.matches(&format!("a/{i:04}.png")).count(), 1, "{events}");
    }
}

#[test]
fn too_many_corrupt_images_end_the_run_with_their_list() {
    let directory = tempfile::tempdir().unwrap();
    let images = folder_of_images(directory.path(), 40);
    for i in 0..10 {
        std::fs::write(images.join(format!("a/{i:04}.png")), b"not an image").unwrap();
    }
    let mut command = himpun();
    command
        .args(["train", "--workers", "2", "--out"])
        .arg(directory.path().join("run"))
        .args(tiny_run(50))
        .arg("--data")
        .arg(&images);
    let stderr = fail(&mut command, 1);
    assert!(
        stderr.contains("more than 8 and more than the share of 0.01 that data.max_corrupt_share"),
        "{stderr}"
    );
    assert!(stderr.contains("a/0001.png"), "{stderr}");
}
