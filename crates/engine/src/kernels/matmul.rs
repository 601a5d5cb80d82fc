//! Matrix products for linear layers and objectives.

use super::path::KernelPath;
use super::pool::Pool;
use super::real::Real;
use super::reference;

/// What a matrix product computes: `C [m, n] = op(A) op(B)`, all row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Rows of `C`.
    pub m: usize,
    /// Columns of `C`.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// `A` is stored as `[k, m]` instead of `[m, k]`.
    pub a_transposed: bool,
    /// `B` is stored as `[n, k]` instead of `[k, n]`.
    pub b_transposed: bool,
    /// The product is added to `C` instead of replacing it.
    pub accumulate: bool,
}

impl Gemm {
    /// `C [m, n] = A [m, k] B [k, n]`, nothing transposed or accumulated.
    pub fn new(m: usize, n: usize, k: usize) -> Self {
        Self { m, n, k, a_transposed: false, b_transposed: false, accumulate: false }
    }

    /// Floating-point operations of the product.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    #[track_caller]
    fn check<T>(&self, a: &[T], b: &[T], c: &[T]) {
        let lengths = (a.len(), b.len(), c.len());
        assert_eq!(lengths, (self.m * self.k, self.k * self.n, self.m * self.n), "lengths of {self:?}");
    }
}

/// Multiplies two matrices, the rows of `C` divided over the threads.
///
/// A row of `C` does not depend on the number of threads.
///
/// # Panics
/// If a slice has not exactly the length that `gemm` says.
pub fn matmul<T: Real>(pool: &Pool, path: KernelPath, gemm: Gemm, a: &[T], b: &[T], c: &mut [T]) {
    gemm.check(a, b, c);
    pool.for_each_rows(c, gemm.n, |first, rows| matmul_rows(path, gemm, first, a, b, rows));
}

/// Multiplies two matrices on the calling thread, for callers that divide the work themselves.
///
/// # Panics
/// If a slice has not exactly the length that `gemm` says.
pub fn matmul_serial<T: Real>(path: KernelPath, gemm: Gemm, a: &[T], b: &[T], c: &mut [T]) {
    gemm.check(a, b, c);
    matmul_rows(path, gemm, 0, a, b, c);
}

fn matmul_rows<T: Real>(path: KernelPath, gemm: Gemm, first: usize, a: &[T], b: &[T], c: &mut [T]) {
    let _ = path;
    if c.is_empty() {
        return;
    }
    reference::matmul_rows(gemm, first, a, b, c);
}
