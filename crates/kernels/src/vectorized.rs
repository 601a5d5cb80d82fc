//! Compiles a memory pass once per instruction set, and chooses at run time.
//!
//! Element-wise passes need no intrinsics: written over arrays of [`LANES`] numbers, the compiler turns each
//! array into a register or two, if only it may use the wide ones.

#![expect(unsafe_code, reason = "calls code compiled for instructions that were detected")]

use super::path::KernelPath;

/// Numbers in one array of a vectorised pass: an AVX-512 register of `f32`, or two of AVX2.
pub const LANES: usize = 16;

/// A loop over NHWC data whose channels come in groups of `LANES`.
pub trait ChannelPass {
    /// Runs the loop. Must be `#[inline(always)]`, and so must what it calls: only then is it compiled for
    /// the instructions of its caller.
    fn run<const LANES: usize>(self);
}

/// Runs `pass` with the instructions of `path`; `channels` that fill no whole groups go one by one.
///
/// # Panics
/// If the machine lacks the instructions of `path`.
pub fn vectorized<P: ChannelPass>(path: KernelPath, channels: usize, pass: P) {
    if channels.is_multiple_of(LANES) {
        dispatch::<P, LANES>(path, pass);
    } else {
        dispatch::<P, 1>(path, pass);
    }
}

fn dispatch<P: ChannelPass, const LANES: usize>(path: KernelPath, pass: P) {
    assert!(path.is_available(), "this machine cannot run the {path} path");
    match path {
        KernelPath::Reference | KernelPath::Portable => pass.run::<LANES>(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is available, so the machine has AVX2 and FMA.
        KernelPath::Avx2 => unsafe { avx2::<P, LANES>(pass) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is available, so the machine has AVX-512F.
        KernelPath::Avx512 => unsafe { avx512::<P, LANES>(pass) },
        #[cfg(not(target_arch = "x86_64"))]
        KernelPath::Avx2 | KernelPath::Avx512 => unreachable!("asserted above"),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<P: ChannelPass, const LANES: usize>(pass: P) {
    pass.run::<LANES>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512<P: ChannelPass, const LANES: usize>(pass: P) {
    pass.run::<LANES>();
}
