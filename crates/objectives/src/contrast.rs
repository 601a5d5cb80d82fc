//! The contrast of queries with a memory bank that is spread over the ranks, which NPID and PIRL share.
//!
//! Queries travel and slots stay: every rank gathers the whole batch's queries (`B d` numbers), scores the slots that it
//! owns, and the sums are scattered back to the ranks that the queries came from:
//!
//! 1. gather (index, position) and the unit queries;
//! 2. each image's own slot goes to the image's rank (a reduce-scatter to which its owner alone contributes);
//! 3. every owner weighs its slots: drawn ones by [`crate::sampled`], or all by `candidates`;
//! 4. reduce-scatter of `sum e`, `sum log(1 + e)` and the weighted slots, which is all that loss and gradient need.
//!
//! The bank is a constant of the step, so that a query's gradient is complete on its own rank.
//!
//! Noise contrastive estimation needs the normalizer `Z` of `P(i|f) = exp(M_i.f / t) / Z`. It is the mean of `exp` over the
//! first batch, positives included, times `n`; and either stays, or moves towards each later batch's by an exponential
//! average, a step being computed with the average of the steps before it.

use collective::{Communicator, Number};
use kernels::{Device, Real};

use crate::bank::Bank;
use crate::candidates::{Queries, Sums};
use crate::gather::{gather_numbers, gather_rows};
use crate::positives::{Contrasted, check_temperature};
use crate::sampled::{Ages, Draw, Image};
use crate::state::{Array, ArrayType};
use crate::unit::dot;
use crate::weigh::Estimator;
use crate::{Encoded, Error};

const NORMALIZERS: &str = "objective.log_normalizer";

/// What NPID and PIRL can be set to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ContrastSpec {
    /// Divides the similarities; at least [`crate::MIN_TEMPERATURE`].
    pub temperature: f64,
    /// How a candidate's similarity becomes its part of the loss.
    pub estimator: Estimator,
    /// Slots drawn for an image; 0: every slot but its own.
    pub negatives: usize,
    /// Whether an image's own slot is never drawn as its negative.
    pub exclude_positive: bool,
    /// Where NCE has its normalizer from.
    pub normalizer: Normalizer,
    /// How much of its old value a slot keeps when its image comes by.
    pub feature_momentum: f64,
    /// Steps after which a slot is encoded anew; 0: never.
    pub refresh_age: u64,
}

/// Where NCE has its normalizer from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Normalizer {
    /// The first batch, for good.
    FirstBatch,
    /// The first batch, and then an average that keeps so much of itself at each step.
    Ema(f64),
}

/// Fresh features of all ranks that travel at once: how many are due grows with the data set.
const FRESH_AT_ONCE: usize = 4096;

/// A bank, and how queries are contrasted with it.
#[derive(Debug)]
pub struct Contrast {
    spec: ContrastSpec,
    bank: Bank,
    /// Of each branch of queries, `log Z`; not-a-number before the first step.
    log_normalizers: Vec<f64>,
    staged_normalizers: Option<Vec<f64>>,
    normalizers_restored: bool,
}

/// What a batch is trained by.
pub(crate) struct Outcome<T> {
    /// Of each branch, mean over the batch.
    pub(crate) losses: Vec<f64>,
    /// Mean over the batch of `|f - M|^2`, `f` of the first branch and `M` the image's own slot.
    pub(crate) distance: f64,
    /// `[n, branches, width]`: gradient of each branch's loss by the unit queries.
    pub(crate) d_unit: Vec<T>,
    /// `[n, width]`: the images' own slots.
    pub(crate) positives: Vec<T>,
    pub(crate) metrics: Vec<(&'static str, f64)>,
}

/// The whole batch, as every rank sees it.
struct Batch<T> {
    /// In rank order.
    images: Vec<Image>,
    /// `[images, branches, width]`, unit rows.
    queries: Vec<T>,
}

impl Contrast {
    /// A contrast of `branches` queries of each image with `bank`.
    ///
    /// # Panics
    /// If the temperature is too low or the bank has not two slots.
    pub(crate) fn new(spec: ContrastSpec, bank: Bank, branches: usize) -> Self {
        check_temperature(spec.temperature);
        assert!(bank.spec().slots > 1, "an image has to be told from another");
        Self {
            spec,
            bank,
            log_normalizers: vec![f64::NAN; branches],
            staged_normalizers: None,
            normalizers_restored: false,
        }
    }

