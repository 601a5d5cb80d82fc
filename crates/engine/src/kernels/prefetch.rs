//! Asks for memory ahead of its use.

#![expect(unsafe_code, reason = "an instruction that takes a pointer")]

/// Bytes that travel together.
const LINE: usize = 64;

/// Begins to bring these bytes near, where the machine has a way to ask for that; changes nothing that can be read.
#[inline]
pub fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instruction is a hint, which x86-64 always has, and the address one of `bytes`.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _no_way_to_ask = line;
    }
}
