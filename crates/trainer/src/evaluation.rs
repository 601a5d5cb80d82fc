//! kNN evaluation as a collective: every rank encodes its slice of the bank and of the test images, and keeps it.

use data::{Dataset, Preprocess};
use engine::parameters::BufferUpdate;
use std::ops::Range;
use std::sync::Arc;

use crate::features::{self, Encoder, Features, Images, Look};
use crate::knn::{self, Bank, Queries};
use crate::spectrum::{self, Spread};
use crate::{Error, caveats, corrupt, gather, state_dict};

/// Labelled images to evaluate on.
pub struct Evaluation {
    /// The training images.
    bank: Arc<Dataset>,
    /// With the numbers that its classes have in `bank`. Absent: every training image is classified by the others.
    test: Option<(Arc<Dataset>, ClassNumbers)>,
    preprocess: Preprocess,
    /// Neighbours that vote; 0: by rule.
    k: usize,
    /// Where the test images are those of the bank.
    caveat: Option<String>,
}

/// What an evaluation found. The same on every rank, but for the corrupt images.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// Share of the queries whose class was predicted, in [0, 1].
    pub top1: f64,
    /// Images that were classified.
    pub n_queries: u64,
    /// Images that they were compared with.
    pub n_bank: usize,
    /// Neighbours that voted: see [`knn::neighbours`].
    pub k: usize,
    /// Standard deviation of the bank's unit features: see [`Spread::std`].
    pub feature_std: f64,
    /// Directions that the bank's unit features use: see [`Spread::effective_rank`].
    pub effective_rank: f64,
    /// What makes the accuracy mean less than it seems to.
    pub caveats: Vec<String>,
    /// Images of this rank's share of the bank that could not be decoded and were left out: path and reason.
    pub corrupt: Vec<(String, String)>,
    /// The same of the test images.
    pub corrupt_test: Vec<(String, String)>,
}

impl Evaluation {
    /// Pairs the training images with the test images; `None` if the training images have no labels.
    ///
    /// - `k`: neighbours that vote; 0: by rule, see [`knn::neighbours`]
    ///
    /// # Errors
    /// If the test images have no labels, or classes that the training images lack.
    pub fn new(
        bank: Arc<Dataset>,
        test: Option<Arc<Dataset>>,
        preprocess: Preprocess,
        k: usize,
    ) -> Result<Option<Evaluation>, Error> {
        if !bank.has_labels() {
            return Ok(None);
        }
        let test = match test {
            None => None,
            Some(test) => {
                let numbers = ClassNumbers::of(&test, &bank)?;
                Some((test, numbers))
            }
        };
        let caveat = test.as_ref().and_then(|(test, _)| caveats::of_test(test, &bank));
        Ok(Some(Evaluation { bank, test, preprocess, k, caveat }))
    }

    /// Classifies the test images (or each training image by the others) with the present weights and
    /// running statistics.
    ///
    /// # Errors
    /// If a peer is lost, no image can be decoded, or features are NaN or infinite.
    pub fn knn(&self, encoder: &mut Encoder<'_>) -> Result<Evaluated, Error> {
        state_dict::agree_on_buffers(encoder.network, encoder.control)?;
        let width = encoder.network.spec().feature_width();
        let own = self.encode_share(encoder, &self.bank)?;
        let Spread { std, effective_rank } =
            spectrum::spread(encoder.cpu, encoder.control, &own.values, width)?;
        if !std.is_finite() {
            return Err(Error::NotFinite);
        }

        let labels: Vec<u32> = own.indices.iter().map(|&i| self.bank.label_of(i)).collect();
        let classes = self.bank.class_names().len();
        let images_per_class = knn::images_per_class(encoder.control, &labels, classes)?;
        let k = knn::neighbours(self.k, &images_per_class);
        let bank = Bank { features: &own.values, labels: &labels, width, classes, k };
        let mut corrupt_test = Vec::new();
        let test = match &self.test {
            None => None,
            Some((test, numbers)) => {
                let queries = self.encode_share(encoder, test)?;
                let expected: Vec<u32> = queries.indices.iter().map(|&i| numbers.label_of(test, i)).collect();
                corrupt_test = queries.corrupt;
                Some((queries.values, expected))
            }
        };
        let (queries, expected) = match &test {
            None => (Queries::Bank, &labels),
            Some((values, expected)) => (Queries::Others(values), expected),
        };
        let predictions = knn::classify(encoder.cpu, encoder.control, bank, queries)?;
        let mut sums = [knn::n_correct(&predictions, expected), expected.len()].map(|n| n as u64);
        encoder.control.all_reduce_sum(&mut sums)?;
        let [n_correct, n_queries] = sums;
        Ok(Evaluated {
            top1: n_correct as f64 / n_queries as f64,
            n_queries,
            n_bank: images_per_class.iter().sum::<u64>() as usize,
            k,
            feature_std: std,
            effective_rank,
            caveats: self.caveats(&images_per_class, k),
            corrupt: own.corrupt,
            corrupt_test,
        })
    }

