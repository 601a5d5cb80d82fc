//! Decoded images kept in memory, where the whole set is small enough for that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::Image;

/// The most that a data set keeps per process. CIFAR takes 0.2 GB of it; ImageNet is not kept at all.
const MAX_BYTES: u64 = 1 << 30;

/// The part of the memory that a process may take of which no more is kept: keeping is only a convenience.
const SHARE: u64 = 4;

/// One slot per image, filled when it is first decoded.
pub struct Cache {
    len: usize,
    budget_bytes: usize,
    /// Made for the first image that is kept: a set that is too large takes no memory here.
    slots: OnceLock<Vec<Slot>>,
    used_bytes: AtomicUsize,
}

type Slot = OnceLock<Arc<Image>>;

impl Cache {
    /// Keeps nothing yet, of `len` images and a process that may take `memory_bytes`.
    pub fn new(len: usize, memory_bytes: u64) -> Cache {
        let budget_bytes = MAX_BYTES.min(memory_bytes / SHARE) as usize;
        Cache { len, budget_bytes, slots: OnceLock::new(), used_bytes: AtomicUsize::new(0) }
    }

    pub fn get(&self, index: usize) -> Option<Arc<Image>> {
        self.slots.get()?[index].get().map(Arc::clone)
    }

    /// Keeps `image` if a whole set of its size fits the budget: keeping a part of a larger set would cost
    /// the memory and save little of the decoding.
    pub fn offer(&self, index: usize, image: &Arc<Image>) {
        let image_bytes = image.rgb.len() + size_of::<Image>() + size_of::<Slot>();
        if image_bytes.saturating_mul(self.len) > self.budget_bytes {
            return;
        }
        let slots = self.slots.get_or_init(|| (0..self.len).map(|_| Slot::new()).collect());
        // Sizes within a set differ, so the sum is bounded as well.
        if self.used_bytes.fetch_add(image_bytes, Ordering::Relaxed) + image_bytes > self.budget_bytes
            || slots[index].set(Arc::clone(image)).is_err()
        {
            self.used_bytes.fetch_sub(image_bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::image;

    #[test]
    fn no_more_is_kept_than_a_quarter_of_the_memory() {
        let image = Arc::new(image(10, 10, 1));
        let needed = (300 + size_of::<Image>() + size_of::<Slot>()) as u64;
        for (memory_bytes, kept) in [(SHARE * 2 * needed, true), (SHARE * 2 * needed - 1, false)] {
            let cache = Cache::new(2, memory_bytes);
            cache.offer(1, &image);
            assert_eq!(cache.get(1).is_some(), kept, "{memory_bytes}");
        }
        let cache = Cache::new(MAX_BYTES as usize / needed as usize + 1, u64::MAX);
        cache.offer(0, &image);
        assert!(cache.get(0).is_none(), "more than a gibibyte");
    }
}
