//! The linear probe of a checkpoint: its features, frozen, and a classifier on them.
//!
//! Features are encoded once from centre crops, or, as the papers do, anew in every epoch from random crops that may be
//! mirrored. The encoder is frozen either way, so that an epoch's features can be made before its updates. They are held
//! in memory, 4 bytes a number: 10.5 GB for ImageNet with ResNet-50.

use data::augment::RandomCrop;
use data::{Augmentation, Dataset, Sampler, ViewPipeline};
use std::path::{Path, PathBuf};
use trainer::evaluation::ClassNumbers;
use trainer::features::{self, Features, Look};
use trainer::{model, plan};

use crate::Error;
use crate::embed::{self, Restored};
use crate::linear::{Accuracy, Classifier, Examples, Protocol};

/// Without test images one of so many training images is held out for the test.
const HELD_OUT: usize = 5;

/// Stands for the epoch in the draw of the images that are held out: no run has so many.
const HOLD_OUT_EPOCH: u64 = u32::MAX as u64;

/// What is probed, and how.
#[derive(Clone, Debug)]
pub struct Probe<'a> {
    /// A checkpoint's directory, or a run's, whose newest good one is then taken.
    pub checkpoint: &'a Path,
    /// Labelled images to train on.
    pub data: &'a str,
    /// Labelled images to test on. Without them a fifth of the others is held out.
    pub test: Option<&'a str>,
    /// How the classifier is trained.
    pub protocol: Protocol,
    /// Whether each epoch sees new random crops.
    pub augment: bool,
    /// Of the order of the images, of the crops, and of what is held out.
    pub seed: u64,
}

