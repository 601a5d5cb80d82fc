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

use crate::augment::{Augmentation, Scratch};
use crate::parts::{self, Parts};
use crate::replace::{KnownCorrupt, Replaced, Shown, decode_or_replace};
use crate::sampler::chunk_ranges;
use crate::{Dataset, EpochOrigin, Error, Sampler};

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
    /// Where epochs are counted from.
    pub origin: EpochOrigin,
    /// Threads that prepare batches, at least 1.
    pub threads: usize,
    /// Batches that are prepared ahead, at least 1. Each takes the memory of a rank's views.
    pub prefetch: usize,
    /// The share of the data set that may turn out corrupt before the run fails: see [`tolerates`](crate::tolerates).
    pub max_corrupt_share: f64,
    /// What is made of each image.
    pub parts: Parts,
    /// Whether batches carry classes.
    pub labels: bool,
    /// Images of a pass over all ranks, 0 for the whole batch: see [`chunk_ranges`].
    pub chunk: usize,
}

/// What one rank encodes in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The step, counted from 0 over all epochs.
    pub step: u64,
    /// The data pass it belongs to.
    pub epoch: u64,
    /// How many of this rank's images each chunk has; without chunks one number. They come in this order.
    pub chunks: Vec<usize>,
    /// The images' places in the global batch, ascending.
    pub positions: Vec<usize>,
    /// The images' places in the data set, as the sampler deals them.
    pub indices: Vec<usize>,
    /// The class of what is shown of each image, if asked for.
    pub labels: Vec<u32>,
    /// `[chunk][view][image of the chunk]` rows of `[size, size, 3]`. Without chunks that is `[view][image]`: row `i`
    /// and row `n + i` show the same image. [`Batch::row`] tells the row of any.
    pub images: Vec<f32>,
    /// `[image][patch]` rows of `[patch, patch, 3]`, nine an image, if asked for: a chunk's are consecutive as well.
    pub jigsaw: Vec<f32>,
    /// Corrupt images that were met for the first time by this rank.
    pub replaced: Vec<Replaced>,
}

impl Batch {
    /// Tells the row of `images` that shows view `view` (of `views`) of this rank's image `image`.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn row(&self, views: usize, view: usize, image: usize) -> usize {
        let mut first = 0;
        for &len in &self.chunks {
            if image < first + len {
                return views * first + view * len + (image - first);
            }
            first += len;
        }
        panic!("image {image} of {first}");
    }
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
    /// Buffers of views and of patches that came back from the consumer.
    spare: Vec<(Vec<f32>, Vec<f32>)>,
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

/// A thread's buffer: what it has made of a unit's images.
#[derive(Default)]
struct Made {
    /// Which image is shown for each.
    shown: Vec<usize>,
    /// `[image][view]` rows.
    views: Vec<f32>,
    /// `[image][patch]` rows.
    jigsaw: Vec<f32>,
}

