//! Queries against slots that are drawn for each of them, scored by the rank that owns the slots.
//!
//! Which slots an image is compared with is a function of (seed, step, position in the global batch), so that any rank
//! can draw them and every world size draws the same. A rank goes through the draws of all images and scores those that
//! fall into its shard: rows are copied, `CHUNK` of them, into a buffer that stays in the nearest cache, compared with the
//! image's queries, weighed, and added up. `[images, K, width]` exists nowhere.

use std::ops::Range;

use kernels::{ChannelPass, Device, KernelPath, Real, vectorized};

use crate::candidates::{Queries, Sums};
use crate::draws::{Draws, Purpose};
use crate::shard::Shard;
use crate::weigh::{Estimator, FACTORS, weigh_rows};

/// Slots that are scored at a time: 32 KiB of rows of 128.
const CHUNK: usize = 64;

/// How negatives are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The run's.
    pub seed: u64,
    /// The update being made.
    pub step: u64,
    /// Negatives of an image.
    pub count: usize,
    /// Slots that there are.
    pub slots: usize,
    /// Whether an image's own slot is never drawn; else it is drawn as often as any other.
    pub exclude_positive: bool,
}

impl Draw {
    /// The negatives of an image that has this position in the global batch, and its own slot, in the order of the draw.
    pub fn of_image(self, position: usize, own_slot: usize) -> impl Iterator<Item = usize> {
        let draws = Draws::new(self.seed, Purpose::Negatives, [self.step, position as u64]);
        let others = self.slots - usize::from(self.exclude_positive);
        (0..self.count as u64).map(move |place| {
            let slot = draws.below(place, others);
            slot + usize::from(self.exclude_positive && slot >= own_slot)
        })
    }
}

/// How old the slots were that were read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Ages {
    pub(crate) reads: f64,
    pub(crate) sum: f64,
    pub(crate) max: f64,
}

impl Ages {
    pub(crate) fn add(&mut self, age: u64) {
        self.reads += 1.0;
        self.sum += age as f64;
        self.max = self.max.max(age as f64);
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self { reads: self.reads + other.reads, sum: self.sum + other.sum, max: self.max.max(other.max) }
    }
}

/// Position and own slot of the images of the global batch, in rank order.
pub(crate) type Image = (usize, usize);

/// Sums of one image's queries, which are written by one thread.
struct Part<'a, T> {
    first_query: usize,
    image: Image,
    exps: &'a mut [f64],
    logs: &'a mut [f64],
    weighted: &'a mut [T],
    ages: &'a mut Ages,
}

