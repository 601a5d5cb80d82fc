//! A rank's batches, prepared ahead of time.
//!
//! Threads of the loader's own work on the next few batches, the earliest first, in units of a few images, so
//! that all of them help with the batch that is waited for. A unit's views are made in a buffer of the thread and
//! then copied into the batch under the one lock there is. Threads that have nothing to do sleep on a condition.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::augment::{Augmentation, Reduced, Scratch, ViewKey};
use crate::reduced::{Decoded, Decoding, load_reduced};
use crate::replace::{KnownCorrupt, Replaced, Shown, decode_or_replace};
use crate::{Dataset, Error, Sampler};

/// How a rank reads a data set.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// The run's seed.
    pub seed: u64,
    /// Images per step over all ranks.
    pub global_batch: usize,
    /// This rank.
    pub rank: usize,
    /// Ranks.
    pub world_size: usize,
    /// Steps that are done already: the first batch is that of this step, counted from 0.
    pub start_step: u64,
    /// Threads that prepare batches, at least 1.
    pub threads: usize,
    /// Batches that are prepared ahead, at least 1. Each takes the memory of a rank's views.
    pub prefetch: usize,
    /// The run fails when a rank meets more corrupt images than this share of the data set.
    pub max_corrupt_share: f64,
    /// How much of an image's file is decoded.
    pub decoding: Decoding,
}

/// What one rank encodes in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The step, counted from 0 over all epochs.
    pub step: u64,
    /// The data pass it belongs to.
    pub epoch: u64,
    /// The images' places in the data set, as the sampler deals them.
    pub indices: Vec<usize>,
    /// `[view][image]` rows of `[size, size, 3]`: row `i` and row `n + i` show the same image.
    pub images: Vec<f32>,
    /// Corrupt images that were met for the first time by this rank.
    pub replaced: Vec<Replaced>,
}

/// The views of one image, and which image it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Views {
    /// The image that is shown: another one than asked for if that is corrupt.
    pub index: usize,
    /// Both views, `[2, size, size, 3]`.
    pub images: Vec<f32>,
}

/// Delivers a rank's batches in the order of the steps.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    dataset: Arc<Dataset>,
    augmentation: Augmentation,
    options: LoaderOptions,
    sampler: Sampler,
    known: KnownCorrupt,
    /// Images of a unit of work.
    unit: usize,
    state: Mutex<State>,
    /// There may be work, or the loader closes.
    work: Condvar,
    /// The first batch may be complete.
    ready: Condvar,
}

struct State {
    /// Batches of consecutive steps; the front is delivered next.
    batches: VecDeque<Unfinished>,
    next_step: u64,
    /// Buffers that came back from the consumer.
    spare: Vec<Vec<f32>>,
    closing: bool,
}

struct Unfinished {
    batch: Batch,
    /// Images that were handed to threads, and images that came back.
    begun: usize,
    done: usize,
    failure: Option<Error>,
}

/// Some images of one batch.
struct Unit {
    step: u64,
    epoch: u64,
    /// Their places in the batch.
    rows: Range<usize>,
    indices: Vec<usize>,
}

impl Loader {
    /// Starts the threads.
    ///
    /// # Errors
    /// If a global batch needs more images than there are, or no thread can be started.
    ///
    /// # Panics
    /// If `threads`, `prefetch`, `world_size` or `global_batch` is 0, or `rank` is no rank.
    pub fn new(
        dataset: Arc<Dataset>,
        augmentation: Augmentation,
        options: LoaderOptions,
    ) -> Result<Loader, Error> {
        let LoaderOptions { global_batch, rank, world_size, threads, prefetch, .. } = options;
        assert!(threads > 0 && prefetch > 0 && global_batch > 0, "{options:?}");
        assert!(rank < world_size, "rank {rank} of {world_size}");
        if global_batch > dataset.len() {
            return Err(Error::BatchTooLarge { global_batch, len: dataset.len() });
        }
        let shared = Arc::new(Shared {
            sampler: Sampler { seed: options.seed, len: dataset.len() },
            known: KnownCorrupt::new(options.max_corrupt_share),
            // About a millisecond of work: 16 images of CIFAR, one of ImageNet.
            unit: (16 * 32 * 32 / (augmentation.size * augmentation.size).max(1)).clamp(1, 16),
            state: Mutex::new(State {
                batches: VecDeque::new(),
                next_step: options.start_step,
                spare: Vec::new(),
                closing: false,
            }),
            work: Condvar::new(),
            ready: Condvar::new(),
            dataset,
            augmentation,
            options,
        });
        let mut loader = Loader { shared, threads: Vec::with_capacity(threads) };
        for number in 0..threads {
            let shared = Arc::clone(&loader.shared);
            let thread =
                std::thread::Builder::new().name(format!("data-{number}")).spawn(move || shared.prepare());
            loader.threads.push(thread.map_err(Error::Thread)?);
        }
        Ok(loader)
    }