impl Loader {
    /// Starts the threads.
    ///
    /// # Errors
    /// If a global batch needs more images than there are, there are no classes to give, or no thread can be started.
    ///
    /// # Panics
    /// If `threads`, `prefetch`, `world_size` or `global_batch` is 0, `rank` is no rank, or the views are not 1 or 2.
    pub fn new(
        dataset: Arc<Dataset>,
        augmentation: Augmentation,
        options: LoaderOptions,
    ) -> Result<Loader, Error> {
        let LoaderOptions { global_batch, rank, world_size, threads, prefetch, .. } = options;
        assert!(threads > 0 && prefetch > 0 && global_batch > 0, "{options:?}");
        assert!(rank < world_size, "rank {rank} of {world_size}");
        assert!((1..=2).contains(&options.parts.views), "{} views", options.parts.views);
        if options.labels && !dataset.has_labels() {
            return Err(Error::NoLabels { origin: dataset.origin().to_owned() });
        }
        if global_batch > dataset.len() {
            return Err(Error::BatchTooLarge { global_batch, len: dataset.len() });
        }
        let shared = Arc::new(Shared {
            sampler: Sampler { seed: options.seed, len: dataset.len(), origin: options.origin },
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
        self.shared.lock().spare.push((batch.images, batch.jigsaw));
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

const NO_PANIC: &str = "nothing panics while the loader's lock is held";

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }

    /// What a thread does until the loader closes.
    fn prepare(&self) {
        let mut scratch = Scratch::default();
        let mut made = Made::default();
        while let Some(unit) = self.next_unit() {
            let prepared = catch_unwind(AssertUnwindSafe(|| self.make(&unit, &mut scratch, &mut made)));
            let outcome = prepared.unwrap_or_else(|payload| {
                Err(Error::Panicked { step: unit.step, message: panic_message(&*payload) })
            });
            self.deliver(&unit, &made, outcome);
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
        let LoaderOptions { global_batch, rank, world_size, chunk, ref parts, .. } = self.options;
        let step = state.next_step;
        let ranges = chunk_ranges(global_batch, chunk, rank, world_size);
        let chunks = ranges.iter().map(ExactSizeIterator::len).collect();
        let positions: Vec<usize> = ranges.into_iter().flatten().collect();
        let (epoch, indices) = self.sampler.batch(step, global_batch, &positions);
        let (mut images, mut jigsaw) = state.spare.pop().unwrap_or_default();
        images.resize(parts.views * indices.len() * self.augmentation.view_len(), 0.0);
        jigsaw.resize(indices.len() * parts.jigsaw_len(), 0.0);
        if indices.is_empty() {
            // A rank beyond the batch's rows: complete at once.
            self.ready.notify_all();
        }
        let labels = vec![0; if self.options.labels { indices.len() } else { 0 }];
        let batch =
            Batch { step, epoch, chunks, positions, indices, labels, images, jigsaw, replaced: Vec::new() };
        state.batches.push_back(Unfinished { batch, begun: 0, done: 0, failure: None });
        state.next_step += 1;
        self.work.notify_all();
    }

    /// Makes all parts of a unit's images.
    fn make(&self, unit: &Unit, scratch: &mut Scratch, made: &mut Made) -> Result<Vec<Replaced>, Error> {
        let LoaderOptions { seed, ref parts, .. } = self.options;
        let (views_len, jigsaw_len) = (parts.views * self.augmentation.view_len(), parts.jigsaw_len());
        let mut met = Vec::new();
        made.shown.clear();
        made.views.resize(unit.indices.len() * views_len, 0.0);
        made.jigsaw.resize(unit.indices.len() * jigsaw_len, 0.0);
        for (i, &index) in unit.indices.iter().enumerate() {
            let key = (seed, unit.epoch, index);
            let Shown { index, image } = decode_or_replace(&self.dataset, &self.known, key, &mut met)?;
            let views = &mut made.views[i * views_len..(i + 1) * views_len];
            let jigsaw = &mut made.jigsaw[i * jigsaw_len..(i + 1) * jigsaw_len];
            parts::render(&self.augmentation, parts, (&image, key), scratch, (views, jigsaw));
            made.shown.push(index);
        }
        Ok(met)
    }

    fn deliver(&self, unit: &Unit, made: &Made, outcome: Result<Vec<Replaced>, Error>) {
        let mut state = self.lock();
        let first_step = state.batches.front().map_or(unit.step, |first| first.batch.step);
        // A batch is delivered only when all its units are, so this one is still there.
        let Unfinished { batch, done, failure, .. } = &mut state.batches[(unit.step - first_step) as usize];
        match outcome {
            Ok(met) => {
                self.place(unit, made, batch);
                batch.replaced.extend(met);
            }
            Err(error) => *failure = failure.take().or(Some(error)),
        }
        *done += unit.indices.len();
        if *done == batch.indices.len() {
            self.ready.notify_all();
        }
    }

    /// Copies a unit's parts to their rows.
    fn place(&self, unit: &Unit, made: &Made, batch: &mut Batch) {
        let LoaderOptions { ref parts, labels, .. } = self.options;
        let len = self.augmentation.view_len();
        let mut views = made.views.chunks_exact(len);
        for image in unit.rows.clone() {
            for (view, new) in views.by_ref().take(parts.views).enumerate() {
                let row = batch.row(parts.views, view, image);
                batch.images[row * len..][..len].copy_from_slice(new);
            }
        }
        let jigsaw_len = parts.jigsaw_len();
        batch.jigsaw[unit.rows.start * jigsaw_len..unit.rows.end * jigsaw_len].copy_from_slice(&made.jigsaw);
        if labels {
            for (label, &shown) in batch.labels[unit.rows.clone()].iter_mut().zip(&made.shown) {
                *label = self.dataset.label_of(shown);
            }
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