/// What was found.
#[derive(Debug)]
pub struct LinearReport {
    /// On the test images.
    pub accuracy: Accuracy,
    /// Mean loss of the last epoch.
    pub loss: f64,
    /// Classes of the training images.
    pub classes: usize,
    /// Images that the classifier was trained on.
    pub n_train: usize,
    /// Images that it was tested on.
    pub n_test: usize,
    /// What was done: the batch no larger than the training set.
    pub protocol: Protocol,
    /// The checkpoint that was used.
    pub checkpoint: PathBuf,
    /// Its completed updates.
    pub step: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Trains a linear classifier on a checkpoint's features and tests it.
///
/// - `progress`: told after every epoch how many are done
///
/// # Errors
/// If the protocol is none, the checkpoint is damaged, the images cannot be read, have no labels or a single class,
/// features are NaN or infinite, or the loss becomes so.
pub fn evaluate(probe: &Probe<'_>, progress: &mut dyn FnMut(u64)) -> Result<LinearReport, Error> {
    check(&probe.protocol)?;
    let mut restored = embed::restore(probe.checkpoint)?;
    let mut warnings = std::mem::take(&mut restored.warnings);
    let limits = plan::limits(&restored.config);
    let train = embed::open(probe.data, limits, &mut warnings)?;
    if !train.has_labels() {
        return Err(trainer::Error::NoLabels.into());
    }
    let classes = train.class_names().len();
    if classes < 2 {
        return refuse(
            "--data",
            probe.data,
            "the images are all of one class: there is nothing to tell apart",
        );
    }
    let test = probe.test.map(|source| embed::open(source, limits, &mut warnings)).transpose()?;
    let test_numbers = test.as_ref().map(|test| ClassNumbers::of(test, &train)).transpose()?;

    let preprocess = model::preprocess(&restored.config);
    let mut rows = |dataset: &Dataset| {
        let Restored { network, device, .. } = &mut restored;
        let rows =
            features::encode(network, device.cpu(), dataset, 0..dataset.len(), Look::Plain(&preprocess))?;
        if rows.values.iter().all(|x| x.is_finite()) { Ok(rows) } else { Err(trainer::Error::NotFinite) }
    };
    let label = |index| train.label_of(index);
    let plain = Labelled::new(rows(&train)?, label);
    let (train_indices, test) = match (&test, &test_numbers) {
        (Some(test), Some(numbers)) => {
            (plain.indices.clone(), Labelled::new(rows(test)?, |index| numbers.label_of(test, index)))
        }
        _ => hold_out(&plain, probe)?,
    };
    warnings.extend(embed::left_out(&plain.corrupt));
    warnings.extend(embed::left_out(&test.corrupt));
    let cached = plain.only(&train_indices);
    warnings.extend(missing(&train, &cached.labels, "the training images"));
    warnings.extend(missing(&train, &test.labels, "the test images"));

    let n = train_indices.len();
    let protocol = Protocol { batch: probe.protocol.batch.min(n), ..probe.protocol.clone() };
    let schedule = protocol.schedule(n);
    let sampler = Sampler::new(probe.seed, n);
    let mut classifier = Classifier::new(classes, plain.width());
    let crops = crops(preprocess.size).normalised(preprocess.mean, preprocess.std);
    let device = restored.device.clone();
    let cpu = device.cpu();
    let mut loss = 0.0;
    for epoch in 0..protocol.epochs {
        let anew = match probe.augment {
            true => {
                let Restored { network, .. } = &mut restored;
                let look = Look::Augmented { augmentation: &crops, seed: probe.seed, epoch };
                let rows = features::encode(network, cpu, &train, 0..train.len(), look)?;
                Some(Labelled::new(rows, label).only(&train_indices))
            }
            false => None,
        };
        let examples = anew.as_ref().unwrap_or(&cached).examples();
        let order = sampler.order(epoch);
        loss = classifier.train_epoch(cpu, examples, &order, &protocol, (&schedule, epoch));
        if !loss.is_finite() {
            return refuse(
                "--lr",
                protocol.lr,
                format!("the loss of epoch {} is {loss}; lower it", epoch + 1),
            );
        }
        progress(epoch + 1);
    }
    Ok(LinearReport {
        accuracy: classifier.accuracy(cpu, test.examples()),
        loss,
        classes,
        n_train: n,
        n_test: test.labels.len(),
        protocol,
        checkpoint: restored.dir,
        step: restored.step,
        warnings,
    })
}

/// Refuses what no training could make sense of, by the name of its option.
fn check(protocol: &Protocol) -> Result<(), Error> {
    let Protocol { epochs, batch, lr, momentum, weight_decay, .. } = protocol;
    if *epochs == 0 || *epochs >= HOLD_OUT_EPOCH {
        return refuse("--epochs", epochs, "at least 1 and less than 4294967295");
    }
    if *batch == 0 {
        return refuse("--batch", batch, "at least 1");
    }
    if !(lr.is_finite() && *lr > 0.0) {
        return refuse("--lr", lr, "a number greater than 0");
    }
    if !(0.0..1.0).contains(momentum) {
        return refuse("--momentum", momentum, "a number from 0 to below 1");
    }
    if !(weight_decay.is_finite() && *weight_decay >= 0.0) {
        return refuse("--weight-decay", weight_decay, "a number of at least 0");
    }
    Ok(())
}

fn refuse<T>(key: &'static str, value: impl ToString, reason: impl Into<String>) -> Result<T, Error> {
    Err(trainer::Error::Config { key, value: value.to_string(), reason: reason.into() }.into())
}

/// Random crops of 0.08 to 1 of the area, mirrored half of the time, without colours.
fn crops(size: usize) -> Augmentation {
    let crop = RandomCrop { area: [0.08, 1.0], aspect: [3.0 / 4.0, 4.0 / 3.0] };
    let view = ViewPipeline { crop: Some(crop), flip: 0.5, ops: Vec::new() };
    Augmentation { views: [view.clone(), view], ..Augmentation::none(size) }
}

/// Features with their classes.
#[derive(Debug)]
struct Labelled {
    features: Vec<f32>,
    labels: Vec<u32>,
    /// Places in the data set, ascending.
    indices: Vec<usize>,
    corrupt: Vec<(String, String)>,
}

impl Labelled {
    fn new(rows: Features, label: impl Fn(usize) -> u32) -> Labelled {
        let Features { values: features, indices, corrupt } = rows;
        let labels = indices.iter().map(|&index| label(index)).collect();
        Labelled { features, labels, indices, corrupt }
    }

    fn width(&self) -> usize {
        self.features.len() / self.labels.len().max(1)
    }

    fn examples(&self) -> Examples<'_> {
        Examples { features: &self.features, labels: &self.labels }
    }

    /// The rows of these images, `indices` ascending.
    fn only(&self, indices: &[usize]) -> Labelled {
        let width = self.width();
        let mut kept =
            Labelled { features: Vec::new(), labels: Vec::new(), indices: Vec::new(), corrupt: Vec::new() };
        for (row, index) in self.indices.iter().enumerate() {
            if indices.binary_search(index).is_ok() {
                kept.features.extend_from_slice(&self.features[row * width..(row + 1) * width]);
                kept.labels.push(self.labels[row]);
                kept.indices.push(*index);
            }
        }
        kept
    }
}