    /// Evaluates a net that was never trained: one pass over the training images gives batch norm the
    /// statistics that its initial weights imply (without them the net is no baseline), on a copy of the
    /// running statistics, so that training starts as if nothing had happened.
    ///
    /// # Errors
    /// As [`Evaluation::knn`].
    pub fn knn_calibrated(&self, encoder: &mut Encoder<'_>) -> Result<Evaluated, Error> {
        let before = encoder.network.buffers_snapshot();
        let outcome = self.calibrate(encoder).and_then(|()| self.knn(encoder));
        encoder.network.restore_buffers(&before);
        outcome
    }

    fn calibrate(&self, encoder: &mut Encoder<'_>) -> Result<(), Error> {
        let Encoder { network, control, activations, cpu } = encoder;
        let (rank, world_size) = (control.rank(), control.world_size());
        // Ranks may have planned for rows that differ by one: every rank must have room for its share.
        let rows = gather::integers(control, network.max_rows() as u64)?;
        let rows = rows.into_iter().min().unwrap_or(1) as usize;
        let global_rows = (rows * world_size).min(self.bank.len());
        let own = share(global_rows, rank, world_size);
        let mut images = Images::new(cpu, &self.bank, Look::Plain(&self.preprocess), network.max_rows());
        // A last, smaller batch is dropped, as in training.
        for batch in 0..self.bank.len() / global_rows {
            let first = batch * global_rows;
            let mut unused = Features::default();
            images.fill(first + own.start..first + own.end, &mut unused)?;
            // Where an image is corrupt, a row of the pass before (or a black image) stands in: the number of
            // rows must not differ from what the other ranks expect.
            network.forward_train(images.rows(own.len()), own.len(), *activations)?;
            network.commit_buffers(BufferUpdate::Cumulative { count: batch as u64 + 1 });
        }
        Ok(())
    }

    fn caveats(&self, images_per_class: &[u64], k: usize) -> Vec<String> {
        let mut caveats = caveats::of_bank(images_per_class, k, self.test.is_none());
        caveats.extend(self.caveat.clone());
        caveats
    }

    /// This rank's part of `dataset`, as unit rows.
    fn encode_share(&self, encoder: &mut Encoder<'_>, dataset: &Dataset) -> Result<Features, Error> {
        let own = share(dataset.len(), encoder.control.rank(), encoder.control.world_size());
        let look = Look::Plain(&self.preprocess);
        let mut features = match features::encode(encoder.network, encoder.cpu, dataset, own, look) {
            // Of a small set a share may be a few images: that none is left is an error only if no rank has any.
            Err(Error::NothingDecoded { corrupt }) => Features { corrupt, ..Features::default() },
            outcome => outcome?,
        };
        let decoded = gather::integers(encoder.control, features.indices.len() as u64)?;
        if decoded.iter().all(|&n| n == 0) {
            // Also on a rank whose own share is empty, which has nothing to name.
            let corrupt = corrupt::of_all(encoder.control, &features.corrupt)?;
            return Err(Error::NothingDecoded { corrupt });
        }
        knn::normalize_rows(&mut features.values, encoder.network.spec().feature_width());
        Ok(features)
    }
}

