//! Buffers that begin on a cache line.

#![expect(
    unsafe_code,
    reason = "tells bytemuck that a line is plain bytes, and the system which pages to make large"
)]

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

/// One cache line, so that a `Vec` of them is aligned like one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: plain bytes, and all zeros are a value.
unsafe impl Zeroable for Line {}
// SAFETY: size and alignment are both 64, so there is no padding; every bit pattern is a value.
unsafe impl Pod for Line {}

/// A zero-initialised buffer of numbers whose first byte lies on a 64-byte boundary.
///
/// Vector loads of an aligned panel then never straddle two cache lines.
#[derive(Clone)]
pub struct AlignedVec<T> {
    lines: Vec<Line>,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Pod> AlignedVec<T> {
    /// Allocates `len` zeros and touches every page, so that the first step pays no page faults.
    pub fn zeroed(len: usize) -> Self {
        let count = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        let mut lines = Vec::with_capacity(count);
        ask_for_huge_pages(lines.spare_capacity_mut());
        lines.resize(count, Line::zeroed());
        Self { lines, len, element: std::marker::PhantomData }
    }

    /// Bytes a buffer of `len` elements takes.
    pub fn bytes(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(size_of::<Line>())
    }
}

/// Asks the system for huge pages wherever they fit, for fewer misses of the address cache; it may decline.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(memory: &mut [MaybeUninit<Line>]) {
    use std::ptr::NonNull;

    use nix::sys::mman::{MmapAdvise, madvise};

    const HUGE_PAGE: usize = 2 << 20;
    let range = memory.as_mut_ptr_range();
    let start = range.start.addr().next_multiple_of(HUGE_PAGE);
    let len = (range.end.addr() & !(HUGE_PAGE - 1)).saturating_sub(start);
    let Some(start) = NonNull::new(range.start.with_addr(start)).filter(|_| len > 0) else { return };
    // SAFETY: the pages lie within `memory`, and the advice changes none of their contents.
    let _declined = unsafe { madvise(start.cast(), len, MmapAdvise::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_memory: &mut [MaybeUninit<Line>]) {}

impl<T> fmt::Debug for AlignedVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedVec").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T: Pod> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::AlignedVec;

    #[test]
    fn begins_on_a_cache_line_and_holds_zeros() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let buffer = AlignedVec::<f32>::zeroed(len);
            assert_eq!(buffer.as_ptr().addr() % 64, 0);
            assert_eq!(&buffer[..], vec![0.0; len]);
            assert_eq!(AlignedVec::<f32>::bytes(len), len.div_ceil(16) * 64);
        }
    }
}
