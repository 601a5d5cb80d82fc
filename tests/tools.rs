//! Commands that look into data, configurations and checkpoints without a coordinator.

use crate::support::{fail, himpun, metrics, output, succeed, tiny_run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

#[track_caller]
fn json(command: &mut Command) -> Value {
    let stdout = succeed(command);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).expect("a line of JSON")
}

/// Class folders with names that shells, lines and encodings stumble over.
fn images(directory: &Path) -> PathBuf {
    let root = directory.join("images");
    for (class, color) in [("with space", [200, 20, 0]), ("ünïcödé\n", [0, 200, 20])] {
        std::fs::create_dir_all(root.join(class)).unwrap();
        for i in 0..12u8 {
            let pixel = image::Rgb([color[0] + i, color[1] + i, color[2] + i]);
            image::RgbImage::from_pixel(16, 16, pixel)
                .save(root.join(class).join(format!("{i}.png")))
                .unwrap();
        }
    }
    root
}

#[test]
fn a_checkpoint_is_exported_embedded_evaluated_and_verified() {
    let directory = tempfile::tempdir().unwrap();
    let (images, run) = (images(directory.path()), directory.path().join("run"));
    succeed(
        himpun()
            .args(["train", "--workers", "1"])
            .args(tiny_run(1))
            .arg("--data")
            .arg(&images)
            .arg("--out")
            .arg(&run),
    );
    let of_run = |command: &[&str]| {
        let mut himpun = himpun();
        himpun.args(command).arg("--json").arg("--checkpoint").arg(&run);
        himpun
    };

    let exported = json(of_run(&["export"]).arg("--out").arg(directory.path().join("e.safetensors")));
    assert_eq!(exported["step"], 1);
    let embedded =
        json(of_run(&["embed"]).arg("--data").arg(&images).arg("--out").arg(directory.path().join("f.npy")));
    assert_eq!((&embedded["images"], &embedded["width"]), (&24.into(), &64.into()));
    let classes = std::fs::read_to_string(directory.path().join("f.classes.txt")).unwrap();
    assert_eq!(classes, "with space\nünïcödé\\n\n");
    let evaluated = json(of_run(&["eval", "knn"]).arg("--data").arg(&images));
    assert_eq!((&evaluated["queries"], &evaluated["step"]), (&24.into(), &1.into()));
    assert_eq!(evaluated["knn_k"], 6, "24 images of two classes");

    let linear = |extra: &[&str]| {
        let mut command = of_run(&["eval", "linear", "--epochs", "20", "--batch", "8", "--lr", "3"]);
        command.arg("--data").arg(&images).args(extra);
        command
    };
    // A fifth is held out; red and green are told apart, in crops too.
    for (extra, augment) in [(&[][..], false), (&["--augment"], true)] {
        let report = json(&mut linear(extra));
        assert_eq!(
            (&report["train"], &report["test"], &report["classes"]),
            (&20.into(), &4.into(), &2.into())
        );
        assert_eq!((&report["held_out"], &report["augment"]), (&true.into(), &augment.into()));
        assert_eq!((&report["linear_top1"], &report["step"]), (&1.0.into(), &1.into()), "{report}");
    }
    let moco = json(linear(&["--protocol", "moco", "--test"]).arg(&images));
    assert_eq!((&moco["test"], &moco["held_out"]), (&24.into(), &false.into()));
    assert_eq!((&moco["weight_decay"], &moco["epochs"]), (&0.0.into(), &20.into()));
    let stderr = fail(&mut linear(&["--momentum", "1"]), 2);
    assert!(stderr.contains("--momentum = 1: a number from 0"), "{stderr}");

    let checkpoint = run.join("checkpoints/step-00000001");
    for directory in [&run, &checkpoint] {
        let verified = json(himpun().args(["checkpoint", "verify", "--json"]).arg(directory));
        assert_eq!(verified[0]["problems"], serde_json::json!([]), "{verified}");
    }
    std::fs::write(checkpoint.join("manifest.json"), "{}").unwrap();
    let output = output(himpun().args(["checkpoint", "verify"]).arg(&checkpoint));
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn presets_are_listed_and_shown_as_files_that_train() {
    let list = json(himpun().args(["presets", "list", "--json"]));
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(succeed(himpun().arg("presets")).lines().count(), names.len());
    let show = |name: &str| succeed(himpun().args(["presets", "show", name]));
    for name in &names {
        assert!(show(name).starts_with("# "), "{name} says what it is");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.toml");
    std::fs::write(&file, show("moco-v2-imagenet")).unwrap();
    let mut command = himpun();
    command
        .arg("train")
        .arg("--config")
        .arg(&file)
        .args(["--data", "builtin", "--out"])
        .arg(directory.path().join("run"));
    let set = ["objective.queue=16", "model.stem=cifar"];
    succeed(
        command.args(["--workers", "1"]).args(tiny_run(1)).args(set.iter().flat_map(|set| ["--set", set])),
    );
    let stderr = fail(himpun().args(["presets", "show", "moco-v2-imagent"]), 2);
    assert!(stderr.contains("moco-v2-imagenet"), "{stderr}");
}

#[test]
fn pixels_are_a_baseline() {
    let directory = tempfile::tempdir().unwrap();
    let images = images(directory.path());
    let knn = |extra: &[&str]| {
        let mut himpun = himpun();
        himpun.args(["eval", "knn", "--json", "--data"]).arg(&images).args(extra);
        himpun
    };
    let report = json(&mut knn(&["--pixels", "--size", "16"]));
    let expected =
        |k: usize| serde_json::json!({ "knn_top1": 1.0, "knn_k": k, "queries": 24, "bank": 24, "size": 16 });
    assert_eq!(report, expected(6), "half of a class");
    let text = succeed(himpun().args(["eval", "knn", "--pixels", "--k", "5", "--data"]).arg(&images));
    assert!(text.starts_with("kNN 100.00 % (k = 5) of 24 images, by 24 others"), "{text}");
    fail(&mut knn(&[]), 2);
    fail(&mut knn(&["--pixels", "--checkpoint", "somewhere"]), 2);
}

#[test]
fn views_are_written_as_tensors_and_as_a_picture() {
    let directory = tempfile::tempdir().unwrap();
    let (tensors, picture) = (directory.path().join("v.safetensors"), directory.path().join("v.png"));
    succeed(
        himpun()
            .args(["data", "views", "--index", "3", "--epoch", "1", "--out"])
            .arg(&tensors)
            .arg("--png")
            .arg(&picture),
    );
    let picture = image::open(picture).unwrap().into_rgb8();
    assert_eq!(picture.dimensions(), (64, 32));
    let bytes = std::fs::read(tensors).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let blue = |x: usize, y: usize| {
        let at = 4 * ((2 * 32 + y) * 32 + x);
        let bytes = tensors.tensor("view_1").unwrap().data()[at..at + 4].try_into().unwrap();
        (f32::from_le_bytes(bytes) * 255.0).round() as u8
    };
    for (x, y) in [(0, 0), (31, 4), (17, 31)] {
        assert_eq!(picture.get_pixel(32 + x as u32, y as u32)[2], blue(x, y), "{x} {y}");
    }
    fail(himpun().args(["data", "views", "--index", "0", "--epoch", "4294967296", "--png", "x.png"]), 2);
    fail(himpun().args(["data", "views", "--index", "6000", "--png", "x.png"]), 2);
}

#[test]
fn what_is_chosen_in_opening_data_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let set = directory.path().join("set");
    std::fs::create_dir(&set).unwrap();
    for half in ["train", "test"] {
        std::fs::rename(images(directory.path()), set.join(half)).unwrap();
    }
    let output = output(himpun().args(["data", "stats", "--json", "--data"]).arg(&set));
    assert!(String::from_utf8_lossy(&output.stderr).contains("taking train"), "{output:?}");
    let stats: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(stats["images"], 24);
}

#[test]
fn a_path_that_is_not_there_is_not_taken_for_a_runs_id() {
    let stderr = fail(himpun().args(["checkpoint", "list", "runs/no-such-run"]), 2);
    assert!(stderr.contains("there is no directory runs/no-such-run"), "{stderr}");
}

#[test]
fn a_packed_set_trains_and_resumes_as_the_folder_it_was_made_of() {
    let directory = tempfile::tempdir().unwrap();
    let (images, pack) = (images(directory.path()), directory.path().join("set.packed"));
    std::fs::write(images.join("with space/broken.png"), "no image").unwrap();
    let mut command = himpun();
    command.args(["data", "pack", "--json", "--data"]).arg(&images).arg("--out").arg(&pack);
    let report = json(&mut command);
    assert_eq!((&report["images"], &report["shrunk"]), (&25.into(), &0.into()));
    assert_eq!(report["corrupt"], serde_json::json!(["with space/broken.png"]));
    let losses = |data: &Path, name: &str, stops: &[u64]| {
        let run = directory.path().join(name);
        for (start, stop) in stops.iter().enumerate() {
            let mut command = himpun();
            command.arg("train").args(["--set", &format!("run.stop_after={stop}")]);
            if start == 0 {
                command.args(["--workers", "1", "--data"]).arg(data).arg("--out").arg(&run);
                command.args(tiny_run(4)).args(["--set", "data.max_corrupt_share=0.1"]);
            } else {
                command.arg("--resume").arg(&run);
            }
            succeed(&mut command);
        }
        metrics(&run).iter().map(|row| (row["step"].clone(), row["loss"].clone())).collect::<Vec<_>>()
    };
    let of_folder = losses(&images, "of-folder", &[4]);
    assert_eq!(of_folder.len(), 4);
    assert_eq!(losses(&pack, "of-pack", &[2, 4]), of_folder);

    let stats = json(himpun().args(["data", "stats", "--json", "--data"]).arg(&pack));
    assert_eq!((&stats["images"], &stats["corrupt"][0]), (&25.into(), &report_path(&pack).into()));
    let bytes = std::fs::read(&pack).unwrap();
    std::fs::write(&pack, &bytes[..bytes.len() / 2]).unwrap();
    let message = fail(himpun().args(["data", "stats", "--data"]).arg(&pack), 2);
    assert!(message.contains("set.packed: damaged packed set"), "{message}");
}

/// How the broken image of a packed set is named.
fn report_path(pack: &Path) -> String {
    format!("with space/broken.png in {}", pack.display())
}

#[test]
fn the_data_path_is_timed() {
    let directory = tempfile::tempdir().unwrap();
    let images = images(directory.path());
    let bench = |extra: &[&str]| {
        let mut himpun = himpun();
        himpun.args(["bench", "data", "--size", "8", "--data"]).arg(&images).args(extra);
        himpun
    };
    let report = json(&mut bench(&["--json", "--threads", "2"]));
    assert_eq!((&report["images"], &report["threads"]), (&24.into(), &2.into()));
    for part in ["decode", "augment", "total", "all_threads"] {
        assert!(report[part]["views_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    }
    let table = succeed(&mut bench(&[]));
    assert_eq!(table.lines().count(), 5, "{table}");
    fail(&mut bench(&["--augment", "none-such"]), 2);
}

#[test]
fn a_benched_step_takes_the_memory_that_was_predicted() {
    let report = json(himpun().args([
        "bench",
        "step",
        "--json",
        "--arch",
        "resnet20",
        "--batch",
        "256",
        "--size",
        "32",
        "--threads",
        "2",
    ]));
    let [peak, predicted] =
        ["peak_memory_bytes", "predicted_memory_bytes"].map(|key| report[key].as_f64().unwrap());
    // Half of it, or the allowance would be all that is tested.
    assert!(predicted > (128 << 20) as f64, "{report}");
    assert!(peak > predicted && peak <= 1.05 * predicted + (64 << 20) as f64, "{report}");
}

#[test]
fn a_bench_runs_on_the_instructions_asked_for() {
    let step =
        ["bench", "step", "--json", "--arch", "resnet20", "--batch", "4", "--size", "8", "--threads", "1"];
    let report = json(himpun().args(step).args(["--kernel-path", "portable"]));
    assert_eq!(report["kernel_path"], "portable");
}

#[test]
fn a_timed_loss_is_that_of_its_views() {
    let mut loss = himpun();
    loss.args(["bench", "loss", "--batch", "64", "--width", "16", "--threads", "2"]);
    let table = succeed(&mut loss);
    assert!(table.contains("peak") && table.lines().count() >= 3, "{table}");
    // So hot that all similarities are alike: each view has 63 others to be told from.
    let report = json(loss.args(["--json", "--temperature", "1e6"]));
    let loss = report["loss"].as_f64().unwrap();
    assert!((loss - 63f64.ln()).abs() < 1e-4, "{report}");
    assert_eq!(report["similarity_bytes"], 64 * 64 * 4, "{report}");
}

#[test]
fn collectives_are_timed_between_processes() {
    // Bytes that leave rank 0 of three for each of the whole, barriers left out.
    for (operation, share) in
        [("all-reduce", 4.0 / 3.0), ("all-gather", 2.0 / 3.0), ("reduce-scatter", 2.0 / 3.0)]
    {
        let mut collective = himpun();
        collective.args(["bench", "collective", "--json", "--world-size", "3", "--bytes", "1200000", "--op"]);
        let report = json(collective.arg(operation));
        let sent = report["bytes_sent"].as_f64().unwrap() / 1.2e6;
        assert!((share..share + 0.01).contains(&sent), "{operation}: {report}");
    }
    fail(himpun().args(["bench", "collective", "--op", "all-to-all"]), 2);
}
