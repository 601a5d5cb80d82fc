//! Every method, by its small preset cut to a few steps: it runs, resumes, and says what it knows.

use crate::support::{
    Process, assert_quiet, children, exported, fail, himpun, images_in_classes, metrics, output, succeed,
    tiny_run, until,
};
use std::path::{Path, PathBuf};

const STEPS: u64 = 4;

struct Method {
    preset: &'static str,
    /// What else is cut.
    set: &'static [&'static str],
    directory: tempfile::TempDir,
}

impl Method {
    fn new(preset: &'static str, set: &'static [&'static str]) -> Method {
        Method { preset, set, directory: tempfile::tempdir().unwrap() }
    }

    /// Trains with two workers on 600 images.
    fn train(&self, name: &str, set: &[&str]) -> PathBuf {
        let run = self.directory.path().join(name);
        let cut = [
            "run.steps=4",
            "train.global_batch=32",
            "data.size=16",
            "eval.knn_every=0",
            "schedule.warmup_steps=0",
        ];
        let mut command = himpun();
        command.args(["train", "--preset", self.preset, "--workers", "2", "--data"]).arg(images_in_classes());
        command.arg("--out").arg(&run);
        command.args([&cut, self.set, set].concat().iter().flat_map(|pair| ["--set", pair]));
        succeed(&mut command);
        run
    }

    fn resume(&self, run: &Path, arguments: &[&str]) -> String {
        let mut command = himpun();
        command.args(["train", "--set", "run.stop_after=0", "--resume"]).arg(run).args(arguments);
        let output = output(&mut command);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        stderr
    }

    /// A run stopped in the middle of an epoch and resumed is the undisturbed one; returns that.
    #[track_caller]
    fn check(&self) -> PathBuf {
        let undisturbed = self.train("undisturbed", &[]);
        let stopped = self.train("stopped", &["run.stop_after=2"]);
        self.resume(&stopped, &[]);
        let losses =
            |run: &Path| -> Vec<f64> { metrics(run).iter().filter_map(|row| row["loss"].as_f64()).collect() };
        assert_eq!(losses(&undisturbed).len() as u64, STEPS, "{}", self.preset);
        assert_eq!(losses(&undisturbed), losses(&stopped), "{}", self.preset);
        let export = |run: &Path| exported(run, self.directory.path());
        assert!(export(&undisturbed) == export(&stopped), "{}: another network", self.preset);
        for row in metrics(&undisturbed) {
            assert!(row["loss"].as_f64().is_some_and(f64::is_finite), "{}: {row}", self.preset);
            assert!(row["chance_loss"].as_f64().is_some_and(f64::is_finite), "{}: {row}", self.preset);
        }
        let mut verify = himpun();
        succeed(verify.args(["checkpoint", "verify"]).arg(stopped.join("checkpoints/step-00000004")));
        assert_quiet(&undisturbed, &[]);
        undisturbed
    }
}

/// Names of the tensors of an export.
fn names(bytes: &[u8]) -> Vec<String> {
    let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
    tensors.names().into_iter().map(str::to_owned).collect()
}

#[test]
fn moco_with_a_queue() {
    // Neither a multiple of the batch nor longer than two of them: it wraps around.
    let method = Method::new("moco-v1-cifar10-small", &["objective.queue=50"]);
    let run = method.check();
    let names = names(&exported(&run, method.directory.path()));
    for name in
        ["backbone.conv1.weight", "momentum.backbone.conv1.weight", "momentum.backbone.bn1.running_mean"]
    {
        assert!(names.iter().any(|known| known == name), "{name}");
    }
    Method::new("moco-v2-cifar10-small", &["objective.queue=50", "model.batch_norm=local"]).check();
}

#[test]
fn moco_v3_with_its_predictor() {
    let method = Method::new("moco-v3-cifar10-small", &["model.head=moco-v3-64-32"]);
    let run = method.check();
    let names = names(&exported(&run, method.directory.path()));
    assert!(names.iter().any(|name| name == "predictor.3.weight"));
    assert!(!names.iter().any(|name| name.starts_with("momentum.predictor")));
}

/// With what is frozen in the checkpoint, and none of the optimizer's state for it.
#[test]
fn moco_v3_with_a_vision_transformer() {
    const SET: [&str; 3] = ["model.arch=vit-24-2-3", "model.head=moco-v3-vit-32-16", "optimizer.lr=1e-4"];
    let method = Method::new("moco-v3-vit-cifar10-small", &SET);
    let run = method.check();
    let names = names(&exported(&run, method.directory.path()));
    for name in ["backbone.pos_embed", "backbone.patch_embed.proj.weight", "momentum.backbone.cls_token"] {
        assert!(names.iter().any(|known| known == name), "{name}");
    }
    assert!(names.iter().any(|name| name == "predictor.4.running_var"));
    let export = |format: &str| {
        let mut command = himpun();
        command.args(["export", "--json", "--format", format, "--checkpoint"]).arg(&run);
        command.arg("--out").arg(method.directory.path().join("backbone.safetensors"));
        command
    };
    // Class token, positions, two of the patches, twelve of each block, and the last norm.
    let report: serde_json::Value = serde_json::from_str(&succeed(&mut export("timm"))).unwrap();
    assert_eq!(report["tensors"], 4 + 2 * 12 + 2);
    let stderr = fail(&mut export("torchvision"), 2);
    assert!(stderr.contains("use timm"), "{stderr}");
    let mut command = himpun();
    command.args(["eval", "knn", "--json", "--checkpoint"]).arg(&run).arg("--data").arg(images_in_classes());
    let report: serde_json::Value = serde_json::from_str(&succeed(&mut command)).unwrap();
    assert!(report["knn_top1"].as_f64().is_some_and(|share| share > 0.0), "{report}");
}

#[test]
fn npid_with_a_bank_that_other_ranks_take_over() {
    let method = Method::new("npid-cifar10-small", &["bank.dtype=bf16"]);
    let run = method.check();
    let row = metrics(&run).pop().unwrap();
    assert!(row["bank_age"].as_f64().is_some_and(|age| age >= 0.0), "{row}");
    let stopped = method.train("alone", &["run.stop_after=2"]);
    let stderr = method.resume(&stopped, &["--workers", "1"]);
    assert!(stderr.contains("world size"), "{stderr}");
    assert_eq!(metrics(&stopped).last().unwrap()["step"], STEPS);
    Method::new("npidpp-cifar10-small", &["bank.storage=mapped", "objective.negatives=100"]).check();
}

#[test]
fn pirl_with_its_jigsaw() {
    let method = Method::new("pirl-cifar10-small", &["objective.negatives=100"]);
    let run = method.check();
    let names = names(&exported(&run, method.directory.path()));
    assert!(names.iter().any(|name| name == "jigsaw_head.1.weight"));
}

#[test]
fn objectives_that_keep_nothing() {
    Method::new("supcon-cifar10-small", &[]).check();
    Method::new("dcl-cifar10-small", &[]).check();
    let method = Method::new("simclr-cifar10-small", &["objective.kind=align-uniform"]);
    let row = metrics(&method.check()).pop().unwrap();
    assert!(row["uniformity"].as_f64().is_some_and(|uniformity| uniformity < 0.0), "{row}");
}

/// Each small preset as it is, cut to 30 steps of 64 of 600 images, runs, resumes in the middle, and keeps its loss finite.
#[test]
fn small_presets_are_for_any_few_images() {
    const PRESETS: [&str; 10] =
        ["simclr", "npid", "npidpp", "pirl", "moco-v1", "moco-v2", "moco-v3", "moco-v3-vit", "supcon", "dcl"];
    let directory = tempfile::tempdir().unwrap();
    for preset in PRESETS.map(|name| format!("{name}-cifar10-small")) {
        let run = directory.path().join(&preset);
        let cut = ["run.steps=30", "train.global_batch=64", "run.stop_after=17"];
        let mut command = himpun();
        command
            .args(["train", "--preset", &preset, "--data"])
            .arg(images_in_classes())
            .arg("--out")
            .arg(&run);
        succeed(command.args(cut.iter().flat_map(|pair| ["--set", pair])));
        let mut command = himpun();
        succeed(command.args(["train", "--set", "run.stop_after=0", "--resume"]).arg(&run));
        let rows = metrics(&run);
        let steps: Vec<u64> =
            rows.iter().filter_map(|row| row["step"].as_u64()).filter(|step| *step > 0).collect();
        assert_eq!(steps, (1..=30).collect::<Vec<_>>(), "{preset}");
        for row in rows.iter().filter(|row| row["step"] != 0) {
            assert!(row["loss"].as_f64().is_some_and(f64::is_finite), "{preset}: {row}");
        }
    }
}

/// PyTorch's values for chunks are held by the worker's own tests; here chunks run and resume.
#[test]
fn simclr_in_chunks() {
    let method = Method::new("simclr-cifar10-small", &["train.chunk=8"]);
    let row = metrics(&method.check()).pop().unwrap();
    assert_eq!(row["chance_loss"].as_f64().unwrap(), 63f64.ln());
}

/// Frozen batch norm knows no other rows: the run resumes, and is the same in chunks to rounding.
#[test]
fn simclr_with_frozen_batch_norm() {
    let method =
        Method::new("simclr-cifar10-small", &["model.batch_norm=frozen", "model.zero_init_residual=true"]);
    let whole = method.check();
    let cut = method.train("cut", &["train.chunk=8"]);
    let losses =
        |run: &Path| metrics(run).iter().map(|row| row["loss"].as_f64().unwrap()).collect::<Vec<_>>();
    let (losses, of_cut) = (losses(&whole), losses(&cut));
    assert!(losses.iter().zip(&of_cut).all(|(a, b)| (a / b - 1.0).abs() < 1e-5), "{losses:?} {of_cut:?}");
    let export = exported(&whole, method.directory.path());
    let tensors = safetensors::SafeTensors::deserialize(&export).unwrap();
    let statistics: Vec<_> = tensors.iter().filter(|(name, _)| name.contains("running_")).collect();
    assert!(statistics.len() > 30);
    for (name, tensor) in statistics {
        let kept = if name.ends_with("running_var") { 1f32 } else { 0.0 };
        assert!(tensor.data().as_chunks().0.iter().all(|bytes| f32::from_le_bytes(*bytes) == kept), "{name}");
    }
}

/// 8,192 views against each other, 128 of them in memory at a time. The worker's peak is that of its process.
#[test]
fn a_batch_of_4096_trains_on_one_small_worker() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let mut command = himpun();
    command.args(["train", "--workers", "1", "--out"]).arg(&run).args(tiny_run(100_000));
    let set = ["train.global_batch=4096", "train.chunk=64", "data.size=8"];
    command.args(set.iter().flat_map(|pair| ["--set", pair]));
    let train = Process::start(&mut command, directory.path(), "train");
    let row = until("a step", || metrics(&run).into_iter().find(|row| row["step"] == 1));
    assert_eq!(row["chance_loss"].as_f64().unwrap(), 8191f64.ln());
    assert!((row["loss"].as_f64().unwrap() - 8191f64.ln()).abs() < 2.0, "{row}");
    let workers = children(train.id()).into_iter().filter(|(_, command)| command.contains(" worker "));
    let peaks: Vec<u64> = workers.map(|(id, _)| peak_kib(id)).collect();
    assert_eq!(peaks.len(), 1, "{peaks:?} KiB of workers");
    // Without chunks the network alone takes 635 MB.
    assert!(peaks[0] < 400 << 10, "{} KiB", peaks[0]);
}

/// `VmHWM` of a process.
fn peak_kib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a process that runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok()).expect("a number of kB")
}
