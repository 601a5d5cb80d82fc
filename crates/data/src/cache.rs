//! Decoded images kept in memory, where the whole set is small enough for that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::Image;

/// What a data set may keep per process. CIFAR takes 0.2 GB of it; ImageNet is not kept at all.
const BUDGET_BYTES: usize = 1 << 30;

/// One slot per image, filled when it is first decoded.
pub struct Cache {
    slots: Vec<OnceLock<Arc<Image>>>,
    used_bytes: AtomicUsize,
}

impl Cache {
    pub fn new(len: usize) -> Cache {
        Cache { slots: (0..len).map(|_| OnceLock::new()).collect(), used_bytes: AtomicUsize::new(0) }
    }

    pub fn get(&self, index: usize) -> Option<Arc<Image>> {
        self.slots[index].get().map(Arc::clone)
    }

    /// Keeps `image` if a whole set of its size fits the budget: keeping a part of a larger set would cost
    /// the memory and save little of the decoding.
    pub fn offer(&self, index: usize, image: &Arc<Image>) {
        let image_bytes = image.rgb.len();
        if image_bytes.saturating_mul(self.slots.len()) > BUDGET_BYTES {
            return;
        }
        // Sizes within a set differ, so the sum is bounded as well.
        if self.used_bytes.fetch_add(image_bytes, Ordering::Relaxed) + image_bytes > BUDGET_BYTES
            || self.slots[index].set(Arc::clone(image)).is_err()
        {
            self.used_bytes.fetch_sub(image_bytes, Ordering::Relaxed);
        }
    }
}
