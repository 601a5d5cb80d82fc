//! kNN evaluation as a collective: every rank encodes its slice of the bank and of the test images.

use data::{Dataset, Preprocess};
use engine::network::BufferUpdate;
use std::ops::Range;
use std::sync::Arc;

use crate::features::{self, Features, Images};
use crate::knn::{self, Bank, Queries};
use crate::step::Trainer;
use crate::Error;

/// Labelled images to evaluate on.
pub struct Evaluation {
    /// The training images.
    bank: Arc<Dataset>,
    bank_labels: Vec<u32>,
    /// Absent: every training image is classified by the others.
    test: Option<(Arc<Dataset>, Vec<u32>)>,
    preprocess: Preprocess,
}

/// What an evaluation found.
pub struct KnnResult {
    /// Share of the queries whose class was predicted, in [0, 1].
    pub top1: f64,
    /// Images that could not be decoded and were left out, on this rank.
    pub corrupt: Vec<(String, String)>,
}

impl Evaluation {
    /// Pairs the training images with the test images; `None` if the training images have no labels.
    ///
    /// # Errors
    /// If the test images have no labels, or classes that the training images lack.
    pub fn new(
        bank: Arc<Dataset>,
        test: Option<Arc<Dataset>>,
        preprocess: Preprocess,
    ) -> Result<Option<Evaluation>, Error> {
        let Some(bank_labels) = bank.labels().map(<[u32]>::to_vec) else { return Ok(None) };
        let test = match test {
            None => None,
            Some(test) => {
                let labels = labels_in_terms_of(&bank, &test)?;
                Some((test, labels))
            }
        };
        Ok(Some(Evaluation { bank, bank_labels, test, preprocess }))
    }

    /// Classifies the test images (or each training image by the others) with the present weights and
    /// running statistics. The same on every rank.
    ///
    /// # Errors
    /// If a peer is lost, or no image can be decoded.
    pub fn knn(&self, trainer: &mut Trainer) -> Result<KnnResult, Error> {
        let width = trainer.network.spec().feature_width();
        let local = self.encode_share(trainer, &self.bank)?;
        let bank_labels = gather_labels(trainer, &local, &self.bank_labels)?;
        let first_of_rank = gather_counts(trainer, local.indices.len())?;
        let bank_features = gather_rows(trainer, &local.values, width, &first_of_rank)?;
        let bank = Bank { features: &bank_features, labels: &bank_labels, width };

        let mut corrupt = local.corrupt;
        let (correct, n) = match &self.test {
            None => {
                let rank = trainer.communicator.rank();
                let offset = first_of_rank[..rank].iter().sum::<usize>();
                let own = offset..offset + first_of_rank[rank];
                let queries = Queries {
                    features: &bank_features[own.start * width..own.end * width],
                    offset_in_bank: Some(offset),
                };
                let predictions = knn::classify(&trainer.pool, trainer.network.kernel_path(), bank, queries);
                (count_equal(&predictions, &bank_labels[own]), predictions.len())
            }
            Some((test, labels)) => {
                let mut queries = self.encode_share(trainer, test)?;
                knn::normalize_rows(&mut queries.values, width);
                let predictions = knn::classify(
                    &trainer.pool,
                    trainer.network.kernel_path(),
                    bank,
                    Queries { features: &queries.values, offset_in_bank: None },
                );
                let expected: Vec<u32> = queries.indices.iter().map(|&i| labels[i]).collect();
                corrupt.extend(queries.corrupt);
                (count_equal(&predictions, &expected), predictions.len())
            }
        };
        let mut sums = [correct as f64, n as f64];
        trainer.communicator.all_reduce_sum(&mut sums).map_err(Error::Collective)?;
        Ok(KnnResult { top1: sums[0] / sums[1], corrupt })
    }

    /// Evaluates a net that was never trained: one pass over the training images gives batch norm the
    /// statistics that its initial weights imply (without them the net is no baseline), on a copy of the
    /// running statistics, so that training starts as if nothing had happened.
    ///
    /// # Errors
    /// If a peer is lost, or no image can be decoded.
    pub fn knn_calibrated(&self, trainer: &mut Trainer) -> Result<KnnResult, Error> {
        let before = trainer.network.parameters().buffers_snapshot();
        let outcome = self.calibrate(trainer).and_then(|()| self.knn(trainer));
        trainer.network.parameters_mut().restore_buffers(before);
        outcome
    }

