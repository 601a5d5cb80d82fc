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

/// Where in one stretch of memory each buffer lies, in elements per row: multiples of [`ALIGNMENT`].
#[derive(Debug)]
pub(crate) struct Plan {
    /// Where each buffer begins.
    pub offset: Vec<usize>,
    /// Elements per row of the whole.
    pub row_len: usize,
}

/// Buffers begin at a multiple of this, so that in `f32` they begin on a cache line.
const ALIGNMENT: usize = 16;

impl Plan {
    /// Places the largest buffers first, each in the first gap between those alive with it.
    ///
    /// In a residual net, whose sizes fall by powers of two, the result is close to the largest sum of sizes
    /// alive at once, below which nothing fits (a test below bounds the distance).
    pub fn new(lifetimes: &[Lifetime]) -> Self {
        let len = |buffer: usize| lifetimes[buffer].row_len.next_multiple_of(ALIGNMENT);
        let mut order: Vec<usize> = (0..lifetimes.len()).collect();
        order.sort_by_key(|&buffer| (std::cmp::Reverse(len(buffer)), lifetimes[buffer].first));
        let mut plan = Self { offset: vec![0; lifetimes.len()], row_len: 0 };
        let mut placed: Vec<usize> = vec![];
        for buffer in order {
            let mut offset = 0;
            for &other in placed.iter().filter(|&&other| lifetimes[other].overlaps(&lifetimes[buffer])) {
                if offset + len(buffer) <= plan.offset[other] {
                    break;
                }
                offset = offset.max(plan.offset[other] + len(other));
            }
            plan.offset[buffer] = offset;
            plan.row_len = plan.row_len.max(offset + len(buffer));
            placed.insert(placed.partition_point(|&other| plan.offset[other] <= offset), buffer);
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::program::{Passes, Program};
    use crate::models::{self, Arch, BatchNormScope, Head, ModelSpec, Role, Stem};

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
            predictor: None,
            jigsaw: None,
        };
        let lifetimes = Program::new(&models::build(&spec, Role::Trained), Passes::Both).lifetimes;
        let plan = Plan::new(&lifetimes);
        for (i, a) in lifetimes.iter().enumerate() {
            assert!(plan.offset[i] + a.row_len <= plan.row_len);
            assert_eq!(plan.offset[i] % ALIGNMENT, 0);
            for (j, b) in lifetimes.iter().enumerate().skip(i + 1) {
                let (i, j) = (plan.offset[i], plan.offset[j]);
                let apart = i + a.row_len <= j || j + b.row_len <= i;
                assert!(apart || !a.overlaps(b), "{a:?} at {i} and {b:?} at {j} collide");
            }
        }
        let planned = plan.row_len;
        let bound = alive_at_once(&lifetimes);
        let all: usize = lifetimes.iter().map(|lifetime| lifetime.row_len).sum();
        assert!(planned as f64 <= 1.1 * bound as f64, "{planned} against a lower bound of {bound}");
        assert!(planned * 4 < all * 3, "{planned} of {all}");
    }

    #[test]
    fn buffers_alive_together_lie_apart_and_close_to_the_lower_bound() {
        check(Arch::ResNet18, Stem::Cifar, 32);
        check(Arch::ResNet20, Stem::Cifar, 32);
        check(Arch::ResNet34, Stem::Imagenet, 224);
        check(Arch::ResNet50, Stem::Imagenet, 224);
    }
}
