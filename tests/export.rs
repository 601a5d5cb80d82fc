//! Encoders as other programs get them: PyTorch's names, shapes and types, and PyTorch's features.

use crate::support::{assert_quiet, himpun, succeed, write_images};
use checkpoint::{Description, Directory, Staging, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Written by `golden/export.py`, which uses the same settings.
const GOLDEN: &[u8] = include_bytes!("golden/export.safetensors");
const SETTINGS: [&str; 14] = [
    "run.steps=1",
    "train.global_batch=8",
    "model.arch=vit-16-2-4",
    "model.patch=4",
    "model.freeze_patch=true",
    "model.head=moco-v3-vit-12-6",
    "model.predictor=moco-v3-vit",
    "objective.kind=moco-v3",
    "data.size=8",
    "data.mean=[0.5,0.4,0.3]",
    "data.std=[0.25,0.2,0.3]",
    "eval.knn_every=0",
    "checkpoint.every=0",
    "schedule.warmup_steps=0",
];

/// By name: type, shape and bytes.
type Dict = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

#[test]
fn a_vision_transformer_is_that_of_pytorch() {
    let directory = tempfile::tempdir().unwrap();
    let (images, run) = (directory.path().join("images"), directory.path().join("run"));
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    write_images(&images, &golden);
    let mut command = himpun();
    command.args(["train", "--workers", "2", "--data"]).arg(&images).arg("--out").arg(&run);
    succeed(command.args(SETTINGS.iter().flat_map(|pair| ["--set", pair])));
    assert_quiet(&run, &[]);

    // What was trained here has PyTorch's form, and what was trained there comes through bit for bit.
    let theirs = dict(&golden, "state.");
    let (own, with_theirs) = (checkpoint::checkpoint_dir(&run, 1), with_weights(&run, &theirs));
    for format in ["state-dict", "timm"] {
        let expected = match format {
            "timm" => dict(&golden, "state.backbone."),
            _ => theirs.clone(),
        };
        let form = |dict: &Dict| -> Vec<_> {
            dict.iter().map(|(name, (dtype, shape, _))| (name.clone(), *dtype, shape.clone())).collect()
        };
        assert_eq!(form(&exported(&own, format)), form(&expected), "{format}");
        assert!(exported(&with_theirs, format) == expected, "{format}: other values");
    }

    check_features(&with_theirs, &images, &numbers(&golden, "features"));
}

/// Written by `golden/resnets.py`, which uses the same settings and draws the same weights.
#[test]
fn resnets_are_torchvisions() {
    let golden = SafeTensors::deserialize(include_bytes!("golden/resnets.safetensors")).unwrap();
    for arch in ["resnet18", "resnet50"] {
        let directory = tempfile::tempdir().unwrap();
        let (images, run) = (directory.path().join("images"), directory.path().join("run"));
        write_images(&images, &golden);
        let mut command = himpun();
        command.args(["train", "--workers", "2", "--data"]).arg(&images).arg("--out").arg(&run);
        let arch_key = format!("model.arch={arch}");
        let settings =
            ["run.steps=1", "train.global_batch=8", &arch_key, "model.stem=imagenet", "data.size=32"];
        let more = ["data.mean=[0.5,0.4,0.3]", "data.std=[0.25,0.2,0.3]", "eval.knn_every=0"];
        succeed(command.args(settings.iter().chain(&more).flat_map(|pair| ["--set", pair])));

        let form = golden.tensor(&format!("{arch}.form")).unwrap();
        let form: Vec<(String, String, Vec<usize>)> = serde_json::from_slice(form.data()).unwrap();
        let theirs: Dict = form.into_iter().map(|(name, dtype, shape)| drawn(name, &dtype, shape)).collect();
        let of_backbone = theirs.iter().map(|(name, value)| (format!("backbone.{name}"), value.clone()));
        let with_theirs = with_weights(&run, &of_backbone.collect());
        assert!(exported(&with_theirs, "torchvision") == theirs, "{arch}: other names, shapes or values");
        check_features(&with_theirs, &images, &numbers(&golden, &format!("{arch}.features")));
        check_timm(&with_theirs, arch);
    }
}

/// The format `timm` has the names, types and shapes that `golden/timm_names.py` found in timm.
#[track_caller]
fn check_timm(checkpoint: &Path, arch: &str) {
    type Form = Vec<(String, String, Vec<usize>)>;
    let golden: BTreeMap<String, Form> =
        serde_json::from_slice(include_bytes!("golden/timm_names.json")).unwrap();
    let (_, state) = checkpoint::load(checkpoint, |_| true).unwrap();
    let exported = checkpoint::export::tensors(&state, "timm".parse().unwrap()).unwrap();
    let dtype = |tensor: &Tensor<'_>| match tensor.dtype.to_string().as_str() {
        "F32" => "float32",
        "I64" => "int64",
        other => panic!("{other}"),
    };
    let form: Form = exported
        .iter()
        .map(|tensor| (tensor.name.clone(), dtype(tensor).to_owned(), tensor.shape.clone()))
        .collect();
    assert_eq!(form, golden[arch], "{arch}");
}

