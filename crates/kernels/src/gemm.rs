//! What a matrix product computes.

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

    #[track_caller]
    pub(super) fn check<T>(&self, a: &[T], b: &[T], c: &[T]) {
        let lengths = (a.len(), b.len(), c.len());
        assert_eq!(lengths, (self.m * self.k, self.k * self.n, self.m * self.n), "lengths of {self:?}");
    }
}
