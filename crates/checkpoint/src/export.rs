//! The encoder in the form that other programs read: safetensors under PyTorch's names.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use crate::Error;
use crate::shard::encode_shard;
use crate::state::{Dtype, State, Tensor};

/// Which tensors, under which names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Everything that was trained, `backbone.conv1.weight`, `head.0.bias`, `predictor.0.weight`, and the momentum encoder
    /// where there is one: `momentum.backbone.conv1.weight`.
    StateDict,
    /// The backbone of a residual network under torchvision's own names: `conv1.weight`. No head and no `fc`.
    Torchvision,
    /// The backbone under timm's own names, which are torchvision's for a residual network and `blocks.0.attn.qkv.weight`
    /// for a vision transformer. No head. ResNet-20, which neither has, goes under the names of its blocks in both.
    Timm,
}

impl Format {
    /// Every format by the name that the command line uses.
    pub const NAMES: [(&str, Format); 3] =
        [("state-dict", Format::StateDict), ("torchvision", Format::Torchvision), ("timm", Format::Timm)];

    /// What is written, in a few words.
    pub fn about(self) -> &'static str {
        match self {
            Format::StateDict => "backbone, head and whatever else was trained",
            Format::Torchvision => "the backbone of a residual network under torchvision's names",
            Format::Timm => "the backbone under timm's names",
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Format, Error> {
        let found = Format::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, format)| *format).ok_or_else(|| Error::UnknownFormat {
            name: name.to_owned(),
            expected: Format::NAMES.map(|(known, _)| known).join(" or "),
        })
    }
}

/// Takes the tensors that `format` asks for out of a checkpoint.
///
/// # Errors
/// If the checkpoint has none of them, or one is neither `f32` nor a count of batches.
pub fn tensors(state: &State, format: Format) -> Result<Vec<Tensor<'_>>, Error> {
    match format {
        Format::StateDict => state_dict(state),
        Format::Torchvision => torchvision(state),
        Format::Timm => backbone(state),
    }
}

/// All networks, running statistics and `num_batches_tracked` included.
///
/// # Errors
/// As [`tensors`].
pub fn state_dict(state: &State) -> Result<Vec<Tensor<'_>>, Error> {
    select(state, name_in_state_dict)
}

fn name_in_state_dict(name: &str) -> Option<&str> {
    let parts = ["backbone.", "head.", "predictor.", "jigsaw_head."];
    let is_part = |name: &str| parts.iter().any(|part| name.starts_with(part));
    let trained = name.strip_prefix("model.").filter(|name| is_part(name));
    let averaged = || name.strip_prefix("momentum.").filter(|name| is_part(name)).map(|_| name);
    trained.or_else(averaged)
}

/// Whether any format has a checkpoint's tensor of that name.
pub fn is_exported(name: &str) -> bool {
    name_in_state_dict(name).is_some()
}

/// A tensor that every vision transformer has, and no residual net.
const CLASS_TOKEN: &str = "model.backbone.cls_token";

/// The backbone of a residual net under plain names.
///
/// # Errors
/// As [`tensors`], or if the backbone is a vision transformer.
pub fn torchvision(state: &State) -> Result<Vec<Tensor<'_>>, Error> {
    if state.get(CLASS_TOKEN).is_ok() {
        return Err(Error::OtherFormat {
            format: "torchvision",
            has: "a vision transformer",
            instead: "timm",
        });
    }
    backbone(state)
}

/// The backbone under plain names.
fn backbone(state: &State) -> Result<Vec<Tensor<'_>>, Error> {
    select(state, |name| name.strip_prefix("model.backbone."))
}

fn select(state: &State, rename: impl Fn(&str) -> Option<&str>) -> Result<Vec<Tensor<'_>>, Error> {
    let mut selected = Vec::new();
    for tensor in state.tensors() {
        let Some(name) = rename(&tensor.name) else { continue };
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::I64) {
            return Err(Error::WrongTensor {
                name: tensor.name.clone(),
                expected: "F32, or an I64 count".to_owned(),
                actual: format!("{} {:?}", tensor.dtype, tensor.shape),
            });
        }
        let (shape, data) = (tensor.shape.clone(), (&*tensor.data).into());
        selected.push(Tensor { name: name.to_owned(), dtype: tensor.dtype, shape, data });
    }
    if selected.is_empty() {
        return Err(Error::NoSuchTensor { name: "model.backbone.*".to_owned() });
    }
    // The checkpoint's order depends on how the tensors were dealt to ranks; this one does not.
    selected.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(selected)
}

/// Writes a safetensors file; `path` is replaced at once and is never half written. The same tensors give
/// the same bytes.
///
/// # Errors
/// If the file cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[Tensor<'_>]) -> Result<(), Error> {
    write_atomically(path, &encode_shard(tensors))
}