impl<T: Real> Queries<'_, T> {
    /// Weighs the drawn slots that are in `shard`; an image's queries follow one another.
    pub(crate) fn against_drawn(
        &self,
        device: &Device,
        draw: Draw,
        images: &[Image],
        shard: &Shard,
    ) -> (Sums<T>, Ages) {
        let per_image = self.len() / images.len();
        let mut sums = Sums::zero(self.len(), self.width);
        let mut ages = vec![Ages::default(); images.len()];
        let parts = images
            .iter()
            .zip(sums.exps.chunks_exact_mut(per_image).zip(sums.logs.chunks_exact_mut(per_image)))
            .zip(sums.weighted.chunks_exact_mut(per_image * self.width).zip(&mut ages))
            .enumerate()
            .map(|(i, ((&image, (exps, logs)), (weighted, ages)))| {
                let first_query = i * per_image;
                Part { first_query, image, exps, logs, weighted, ages }
            });
        // One image's work is some microseconds, so that each thread is given its images in one piece.
        let mut parts: Vec<_> = parts.collect();
        let width = self.width;
        device.cpu().pool.for_each_rows(&mut parts, 1, |_, parts| {
            let mut rows = vec![T::ZERO; CHUNK * width];
            for part in parts {
                self.score_image(device.cpu().path, draw, shard, part, &mut rows);
            }
        });
        drop(parts);
        (sums, ages.into_iter().fold(Ages::default(), Ages::plus))
    }

    fn score_image(
        &self,
        path: KernelPath,
        draw: Draw,
        shard: &Shard,
        part: &mut Part<'_, T>,
        rows: &mut [T],
    ) {
        let own: Range<usize> = shard.slots();
        let (position, own_slot) = part.image;
        let mut slots = [0; CHUNK];
        let mut n = 0;
        for slot in draw.of_image(position, own_slot) {
            slots[n] = slot;
            // Advances without a branch, which nothing could predict.
            n += usize::from(own.contains(&slot));
            if n == CHUNK {
                self.score_chunk(path, draw.step, shard, &slots, part, rows);
                n = 0;
            }
        }
        if n > 0 {
            self.score_chunk(path, draw.step, shard, &slots[..n], part, rows);
        }
    }

    fn score_chunk(
        &self,
        path: KernelPath,
        step: u64,
        shard: &Shard,
        slots: &[usize],
        part: &mut Part<'_, T>,
        rows: &mut [T],
    ) {
        let width = self.width;
        let rows = &mut rows[..slots.len() * width];
        // All on their way at once: one after the other, each copy would wait for its row.
        slots.iter().for_each(|&slot| shard.prefetch(slot));
        for (&slot, row) in slots.iter().zip(rows.chunks_exact_mut(width)) {
            shard.read(slot..slot + 1, row);
            part.ages.add(step - u64::from(shard.written(slot)));
        }
        let mut weights = [T::ZERO; CHUNK];
        let weights = &mut weights[..slots.len()];
        for (i, weighted) in part.weighted.chunks_exact_mut(width).enumerate() {
            let query = part.first_query + i;
            dots(path, rows, &self.rows[query * width..(query + 1) * width], weights);
            let (shifts, mut exps, mut products) =
                ([self.shifts[query]; CHUNK], [T::ZERO; CHUNK], [1.0; CHUNK]);
            let nce = self.estimator == Estimator::Nce;
            let factors = nce.then_some(&mut products[..slots.len()]);
            weigh_rows(path, self.scale, &shifts[..slots.len()], weights, &mut exps[..slots.len()], factors);
            if nce {
                let logs = products.as_chunks::<FACTORS>().0.iter();
                part.logs[i] += logs.map(|factors| factors.iter().product::<f64>().ln()).sum::<f64>();
            }
            part.exps[i] += exps.iter().map(|e| e.to_f64()).sum::<f64>();
            add_weighted(path, rows, weights, weighted);
        }
    }
}

/// `out_i = rows_i . query`.
fn dots<T: Real>(path: KernelPath, rows: &[T], query: &[T], out: &mut [T]) {
    if path != KernelPath::Reference
        && let (Some(rows), Some(query), Some(out)) = (T::as_f32(rows), T::as_f32(query), T::as_f32_mut(out))
    {
        return vectorized(path, query.len(), Dots { rows, query, out });
    }
    for (out, row) in out.iter_mut().zip(rows.chunks_exact(query.len())) {
        *out = row.iter().zip(query).fold(T::ZERO, |sum, (&a, &b)| sum + a * b);
    }
}

/// Adds `sum_i weights_i rows_i` to `sums`.
fn add_weighted<T: Real>(path: KernelPath, rows: &[T], weights: &[T], sums: &mut [T]) {
    if path != KernelPath::Reference
        && let (Some(rows), Some(weights), Some(sums)) =
            (T::as_f32(rows), T::as_f32(weights), T::as_f32_mut(sums))
    {
        return vectorized(path, sums.len(), AddWeighted { rows, weights, sums });
    }
    for (row, &weight) in rows.chunks_exact(sums.len()).zip(weights) {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += weight * value);
    }
}

struct Dots<'a> {
    rows: &'a [f32],
    query: &'a [f32],
    out: &'a mut [f32],
}

impl ChannelPass for Dots<'_> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let query = self.query.as_chunks::<LANES>().0;
        for (out, row) in self.out.iter_mut().zip(self.rows.chunks_exact(self.query.len())) {
            let mut lanes = [0f32; LANES];
            for (row, query) in row.as_chunks::<LANES>().0.iter().zip(query) {
                for ((lane, a), b) in lanes.iter_mut().zip(row).zip(query) {
                    *lane += a * b;
                }
            }
            *out = lanes.into_iter().sum();
        }
    }
}

struct AddWeighted<'a> {
    rows: &'a [f32],
    weights: &'a [f32],
    sums: &'a mut [f32],
}

impl ChannelPass for AddWeighted<'_> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let width = self.sums.len();
        for (place, sums) in self.sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut lanes = *sums;
            for (row, weight) in self.rows.chunks_exact(width).zip(self.weights) {
                for (lane, value) in lanes.iter_mut().zip(&row.as_chunks::<LANES>().0[place]) {
                    *lane += weight * value;
                }
            }
            *sums = lanes;
        }
    }
}
