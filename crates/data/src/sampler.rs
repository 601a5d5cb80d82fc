//! Which image is seen when.

use std::ops::Range;

use crate::random::{Draws, Purpose};

/// The order of the images in every epoch: a pseudo-random permutation that is never stored.
///
/// A Feistel network over the smallest power of four that covers the set, walked until it lands inside the
/// set, permutes it exactly; any position of any epoch costs the same, so a run resumes anywhere at once.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// The run's seed.
    pub seed: u64,
    /// Images in the data set.
    pub len: usize,
    /// Where epochs are counted from.
    pub origin: EpochOrigin,
}

/// The step at which an epoch began whose beginning is no multiple of today's steps per epoch: the number of images has
/// changed then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochOrigin {
    /// Updates that were complete.
    pub step: u64,
    /// The epoch that began.
    pub epoch: u64,
}

const ROUNDS: usize = 8;

impl Sampler {
    /// The order of a data set that has had as many images from the beginning.
    pub fn new(seed: u64, len: usize) -> Sampler {
        Sampler { seed, len, origin: EpochOrigin::default() }
    }

    /// Draws `n` different images, or lists all where there are fewer.
    pub(crate) fn sample(&self, n: usize) -> Vec<usize> {
        let permutation = self.permutation(0, Purpose::Fingerprint);
        (0..n.min(self.len)).map(|position| permutation.apply(position)).collect()
    }

    /// Tells which image stands at `position` of `epoch`.
    ///
    /// # Panics
    /// If `position` is not below `len`.
    pub fn index_at(&self, epoch: u64, position: usize) -> usize {
        self.permutation(epoch, Purpose::Order).apply(position)
    }

    /// Lists the images of `epoch` in their order.
    pub fn order(&self, epoch: u64) -> Vec<usize> {
        self.range(epoch, 0..self.len)
    }

    /// Lists the images at `positions` of `epoch`.
    pub fn range(&self, epoch: u64, positions: Range<usize>) -> Vec<usize> {
        let permutation = self.permutation(epoch, Purpose::Order);
        positions.map(|position| permutation.apply(position)).collect()
    }

    /// Counts the steps of an epoch. Images that do not fill a last global batch are left out of that epoch,
    /// whatever the world size.
    pub fn steps_per_epoch(&self, global_batch: usize) -> u64 {
        (self.len / global_batch) as u64
    }

    /// Lists the images of `step` (0-based, counted over all epochs) at `positions` of its global batch, with their
    /// epoch.
    ///
    /// # Panics
    /// If the set is smaller than one global batch.
    pub fn batch(&self, step: u64, global_batch: usize, positions: &[usize]) -> (u64, Vec<usize>) {
        let steps_per_epoch = self.steps_per_epoch(global_batch);
        assert!(steps_per_epoch > 0, "a batch of {global_batch} from {} images", self.len);
        // No step before the origin is made again: what came before it had another number of images.
        let since = step.saturating_sub(self.origin.step);
        let epoch = self.origin.epoch + since / steps_per_epoch;
        let start = (since % steps_per_epoch) as usize * global_batch;
        let permutation = self.permutation(epoch, Purpose::Order);
        (epoch, positions.iter().map(|position| permutation.apply(start + position)).collect())
    }

    fn permutation(&self, epoch: u64, purpose: Purpose) -> Permutation {
        let mut draws = Draws::new(self.seed, epoch, 0, 0, purpose);
        let bits = usize::BITS - self.len.saturating_sub(1).leading_zeros();
        let half_bits = bits.div_ceil(2).max(1);
        Permutation { len: self.len, half_bits, keys: std::array::from_fn(|_| draws.bits32()) }
    }
}

/// Tells which rows of a global batch a rank owns: contiguous, in rank order, uneven by at most one.
pub fn rank_range(global_batch: usize, rank: usize, world_size: usize) -> Range<usize> {
    let start = |rank: usize| rank * (global_batch / world_size) + rank.min(global_batch % world_size);
    start(rank)..start(rank + 1)
}

/// Tells which positions of a global batch a rank encodes, chunk by chunk: of each `chunk` positions (the last chunk may
/// be shorter; 0: all in one) its [`rank_range`]. Chunks are the same whatever the number of ranks.
pub fn chunk_ranges(global_batch: usize, chunk: usize, rank: usize, world_size: usize) -> Vec<Range<usize>> {
    let chunk = if chunk == 0 { global_batch } else { chunk };
    let of_chunk = |start: usize| {
        let local = rank_range(chunk.min(global_batch - start), rank, world_size);
        start + local.start..start + local.end
    };
    (0..global_batch).step_by(chunk).map(of_chunk).collect()
}

struct Permutation {
    len: usize,
    half_bits: u32,
    keys: [u32; ROUNDS],
}

impl Permutation {
    fn apply(&self, position: usize) -> usize {
        assert!(position < self.len, "position {position} of {}", self.len);
        let mut x = position as u64;
        // At most 4 x len numbers are permuted, so that this takes fewer than four rounds on average; it
        // ends because the walk follows a cycle that `position` itself lies on.
        loop {
            x = self.encrypt(x);
            if x < self.len as u64 {
                return x as usize;
            }
        }
    }