/// Writes any file the same way.
///
/// # Errors
/// If the file cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The process id keeps two exports to the same file from writing into each other's.
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = write_durably(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io("write", path)));
    if let Err(error) = written {
        // It may not be there at all; what the user asked for is the other file.
        fs::remove_file(&temporary).ok();
        return Err(match error {
            Error::Io { source, .. } => Error::io("write", path)(source),
            other => other,
        });
    }
    sync_dir(dir)
}

/// Writes a file and waits until it is on the disk; its name is durable once its directory is synced.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

/// Waits until the names in `dir` are on the disk.
fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new([
            Tensor::from_f32("model.head.0.weight", &[1, 2], &[5.0, 6.0]),
            Tensor::from_f32("model.backbone.conv1.weight", &[1, 1, 1, 2], &[1.0, 2.0]),
            Tensor::from_f32("model.backbone.bn1.running_mean", &[1], &[3.0]),
            Tensor::from_f32("model.predictor.0.weight", &[1, 1], &[8.0]),
            Tensor::from_f32("momentum.backbone.conv1.weight", &[1, 1, 1, 2], &[1.5, 2.5]),
            Tensor::from_f32("objective.queue", &[1, 2], &[0.6, 0.8]),
            Tensor::from_i64("model.backbone.bn1.num_batches_tracked", 7),
            Tensor::from_f32("optimizer.momentum.backbone.conv1.weight", &[1, 1, 1, 2], &[0.0; 2]),
            Tensor::from_u64("counters.updates", 7),
        ])
        .unwrap()
    }

    fn names<'a>(tensors: &'a [Tensor<'_>]) -> Vec<&'a str> {
        tensors.iter().map(|tensor| tensor.name.as_str()).collect()
    }

    #[test]
    fn formats_have_the_names_that_pytorch_gives() {
        let state = state();
        let dict = tensors(&state, "state-dict".parse().unwrap()).unwrap();
        let expected = [
            "backbone.bn1.num_batches_tracked",
            "backbone.bn1.running_mean",
            "backbone.conv1.weight",
            "head.0.weight",
            "momentum.backbone.conv1.weight",
            "predictor.0.weight",
        ];
        assert_eq!(names(&dict), expected);
        let backbone = tensors(&state, "torchvision".parse().unwrap()).unwrap();
        assert_eq!(names(&backbone), ["bn1.num_batches_tracked", "bn1.running_mean", "conv1.weight"]);
        assert_eq!(backbone[0].shape, [0usize; 0]);
        assert_eq!(backbone[0].to_i64().unwrap(), 7);
        assert_eq!(
            "onnx".parse::<Format>().unwrap_err().to_string(),
            "unknown export format `onnx`, expected state-dict or torchvision or timm"
        );
    }

    #[test]
    fn a_backbone_goes_only_under_the_names_that_it_has() {
        let transformer = State::new([
            Tensor::from_f32("model.backbone.cls_token", &[1, 1, 2], &[1.0, 2.0]),
            Tensor::from_f32("model.head.0.weight", &[1, 2], &[5.0, 6.0]),
        ])
        .unwrap();
        assert_eq!(names(&tensors(&transformer, Format::Timm).unwrap()), ["cls_token"]);
        let error = torchvision(&transformer).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.exit_code()),
            (
                "the checkpoint is of a vision transformer, which has no names of format torchvision; use timm",
                2
            )
        );
        // A residual network has the same names in both: tests/golden/timm_names.py compares them.
        let state = state();
        assert_eq!(tensors(&state, Format::Timm).unwrap(), torchvision(&state).unwrap());
    }

    #[test]
    fn a_state_without_a_model_is_no_export() {
        let state = State::new([Tensor::from_u64("counters.updates", 7)]).unwrap();
        assert_eq!(state_dict(&state).unwrap_err().exit_code(), 3);
    }

    #[test]
    fn files_are_the_same_bytes_in_whatever_order_the_shards_came() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
        let mut reversed = state().tensors().to_vec();
        reversed.reverse();
        write_safetensors(&a, &state_dict(&state()).unwrap()).unwrap();
        write_safetensors(&b, &state_dict(&State::new(reversed).unwrap()).unwrap()).unwrap();
        let bytes = fs::read(&a).unwrap();
        assert_eq!(bytes, fs::read(&b).unwrap());
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("backbone.conv1.weight").unwrap().shape(), [1, 1, 1, 2]);
        // Nothing but the two files is left, and an existing one is replaced.
        write_safetensors(&a, &torchvision(&state()).unwrap()).unwrap();
        assert_ne!(fs::read(&a).unwrap(), bytes);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // A failure names the file that was asked for and leaves nothing behind either.
        fs::create_dir_all(dir.path().join("taken/by")).unwrap();
        let error = write_safetensors(&dir.path().join("taken"), &[]).unwrap_err();
        assert!(error.to_string().ends_with("taken"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
