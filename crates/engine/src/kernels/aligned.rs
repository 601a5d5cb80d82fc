//! Buffers that begin on a cache line.

#![expect(
    unsafe_code,
    reason = "tells bytemuck that a line is plain bytes, and the system which pages to make large; not every line \
              of an allocation has a value"
)]

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};

use bytemuck::{Pod, Zeroable};

/// Bytes of a huge page on x86-64, and on most others.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes from which on a buffer begins and ends with a huge page, which is a waste for smaller ones.
const HUGE: usize = HUGE_PAGE / 4;

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
/// Vector loads of an aligned panel then never straddle two cache lines. A large buffer lies in huge pages altogether,
/// if the system grants them: what is written in many places at once, as the planes of Winograd's convolution are, misses
/// the address cache else.
pub struct AlignedVec<T> {
    memory: Box<[MaybeUninit<Line>]>,
    /// The lines that have a value.
    lines: Range<usize>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> AlignedVec<T> {
    /// Allocates `len` zeros and touches every page, so that the first step pays no page faults.
    pub fn zeroed(len: usize) -> Self {
        let count = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        let is_huge = count * size_of::<Line>() >= HUGE;
        // Room to begin with a huge page; what comes before it is never touched.
        let room = if is_huge { Self::bytes(len) + HUGE_PAGE } else { count * size_of::<Line>() };
        let mut memory = Box::new_uninit_slice(room / size_of::<Line>());
        let mut first = 0;
        if is_huge {
            let before = memory.as_ptr().addr().next_multiple_of(HUGE_PAGE) - memory.as_ptr().addr();
            first = before / size_of::<Line>();
            ask_for_huge_pages(&mut memory[first..][..Self::bytes(len) / size_of::<Line>()]);
        }
        let lines = first..first + count;
        memory[lines.clone()].fill(MaybeUninit::new(Line::zeroed()));
        Self { memory, lines, len, element: PhantomData }
    }

    /// Bytes a buffer of `len` elements takes.
    pub fn bytes(len: usize) -> usize {
        let bytes = (len * size_of::<T>()).next_multiple_of(size_of::<Line>());
        if bytes >= HUGE { bytes.next_multiple_of(HUGE_PAGE) } else { bytes }
    }
}

/// Asks the system for huge pages, for fewer misses of the address cache; it may decline.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(memory: &mut [MaybeUninit<Line>]) {
    use std::ptr::NonNull;

    use nix::sys::mman::{MmapAdvise, madvise};

    let Some(start) = NonNull::new(memory.as_mut_ptr()) else { return };
    // SAFETY: the pages lie within `memory`, and the advice changes none of their contents.
    let _declined = unsafe { madvise(start.cast(), size_of_val(memory), MmapAdvise::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_memory: &mut [MaybeUninit<Line>]) {}

impl<T: Pod> Clone for AlignedVec<T> {
    fn clone(&self) -> Self {
        let mut clone = Self::zeroed(self.len);
        clone.copy_from_slice(self);
        clone
    }
}

impl<T> fmt::Debug for AlignedVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedVec").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T: Pod> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` has written these lines.
        let lines = unsafe { self.memory[self.lines.clone()].assume_init_ref() };
        &bytemuck::cast_slice(lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `zeroed` has written these lines.
        let lines = unsafe { self.memory[self.lines.clone()].assume_init_mut() };
        &mut bytemuck::cast_slice_mut(lines)[..self.len]
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

    #[test]
    fn a_large_buffer_begins_on_a_huge_page_as_its_clone_does() {
        for (len, pages) in [(131_072, 1), (524_288, 1), (524_289, 2)] {
            let mut buffer = AlignedVec::<f32>::zeroed(len);
            assert!(buffer.iter().all(|&number| number == 0.0));
            buffer[len - 1] = 3.0;
            let clone = buffer.clone();
            assert_eq!(clone[len - 2..], [0.0, 3.0]);
            for buffer in [&buffer, &clone] {
                assert_eq!(buffer.len(), len);
                assert_eq!(buffer.as_ptr().addr() % (2 << 20), 0);
            }
            assert_eq!(AlignedVec::<f32>::bytes(len), pages * (2 << 20));
        }
    }
}