    /// Waits for the batch of the next step.
    ///
    /// # Errors
    /// Why it cannot be prepared. That step is lost; a further call would go on with the one after it.
    pub fn next_batch(&mut self) -> Result<Batch, Error> {
        let mut state = self.shared.lock();
        loop {
            if let Some(first) = state.batches.pop_front_if(|first| first.done == first.batch.indices.len()) {
                drop(state);
                self.shared.work.notify_all();
                return first.failure.map_or(Ok(first.batch), Err);
            }
            state = self.shared.ready.wait(state).expect(NO_PANIC);
        }
    }

    /// Takes a batch's memory back for a later one.
    pub fn recycle(&mut self, batch: Batch) {
        self.shared.lock().spare.push(batch.images);
    }

    /// Counts the corrupt images that this rank has met.
    pub fn corrupt_count(&self) -> usize {
        self.shared.known.count()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // Its panics are caught and delivered with the batch; beyond that there is nothing to report to.
            drop(thread.join());
        }
    }
}

/// Makes the views of one image exactly as training does.
///
/// # Errors
/// Why neither it nor a replacement can be decoded.
pub fn views_of(
    dataset: &Dataset,
    augmentation: &Augmentation,
    decoding: Decoding,
    (seed, epoch, index): (u64, u64, usize),
) -> Result<Views, Error> {
    let known = KnownCorrupt::new(1.0);
    let mut images = vec![0.0; 2 * augmentation.view_len()];
    let load = |candidate| load(dataset, augmentation, decoding, (candidate, (seed, epoch, index)));
    let Shown { index: shown, decoded } =
        decode_or_replace(dataset, &known, (seed, epoch, index), &mut Vec::new(), &load)?;
    let mut scratch = Scratch::default();
    let views = images.chunks_exact_mut(augmentation.view_len());
    render(augmentation, &decoded, (seed, epoch, index), &mut scratch, views);
    Ok(Views { index: shown, images })
}

/// Decodes the image `candidate` for the views of `key`, of which it may be the replacement.
fn load(
    dataset: &Dataset,
    augmentation: &Augmentation,
    decoding: Decoding,
    (candidate, key): (usize, (u64, u64, usize)),
) -> Result<Decoded, Error> {
    match decoding {
        Decoding::Full => dataset.load(candidate).map(Decoded::full),
        Decoding::Scaled => {
            load_reduced(dataset, candidate, |dimensions| augmentation.reduction(dimensions, key))
        }
    }
}

fn render<'a>(
    augmentation: &Augmentation,
    Decoded { image, dimensions, reduction }: &Decoded,
    (seed, epoch, index): (u64, u64, usize),
    scratch: &mut Scratch,
    views: impl Iterator<Item = &'a mut [f32]>,
) {
    for (view, out) in views.enumerate() {
        let key = ViewKey { seed, epoch, index, view: view as u8 };
        let reduced = Reduced { image, dimensions: *dimensions, reduction: *reduction };
        augmentation.render_reduced(reduced, key, scratch, out);
    }
}

