//! Buffers that begin on a cache line.

#![expect(
    unsafe_code,
    reason = "tells bytemuck that a line is plain bytes, and the system which pages to make large; not every line of \
              an allocation has a value"
)]

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

/// Bytes of a huge page on x86-64, and on most others.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes from which on a buffer is worth a huge page of its own.
const WORTH_A_PAGE: usize = HUGE_PAGE / 4;

/// One cache line, which begins where one does.
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
pub struct AlignedVec<T> {
    memory: Box<[MaybeUninit<Line>]>,
    /// The first line that has a value.
    first: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> AlignedVec<T> {
    /// Allocates `len` zeros and touches every page, so that the first step pays no page faults.
    pub fn zeroed(len: usize) -> Self {
        Self::in_room(len, Self::bytes(len), size_of::<Line>())
    }

    /// The same in huge pages from end to end, if the system grants them and the buffer is worth it: for memory that is
    /// written in many places at once, as the planes of Winograd's convolution are, and would miss the address cache
    /// otherwise.
    pub fn zeroed_in_huge_pages(len: usize) -> Self {
        if Self::bytes(len) < WORTH_A_PAGE {
            return Self::zeroed(len);
        }
        Self::in_room(len, Self::bytes_in_huge_pages(len), HUGE_PAGE)
    }

    /// Bytes that [`AlignedVec::zeroed`] allocates.
    pub fn bytes(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(size_of::<Line>())
    }

    /// Bytes that [`AlignedVec::zeroed_in_huge_pages`] allocates. Those before the first huge page are not touched.
    pub fn bytes_in_huge_pages(len: usize) -> usize {
        let bytes = Self::bytes(len);
        if bytes < WORTH_A_PAGE { bytes } else { bytes.next_multiple_of(HUGE_PAGE) + HUGE_PAGE }
    }

    /// Zeros from the first multiple of `alignment` on in so many bytes.
    fn in_room(len: usize, bytes: usize, alignment: usize) -> Self {
        let mut memory = Box::new_uninit_slice(bytes / size_of::<Line>());
        let before = memory.as_ptr().addr().next_multiple_of(alignment) - memory.as_ptr().addr();
        let first = before / size_of::<Line>();
        ask_for_huge_pages(&mut memory[first..]);
        memory[first..][..line_count::<T>(len)].fill(MaybeUninit::new(Line::zeroed()));
        Self { memory, first, len, element: PhantomData }
    }
}

/// Lines that hold so many numbers.
fn line_count<T>(len: usize) -> usize {
    (len * size_of::<T>()).div_ceil(size_of::<Line>())
}

/// Asks the system for huge pages wherever they fit, for fewer misses of the address cache; it may decline.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(memory: &mut [MaybeUninit<Line>]) {
    use std::ptr::NonNull;

    use nix::sys::mman::{MmapAdvise, madvise};

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
        let lines = &self.memory[self.first..][..line_count::<T>(self.len)];
        // SAFETY: `in_room` has written these lines.
        &bytemuck::cast_slice(unsafe { lines.assume_init_ref() })[..self.len]
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let lines = &mut self.memory[self.first..][..line_count::<T>(self.len)];
        // SAFETY: `in_room` has written these lines.
        &mut bytemuck::cast_slice_mut(unsafe { lines.assume_init_mut() })[..self.len]
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

    /// Whether the system was asked for huge pages there (`hg` in the `VmFlags` of `man 5 proc_pid_smaps`), if it tells.
    #[cfg(target_os = "linux")]
    fn was_asked_for_huge_pages(address: usize) -> Option<bool> {
        std::fs::metadata("/sys/kernel/mm/transparent_hugepage").ok()?;
        let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let mut is_here = false;
        for line in smaps.lines() {
            let bounds = line.split(' ').next().and_then(|range| range.split_once('-'));
            if let Some((start, end)) = bounds
                && let (Ok(start), Ok(end)) =
                    (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                is_here = (start..end).contains(&address);
            } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_here) {
                return Some(flags.split(' ').any(|flag| flag == "hg"));
            }
        }
        None
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_buffer_that_is_worth_it_lies_in_huge_pages() {
        let page = 2 << 20;
        for (len, pages) in [(131_072, 1), (524_288, 1), (524_289, 2)] {
            let mut buffer = AlignedVec::<f32>::zeroed_in_huge_pages(len);
            assert!(buffer.len() == len && buffer.iter().all(|&number| number == 0.0));
            buffer[len - 1] = 3.0;
            assert_eq!(buffer[len - 2..], [0.0, 3.0]);
            assert_eq!(buffer.as_ptr().addr() % page, 0);
            assert_eq!(AlignedVec::<f32>::bytes_in_huge_pages(len), (pages + 1) * page);
            for number in [&buffer[0], &buffer[len - 1]] {
                assert_ne!(was_asked_for_huge_pages(std::ptr::from_ref(number).addr()), Some(false));
            }
        }
        let len = 131_072 - 16;
        assert_eq!(AlignedVec::<f32>::zeroed_in_huge_pages(len)[..], vec![0.0; len]);
        assert_eq!(AlignedVec::<f32>::bytes_in_huge_pages(len), 4 * len);
    }
}
