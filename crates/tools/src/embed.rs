//! What a checkpoint is good for outside of training: features of images, and their kNN accuracy.

use checkpoint::{Manifest, Tensor, export};
use collective::Group;
use config::RunConfig;
use data::{Dataset, Limits};
use engine::network::{Network, NetworkOptions};
use kernels::{Device, DeviceOptions, KernelPath};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use trainer::evaluation::{Evaluated, Evaluation};
use trainer::features::{self, Encoder, Look};
use trainer::state_dict::CONFIG_KEY;
use trainer::{model, plan, state_dict};

use crate::{Error, npy};

/// A pass is planned for as many images as fit into this many bytes.
const PASS_BYTES: usize = 1 << 30;

/// More images than this at once gain nothing.
const MAX_PASS: usize = 128;

/// What was written.
#[derive(Debug)]
pub struct Embedded {
    /// Images whose features were written.
    pub n: usize,
    /// Length of a feature.
    pub width: usize,
    /// The features' file, and those beside it.
    pub files: Vec<PathBuf>,
    /// The checkpoint that was used.
    pub checkpoint: PathBuf,
    /// Images that could not be decoded and were left out: path and reason.
    pub corrupt: Vec<(String, String)>,
    /// What the user should know: which half of the data was taken, which checkpoints are damaged, which images
    /// were left out.
    pub warnings: Vec<String>,
}

/// What kNN found, and which checkpoint it looked at.
#[derive(Debug)]
pub struct KnnReport {
    /// The result.
    pub evaluated: Evaluated,
    /// The checkpoint that was used.
    pub checkpoint: PathBuf,
    /// Its completed updates.
    pub step: u64,
    /// What the user should know, as [`Embedded::warnings`].
    pub warnings: Vec<String>,
}

/// The form of a file of features.
#[derive(Clone, Copy)]
enum Form {
    Npy,
    Safetensors,
}

/// Writes the backbone's features of every image of `data`, in its order, to `out`.
///
/// Beside `F.npy` or `F.safetensors` stand `F.paths.txt` and, where images have classes, `F.labels.txt` and
/// `F.classes.txt`: a line for each row, or class. The safetensors file also holds the labels.
///
/// - `checkpoint`: a checkpoint's directory, or a run's, whose newest good one is then taken
///
/// # Errors
/// If `out` has another extension, the checkpoint is damaged, or the images cannot be read.
pub fn embed(checkpoint: &Path, data: &str, out: &Path) -> Result<Embedded, Error> {
    let form = form(out)?;
    check_directory(out)?;
    let Restored { mut network, device, config, dir, mut warnings, .. } = restore(checkpoint)?;
    let dataset = open(data, plan::limits(&config), &mut warnings)?;
    let preprocess = model::preprocess(&config);
    let features =
        features::encode(&mut network, device.cpu(), &dataset, 0..dataset.len(), Look::Plain(&preprocess))?;
    let (n, width) = (features.indices.len(), network.spec().feature_width());
    let labels: Option<Vec<u32>> =
        dataset.has_labels().then(|| features.indices.iter().map(|&i| dataset.label_of(i)).collect());

    let bytes = match form {
        Form::Npy => npy::encode(&features.values, width),
        Form::Safetensors => {
            let mut tensors = vec![Tensor::from_f32("features", &[n, width], &features.values)];
            tensors.extend(labels.iter().map(|labels| {
                let labels: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
                Tensor::from_i64s("labels", &[n], &labels).into_owned()
            }));
            checkpoint::encode_shard(&tensors)
        }
    };
    let mut texts = vec![("paths.txt", lines(features.indices.iter().map(|&i| dataset.path_of(i))))];
    if let Some(labels) = &labels {
        texts.push(("labels.txt", lines(labels.iter().map(u32::to_string))));
        texts.push(("classes.txt", lines(dataset.class_names().iter().cloned())));
    }
    let mut files = vec![out.to_owned()];
    for (extension, text) in texts {
        let file = out.with_extension(extension);
        export::write_atomically(&file, text.as_bytes()).map_err(Error::Output)?;
        files.push(file);
    }
    // The features come last: when they are there, so is what belongs to them.
    export::write_atomically(out, &bytes).map_err(Error::Output)?;
    warnings.extend(left_out(&features.corrupt));
    Ok(Embedded { n, width, files, checkpoint: dir, corrupt: features.corrupt, warnings })
}

