//! Decoded images kept in memory, where the whole set is small enough for that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::Image;

/// What a data set may keep per process. CIFAR takes 0.2 GB of it; ImageNet is not kept at all.
const BUDGET_BYTES: usize = 1 << 30;

/// One slot per image, filled when it is first decoded.
pub struct Cache {
    len: usize,
    /// Made for the first image that is kept: a set that is too large takes no memory here.
    slots: OnceLock<Vec<Slot>>,
    used_bytes: AtomicUsize,
}

type Slot = OnceLock<Arc<Image>>;

impl Cache {
    pub fn new(len: usize) -> Cache {
        Cache { len, slots: OnceLock::new(), used_bytes: AtomicUsize::new(0) }
    }

    pub fn get(&self, index: usize) -> Option<Arc<Image>> {
        self.slots.get()?[index].get().map(Arc::clone)
    }

    /// Keeps `image` if a whole set of its size fits the budget: keeping a part of a larger set would cost
    /// the memory and save little of the decoding.
    pub fn offer(&self, index: usize, image: &Arc<Image>) {
        let image_bytes = image.rgb.len() + size_of::<Image>() + size_of::<Slot>();
        if image_bytes.saturating_mul(self.len) > BUDGET_BYTES {
            return;
        }
        let slots = self.slots.get_or_init(|| (0..self.len).map(|_| Slot::new()).collect());
        // Sizes within a set differ, so the sum is bounded as well.
        if self.used_bytes.fetch_add(image_bytes, Ordering::Relaxed) + image_bytes > BUDGET_BYTES
            || slots[index].set(Arc::clone(image)).is_err()
        {
            self.used_bytes.fetch_sub(image_bytes, Ordering::Relaxed);
        }
    }
}
