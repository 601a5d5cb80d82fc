//! Asks for memory ahead of its use.

#![expect(unsafe_code, reason = "an instruction that takes a pointer")]

use std::slice::Chunks;

/// Bytes that travel together.
const LINE: usize = 64;

/// Numbers that do.
pub(super) const LINE_LEN: usize = LINE / size_of::<f32>();

/// How near, as x86-64 encodes it: `_MM_HINT_T0`, the nearest cache.
const NEAREST: i32 = 3;

/// `_MM_HINT_T1`: the second-level cache.
const SECOND_LEVEL: i32 = 2;

/// Begins to bring these bytes near, where the machine has a way to ask for that; changes nothing that can be read.
#[inline]
pub fn prefetch(bytes: &[u8]) {
    ask::<NEAREST>(bytes);
}

/// The same, into the second-level cache.
#[inline(always)]
pub(super) fn prefetch_far(numbers: &[f32]) {
    ask::<SECOND_LEVEL>(bytemuck::cast_slice(numbers));
}

/// Numbers in at most so many pieces, one or more, of whole lines: to be asked for piece by piece while something is
/// computed.
#[inline(always)]
pub(super) fn in_pieces(numbers: &[f32], pieces: usize) -> Chunks<'_, f32> {
    numbers.chunks(numbers.len().div_ceil(pieces).next_multiple_of(LINE_LEN).max(LINE_LEN))
}

#[inline(always)]
fn ask<const HINT: i32>(bytes: &[u8]) {
    for line in bytes.chunks(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instruction is a hint, which x86-64 always has, and the address one of `bytes`.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<HINT>(line.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _no_way_to_ask = line;
    }
}
