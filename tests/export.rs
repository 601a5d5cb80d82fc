//! A vision transformer as other programs get it: PyTorch's names, shapes and types, and PyTorch's features.

use crate::support::{assert_quiet, himpun, succeed, write_images};
use checkpoint::{Description, Staging, Tensor};
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

    let file = directory.path().join("features.safetensors");
    let mut command = himpun();
    command.args(["embed", "--checkpoint"]).arg(&with_theirs).arg("--data").arg(&images);
    succeed(command.arg("--out").arg(&file));
    let bytes = std::fs::read(file).unwrap();
    let (ours, theirs) = (numbers(&SafeTensors::deserialize(&bytes).unwrap()), numbers(&golden));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!((ours - theirs).abs() < 1e-4, "{ours} where PyTorch has {theirs}");
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
    let (manifest, state) = checkpoint::load(&checkpoint::checkpoint_dir(run, 1)).unwrap();
    let replaced = |tensor: &Tensor| {
        let theirs = tensor.name.strip_prefix("model.").and_then(|name| weights.get(name));
        let data = theirs.map_or_else(|| tensor.data.clone(), |(_, _, data)| data.clone());
        Tensor { data, ..tensor.clone() }
    };
    let bytes = checkpoint::encode_shard(&state.tensors().iter().map(replaced).collect::<Vec<_>>());
    let staging = Staging::begin(run, 2, manifest.generation, 1).unwrap();
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

fn numbers(tensors: &SafeTensors) -> Vec<f32> {
    let features = tensors.tensor("features").unwrap();
    features.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}
