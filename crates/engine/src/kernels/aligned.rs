//! Buffers that begin on a cache line.

#![expect(unsafe_code, reason = "tells bytemuck that a line is plain bytes")]

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
        let lines = vec![Line::zeroed(); (len * size_of::<T>()).div_ceil(size_of::<Line>())];
        Self { lines, len, element: std::marker::PhantomData }
    }

    /// Bytes a buffer of `len` elements takes.
    pub fn bytes(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(size_of::<Line>())
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
