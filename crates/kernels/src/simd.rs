//! Vectors of `f32`, one type per instruction set, and the way into code compiled for it.
//!
//! A kernel is a [`Task`], generic over [`Simd`]; [`InstructionSet::run`] compiles it once for each
//! set and picks the one asked for. Every method is inlined into the function that enables the
//! instructions, so a vector never leaves its registers on the way.

#![expect(unsafe_code, reason = "instructions that not every machine has, and loads through pointers")]

use super::path::KernelPath;

/// The widest strip of any instruction set.
pub(super) const MAX_ROWS: usize = 8;

/// The widest vector of any instruction set.
pub(super) const MAX_LANES: usize = 16;

/// A vector of `f32` and what a kernel does with it.
///
/// A value of the type proves that the machine has the instructions.
pub(super) trait Simd: Copy {
    type Vector: Copy;
    const LANES: usize;
    /// Rows of a strip: two vectors wide, it must fit the registers with one row of the panel.
    const ROWS: usize;

    fn splat(self, value: f32) -> Self::Vector;
    /// # Safety
    /// `from` points to `LANES` numbers.
    unsafe fn load(self, from: *const f32) -> Self::Vector;
    /// # Safety
    /// `to` points to `LANES` numbers that nobody else reads or writes.
    unsafe fn store(self, to: *mut f32, vector: Self::Vector);
    /// `a * b + c`.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The larger of both; `b` if one of them is not a number.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// The first numbers of a slice.
    #[inline(always)]
    fn read(self, from: &[f32]) -> Self::Vector {
        let from = &from[..Self::LANES];
        // SAFETY: the slice has just been cut to as many numbers.
        unsafe { self.load(from.as_ptr()) }
    }

    /// Overwrites the first numbers of a slice.
    #[inline(always)]
    fn write(self, to: &mut [f32], vector: Self::Vector) {
        let to = &mut to[..Self::LANES];
        // SAFETY: the slice has just been cut to as many numbers, and is borrowed to be written.
        unsafe { self.store(to.as_mut_ptr(), vector) }
    }
}

/// Adds each lane of a vector to its total.
#[inline(always)]
pub(super) fn add_lanes<S: Simd>(simd: S, vector: S::Vector, totals: &mut [f64]) {
    let mut lanes = [0.0; MAX_LANES];
    simd.write(&mut lanes, vector);
    for (total, &lane) in totals[..S::LANES].iter_mut().zip(&lanes) {
        *total += f64::from(lane);
    }
}

/// A kernel: mark `run` `#[inline(always)]`, or it will not be compiled for the instruction set.
pub(super) trait Task {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A set of instructions that this machine has.
#[derive(Clone, Copy, Debug)]
pub(super) struct InstructionSet(KernelPath);

impl InstructionSet {
    /// The instructions of `path`; those of the portable path for the reference path.
    ///
    /// # Panics
    /// If the machine lacks them.
    pub(super) fn new(path: KernelPath) -> Self {
        assert!(path.is_available(), "this machine cannot run the {path} path");
        Self(path)
    }

    /// Numbers in a vector.
    pub(super) const fn lanes(self) -> usize {
        match self.0 {
            KernelPath::Reference | KernelPath::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            KernelPath::Avx2 => x86::Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            KernelPath::Avx512 => x86::Avx512::LANES,
            #[cfg(not(target_arch = "x86_64"))]
            KernelPath::Avx2 | KernelPath::Avx512 => unreachable!(),
        }
    }

    /// Rows of a strip.
    pub(super) const fn rows(self) -> usize {
        match self.0 {
            KernelPath::Reference | KernelPath::Portable => Portable::ROWS,
            #[cfg(target_arch = "x86_64")]
            KernelPath::Avx2 => x86::Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            KernelPath::Avx512 => x86::Avx512::ROWS,
            #[cfg(not(target_arch = "x86_64"))]
            KernelPath::Avx2 | KernelPath::Avx512 => unreachable!(),
        }
    }

    /// Runs `task` as compiled for these instructions.
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            KernelPath::Reference | KernelPath::Portable => task.run(Portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` has asserted that the machine has AVX2 and FMA.
            KernelPath::Avx2 => unsafe { x86::run_avx2(task) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` has asserted that the machine has AVX-512F.
            KernelPath::Avx512 => unsafe { x86::run_avx512(task) },
            #[cfg(not(target_arch = "x86_64"))]
            KernelPath::Avx2 | KernelPath::Avx512 => unreachable!("`new` has asserted that it is available"),
        }
    }
}

/// Four lanes in a plain array, which every 64-bit target turns into its 128-bit vectors.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Simd for Portable {
    type Vector = [f32; 4];
    const LANES: usize = 4;
    const ROWS: usize = 6;

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 4] {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [f32; 4] {
        // SAFETY: the caller's promise; an array of numbers is aligned like a number.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: [f32; 4]) {
        // SAFETY: the caller's promise; an array of numbers is aligned like a number.
        unsafe { *to.cast() = vector }
    }

    // Without the instruction, `f32::mul_add` would be a call into the C library.
    #[inline(always)]
    fn mul_add(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        [a[0] * b[0] + c[0], a[1] * b[1] + c[1], a[2] * b[2] + c[2], a[3] * b[3] + c[3]]
    }

    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }

    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]]
    }

    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        let larger = |lane: usize| if a[lane] > b[lane] { a[lane] } else { b[lane] };
        [larger(0), larger(1), larger(2), larger(3)]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Simd, Task};

    /// Proof that the machine has AVX2 and FMA: only [`run_avx2`] makes one.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    /// Proof that the machine has AVX-512F: only [`run_avx512`] makes one.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn run_avx2<T: Task>(task: T) -> T::Output {
        task.run(Avx2(()))
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn run_avx512<T: Task>(task: T) -> T::Output {
        task.run(Avx512(()))
    }

    impl Simd for Avx2 {
        type Vector = __m256;
        const LANES: usize = 8;
        const ROWS: usize = 6;

        #[inline(always)]
        fn splat(self, value: f32) -> __m256 {
            // SAFETY: `self` proves that the machine has AVX2.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(self, from: *const f32) -> __m256 {
            // SAFETY: `self` proves that the machine has AVX2; the pointer is the caller's promise.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32, vector: __m256) {
            // SAFETY: `self` proves that the machine has AVX2; the pointer is the caller's promise.
            unsafe { _mm256_storeu_ps(to, vector) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: `self` proves that the machine has FMA.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: `self` proves that the machine has AVX2.
            unsafe { _mm256_add_ps(a, b) }
        }

        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: `self` proves that the machine has AVX2.
            unsafe { _mm256_sub_ps(a, b) }
        }

        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: `self` proves that the machine has AVX2.
            unsafe { _mm256_max_ps(a, b) }
        }
    }

    impl Simd for Avx512 {
        type Vector = __m512;
        const LANES: usize = 16;
        const ROWS: usize = 8;

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: `self` proves that the machine has AVX-512F.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(self, from: *const f32) -> __m512 {
            // SAFETY: `self` proves that the machine has AVX-512F; the pointer is the caller's promise.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32, vector: __m512) {
            // SAFETY: `self` proves that the machine has AVX-512F; the pointer is the caller's promise.
            unsafe { _mm512_storeu_ps(to, vector) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has AVX-512F.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has AVX-512F.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has AVX-512F.
            unsafe { _mm512_sub_ps(a, b) }
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has AVX-512F.
            unsafe { _mm512_max_ps(a, b) }
        }
    }
}