    pub(crate) fn bank(&self) -> &Bank {
        &self.bank
    }

    /// Negatives of an image, `K`.
    pub(crate) fn negatives(&self) -> usize {
        if self.spec.negatives == 0 { self.bank.spec().slots - 1 } else { self.spec.negatives }
    }

    /// The loss when every candidate is as likely as any other: `P = 1 / n`.
    pub(crate) fn chance_loss(&self) -> f64 {
        let k = self.negatives() as f64;
        match self.spec.estimator {
            Estimator::Softmax => (k + 1.0).ln(),
            Estimator::Nce => (k + 1.0).ln() + k * (1.0 / k).ln_1p(),
        }
    }

    /// Contrasts a batch with the bank, and stages what it writes there: its first branch.
    ///
    /// - `queries`: `[n, branches, width]` of this rank, unit rows
    pub(crate) fn step<T: Real + Number>(
        &mut self,
        device: &Device,
        encoded: &Encoded<'_, T>,
        queries: &[T],
        communicator: &mut Communicator,
    ) -> Result<Outcome<T>, Error> {
        self.bank.begin(encoded.step);
        self.staged_normalizers = None;
        let (width, branches) = (self.bank.spec().width, self.log_normalizers.len());
        let n = encoded.images[communicator.rank()];
        assert_eq!(queries.len(), n * branches * width, "{n} images, {branches} queries each");
        let batch = self.gather(encoded, queries, communicator)?;
        let positives = self.fetch_positives(encoded.images, &batch.images, communicator)?;
        let log_normalizers = match self.spec.estimator {
            Estimator::Nce if self.log_normalizers[0].is_nan() => {
                self.estimate_normalizers(device, encoded.step, &batch, (queries, &positives), communicator)?
            }
            _ => self.log_normalizers.clone(),
        };

        let estimator = self.spec.estimator;
        let shifts = self.shifts(estimator, &log_normalizers, batch.images.len());
        let (sums, ages) = self.score(device, encoded.step, &batch, estimator, &shifts);
        let sums = self.scatter(sums, encoded.images, communicator)?;
        let local = self.queries(queries, estimator, &shifts[..n * branches]);
        let of_each_query = repeated(&positives, width, branches);
        let mut figures = Figures::new(branches, ages);
        figures.add_exps(local.logits(&of_each_query).zip(&sums.exps).map(|(logit, sum)| sum + logit.exp()));
        let Contrasted { losses, mut d_unit } = local.with_positives(&of_each_query, sums);
        figures.add_losses(&losses);
        for (queries, slot) in queries.chunks_exact(branches * width).zip(positives.chunks_exact(width)) {
            figures.add_pair(&queries[..width], slot);
        }
        let figures = figures.join(communicator)?;
        let m = batch.images.len() as f64;
        d_unit.iter_mut().for_each(|d| *d = T::from_f64(d.to_f64() / m));

        // Nothing can fail any more: what follows is staged as a whole.
        self.staged_normalizers =
            Some(self.moved_normalizers(&log_normalizers, &figures.exps, batch.images.len()));
        let features = batch.queries.chunks_exact(branches * width).map(|queries| &queries[..width]);
        let slots = batch.images.iter().map(|&(_, slot)| slot);
        self.bank.stage(slots.zip(features), self.spec.feature_momentum);
        let mut metrics = figures.metrics(m);
        if estimator == Estimator::Nce {
            let slots = self.bank.spec().slots as f64;
            metrics.push(("normalizer", log_normalizers[0].exp() / slots));
        }
        let losses = figures.losses.iter().map(|loss| loss / m).collect();
        Ok(Outcome { losses, distance: figures.distance / m, d_unit, positives, metrics })
    }

    /// Applies what the step staged.
    pub(crate) fn commit(&mut self) {
        self.bank.commit();
        if let Some(staged) = self.staged_normalizers.take() {
            self.log_normalizers = staged;
        }
    }

    /// Slots of this rank that are to be encoded anew before the step commits.
    pub(crate) fn due(&self, step: u64) -> Vec<usize> {
        if self.spec.refresh_age == 0 { Vec::new() } else { self.bank.due(step, self.spec.refresh_age) }
    }

