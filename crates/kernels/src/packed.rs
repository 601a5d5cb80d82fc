//! A matrix that many products share, packed once.
//!
//! [`super::matmul`] packs its right-hand side anew in every call, which a caller that works tile by tile would
//! pay for each tile. Here the caller packs, and then multiplies by any range of the rows and columns.

use std::ops::Range;

use super::aligned::AlignedVec;
use super::panels::{Panel, Panels};
use super::path::KernelPath;
use super::real::Real;
use super::simd::InstructionSet;
use super::strip::{MAX_WIDTH, Place, Target, Terms, strips};

/// Terms that are summed in registers at a time: so many rows of a panel fit the nearest cache.
const DEPTH: usize = 128;

/// The right-hand side of products: `[depth, columns]`.
pub struct Packed<T> {
    path: KernelPath,
    depth: usize,
    panels: Panels,
    /// The panels one after the other; where plain loops multiply, the matrix is one panel.
    values: AlignedVec<T>,
}

/// What a product with a part of a packed matrix computes:
/// `C [rows, columns] = op(A) [rows, terms] B [terms, columns]`, all row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedGemm {
    /// Rows of `C`.
    pub rows: usize,
    /// Rows of the packed matrix.
    pub terms: Range<usize>,
    /// Columns of the packed matrix; they begin at a multiple of [`PANEL`].
    pub columns: Range<usize>,
    /// `A` is stored as `[terms, rows]`.
    pub a_transposed: bool,
    /// The product is added to `C` instead of replacing it.
    pub accumulate: bool,
}

/// Columns may be cut at multiples of this.
pub const PANEL: usize = MAX_WIDTH;

impl<T: Real> Packed<T> {
    /// Packs a row-major matrix.
    ///
    /// # Panics
    /// If `matrix` ends within a row, or the machine lacks the instructions of `path`.
    pub fn new(path: KernelPath, matrix: &[T], columns: usize) -> Self {
        Self::pack(path, matrix, [matrix.len() / columns, columns], [columns, 1])
    }

    /// Packs the transpose of a row-major matrix, whose rows are `depth` long.
    ///
    /// # Panics
    /// As [`Packed::new`].
    pub fn transposed(path: KernelPath, matrix: &[T], depth: usize) -> Self {
        Self::pack(path, matrix, [depth, matrix.len() / depth], [1, depth])
    }

    /// `strides`: distances in `matrix` of two rows and of two columns of what is packed.
    fn pack(path: KernelPath, matrix: &[T], [depth, columns]: [usize; 2], strides: [usize; 2]) -> Self {
        assert_eq!(matrix.len(), depth * columns, "a matrix of {depth} by {columns}");
        let lanes = if is_plain::<T>(path) { columns.max(1) } else { InstructionSet::new(path).lanes() };
        let panels = Panels { columns, lanes };
        let mut values = AlignedVec::zeroed(depth * panels.stored());
        // An empty matrix may have columns, but has nothing in them.
        for panel in panels.iter().filter(|_| !matrix.is_empty()) {
            let packed = &mut values[panel.range(depth)];
            for column in 0..panel.columns {
                let from = matrix[(panel.first + column) * strides[1]..].iter().step_by(strides[0]);
                for (row, &value) in packed.chunks_exact_mut(panel.width).zip(from) {
                    row[column] = value;
                }
            }
        }
        Self { path, depth, panels, values }
    }

    /// Multiplies `a` by a part of this matrix, on the calling thread.
    ///
    /// # Panics
    /// If the part lies outside the matrix or begins within a panel, or a slice has not the length that
    /// `product` says.
    pub fn multiply(&self, product: &PackedGemm, a: &[T], c: &mut [T]) {
        let PackedGemm { rows, terms, columns, .. } = product;
        assert!(
            terms.end <= self.depth && columns.end <= self.panels.columns,
            "{product:?} of {} by {:?}",
            self.depth,
            self.panels
        );
        assert!(columns.start.is_multiple_of(PANEL), "{product:?} begins within a panel");
        let lengths = (a.len(), c.len());
        assert_eq!(lengths, (rows * terms.len(), rows * columns.len()), "lengths of {product:?}");
        if c.is_empty() {
            return;
        }
        match (T::as_f32(a), T::as_f32(&self.values), T::as_f32_mut(c)) {
            (Some(a), Some(values), Some(c)) if !is_plain::<T>(self.path) => {
                self.multiply_fast(product, a, values, c);
            }
            _ => self.multiply_plain(product, a, c),
        }
    }

