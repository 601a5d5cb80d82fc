//! The contract's replay: ten steps of ours against PyTorch's float64, views and all.

use crate::support::{assert_quiet, exported, himpun, metrics, succeed, write_images};
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

const STEPS: usize = 10;
const LEARNING_RATE: f64 = 0.005;

/// Written by `golden/replay.py`, which uses the same settings.
const GOLDEN: &[u8] = include_bytes!("golden/replay.safetensors");
const SETTINGS: [&str; 17] = [
    "run.steps=10",
    "train.global_batch=24",
    "model.arch=resnet20",
    "model.stem=cifar",
    "model.head=mlp-64-32",
    "objective.temperature=0.5",
    "optimizer.kind=sgd",
    "optimizer.lr=0.005",
    "optimizer.momentum=0.9",
    "optimizer.weight_decay=0.0001",
    "schedule.kind=constant",
    "schedule.warmup_steps=0",
    "data.size=16",
    "data.augment=simclr-cifar",
    "eval.knn_every=0",
    "checkpoint.every=0",
    "checkpoint.at_start=true",
];

/// `CONTRACT.md`, "Replay": within eight times what rounding to float32 does to PyTorch itself.
#[test]
fn ten_steps_are_those_of_pytorch() {
    let directory = tempfile::tempdir().unwrap();
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let images = directory.path().join("images");
    write_images(&images, &golden);
    for (workers, convolution) in [(1, "auto"), (1, "direct"), (3, "auto")] {
        let run = directory.path().join(format!("{convolution}-{workers}"));
        let mut command = himpun();
        command
            .args(["train", "--workers", &workers.to_string(), "--data"])
            .arg(&images)
            .arg("--out")
            .arg(&run);
        let convolution = format!("train.convolution={convolution}");
        command.args(SETTINGS.iter().chain([&convolution.as_str()]).flat_map(|pair| ["--set", pair]));
        succeed(&mut command);
        assert_quiet(&run, &[]);
        check_losses(&run, &golden);
        check_weights(&run, directory.path(), &golden);
    }
}

#[track_caller]
fn check_losses(run: &Path, golden: &SafeTensors) {
    let (exact, rounded) = (numbers(golden, "losses_f64"), numbers(golden, "losses_f32"));
    let rows = metrics(run);
    assert_eq!(rows.len(), STEPS);
    for (step, row) in rows.iter().enumerate() {
        let bound = 8.0 * (rounded[step] - exact[step]).abs() + 1e-5;
        let difference = (row["loss"].as_f64().unwrap() - exact[step]).abs();
        assert!(
            difference <= bound,
            "{run:?}, step {}: {difference:e} from PyTorch, allowed {bound:e}",
            step + 1
        );
    }
}

/// All parameters and running statistics after ten steps, in relative L2.
#[track_caller]
fn check_weights(run: &Path, directory: &Path, golden: &SafeTensors) {
    let first = exported(&run.join("checkpoints/step-00000000"), directory);
    let last = exported(run, directory);
    let (first, last) = (SafeTensors::deserialize(&first).unwrap(), SafeTensors::deserialize(&last).unwrap());
    let (mut difference, mut norm, mut compared) = (0.0, 0.0, 0);
    for name in golden.names() {
        let (ours, exact): (Vec<f64>, Vec<f64>) = if let Some(name) = name.strip_prefix("update.") {
            let before = numbers(&first, name).into_iter();
            let exact =
                before.zip(numbers(golden, &format!("update.{name}"))).map(|(w, u)| w + LEARNING_RATE * u);
            (numbers(&last, name), exact.collect())
        } else if let Some(name) = name.strip_prefix("value.") {
            (numbers(&last, name), numbers(golden, &format!("value.{name}")))
        } else {
            continue;
        };
        assert_eq!(ours.len(), exact.len(), "{name}");
        difference += ours.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        norm += exact.iter().map(|b| b * b).sum::<f64>();
        compared += 1;
    }
    // Every tensor of the export but the 21 counters of batches.
    let counters = last.names().iter().filter(|name| name.ends_with("num_batches_tracked")).count();
    assert_eq!(compared, last.len() - counters);
    let relative = (difference / norm).sqrt();
    let bound = 8.0 * numbers(golden, "weights_relative_error_f32")[0] + 1e-5;
    assert!(relative <= bound, "{run:?}: {relative:e} from PyTorch, allowed {bound:e}");
}

#[track_caller]
fn numbers(tensors: &SafeTensors, name: &str) -> Vec<f64> {
    let tensor = tensors.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F32 => {
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
        }
        Dtype::F16 => data.chunks_exact(2).map(|b| half(u16::from_le_bytes(b.try_into().unwrap()))).collect(),
        other => panic!("{name} is {other:?}"),
    }
}

/// The value of an IEEE half.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    sign * if exponent == 0 { fraction * 2f64.powi(-14) } else { (1.0 + fraction) * 2f64.powi(exponent - 15) }
}