    /// Stages fresh features of slots, `[slots, width]`, unit rows, in place of the old ones.
    pub(crate) fn refresh<T: Real + Number>(
        &mut self,
        slots: &[usize],
        features: &[T],
        communicator: &mut Communicator,
    ) -> Result<(), Error> {
        let width = self.bank.spec().width;
        assert_eq!(features.len(), slots.len() * width, "a feature for each slot");
        let mut counts = vec![0; communicator.world_size()];
        communicator.all_gather(&[slots.len() as u64], &mut counts)?;
        let counts: Vec<usize> = counts.into_iter().map(|count| count as usize).collect();
        let at_once = (FRESH_AT_ONCE / counts.len()).max(1);
        let most = counts.iter().copied().max().unwrap_or(0);
        for first in (0..most.max(1)).step_by(at_once) {
            let part = |count: usize| first.min(count)..(first + at_once).min(count);
            let counts: Vec<usize> = counts.iter().map(|&count| part(count).len()).collect();
            let own = part(slots.len());
            let features = &features[own.start * width..own.end * width];
            let slots = gather_numbers(communicator, &counts, &slots[own])?;
            let features = gather_rows(communicator, &counts, width, features)?;
            self.bank.stage(slots.into_iter().zip(features.chunks_exact(width)), 0.0);
        }
        Ok(())
    }