    fn calibrate(&self, trainer: &mut Trainer) -> Result<(), Error> {
        let world_size = trainer.communicator.world_size();
        let rank = trainer.communicator.rank();
        let global_rows = trainer.rows.iter().sum::<usize>().min(self.bank.len());
        let mut images = Images::new(trainer.network.max_rows(), self.preprocess.size);
        // A last, smaller batch would leave some rank without rows: it is dropped, as in training.
        for batch in 0..self.bank.len() / global_rows {
            let own = share(global_rows, rank, world_size);
            let own = batch * global_rows + own.start..batch * global_rows + own.end;
            let mut unused = Features { values: Vec::new(), indices: Vec::new(), corrupt: Vec::new() };
            let n = own.len();
            images.fill(&trainer.pool, &self.bank, own, &self.preprocess, &mut unused);
            // Rows whose image is corrupt keep what the pass before left in them: the count of rows must
            // not differ from what the other ranks expect.
            trainer
                .network
                .forward_train(&images.values[..n * images.image_len], n, &mut trainer.communicator)
                .map_err(Error::from_peer)?;
            trainer.network.commit_buffers(BufferUpdate::Cumulative { count: batch as u64 });
        }
        Ok(())
    }

    fn encode_share(&self, trainer: &mut Trainer, dataset: &Dataset) -> Result<Features, Error> {
        let own = share(dataset.len(), trainer.communicator.rank(), trainer.communicator.world_size());
        features::encode(&mut trainer.network, &trainer.pool, dataset, own, &self.preprocess)
    }
}

/// The slice of `n` items that belongs to `rank`: contiguous, sizes differ by at most one.
pub(crate) fn share(n: usize, rank: usize, world_size: usize) -> Range<usize> {
    let (each, more) = (n / world_size, n % world_size);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

/// Labels of `test` as class numbers of `bank`: two folders number their classes independently.
fn labels_in_terms_of(bank: &Dataset, test: &Dataset) -> Result<Vec<u32>, Error> {
    let labels = test.labels().ok_or(Error::NoTestLabels)?;
    let map: Vec<Option<u32>> = test
        .class_names()
        .iter()
        .map(|name| bank.class_names().iter().position(|other| other == name).map(|i| i as u32))
        .collect();
    labels
        .iter()
        .map(|&label| {
            map[label as usize].ok_or_else(|| Error::UnknownTestClass {
                class: test.class_names()[label as usize].clone(),
                known: bank.class_names().to_vec(),
            })
        })
        .collect()
}

fn count_equal(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a == b).count()
}

fn gather_counts(trainer: &mut Trainer, n: usize) -> Result<Vec<usize>, Error> {
    let mut counts = vec![0u64; trainer.communicator.world_size()];
    trainer.communicator.all_gather(&[n as u64], &mut counts).map_err(Error::Collective)?;
    Ok(counts.into_iter().map(|n| n as usize).collect())
}

fn gather_labels(trainer: &mut Trainer, local: &Features, labels: &[u32]) -> Result<Vec<u32>, Error> {
    let own: Vec<u64> = local.indices.iter().map(|&i| u64::from(labels[i])).collect();
    let counts = gather_counts(trainer, own.len())?;
    let mut all = vec![0u64; counts.iter().sum()];
    trainer.communicator.all_gather_counts(&own, &counts, &mut all).map_err(Error::Collective)?;
    Ok(all.into_iter().map(|label| label as u32).collect())
}

/// Unit rows of all ranks, in rank order: `[sum(counts), width]`.
fn gather_rows(trainer: &mut Trainer, own: &[f32], width: usize, counts: &[usize]) -> Result<Vec<f32>, Error> {
    let mut unit = own.to_vec();
    knn::normalize_rows(&mut unit, width);
    let lengths: Vec<usize> = counts.iter().map(|n| n * width).collect();
    let mut all = vec![0f32; lengths.iter().sum()];
    trainer.communicator.all_gather_counts(&unit, &lengths, &mut all).map_err(Error::Collective)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

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