/// Classifies the images of `test` by those of `data`, or each of `data` by the others.
///
/// - `k`: neighbours that vote; 0: by rule, see [`knn::neighbours`](trainer::knn::neighbours)
///
/// # Errors
/// If the checkpoint is damaged, the images cannot be read, or have no labels.
pub fn evaluate_knn(checkpoint: &Path, data: &str, test: Option<&str>, k: usize) -> Result<KnnReport, Error> {
    let Restored { mut network, device, config, dir, step, mut warnings } = restore(checkpoint)?;
    let mut open = |source: &str| open(source, plan::limits(&config), &mut warnings).map(Arc::new);
    let (bank, test) = (open(data)?, test.map(open).transpose()?);
    let evaluation =
        Evaluation::new(bank, test, model::preprocess(&config), k)?.ok_or(trainer::Error::NoLabels)?;
    let Group { mut control, mut activations, .. } = Group::alone();
    let mut encoder = Encoder {
        network: &mut network,
        control: &mut control,
        activations: &mut activations,
        cpu: device.cpu(),
    };
    let evaluated = evaluation.knn(&mut encoder)?;
    if step == 0 {
        let note =
            "batch norm has seen no images at step 0: the untrained net's accuracy is that of metrics.jsonl";
        warnings.push(note.to_owned());
    }
    warnings.extend(evaluated.caveats.iter().cloned());
    warnings.extend(left_out(&evaluated.corrupt));
    warnings.extend(left_out(&evaluated.corrupt_test));
    Ok(KnnReport { evaluated, checkpoint: dir, step, warnings })
}

/// Opens images, and notes what was chosen in doing so.
pub(crate) fn open(
    source: &str,
    limits: Limits,
    warnings: &mut Vec<String>,
) -> Result<Dataset, trainer::Error> {
    let dataset = Dataset::open_within(source, limits)?;
    warnings.extend_from_slice(dataset.notes());
    Ok(dataset)
}

/// A sentence for each corrupt image.
pub(crate) fn left_out(corrupt: &[(String, String)]) -> impl Iterator<Item = String> {
    corrupt.iter().map(|(path, reason)| format!("{path} is left out: {reason}"))
}

/// A checkpoint's network, on all cores of this machine.
pub(crate) struct Restored {
    pub(crate) network: Network<f32>,
    pub(crate) device: Device,
    pub(crate) config: RunConfig,
    pub(crate) dir: PathBuf,
    pub(crate) step: u64,
    /// What is wrong with newer ones, and what its configuration says in vain.
    pub(crate) warnings: Vec<String>,
}

/// Loads a checkpoint, or a run's newest good one.
pub(crate) fn restore(checkpoint: &Path) -> Result<Restored, Error> {
    let located = checkpoint::locate(checkpoint)?;
    let mut warnings: Vec<String> = located.problems.iter().map(ToString::to_string).collect();
    let (manifest, state) = checkpoint::load(&located.dir, |name| name.starts_with(state_dict::MODEL))?;
    let text = stored_config(&manifest, &located.dir)?;
    let config = RunConfig::from_toml(text).map_err(Error::StoredConfig)?;
    warnings.extend(config::retired_notes(text));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let on = DeviceOptions::of_threads(threads, KernelPath::detect());
    let device = on.open();
    let mut network = Network::new(&model::spec(&config), options(&config, &on), &device);
    state_dict::restore_network(&mut network, &state)?;
    Ok(Restored { network, device, config, dir: located.dir, step: manifest.step, warnings })
}

fn stored_config<'a>(manifest: &'a Manifest, dir: &Path) -> Result<&'a str, checkpoint::Error> {
    manifest.metadata.get(CONFIG_KEY).and_then(|value| value.as_str()).ok_or_else(|| {
        let reason = format!("its metadata have no `{CONFIG_KEY}`");
        checkpoint::Error::Malformed { file: dir.join(checkpoint::MANIFEST_FILE), reason }
    })
}

/// Plans for the most images that fit into [`PASS_BYTES`].
fn options(config: &RunConfig, device: &DeviceOptions) -> NetworkOptions {
    let mut options = NetworkOptions { max_rows: MAX_PASS, seed: 0, convolution: model::convolution(config) };
    let spec = model::spec(config);
    while options.max_rows > 1 && Network::<f32>::predicted_bytes(&spec, &options, device) > PASS_BYTES {
        options.max_rows /= 2;
    }
    options
}

fn form(out: &Path) -> Result<Form, trainer::Error> {
    match out.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => Ok(Form::Npy),
        Some("safetensors") => Ok(Form::Safetensors),
        _ => Err(trainer::Error::Config {
            key: "--out",
            value: out.display().to_string(),
            reason: "expected a name that ends in .npy or .safetensors".to_owned(),
        }),
    }
}

/// Finds out before the images are encoded, not after.
fn check_directory(out: &Path) -> Result<(), trainer::Error> {
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => Err(trainer::Error::Config {
            key: "--out",
            value: out.display().to_string(),
            reason: format!("there is no directory {}", parent.display()),
        }),
        _ => Ok(()),
    }
}