    fn multiply_plain(&self, product: &PackedGemm, a: &[T], c: &mut [T]) {
        let PackedGemm { rows, terms, columns, a_transposed, accumulate } = product;
        let strides = if *a_transposed { [1, *rows] } else { [terms.len(), 1] };
        for (i, c) in c.chunks_exact_mut(columns.len()).enumerate() {
            if !accumulate {
                c.fill(T::ZERO);
            }
            for (l, b) in
                self.values.chunks_exact(self.panels.columns).skip(terms.start).take(terms.len()).enumerate()
            {
                let factor = a[i * strides[0] + l * strides[1]];
                c.iter_mut().zip(&b[columns.clone()]).for_each(|(c, &b)| *c += factor * b);
            }
        }
    }

    fn multiply_fast(&self, product: &PackedGemm, a: &[f32], values: &[f32], c: &mut [f32]) {
        let PackedGemm { rows, ref terms, ref columns, a_transposed, accumulate } = *product;
        let isa = InstructionSet::new(self.path);
        let (row_stride, step) = if a_transposed { (1, rows) } else { (terms.len(), 1) };
        let wanted = |panel: &Panel| columns.start <= panel.first && panel.first < columns.end;
        for panel in self.panels.iter().filter(wanted) {
            let first = panel.first - columns.start;
            let all_terms = &values[panel.range(self.depth)];
            // An empty sum still has its zeros to write.
            for start in (0..terms.len().max(1)).step_by(DEPTH) {
                let len = DEPTH.min(terms.len() - start);
                let b = &all_terms[(terms.start + start) * panel.width..][..len * panel.width];
                let sums = Terms { a, runs: &[0], len, step, b, width: panel.width };
                let accumulate = accumulate || start > 0;
                let mut target =
                    Target { c, columns: panel.columns.min(columns.len() - first), accumulate, sums: None };
                let row = |row| Place { a: row * row_stride + start * step, c: row * columns.len() + first };
                strips(isa, &sums, (0..rows).map(row), &mut target);
            }
        }
    }
}

/// Whether plain loops multiply numbers of this type on this path.
fn is_plain<T: Real>(path: KernelPath) -> bool {
    path == KernelPath::Reference || T::as_f32(&[]).is_none()
}

#[cfg(test)]
mod tests {
    use super::{PANEL, Packed, PackedGemm};
    use crate::{Gemm, KernelPath, matmul_serial};

    fn matrix(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// All paths and layouts against the product of the whole matrices in `f64`.
    #[track_caller]
    fn check([rows, depth, columns]: [usize; 3], product: &PackedGemm) {
        let wide = |numbers: &[f32]| numbers.iter().copied().map(f64::from).collect::<Vec<f64>>();
        let (a, b) = (matrix(rows * product.terms.len(), 1), matrix(depth * columns, 2));
        let part: Vec<f64> = wide(&b[product.terms.start * columns..product.terms.end * columns])
            .chunks(columns.max(1))
            .flat_map(|row| row[product.columns.clone()].to_vec())
            .collect();
        let c = matrix(rows * product.columns.len(), 3);
        let mut exact = wide(&c);
        let gemm = Gemm {
            a_transposed: product.a_transposed,
            accumulate: product.accumulate,
            ..Gemm::new(rows, product.columns.len(), product.terms.len())
        };
        matmul_serial(KernelPath::Reference, gemm, &wide(&a), &part, &mut exact);
        let transposed: Vec<f32> =
            (0..columns).flat_map(|column| b.iter().skip(column).step_by(columns).copied()).collect();
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            for packed in [Packed::new(path, &b, columns), Packed::transposed(path, &transposed, depth)] {
                let mut got = c.clone();
                packed.multiply(product, &a, &mut got);
                for (got, exact) in got.iter().zip(&exact) {
                    let bound = 1e-6 * (product.terms.len() + 1) as f64;
                    assert!(
                        (f64::from(*got) - exact).abs() <= bound,
                        "{path} {product:?}: {got} for {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn any_part_of_a_packed_matrix_agrees_with_the_reference() {
        for flags in 0..4 {
            let [a_transposed, accumulate] = [1, 2].map(|flag| flags & flag != 0);
            let product =
                |rows, terms, columns| PackedGemm { rows, terms, columns, a_transposed, accumulate };
            check([1, 1, 1], &product(1, 0..1, 0..1));
            check([5, 9, 70], &product(5, 2..9, PANEL..70));
            check([9, 130, 2 * PANEL], &product(9, 0..130, 0..PANEL));
            check([17, 300, 90], &product(17, 13..290, PANEL..PANEL + 3));
            check([8, 16, 40], &product(8, 4..4, 0..40));
            check([3, 16, 40], &product(3, 0..16, PANEL..PANEL));
        }
    }

    #[test]
    #[should_panic(expected = "begins within a panel")]
    fn a_part_that_begins_within_a_panel_is_refused() {
        let packed = Packed::new(KernelPath::Portable, &[0f32; 40], 40);
        let product =
            PackedGemm { rows: 1, terms: 0..1, columns: 1..2, a_transposed: false, accumulate: false };
        packed.multiply(&product, &[0.0], &mut [0.0]);
    }
}