/// Parts the images at random: the places of those to train on, and the rest with their rows.
fn hold_out(all: &Labelled, probe: &Probe<'_>) -> Result<(Vec<usize>, Labelled), Error> {
    let n = all.indices.len();
    if n < HELD_OUT {
        return refuse("--data", probe.data, format!("{n} images are too few to hold some out: give --test"));
    }
    let order = Sampler::new(probe.seed, n).order(HOLD_OUT_EPOCH);
    let (test, train) = order.split_at(n / HELD_OUT);
    let places = |rows: &[usize]| {
        let mut places: Vec<usize> = rows.iter().map(|&row| all.indices[row]).collect();
        places.sort_unstable();
        places
    };
    Ok((places(train), all.only(&places(test))))
}

/// A sentence if images lack classes: the classifier cannot learn them, or the accuracy says nothing of them.
fn missing(train: &Dataset, labels: &[u32], of: &str) -> Option<String> {
    let absent: Vec<&str> = (0..)
        .zip(train.class_names())
        .filter(|(class, _)| !labels.contains(class))
        .map(|(_, name)| name.as_str())
        .collect();
    (!absent.is_empty()).then(|| format!("{of} show nothing of {}", absent.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use trainer::fixtures;

    const COLORS: [(&str, [u8; 3]); 3] =
        [("blue", [0, 0, 150]), ("green", [0, 150, 0]), ("red", [150, 0, 0])];

    struct Fixture {
        folder: tempfile::TempDir,
        checkpoint: PathBuf,
    }

    impl Fixture {
        fn new() -> Fixture {
            let folder = tempfile::tempdir().unwrap();
            fixtures::images(&folder.path().join("train"), &COLORS, 12);
            fixtures::images(&folder.path().join("test"), &COLORS[1..], 4);
            let config = fixtures::config();
            let network = fixtures::network(&config, 4, &fixtures::device());
            let checkpoint = fixtures::checkpoint(folder.path(), 7, &config, &network);
            Fixture { folder, checkpoint }
        }

        fn path(&self, name: &str) -> String {
            self.folder.path().join(name).to_str().unwrap().to_owned()
        }

        fn run(&self, test: Option<&str>, change: impl Fn(&mut Probe<'_>)) -> Result<LinearReport, Error> {
            let (data, test) = (self.path("train"), test.map(|test| self.path(test)));
            let mut probe = Probe {
                checkpoint: &self.checkpoint,
                data: &data,
                test: test.as_deref(),
                protocol: Protocol { epochs: 20, batch: 8, lr: 1.0, ..Protocol::simclr() },
                augment: false,
                seed: 0,
            };
            change(&mut probe);
            evaluate(&probe, &mut |_| {})
        }
    }

    #[test]
    fn colours_are_told_apart_by_random_features() {
        let fixture = Fixture::new();
        let report = fixture.run(Some("test"), |_| {}).unwrap();
        assert_eq!((report.n_train, report.n_test, report.classes, report.step), (36, 8, 3, 7));
        assert!(report.accuracy.top1 > 0.9 && report.accuracy.top5 == 1.0, "{:?}", report.accuracy);
        assert!(report.loss < 0.6, "{}", report.loss);
        assert_eq!(report.warnings, ["the test images show nothing of blue"]);
        let augmented = fixture.run(Some("test"), |probe| probe.augment = true).unwrap();
        assert!(augmented.accuracy.top1 > 0.9, "{:?}", augmented.accuracy);
        assert_ne!(augmented.loss, report.loss);
    }

    #[test]
    fn a_seed_decides_everything() {
        let fixture = Fixture::new();
        for augment in [false, true] {
            let run = |seed| {
                let report = fixture.run(None, |probe| {
                    (probe.seed, probe.augment, probe.protocol.epochs) = (seed, augment, 3);
                });
                report.map(|report| (report.loss, report.accuracy, report.n_train, report.n_test)).unwrap()
            };
            assert_eq!(run(4), run(4));
            assert_ne!(run(4).0, run(5).0);
            assert_eq!((run(4).2, run(4).3), (29, 7), "a fifth is held out");
        }
    }

    #[test]
    fn what_cannot_be_trained_is_refused_by_name() {
        let fixture = Fixture::new();
        #[track_caller]
        fn check(outcome: Result<LinearReport, Error>, expected: &str) {
            let error = outcome.unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().starts_with(expected), "{error}");
        }
        check(fixture.run(None, |probe| probe.protocol.lr = 0.0), "--lr = 0: a number greater than 0");
        check(fixture.run(None, |probe| probe.protocol.lr = f64::NAN), "--lr = NaN: a number greater than 0");
        check(
            fixture.run(None, |probe| probe.protocol.lr = 1e38),
            "--lr = 100000000000000000000000000000000000000: the loss of epoch",
        );
        check(fixture.run(None, |probe| probe.protocol.epochs = 0), "--epochs = 0: at least 1");
        check(fixture.run(None, |probe| probe.protocol.batch = 0), "--batch = 0: at least 1");
        check(fixture.run(None, |probe| probe.protocol.momentum = 1.0), "--momentum = 1: a number from 0");
        check(fixture.run(None, |probe| probe.protocol.weight_decay = -1.0), "--weight-decay = -1: a number");
        fixtures::images(&fixture.folder.path().join("other"), &[("white", [200; 3])], 2);
        check(fixture.run(Some("other"), |_| {}), "the test images have class `white`");
        std::fs::rename(fixture.path("other/white"), fixture.path("flat")).unwrap();
        check(fixture.run(Some("flat"), |_| {}), "the test images have no labels");
        std::fs::rename(fixture.path("train"), fixture.path("kept")).unwrap();
        std::fs::rename(fixture.path("flat"), fixture.path("train")).unwrap();
        check(fixture.run(None, |_| {}), "the images have no labels");
    }

    #[test]
    fn a_set_of_five_is_probed_and_its_gaps_are_named() {
        let fixture = Fixture::new();
        std::fs::remove_dir_all(fixture.path("train")).unwrap();
        let root = fixture.folder.path().join("train");
        fixtures::images(&root, &COLORS[..1], 4);
        fixtures::images(&root, &COLORS[1..2], 1);
        let mut gaps = BTreeSet::new();
        for seed in 0..12 {
            let run = |test| fixture.run(test, |probe| (probe.seed, probe.protocol.batch) = (seed, 512));
            let report = run(None).unwrap();
            assert_eq!((report.n_train, report.n_test, report.protocol.batch), (4, 1, 4));
            assert!(report.loss.is_finite() && [0.0, 1.0].contains(&report.accuracy.top1), "{report:?}");
            gaps.extend(report.warnings);
            assert_eq!(run(Some("train")).unwrap().warnings, [""; 0]);
        }
        // Whichever image is held out, a class is missing on one side.
        let expected = ["the test images show nothing of green", "the training images show nothing of green"];
        let expected = expected.into_iter().chain(["the test images show nothing of blue"]);
        assert_eq!(gaps, expected.map(str::to_owned).collect());
        std::fs::remove_file(root.join("blue/000.png")).unwrap();
        let error = fixture.run(None, |_| {}).unwrap_err();
        assert!(error.to_string().contains("4 images are too few to hold some out"), "{error}");
    }

    #[test]
    fn features_of_a_net_that_has_diverged_are_refused() {
        let fixture = Fixture::new();
        let config = fixtures::config();
        let mut network = fixtures::network(&config, 4, &fixtures::device());
        network.parameters_mut().values.fill(f32::NAN);
        let checkpoint = fixtures::checkpoint(fixture.folder.path(), 8, &config, &network);
        let refused = |outcome: Error| assert_eq!(outcome.exit_code(), 3, "{outcome}");
        let data = fixture.path("train");
        refused(embed::evaluate_knn(&checkpoint, &data, None, 0).unwrap_err());
        let protocol = Protocol { epochs: 1, ..Protocol::simclr() };
        let probe =
            Probe { checkpoint: &checkpoint, data: &data, test: None, protocol, augment: false, seed: 0 };
        let error = evaluate(&probe, &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::Trainer(trainer::Error::NotFinite)), "{error}");
        refused(error);
    }

    #[test]
    fn images_that_cannot_be_decoded_are_left_out() {
        let fixture = Fixture::new();
        std::fs::write(fixture.path("train/red/000.png"), b"no image").unwrap();
        let report = fixture.run(Some("test"), |probe| probe.augment = true).unwrap();
        assert_eq!(report.n_train, 35);
        assert!(report.warnings.iter().any(|text| text.starts_with("red/000.png is left out")), "{report:?}");
    }
}