/// A line for each item: a name may hold a newline, a line must not.
fn lines(items: impl Iterator<Item = String>) -> String {
    items.map(|item| item.replace('\n', "\\n") + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::Scratch;
    use std::fs;
    use trainer::fixtures;

    const CLASSES: [(&str, [u8; 3]); 2] = [("left", [150, 20, 20]), ("right", [20, 150, 90])];

    struct Fixture {
        dir: tempfile::TempDir,
        checkpoint: PathBuf,
        data: String,
        network: Network<f32>,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fixtures::images(&images, &CLASSES, 3);
        let mut network = fixtures::network(&fixtures::config(), 8, &fixtures::device());
        let buffers = &mut network.parameters_mut().buffer_values;
        buffers.iter_mut().enumerate().for_each(|(i, x)| *x += (i % 5) as f32 * 0.1);
        let checkpoint = fixtures::checkpoint(&dir.path().join("run"), 4, &fixtures::config(), &network);
        Fixture { checkpoint, data: images.to_str().unwrap().to_owned(), network, dir }
    }

    /// The features of every image, one at a time.
    fn expected(fixture: &mut Fixture) -> Vec<f32> {
        let dataset = Dataset::open(&fixture.data).unwrap();
        let preprocess = model::preprocess(&fixtures::config());
        let mut pixels = vec![0.0; fixtures::SIZE * fixtures::SIZE * 3];
        let mut features = Vec::new();
        for i in 0..dataset.len() {
            preprocess.apply(&dataset.load(i).unwrap(), &mut Scratch::default(), &mut pixels);
            features.extend_from_slice(fixture.network.forward_eval(&pixels, 1).features);
        }
        features
    }

    #[track_caller]
    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-4 * expected.abs().max(0.1), "{found} {expected}");
        }
    }

    #[test]
    fn features_stand_in_the_order_of_the_images_with_paths_and_labels_beside() {
        let mut fixture = fixture();
        let out = fixture.dir.path().join("f.safetensors");
        // The run's directory stands for its newest good checkpoint.
        let embedded = embed(&fixture.dir.path().join("run"), &fixture.data, &out).unwrap();
        assert_eq!((embedded.n, embedded.width, &embedded.checkpoint), (6, 64, &fixture.checkpoint));
        assert_eq!(embedded.files[0], out);
        let bytes = fs::read(&out).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let (features, labels) = (file.tensor("features").unwrap(), file.tensor("labels").unwrap());
        let values = features.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        assert_eq!((features.shape(), labels.shape()), (&[6, 64][..], &[6][..]));
        assert_close(&values.collect::<Vec<f32>>(), &expected(&mut fixture));
        assert_eq!(labels.data(), [0i64, 0, 0, 1, 1, 1].map(i64::to_le_bytes).concat());

        let read = |name: &str| fs::read_to_string(fixture.dir.path().join(name)).unwrap();
        let paths = "left/000.png\nleft/001.png\nleft/002.png\nright/000.png\nright/001.png\nright/002.png\n";
        assert_eq!(read("f.paths.txt"), paths);
        assert_eq!(read("f.labels.txt"), "0\n0\n0\n1\n1\n1\n");
        assert_eq!(read("f.classes.txt"), "left\nright\n");
    }

    #[test]
    fn a_corrupt_image_has_no_row() {
        let mut fixture = fixture();
        fs::write(Path::new(&fixture.data).join("left/001.png"), b"no image").unwrap();
        let out = fixture.dir.path().join("f.npy");
        let embedded = embed(&fixture.checkpoint, &fixture.data, &out).unwrap();
        assert_eq!((embedded.n, embedded.corrupt[0].0.as_str()), (5, "left/001.png"));
        let text = fs::read_to_string(fixture.dir.path().join("f.paths.txt")).unwrap();
        assert!(text.starts_with("left/000.png\nleft/002.png\n"), "{text}");
        fs::remove_file(Path::new(&fixture.data).join("left/001.png")).unwrap();
        let file = fs::read(&out).unwrap();
        let features: Vec<f32> =
            file[128..].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_close(&features, &expected(&mut fixture));
    }

    #[test]
    fn knn_on_its_own_finds_what_training_finds() {
        let mut fixture = fixture();
        let report = evaluate_knn(&fixture.checkpoint, &fixture.data, None, 0).unwrap();
        assert_eq!((report.step, report.evaluated.n_queries), (4, 6));
        let dataset = Arc::new(Dataset::open(&fixture.data).unwrap());
        let preprocess = model::preprocess(&fixtures::config());
        let evaluation = Evaluation::new(dataset, None, preprocess, 0).unwrap().unwrap();
        let (Group { mut control, mut activations, .. }, device) = (Group::alone(), fixtures::device());
        let mut encoder = Encoder {
            network: &mut fixture.network,
            control: &mut control,
            activations: &mut activations,
            cpu: device.cpu(),
        };
        let expected = evaluation.knn(&mut encoder).unwrap();
        assert_eq!(report.evaluated.top1, expected.top1);
        assert!((report.evaluated.feature_std - expected.feature_std).abs() < 1e-5);

        let tested = evaluate_knn(&fixture.checkpoint, &fixture.data, Some(&fixture.data), 0).unwrap();
        assert_eq!(tested.evaluated.top1, 1.0, "every image is its own nearest neighbour");
        let says =
            |report: &KnnReport| report.warnings.iter().any(|text| text.contains("every image finds itself"));
        assert!(says(&tested) && !says(&report), "{tested:?}");
        assert_eq!((report.evaluated.k, tested.evaluated.k), (1, 1));
        let all = evaluate_knn(&fixture.checkpoint, &fixture.data, None, 9).unwrap();
        assert_eq!(all.evaluated.k, 9);
        assert_eq!(all.warnings, ["k = 9 is more than the 6 images compared with: all of them vote"]);
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_exit_code() {
        let fixture = fixture();
        let out = fixture.dir.path().join("f.npy");
        let refuse = |checkpoint: &Path, data: &str, out: &Path| embed(checkpoint, data, out).unwrap_err();
        let error = refuse(&fixture.checkpoint, &fixture.data, &out.with_extension("txt"));
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("ends in .npy or .safetensors"), "{error}");
        let error = refuse(&fixture.checkpoint, &fixture.data, &fixture.dir.path().join("no/f.npy"));
        assert!(error.exit_code() == 2 && error.to_string().contains("there is no directory"), "{error}");
        assert_eq!(refuse(&fixture.checkpoint, "/nowhere", &out).exit_code(), 2);
        assert_eq!(refuse(Path::new("/nowhere"), &fixture.data, &out).exit_code(), 2);
        let flat = format!("{}/left", fixture.data);
        assert_eq!(evaluate_knn(&fixture.checkpoint, &flat, None, 0).unwrap_err().exit_code(), 2);

        let shard = fixture.checkpoint.join(checkpoint::shard_file(0, 2));
        let mut bytes = fs::read(&shard).unwrap();
        bytes[1000] ^= 1;
        fs::write(&shard, bytes).unwrap();
        let error = refuse(&fixture.checkpoint, &fixture.data, &out);
        assert_eq!(error.exit_code(), 3);
        assert!(!out.exists());
        // Where an older one is intact it is used.
        let older =
            fixtures::checkpoint(&fixture.dir.path().join("run"), 2, &fixtures::config(), &fixture.network);
        let run = fixture.dir.path().join("run");
        let embedded = embed(&run, &fixture.data, &out).unwrap();
        assert_eq!(embedded.checkpoint, older);
        let names_shard = |warnings: &[String]| warnings.iter().any(|text| text.contains("step-00000004"));
        assert!(names_shard(&embedded.warnings), "{:?}", embedded.warnings);
        let report = evaluate_knn(&run, &fixture.data, None, 0).unwrap();
        assert!(report.step == 2 && names_shard(&report.warnings), "{report:?}");
    }

    #[test]
    fn a_runs_limit_of_pixels_holds_for_its_checkpoints() {
        let fixture = fixture();
        let mut config = fixtures::config();
        config.data.max_pixels = 3;
        let checkpoint =
            fixtures::checkpoint(&fixture.dir.path().join("other"), 4, &config, &fixture.network);
        let out = fixture.dir.path().join("f.npy");
        for error in [
            embed(&checkpoint, &fixture.data, &out).unwrap_err(),
            evaluate_knn(&checkpoint, &fixture.data, None, 0).unwrap_err(),
        ] {
            let Error::Trainer(trainer::Error::NothingDecoded { corrupt }) = &error else {
                panic!("{error}")
            };
            assert!(corrupt[0].1.ends_with("more than the 3 of data.max_pixels"), "{corrupt:?}");
        }
    }

    #[test]
    fn a_key_that_was_removed_is_passed_over_with_a_warning() {
        let fixture = fixture();
        let text = fixtures::config().to_toml();
        let warnings = |decode: &str| {
            let text = text.replace("[data]\n", &format!("[data]\ndecode = \"{decode}\"\n"));
            let run = fixture.dir.path().join(decode);
            let checkpoint = fixtures::checkpoint_with(&run, 4, &text, &fixture.network, |_, _| {});
            evaluate_knn(&checkpoint, &fixture.data, None, 0).unwrap().warnings
        };
        assert_eq!(warnings("full"), [""; 0]);
        let [warning] = &warnings("scaled")[..] else { panic!("one warning") };
        assert!(warning.starts_with("`data.decode = \"scaled\"` is passed over"), "{warning}");
    }
}
