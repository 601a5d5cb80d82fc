//! What earlier commits left can be used by this one: tests/golden/run-7aa4618.sh says how it was made.

use crate::support::{exported, himpun, metrics, require_or_skip, succeed};
use kernels::KernelPath;
use safetensors::SafeTensors;
use std::path::Path;

/// A run that commit 7aa4618 stopped at step 3 of 6, and its own export of it.
const STOPPED: &[u8] = include_bytes!("golden/run-7aa4618.tar.zst");

/// Its own export of the same run undisturbed.
const UNDISTURBED: &[u8] = include_bytes!("golden/run-7aa4618.safetensors");

#[test]
fn a_run_of_7aa4618_is_exported_embedded_and_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let tar = zstd::decode_all(STOPPED).unwrap();
    tar::Archive::new(tar.as_slice()).unpack(directory.path()).unwrap();
    let run = directory.path().join("himpun-run");
    let checkpoint = run.join("checkpoints/step-00000003");

    let of_then = std::fs::read(directory.path().join("step-3.safetensors")).unwrap();
    assert!(exported(&checkpoint, directory.path()) == of_then, "the export of step 3 differs");

    let features = directory.path().join("f.safetensors");
    let mut embed = himpun();
    embed.args(["embed", "--data", "builtin#test", "--checkpoint"]).arg(&checkpoint);
    succeed(embed.arg("--out").arg(&features));
    let bytes = std::fs::read(&features).unwrap();
    let tensor = SafeTensors::deserialize(&bytes).unwrap().tensor("features").unwrap();
    let n_test = data::Dataset::open("builtin#test").unwrap().len();
    assert_eq!(tensor.shape(), [n_test, 64]);
    let of_then = values(&std::fs::read(directory.path().join("features.f32")).unwrap());
    assert_eq!(of_then.len(), 16 * 64);
    let differences: Vec<f64> = values(tensor.data()).iter().zip(&of_then).map(|(a, b)| a - b).collect();
    assert!(norm(&differences) <= 1e-3 * norm(&of_then), "features are off by {}", norm(&differences));

    let mut resume = himpun();
    resume.args(["train", "--set", "run.stop_after=0", "--resume"]).arg(&run);
    succeed(&mut resume);
    let steps: Vec<u64> = metrics(&run).iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    let resumed = exported(&run, directory.path());
    let path_of_then = kernel_path(&checkpoint);
    let path = KernelPath::detect().to_string();
    if path == path_of_then {
        assert!(resumed == UNDISTURBED, "the export of the resumed run differs from that of the undisturbed");
    } else {
        assert_close(&resumed, UNDISTURBED);
        let variable = format!("KERNEL_PATH_{}", path_of_then.to_uppercase());
        let why = format!("the run was trained on {path_of_then}, this machine has {path}: compared to 1e-3");
        require_or_skip(&variable, &why);
    }
}

/// The kernel path that a checkpoint was trained on.
fn kernel_path(checkpoint: &Path) -> String {
    let manifest = std::fs::read(checkpoint.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["metadata"]["kernel_path"].as_str().unwrap().to_owned()
}

/// Asserts that two exports have the same tensors, up to a relative distance of 1e-3 each.
#[track_caller]
fn assert_close(found: &[u8], expected: &[u8]) {
    let [found, expected] = [found, expected].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    let sorted = |file: &SafeTensors| {
        let mut names: Vec<String> = file.names().iter().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(&found), sorted(&expected));
    for (name, expected) in expected.iter() {
        let found = found.tensor(name).unwrap();
        assert_eq!((found.shape(), found.dtype()), (expected.shape(), expected.dtype()), "{name}");
        if found.dtype() == safetensors::Dtype::F32 {
            let (found, expected) = (values(found.data()), values(expected.data()));
            let difference: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
            assert!(norm(&difference) <= 1e-3 * norm(&expected), "{name}: off by {}", norm(&difference));
        } else {
            assert!(found.data() == expected.data(), "{name}");
        }
    }
}

fn values(data: &[u8]) -> Vec<f64> {
    data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}