/// As `drawn` of `golden/resnets.py`.
fn drawn(name: String, dtype: &str, shape: Vec<usize>) -> (String, (Dtype, Vec<usize>, Vec<u8>)) {
    if dtype == "int64" {
        return (name, (Dtype::I64, shape, 3i64.to_le_bytes().to_vec()));
    }
    let key = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |key, byte| (key ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let noise = |i: u64| {
        let x = key.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    let (centre, bound) = match name.rsplit('.').next() {
        _ if shape.len() > 1 => (0.0, (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt()),
        Some("weight" | "running_var") => (1.0, 0.5),
        _ => (0.0, 0.2),
    };
    let numbers = 1..=shape.iter().product::<usize>() as u64;
    let bytes = numbers.flat_map(|i| ((centre + bound * noise(i)) as f32).to_le_bytes()).collect();
    (name, (Dtype::F32, shape, bytes))
}

/// The features that `himpun embed` makes are PyTorch's, to 1e-4 of the largest, or of 1.
#[track_caller]
fn check_features(checkpoint: &Path, images: &Path, theirs: &[f32]) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("features.safetensors");
    let mut command = himpun();
    command.args(["embed", "--checkpoint"]).arg(checkpoint).arg("--data").arg(images);
    succeed(command.arg("--out").arg(&file));
    let bytes = std::fs::read(file).unwrap();
    let ours = numbers(&SafeTensors::deserialize(&bytes).unwrap(), "features");
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(1f32, |largest, value| largest.max(value.abs()));
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() < 1e-4 * largest, "{ours} where PyTorch has {theirs}");
    }
}

/// The trained networks of a checkpoint: a momentum encoder stands under names of its own.
#[track_caller]
fn exported(checkpoint: &Path, format: &str) -> Dict {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("export.safetensors");
    let mut command = himpun();
    command.args(["export", "--format", format, "--checkpoint"]).arg(checkpoint).arg("--out").arg(&file);
    succeed(&mut command);
    let bytes = std::fs::read(file).unwrap();
    let mut exported = dict(&SafeTensors::deserialize(&bytes).unwrap(), "");
    exported.retain(|name, _| !name.starts_with("momentum."));
    exported
}

fn dict(tensors: &SafeTensors, prefix: &str) -> Dict {
    let of_prefix = |(name, tensor): (&str, safetensors::tensor::TensorView<'_>)| {
        let value = (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
        Some((name.strip_prefix(prefix)?.to_owned(), value))
    };
    tensors.iter().filter_map(of_prefix).collect()
}

/// Makes another checkpoint of the run that holds these weights in place of its own.
fn with_weights(run: &Path, weights: &Dict) -> PathBuf {
    let (manifest, state) = checkpoint::load(&checkpoint::checkpoint_dir(run, 1), |_| true).unwrap();
    let replaced = |tensor: &Tensor<'static>| {
        let theirs = tensor.name.strip_prefix("model.").and_then(|name| weights.get(name));
        let data = theirs.map_or_else(|| tensor.data.clone(), |(_, _, data)| data.clone().into());
        Tensor { data, ..tensor.clone() }
    };
    let bytes = checkpoint::encode_shard(&state.tensors().iter().map(replaced).collect::<Vec<_>>());
    let staging = Staging::begin(&Directory::open(run).unwrap(), 2, manifest.generation, 1).unwrap();
    let mut shard = staging.shard(0).unwrap();
    shard.append(&bytes).unwrap();
    shard.finish(&checkpoint::digest(&bytes)).unwrap();
    let description = Description {
        run_id: manifest.run_id,
        world_size: 1,
        config_digest: manifest.config_digest,
        time_ns: manifest.time_ns,
        metadata: manifest.metadata,
    };
    staging.commit(description).unwrap().path
}

fn numbers(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let features = tensors.tensor(name).unwrap();
    features.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}
