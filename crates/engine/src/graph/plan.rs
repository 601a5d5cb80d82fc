//! Which buffers share memory.

/// When a buffer holds something that is still needed, and how large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// Elements per row (image).
    pub row_len: usize,
    /// First step that touches it.
    pub first: usize,
    /// Last step that touches it.
    pub last: usize,
}

impl Lifetime {
    fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// An assignment of buffers to slots of memory.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The slot of each buffer.
    pub slot_of: Vec<usize>,
    /// Elements per row of each slot.
    pub slot_row_len: Vec<usize>,
}

impl Plan {
    /// Places the largest buffers first, each in the tightest slot that is free throughout its life.
    ///
    /// With sizes falling a slot never grows, and in a residual net, whose sizes fall by powers of two, the
    /// result stays close to the largest sum of sizes alive at once (a test below bounds it).
    pub fn new(lifetimes: &[Lifetime]) -> Self {
        let mut order: Vec<usize> = (0..lifetimes.len()).collect();
        order.sort_by_key(|&buffer| (std::cmp::Reverse(lifetimes[buffer].row_len), lifetimes[buffer].first));
        let mut plan = Self { slot_of: vec![usize::MAX; lifetimes.len()], slot_row_len: vec![] };
        let mut tenants: Vec<Vec<usize>> = vec![];
        for buffer in order {
            let free = |slot: &usize| {
                tenants[*slot].iter().all(|&tenant| !lifetimes[tenant].overlaps(&lifetimes[buffer]))
            };
            let tightest = (0..tenants.len()).filter(free).min_by_key(|&slot| plan.slot_row_len[slot]);
            let slot = tightest.unwrap_or_else(|| {
                plan.slot_row_len.push(lifetimes[buffer].row_len);
                tenants.push(vec![]);
                tenants.len() - 1
            });
            tenants[slot].push(buffer);
            plan.slot_of[buffer] = slot;
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::program::Program;
    use crate::models::{self, Arch, BatchNormScope, Head, ModelSpec, Stem};

    fn alive_at_once(lifetimes: &[Lifetime]) -> usize {
        let end = lifetimes.iter().map(|lifetime| lifetime.last).max().unwrap();
        let alive = |time| lifetimes.iter().filter(move |l| l.first <= time && time <= l.last);
        (0..=end).map(|time| alive(time).map(|l| l.row_len).sum()).max().unwrap()
    }

    #[track_caller]
    fn check(arch: Arch, stem: Stem, image_size: usize) {
        let spec = ModelSpec {
            arch,
            stem,
            head: Head::SimclrV2,
            batch_norm: BatchNormScope::Global,
            image_size,
            zero_init_residual: true,
        };
        let lifetimes = Program::new(&models::build(&spec)).lifetimes;
        let plan = Plan::new(&lifetimes);
        for (i, a) in lifetimes.iter().enumerate() {
            assert!(plan.slot_row_len[plan.slot_of[i]] >= a.row_len);
            for (j, b) in lifetimes.iter().enumerate().skip(i + 1) {
                assert!(plan.slot_of[i] != plan.slot_of[j] || !a.overlaps(b), "{i} and {j} collide");
            }
        }
        let planned: usize = plan.slot_row_len.iter().sum();
        let bound = alive_at_once(&lifetimes);
        let all: usize = lifetimes.iter().map(|lifetime| lifetime.row_len).sum();
        assert!(planned as f64 <= 1.1 * bound as f64, "{planned} against a lower bound of {bound}");
        assert!(planned * 2 < all, "{planned} of {all}");
    }

    #[test]
    fn slots_are_disjoint_in_time_and_close_to_the_lower_bound() {
        check(Arch::ResNet18, Stem::Cifar, 32);
        check(Arch::ResNet20, Stem::Cifar, 32);
        check(Arch::ResNet34, Stem::Imagenet, 224);
        check(Arch::ResNet50, Stem::Imagenet, 224);
    }
}