const NO_PANIC: &str = "nothing panics while the loader's lock is held";

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }

    /// What a thread does until the loader closes.
    fn prepare(&self) {
        let mut scratch = Scratch::default();
        let mut views = Vec::new();
        while let Some(unit) = self.next_unit() {
            let prepared =
                catch_unwind(AssertUnwindSafe(|| self.make_views(&unit, &mut scratch, &mut views)));
            let outcome = prepared.unwrap_or_else(|payload| {
                Err(Error::Panicked { step: unit.step, message: panic_message(&*payload) })
            });
            self.deliver(&unit, &views, outcome);
        }
    }

    /// Waits for work. None when the loader closes.
    fn next_unit(&self) -> Option<Unit> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            if let Some(unit) =
                state.batches.iter_mut().find_map(|unfinished| unfinished.begin_unit(self.unit))
            {
                return Some(unit);
            }
            if state.batches.len() < self.options.prefetch {
                self.begin_batch(&mut state);
            } else {
                state = self.work.wait(state).expect(NO_PANIC);
            }
        }
    }

    fn begin_batch(&self, state: &mut State) {
        let LoaderOptions { global_batch, rank, world_size, .. } = self.options;
        let step = state.next_step;
        let (epoch, indices) = self.sampler.local_batch(step, global_batch, rank, world_size);
        let mut images = state.spare.pop().unwrap_or_default();
        images.resize(2 * indices.len() * self.augmentation.view_len(), 0.0);
        if indices.is_empty() {
            // A rank beyond the batch's rows: complete at once.
            self.ready.notify_all();
        }
        let batch = Batch { step, epoch, indices, images, replaced: Vec::new() };
        state.batches.push_back(Unfinished { batch, begun: 0, done: 0, failure: None });
        state.next_step += 1;
        self.work.notify_all();
    }

    /// Makes `[view][image]` rows of a unit.
    fn make_views(
        &self,
        unit: &Unit,
        scratch: &mut Scratch,
        views: &mut Vec<f32>,
    ) -> Result<Vec<Replaced>, Error> {
        let mut met = Vec::new();
        let len = self.augmentation.view_len();
        views.resize(2 * unit.indices.len() * len, 0.0);
        let (first, second) = views.split_at_mut(unit.indices.len() * len);
        let rows = first.chunks_exact_mut(len).zip(second.chunks_exact_mut(len));
        for (&index, (first, second)) in unit.indices.iter().zip(rows) {
            let key = (self.options.seed, unit.epoch, index);
            let load =
                |candidate| load(&self.dataset, &self.augmentation, self.options.decoding, (candidate, key));
            let Shown { decoded, .. } = decode_or_replace(&self.dataset, &self.known, key, &mut met, &load)?;
            render(&self.augmentation, &decoded, key, scratch, [first, second].into_iter());
        }
        Ok(met)
    }

    fn deliver(&self, unit: &Unit, views: &[f32], outcome: Result<Vec<Replaced>, Error>) {
        let mut state = self.lock();
        let first_step = state.batches.front().map_or(unit.step, |first| first.batch.step);
        // A batch is delivered only when all its units are, so this one is still there.
        let Unfinished { batch, done, failure, .. } = &mut state.batches[(unit.step - first_step) as usize];
        match outcome {
            Ok(met) => {
                let len = self.augmentation.view_len();
                let (first, second) = batch.images.split_at_mut(batch.indices.len() * len);
                let (new_first, new_second) = views.split_at(unit.indices.len() * len);
                let place = unit.rows.start * len..unit.rows.end * len;
                first[place.clone()].copy_from_slice(new_first);
                second[place].copy_from_slice(new_second);
                batch.replaced.extend(met);
            }
            Err(error) => *failure = failure.take().or(Some(error)),
        }
        *done += unit.indices.len();
        if *done == batch.indices.len() {
            self.ready.notify_all();
        }
    }
}

impl Unfinished {
    fn begin_unit(&mut self, n_images: usize) -> Option<Unit> {
        let Batch { step, epoch, indices, .. } = &self.batch;
        let rows = self.begun..(self.begun + n_images).min(indices.len());
        if rows.is_empty() {
            return None;
        }
        self.begun = rows.end;
        Some(Unit { step: *step, epoch: *epoch, indices: indices[rows.clone()].to_vec(), rows })
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text =
        payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref().copied());
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests;
