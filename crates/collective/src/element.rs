//! What may be sent, and what may be summed.

use bytemuck::Pod;

// Frames and their payload are little-endian, and the payload is sent as it lies in memory.
const _: () =
    assert!(cfg!(target_endian = "little"), "the wire format is the memory of a little-endian machine");

/// A plain number that can be gathered and broadcast.
pub trait Element: Pod + Send + Sync {
    /// Its number on the wire.
    const CODE: u8;
}

/// An element that can be summed over ranks.
pub trait Number: Element {
    /// The sum; integers wrap.
    #[must_use]
    fn plus(self, other: Self) -> Self;
}

macro_rules! element {
    ($($type:ty = $code:literal),*) => { $(impl Element for $type { const CODE: u8 = $code; })* };
}

macro_rules! number {
    ($($type:ty: $plus:expr),*) => {
        $(impl Number for $type {
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                $plus(self, other)
            }
        })*
    };
}

element!(f32 = 1, f64 = 2, u64 = 3, u32 = 4, u8 = 5);
number!(f32: |a, b| a + b, f64: |a, b| a + b, u64: u64::wrapping_add, u32: u32::wrapping_add);