/// The slice of `n` items that belongs to `rank`: contiguous, sizes differ by at most one.
fn share(n: usize, rank: usize, world_size: usize) -> Range<usize> {
    let (each, more) = (n / world_size, n % world_size);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

/// The classes of test images by their numbers among the training images: two folders number their classes
/// independently.
pub struct ClassNumbers(Vec<Option<u32>>);

impl ClassNumbers {
    /// # Errors
    /// If the test images have no labels, or are of a class that the training images lack.
    pub fn of(test: &Dataset, bank: &Dataset) -> Result<ClassNumbers, Error> {
        if !test.has_labels() {
            return Err(Error::NoTestLabels);
        }
        let number_in_bank = |name| bank.class_names().iter().position(|known| known == name);
        let of_classes =
            test.class_names().iter().map(|name| number_in_bank(name).map(|number| number as u32));
        let numbers: Vec<Option<u32>> = of_classes.collect();
        let unknown =
            (0..test.len()).map(|i| test.label_of(i)).find(|&label| numbers[label as usize].is_none());
        match unknown {
            None => Ok(ClassNumbers(numbers)),
            Some(label) => Err(Error::UnknownTestClass {
                class: test.class_names()[label as usize].clone(),
                known: bank.class_names().to_vec(),
            }),
        }
    }

    /// The class of the test image `index`.
    pub fn label_of(&self, test: &Dataset, index: usize) -> u32 {
        self.0[test.label_of(index) as usize].expect("every class with an image is known")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use collective::Group;

    const CLASSES: [(&str, [u8; 3]); 3] = [("a", [150, 20, 20]), ("b", [20, 150, 20]), ("c", [90, 90, 20])];

    fn dataset(root: &std::path::Path) -> Arc<Dataset> {
        Arc::new(Dataset::open(root.to_str().unwrap()).unwrap())
    }

    /// Runs `evaluate` on every rank and returns what each found.
    fn over_ranks<T: Send>(world_size: usize, evaluate: impl Fn(&mut Encoder<'_>) -> T + Sync) -> Vec<T> {
        fixtures::over_groups(world_size, |Group { control, activations, .. }| {
            let device = fixtures::device();
            let mut network = fixtures::network(&fixtures::config(), 8, &device);
            evaluate(&mut Encoder { network: &mut network, control, activations, cpu: device.cpu() })
        })
    }

    fn evaluation(bank: &Arc<Dataset>, test: Option<&Arc<Dataset>>) -> Evaluation {
        let preprocess = crate::model::preprocess(&fixtures::config());
        Evaluation::new(Arc::clone(bank), test.cloned(), preprocess, 0).unwrap().unwrap()
    }

    #[test]
    fn any_number_of_ranks_finds_the_same() {
        let dir = tempfile::tempdir().unwrap();
        fixtures::images(&dir.path().join("bank"), &CLASSES, 7);
        fixtures::images(&dir.path().join("test"), &CLASSES[1..], 5);
        let bank = dataset(&dir.path().join("bank"));
        let test = dataset(&dir.path().join("test"));
        // Class 0 of the test images is class 1 of the bank: its name decides.
        for (test, n_queries) in [(None, 21), (Some(&test), 10)] {
            let evaluation = evaluation(&bank, test);
            let alone = over_ranks(1, |encoder| evaluation.knn_calibrated(encoder).unwrap());
            assert_eq!((alone[0].n_queries, alone[0].n_bank, alone[0].k), (n_queries, 21, 3));
            assert_eq!(alone[0].caveats, [""; 0]);
            assert!(alone[0].top1 > 0.9, "solid colours are told apart: {:?}", alone[0]);
            assert!(alone[0].feature_std > 0.0 && alone[0].effective_rank > 1.0, "{:?}", alone[0]);
            for world_size in [2, 3] {
                for rank in over_ranks(world_size, |encoder| evaluation.knn(encoder).unwrap()) {
                    let alone = over_ranks(1, |encoder| evaluation.knn(encoder).unwrap()).remove(0);
                    assert_eq!((rank.top1, rank.n_queries, rank.k), (alone.top1, n_queries, 3));
                    assert!((rank.feature_std - alone.feature_std).abs() < 1e-6, "{rank:?} {alone:?}");
                    assert!((rank.effective_rank - alone.effective_rank).abs() < 1e-3, "{rank:?} {alone:?}");
                }
            }
        }
    }

    #[test]
    fn no_image_votes_for_itself_on_any_rank() {
        let dir = tempfile::tempdir().unwrap();
        fixtures::images(dir.path(), &CLASSES, 1);
        let evaluation = evaluation(&dataset(dir.path()), None);
        for world_size in [1, 2, 3] {
            // Alone in its class an image is right only by its own vote.
            let ranks = over_ranks(world_size, |encoder| evaluation.knn(encoder).unwrap().top1);
            assert_eq!(ranks, vec![0.0; world_size]);
        }
    }

    #[test]
    fn a_set_too_small_to_evaluate_gives_numbers_and_says_so() {
        /// Classes with one image each, and what is said.
        #[track_caller]
        fn check(classes: &[(&str, [u8; 3])], test: bool, top1: f64, caveat: &str) {
            let dir = tempfile::tempdir().unwrap();
            fixtures::images(dir.path(), classes, 1);
            let bank = dataset(dir.path());
            let evaluation = evaluation(&bank, test.then_some(&bank));
            for world_size in [1, 2] {
                for rank in over_ranks(world_size, |encoder| evaluation.knn(encoder).unwrap()) {
                    assert_eq!((rank.top1, rank.k), (top1, 1), "{rank:?}");
                    assert!(rank.feature_std.is_finite() && rank.effective_rank >= 1.0, "{rank:?}");
                    assert!(rank.caveats.iter().any(|text| text.contains(caveat)), "{rank:?}");
                }
            }
        }
        check(&CLASSES[..1], false, 0.0, "no other to classify it by");
        check(&CLASSES[..1], true, 1.0, "all of one class");
        check(&CLASSES[..2], false, 0.0, "2 classes have a single image each");
        check(&CLASSES[..2], true, 1.0, "every image finds itself");
    }

    #[test]
    fn a_rank_may_have_no_image_as_long_as_another_has() {
        let dir = tempfile::tempdir().unwrap();
        fixtures::images(dir.path(), &CLASSES[..2], 2);
        std::fs::write(dir.path().join("b/000.png"), b"no image").unwrap();
        std::fs::write(dir.path().join("b/001.png"), b"no image").unwrap();
        let evaluation = evaluation(&dataset(dir.path()), None);
        let ranks = over_ranks(2, |encoder| evaluation.knn(encoder).unwrap());
        assert_eq!(ranks[0].corrupt, []);
        assert_eq!(ranks[1].corrupt.len(), 2);
        for rank in ranks {
            assert_eq!((rank.n_bank, rank.top1, rank.k), (2, 1.0, 1));
            assert!(rank.caveats[0].contains("all of one class"), "{rank:?}");
        }
        for file in ["a/000.png", "a/001.png"] {
            std::fs::write(dir.path().join(file), b"no image").unwrap();
        }
        let evaluation = tests::evaluation(&dataset(dir.path()), None);
        for outcome in over_ranks(2, |encoder| evaluation.knn(encoder)) {
            assert!(
                matches!(&outcome, Err(Error::NothingDecoded { corrupt }) if corrupt.len() == 4),
                "{outcome:?}"
            );
        }
        // The third rank has no share at all.
        for file in ["a/001.png", "b/001.png"] {
            std::fs::remove_file(dir.path().join(file)).unwrap();
        }
        let evaluation = tests::evaluation(&dataset(dir.path()), None);
        for outcome in over_ranks(3, |encoder| evaluation.knn(encoder)) {
            let message = outcome.unwrap_err().to_string();
            assert!(
                message.starts_with("none of 2 images could be decoded; the first: a/000.png: "),
                "{message}"
            );
        }
    }

    #[test]
    fn calibration_leaves_no_trace_but_its_result() {
        let dir = tempfile::tempdir().unwrap();
        fixtures::images(dir.path(), &CLASSES, 7);
        let evaluation = evaluation(&dataset(dir.path()), None);
        over_ranks(2, |encoder| {
            let before = (encoder.network.buffers_snapshot(), encoder.network.parameters().values.clone());
            let raw = evaluation.knn(encoder).unwrap();
            let calibrated = evaluation.knn_calibrated(encoder).unwrap();
            assert!((raw.feature_std - calibrated.feature_std).abs() > 1e-4, "{raw:?} {calibrated:?}");
            assert!(
                before == (encoder.network.buffers_snapshot(), encoder.network.parameters().values.clone())
            );
            assert_eq!(evaluation.knn(encoder).unwrap(), raw);
        });
    }

    #[test]
    fn calibration_gives_the_mean_of_the_batches_statistics() {
        let dir = tempfile::tempdir().unwrap();
        fixtures::images(dir.path(), &CLASSES, 7);
        let bank = dataset(dir.path());
        let evaluation = evaluation(&bank, None);
        over_ranks(1, |encoder| {
            evaluation.calibrate(encoder).unwrap();
            let parameters = encoder.network.parameters();
            // 21 images make two passes of 8; the last five are dropped.
            assert_eq!(parameters.num_batches_tracked, 2);
            let calibrated = parameters.buffer_values.clone();

            let mut images = Images::new(encoder.cpu, &bank, Look::Plain(&evaluation.preprocess), 8);
            let mut sum = vec![0f64; calibrated.len()];
            for first in [0, 8] {
                images.fill(first..first + 8, &mut Features::default()).unwrap();
                encoder.network.forward_train(images.rows(8), 8, encoder.activations).unwrap();
                encoder.network.commit_buffers(BufferUpdate::Momentum(1.0));
                let batch = &encoder.network.parameters().buffer_values;
                sum.iter_mut().zip(batch).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            for (calibrated, sum) in calibrated.iter().zip(&sum) {
                let mean = sum / 2.0;
                assert!(
                    (f64::from(*calibrated) - mean).abs() <= 1e-5 * mean.abs().max(1.0),
                    "{calibrated} {mean}"
                );
            }
        });
    }

    #[test]
    fn corrupt_images_are_left_out_and_named() {
        let dir = tempfile::tempdir().unwrap();
        fixtures::images(dir.path(), &CLASSES, 6);
        std::fs::write(dir.path().join("b/003.png"), b"\x89PNG, cut off").unwrap();
        let evaluation = evaluation(&dataset(dir.path()), None);
        let ranks = over_ranks(2, |encoder| evaluation.knn_calibrated(encoder).unwrap());
        assert_eq!((ranks[0].n_queries, ranks[0].n_bank, ranks[0].top1), (17, 17, ranks[1].top1));
        // 18 images: the tenth is the second rank's.
        assert_eq!(ranks[0].corrupt, []);
        assert_eq!(ranks[1].corrupt.len(), 1);
        assert_eq!(ranks[1].corrupt[0].0, "b/003.png");
    }

    #[test]
    fn images_without_usable_labels_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fixtures::images(&dir.path().join("bank"), &CLASSES[..2], 1);
        fixtures::images(&dir.path().join("test"), &CLASSES, 1);
        let preprocess = crate::model::preprocess(&fixtures::config());
        let (bank, test) = (dataset(&dir.path().join("bank")), dataset(&dir.path().join("test")));
        let error = Evaluation::new(Arc::clone(&bank), Some(test), preprocess.clone(), 0).err().unwrap();
        assert!(
            error.to_string().contains("class `c`, which the training images lack (they have a, b)"),
            "{error}"
        );

        let flat = dataset(&dir.path().join("bank/a"));
        let error = Evaluation::new(bank, Some(Arc::clone(&flat)), preprocess.clone(), 0).err().unwrap();
        assert!(matches!(error, Error::NoTestLabels), "{error}");
        assert!(Evaluation::new(flat, None, preprocess, 0).unwrap().is_none());
    }

    #[test]
    fn ranks_with_statistics_of_their_own_evaluate_rank_0s() {
        let dir = tempfile::tempdir().unwrap();
        fixtures::images(dir.path(), &CLASSES, 4);
        let evaluation = evaluation(&dataset(dir.path()), None);
        let mut config = fixtures::config();
        config.model.batch_norm = config::BatchNorm::Local;
        let found = over_ranks(2, |encoder| {
            let device = fixtures::device();
            let mut network = fixtures::network(&config, 8, &device);
            let rank = encoder.control.rank() as f32;
            network.parameters_mut().buffer_values.iter_mut().for_each(|x| *x += 3.0 * rank);
            let Encoder { control, activations, .. } = encoder;
            let mut encoder = Encoder { network: &mut network, control, activations, cpu: device.cpu() };
            let together = evaluation.knn(&mut encoder).unwrap();
            (together, network.parameters().buffer_values.clone())
        });
        assert_eq!(found[0].0, found[1].0);
        assert_eq!(found[0].1, found[1].1);
        assert_eq!(
            found[0].0.feature_std,
            over_ranks(2, |encoder| evaluation.knn(encoder).unwrap())[0].feature_std
        );
    }

    #[test]
    fn shares_are_contiguous_and_differ_by_at_most_one() {
        for n in 0..20 {
            for world_size in 1..6 {
                let shares: Vec<_> = (0..world_size).map(|rank| share(n, rank, world_size)).collect();
                assert_eq!(shares[0].start, 0);
                assert_eq!(shares[world_size - 1].end, n);
                assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
                let sizes: Vec<usize> = shares.iter().map(Range::len).collect();
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            }
        }
    }
}