    fn encrypt(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for &key in &self.keys {
            (left, right) = (right, left ^ (mix(right, key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64 over half a block and a round key.
fn mix(x: u64, key: u32) -> u64 {
    let mut z = x ^ u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation() {
        for len in [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4096] {
            for epoch in [0, 1, 77] {
                let mut order = Sampler::new(5, len).order(epoch);
                order.sort_unstable();
                assert_eq!(order, (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn positions_seeds_and_epochs_agree_with_the_whole_order() {
        let sampler = Sampler::new(5, 1000);
        let order = sampler.order(3);
        assert!((0..1000).all(|position| sampler.index_at(3, position) == order[position]));
        assert_ne!(order, sampler.order(4));
        assert_ne!(order, Sampler::new(6, 1000).order(3));
    }

    /// Over many epochs every image is equally often first, and equally often the successor of image 0.
    #[test]
    fn orders_are_uniform() {
        #[track_caller]
        fn check(what: &str, counts: &[f64]) {
            let expected = counts.iter().sum::<f64>() / counts.len() as f64;
            let chi_squared: f64 = counts.iter().map(|c| (c - expected).powi(2) / expected).sum();
            // Mean 11 for 11 degrees of freedom; 31 is exceeded once in a thousand seeds.
            assert!(chi_squared < 31.0, "{what}: {counts:?}");
        }
        let sampler = Sampler::new(9, 12);
        let (mut first, mut after_zero) = ([0.0; 12], [0.0; 12]);
        for epoch in 0..12_000 {
            let order = sampler.order(epoch);
            first[order[0]] += 1.0;
            let zero = order.iter().position(|&i| i == 0).expect("a permutation");
            after_zero[order[(zero + 1) % 12]] += 1.0;
        }
        check("first", &first);
        check("after zero", &after_zero[1..]);
    }

    #[test]
    fn ranks_share_a_batch_evenly_in_order() {
        #[track_caller]
        fn check(global_batch: usize, world_size: usize, expected: &[usize]) {
            let ranges: Vec<_> =
                (0..world_size).map(|rank| rank_range(global_batch, rank, world_size)).collect();
            assert_eq!(ranges.iter().map(ExactSizeIterator::len).collect::<Vec<_>>(), expected);
            assert_eq!(
                ranges.into_iter().flatten().collect::<Vec<_>>(),
                (0..global_batch).collect::<Vec<_>>()
            );
        }
        check(8, 1, &[8]);
        check(8, 2, &[4, 4]);
        check(8, 3, &[3, 3, 2]);
        check(2, 4, &[1, 1, 0, 0]);
    }

    #[test]
    fn chunks_are_fixed_and_each_is_shared_out() {
        assert_eq!(chunk_ranges(8, 0, 0, 1), vec![0..8; 1]);
        assert_eq!(chunk_ranges(8, 8, 1, 3), vec![3..6; 1]);
        assert_eq!(chunk_ranges(8, 100, 1, 3), vec![3..6; 1]);
        assert_eq!(chunk_ranges(10, 4, 0, 2), [0..2, 4..6, 8..9]);
        assert_eq!(chunk_ranges(10, 4, 1, 2), [2..4, 6..8, 9..10]);
        assert_eq!(chunk_ranges(5, 2, 2, 3), [2..2, 4..4, 5..5], "a rank may have nothing of a chunk");
        for (global_batch, chunk, world_size) in [(10, 3, 4), (64, 16, 3), (7, 1, 2)] {
            let ranks: Vec<_> =
                (0..world_size).map(|rank| chunk_ranges(global_batch, chunk, rank, world_size)).collect();
            let dealt: Vec<usize> = (0..ranks[0].len())
                .flat_map(|c| ranks.iter().flat_map(move |ranges| ranges[c].clone()))
                .collect();
            assert_eq!(dealt, (0..global_batch).collect::<Vec<_>>());
        }
    }

    /// After ten images at four a batch, one more: the second epoch begins anew with step 3.
    #[test]
    fn an_epoch_of_another_length_begins_at_its_origin() {
        let origin = EpochOrigin { step: 3, epoch: 1 };
        let sampler = Sampler { origin, ..Sampler::new(1, 13) };
        let all = [0, 1, 2, 3];
        let order = |epoch| Sampler::new(1, 13).order(epoch);
        assert_eq!(sampler.batch(3, 4, &all), (1, order(1)[..4].to_vec()));
        assert_eq!(sampler.batch(5, 4, &all), (1, order(1)[8..12].to_vec()));
        assert_eq!(sampler.batch(6, 4, &all), (2, order(2)[..4].to_vec()));
    }

    #[test]
    fn incomplete_batches_are_dropped_globally() {
        let sampler = Sampler::new(1, 10);
        assert_eq!(sampler.steps_per_epoch(4), 2);
        let batches: Vec<_> = (0..3).map(|step| sampler.batch(step, 4, &[0, 1, 2, 3])).collect();
        assert_eq!(batches.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!([&batches[0].1[..], &batches[1].1[..]].concat(), sampler.order(0)[..8]);
        assert_eq!(batches[2].1, sampler.order(1)[..4]);
    }
}