    fn gather<T: Real + Number>(
        &self,
        encoded: &Encoded<'_, T>,
        queries: &[T],
        communicator: &mut Communicator,
    ) -> Result<Batch<T>, Error> {
        let slots = self.bank.spec().slots;
        let indices = gather_numbers(communicator, encoded.images, encoded.indices)?;
        let positions = gather_numbers(communicator, encoded.images, encoded.positions)?;
        let per_image = self.log_normalizers.len() * self.bank.spec().width;
        let queries = gather_rows(communicator, encoded.images, per_image, queries)?;
        // Every rank sees the same batch and refuses it alike.
        if let Some(&index) = indices.iter().find(|&&index| index >= slots) {
            return Err(Error::NoSlot { index, slots });
        }
        let mut sorted = indices.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::DuplicateImage { index: pair[0], step: encoded.step });
        }
        Ok(Batch { images: positions.into_iter().zip(indices).collect(), queries })
    }

    /// `[n, width]`: the slots of this rank's images.
    fn fetch_positives<T: Real + Number>(
        &self,
        counts: &[usize],
        images: &[Image],
        communicator: &mut Communicator,
    ) -> Result<Vec<T>, Error> {
        let width = self.bank.spec().width;
        let mut owned = vec![T::ZERO; images.len() * width];
        for (&(_, slot), row) in images.iter().zip(owned.chunks_exact_mut(width)) {
            if self.bank.own().slots().contains(&slot) {
                self.bank.own().read(slot..slot + 1, row);
            }
        }
        reduce_scatter(communicator, counts, width, &owned)
    }

    /// `log Z` of each branch, by the whole batch.
    fn estimate_normalizers<T: Real + Number>(
        &self,
        device: &Device,
        step: u64,
        batch: &Batch<T>,
        (queries, positives): (&[T], &[T]),
        communicator: &mut Communicator,
    ) -> Result<Vec<f64>, Error> {
        let (width, branches) = (self.bank.spec().width, self.log_normalizers.len());
        let m = batch.images.len();
        let shifts = self.shifts(Estimator::Softmax, &self.log_normalizers, m);
        let (negatives, _) = self.score(device, step, batch, Estimator::Softmax, &shifts);
        let own = self.queries(queries, Estimator::Softmax, &shifts[..queries.len() / width]);
        let mut sums = vec![0.0; branches];
        for (i, e) in negatives.exps.into_iter().enumerate() {
            sums[i % branches] += e;
        }
        for (i, logit) in own.logits(&repeated(positives, width, branches)).enumerate() {
            sums[i % branches] += logit.exp();
        }
        communicator.all_reduce_sum(&mut sums)?;
        Ok(sums.into_iter().map(|sum| self.log_normalizer(sum, 1.0 / self.spec.temperature, m)).collect())
    }

    /// `log Z` from the sum of `exp(x - shift)` over all candidates of `m` images, positives included.
    fn log_normalizer(&self, exps: f64, shift: f64, m: usize) -> f64 {
        let candidates = m * (self.negatives() + 1);
        (exps / candidates as f64).ln() + (self.bank.spec().slots as f64).ln() + shift
    }

    /// What each branch's `log Z` is after this step.
    fn moved_normalizers(&self, used: &[f64], exps: &[f64], m: usize) -> Vec<f64> {
        let Normalizer::Ema(momentum) = self.spec.normalizer else { return used.to_vec() };
        if self.spec.estimator == Estimator::Softmax || self.log_normalizers[0].is_nan() {
            return used.to_vec();
        }
        let moved = |(&log_z, &exps): (&f64, &f64)| {
            let of_batch = self.log_normalizer(exps, self.nce_shift(log_z), m);
            log_z + (momentum + (1.0 - momentum) * (of_batch - log_z).exp()).ln()
        };
        used.iter().zip(exps).map(moved).collect()
    }

    /// `log(K Z / n)`
    fn nce_shift(&self, log_normalizer: f64) -> f64 {
        log_normalizer + (self.negatives() as f64 / self.bank.spec().slots as f64).ln()
    }

    /// For all queries of `m` images.
    fn shifts<T: Real>(&self, estimator: Estimator, log_normalizers: &[f64], m: usize) -> Vec<T> {
        let of_branch = |&log_normalizer: &f64| {
            T::from_f64(match estimator {
                Estimator::Softmax => 1.0 / self.spec.temperature,
                Estimator::Nce => self.nce_shift(log_normalizer),
            })
        };
        (0..m).flat_map(|_| log_normalizers.iter().map(of_branch)).collect()
    }

    fn queries<'a, T>(&self, rows: &'a [T], estimator: Estimator, shifts: &'a [T]) -> Queries<'a, T> {
        Queries { rows, width: self.bank.spec().width, scale: 1.0 / self.spec.temperature, shifts, estimator }
    }

    /// Weighs the negatives that this rank owns, for every query of the batch.
    fn score<T: Real>(
        &self,
        device: &Device,
        step: u64,
        batch: &Batch<T>,
        estimator: Estimator,
        shifts: &[T],
    ) -> (Sums<T>, Ages) {
        let shard = self.bank.own();
        let queries = self.queries(&batch.queries, estimator, shifts);
        if self.spec.negatives > 0 {
            let draw = Draw {
                seed: self.bank.spec().seed,
                step,
                count: self.spec.negatives,
                slots: self.bank.spec().slots,
                exclude_positive: self.spec.exclude_positive,
            };
            let (sums, mut ages) = queries.against_drawn(device, draw, &batch.images, shard);
            // Each image's own slot is read as well.
            let own = batch.images.iter().filter(|(_, slot)| shard.slots().contains(slot));
            own.for_each(|&(_, slot)| ages.add(step - u64::from(shard.written(slot))));
            return (sums, ages);
        }
        let first = shard.slots().start;
        let place = |&(_, slot): &Image| shard.slots().contains(&slot).then(|| slot - first);
        let branches = self.log_normalizers.len();
        let own_places: Vec<_> =
            batch.images.iter().map(place).flat_map(|place| vec![place; branches]).collect();
        let sums = queries.against_all(device, shard.slots().len(), &own_places, |places, out| {
            shard.read(first + places.start..first + places.end, out);
        });
        let mut ages = Ages::default();
        shard.slots().for_each(|slot| ages.add(step - u64::from(shard.written(slot))));
        (sums, ages)
    }

    /// Adds up what the owners of slots made of this rank's queries.
    fn scatter<T: Real + Number>(
        &self,
        sums: Sums<T>,
        counts: &[usize],
        communicator: &mut Communicator,
    ) -> Result<Sums<T>, Error> {
        let (width, branches) = (self.bank.spec().width, self.log_normalizers.len());
        let Sums { exps, logs, weighted } = sums;
        let scalars: Vec<f64> = exps.into_iter().zip(logs).flat_map(|(e, log)| [e, log]).collect();
        let scalars = reduce_scatter(communicator, counts, 2 * branches, &scalars)?;
        let (exps, logs) = scalars.as_chunks::<2>().0.iter().map(|&[e, log]| (e, log)).unzip();
        let weighted = reduce_scatter(communicator, counts, branches * width, &weighted)?;
        Ok(Sums { exps, logs, weighted })
    }

    /// The bank's arrays, and the normalizers if there are any.
    pub(crate) fn state(&self) -> Vec<Array<'_>> {
        let mut arrays = self.bank.state();
        if self.spec.estimator == Estimator::Nce {
            let (values, shape) = (&self.log_normalizers[..], [self.log_normalizers.len()]);
            let bytes = bytemuck::cast_slice(values);
            arrays.push(Array::replicated(NORMALIZERS, ArrayType::F64, &shape, bytes));
        }
        arrays
    }

    pub(crate) fn restore(&mut self, array: &Array<'_>) -> Result<(), Error> {
        if array.name != NORMALIZERS || self.spec.estimator == Estimator::Softmax {
            return self.bank.restore(array);
        }
        let shape = [self.log_normalizers.len()];
        array.copy_to(ArrayType::F64, &shape, bytemuck::cast_slice_mut(&mut self.log_normalizers))?;
        self.normalizers_restored = true;
        Ok(())
    }

    pub(crate) fn restored(&mut self) -> Result<(), Error> {
        let restored = std::mem::take(&mut self.normalizers_restored);
        self.bank.restored()?;
        if self.spec.estimator == Estimator::Nce && !restored {
            return Err(Error::Incomplete { what: format!("`{NORMALIZERS}`") });
        }
        Ok(())
    }
}

