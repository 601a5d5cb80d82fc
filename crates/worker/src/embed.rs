//! What a checkpoint is good for outside of training: features of images, and their kNN accuracy.

use checkpoint::{Manifest, Tensor, export};
use collective::Communicator;
use config::RunConfig;
use data::Dataset;
use engine::kernels::{KernelPath, Pool};
use engine::network::{Network, NetworkOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crate::evaluation::{Encoder, Evaluated, Evaluation};
use crate::{Error, features, model, npy, snapshot};

/// Where a manifest's metadata keep the run's resolved configuration.
pub const CONFIG_KEY: &str = "config_toml";

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
    let Restored { mut network, pool, config, dir, .. } = restore(checkpoint)?;
    let dataset = Dataset::open(data).map_err(Error::Data)?;
    let preprocess = model::preprocess(&config);
    let features = features::encode(&mut network, &pool, &dataset, 0..dataset.len(), &preprocess)?;
    let (n, width) = (features.indices.len(), network.spec().feature_width());
    let labels: Option<Vec<u32>> =
        dataset.labels().map(|labels| features.indices.iter().map(|&i| labels[i]).collect());

    let bytes = match form {
        Form::Npy => npy::encode(&features.values, width),
        Form::Safetensors => {
            let mut tensors = vec![Tensor::from_f32("features", &[n, width], &features.values)];
            tensors.extend(labels.iter().map(|labels| {
                let labels: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
                Tensor::from_i64s("labels", &[n], &labels)
            }));
            checkpoint::encode_shard(&tensors)
        }
    };
    // A path may hold a newline, a line must not.
    let mut texts =
        vec![("paths.txt", lines(features.indices.iter().map(|&i| dataset.path_of(i).replace('\n', "\\n"))))];
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
    Ok(Embedded { n, width, files, checkpoint: dir, corrupt: features.corrupt })
}

/// Classifies the images of `test` by those of `data`, or each of `data` by the others.
///
/// # Errors
/// If the checkpoint is damaged, the images cannot be read, or have no labels.
pub fn evaluate_knn(checkpoint: &Path, data: &str, test: Option<&str>) -> Result<KnnReport, Error> {
    let Restored { mut network, pool, config, dir, step } = restore(checkpoint)?;
    let open = |source: &str| Dataset::open(source).map(Arc::new).map_err(Error::Data);
    let evaluation = Evaluation::new(open(data)?, test.map(open).transpose()?, model::preprocess(&config))?
        .ok_or(Error::NoLabels)?;
    let mut alone = Communicator::alone();
    let mut encoder = Encoder { network: &mut network, communicator: &mut alone, pool: &pool };
    Ok(KnnReport { evaluated: evaluation.knn(&mut encoder)?, checkpoint: dir, step })
}

/// A checkpoint's network, on all cores of this machine.
struct Restored {
    network: Network<f32>,
    pool: Arc<Pool>,
    config: RunConfig,
    dir: PathBuf,
    step: u64,
}

fn restore(checkpoint: &Path) -> Result<Restored, Error> {
    let located = checkpoint::locate(checkpoint).map_err(Error::Load)?;
    for problem in &located.problems {
        tracing::warn!(used = %located.dir.display(), "a newer checkpoint is damaged: {problem}");
    }
    let (manifest, state) = checkpoint::load(&located.dir).map_err(Error::Load)?;
    let config = stored_config(&manifest, &located.dir)?;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let pool = Arc::new(Pool::new(threads, &[]));
    let mut network = Network::new(&model::spec(&config), options(&config, threads), Arc::clone(&pool));
    snapshot::restore_network(&mut network, &state).map_err(Error::Load)?;
    Ok(Restored { network, pool, config, dir: located.dir, step: manifest.step })
}

fn stored_config(manifest: &Manifest, dir: &Path) -> Result<RunConfig, Error> {
    let text = manifest.metadata.get(CONFIG_KEY).and_then(|value| value.as_str()).ok_or_else(|| {
        let reason = format!("its metadata have no `{CONFIG_KEY}`");
        Error::Load(checkpoint::Error::Malformed { file: dir.join(checkpoint::MANIFEST_FILE), reason })
    })?;
    RunConfig::from_toml(text).map_err(Error::StoredConfig)
}

/// Plans for the most images that fit into [`PASS_BYTES`].
fn options(config: &RunConfig, threads: usize) -> NetworkOptions {
    let mut options = NetworkOptions {
        max_rows: MAX_PASS,
        seed: 0,
        kernel_path: KernelPath::detect(),
        convolution: model::convolution(config),
    };
    let spec = model::spec(config);
    while options.max_rows > 1 && Network::<f32>::predicted_bytes(&spec, &options, threads) > PASS_BYTES {
        options.max_rows /= 2;
    }
    options
}

fn form(out: &Path) -> Result<Form, Error> {
    match out.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => Ok(Form::Npy),
        Some("safetensors") => Ok(Form::Safetensors),
        _ => Err(Error::Config {
            key: "--out",
            value: out.display().to_string(),
            reason: "expected a name that ends in .npy or .safetensors".to_owned(),
        }),
    }
}

fn lines(items: impl Iterator<Item = String>) -> String {
    items.map(|item| item + "\n").collect()
}