/// Sums over images, on their way to the log and to the normalizer.
struct Figures {
    /// Of each branch.
    losses: Vec<f64>,
    /// Of each branch: `sum e` over all candidates.
    exps: Vec<f64>,
    /// `sum |f - M|^2`
    distance: f64,
    /// `sum 1 - cos(f, M)`
    drift: f64,
    ages: Ages,
}

impl Figures {
    fn new(branches: usize, ages: Ages) -> Self {
        Self { losses: vec![0.0; branches], exps: vec![0.0; branches], distance: 0.0, drift: 0.0, ages }
    }

    fn add_losses(&mut self, losses: &[f64]) {
        let branches = self.losses.len();
        losses.iter().enumerate().for_each(|(i, loss)| self.losses[i % branches] += loss);
    }

    fn add_exps(&mut self, exps: impl Iterator<Item = f64>) {
        let branches = self.exps.len();
        exps.enumerate().for_each(|(i, e)| self.exps[i % branches] += e);
    }

    /// A fresh feature, and its slot.
    fn add_pair<T: Real>(&mut self, feature: &[T], slot: &[T]) {
        let (product, squares) = (dot(feature, slot), dot(slot, slot));
        self.distance += dot(feature, feature) - 2.0 * product + squares;
        self.drift += 1.0 - product / squares.sqrt().max(1e-12);
    }

    /// Adds the ranks' figures, in rank order.
    fn join(self, communicator: &mut Communicator) -> Result<Self, Error> {
        let branches = self.losses.len();
        let Ages { reads, sum, max } = self.ages;
        let own = [&self.losses[..], &self.exps, &[self.distance, self.drift, reads, sum, max]].concat();
        let mut all = vec![0.0; own.len() * communicator.world_size()];
        communicator.all_gather(&own, &mut all)?;
        let mut joined = Self::new(branches, Ages::default());
        for rank in all.chunks_exact(own.len()) {
            joined.losses.iter_mut().zip(rank).for_each(|(sum, loss)| *sum += loss);
            joined.exps.iter_mut().zip(&rank[branches..]).for_each(|(sum, e)| *sum += e);
            let [distance, drift, reads, sum, max] = rank[2 * branches..] else {
                unreachable!("five more figures")
            };
            joined.distance += distance;
            joined.drift += drift;
            joined.ages = joined.ages.plus(Ages { reads, sum, max });
        }
        Ok(joined)
    }

    fn metrics(&self, m: f64) -> Vec<(&'static str, f64)> {
        vec![
            ("bank_age", self.ages.sum / self.ages.reads.max(1.0)),
            ("bank_age_max", self.ages.max),
            ("bank_drift", self.drift / m),
        ]
    }
}

/// Sums `values`, so many `width`s for each rank's images, and leaves this rank's.
fn reduce_scatter<N: Number + Default>(
    communicator: &mut Communicator,
    images: &[usize],
    width: usize,
    values: &[N],
) -> Result<Vec<N>, Error> {
    let counts: Vec<usize> = images.iter().map(|n| n * width).collect();
    let mut own = vec![N::default(); counts[communicator.rank()]];
    communicator.reduce_scatter_sum(values, &counts, &mut own)?;
    Ok(own)
}

/// Each row so many times.
fn repeated<T: Real>(rows: &[T], width: usize, times: usize) -> Vec<T> {
    rows.chunks_exact(width).flat_map(|row| row.repeat(times)).collect()
}
