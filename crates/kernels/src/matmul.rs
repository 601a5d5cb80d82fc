//! Matrix products for linear layers and objectives.
//!
//! `B` is packed into panels, [`DEPTH`] rows at a time, on the stack of each thread; `A` is read in
//! place in either layout. The rows of `C` are divided over the threads.

use super::device::Cpu;
use super::gemm::Gemm;
use super::panels::{Panel, Panels};
use super::path::KernelPath;
use super::real::Real;
use super::reference;
use super::simd::InstructionSet;
use super::strip::{MAX_WIDTH, Place, Target, Terms, strips};

/// Rows of `B` that are packed at a time: a panel of them fits the nearest cache.
const DEPTH: usize = 128;

/// Multiplies two matrices, the rows of `C` divided over the threads.
///
/// A row of `C` does not depend on the number of threads.
///
/// # Panics
/// If a slice has not exactly the length that `gemm` says.
pub fn matmul<T: Real>(cpu: &Cpu, gemm: Gemm, a: &[T], b: &[T], c: &mut [T]) {
    gemm.check(a, b, c);
    cpu.pool.for_each_rows(c, gemm.n, |first, rows| matmul_rows(cpu.path, gemm, first, a, b, rows));
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
    if c.is_empty() {
        return;
    }
    match (T::as_f32(a), T::as_f32(b), T::as_f32_mut(c)) {
        (Some(a), Some(b), Some(c)) if path != KernelPath::Reference => {
            fast_rows(InstructionSet::new(path), gemm, first, a, b, c);
        }
        _ => reference::matmul_rows(gemm, first, a, b, c),
    }
}

/// A part of `B`, packed.
#[repr(align(64))]
struct Packed([f32; DEPTH * MAX_WIDTH]);

/// Rows `first..` of the product, as many as `c` holds.
fn fast_rows(isa: InstructionSet, gemm: Gemm, first: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    let Gemm { m, n, k, .. } = gemm;
    let rows = c.len() / n;
    let mut packed = Packed([0.0; DEPTH * MAX_WIDTH]);
    let panels = Panels { columns: n, lanes: isa.lanes() };
    for panel in panels.iter() {
        // An empty sum still has its zeros to write.
        for start in (0..k.max(1)).step_by(DEPTH) {
            let depth = DEPTH.min(k - start);
            let packed = &mut packed.0[..depth * panel.width];
            if gemm.b_transposed {
                pack_columns(panel, &b[panel.first * k..], k, start, packed);
            } else {
                panel.pack_rows(&b[start * n..(start + depth) * n], n, packed);
            }
            let terms = Terms {
                a,
                runs: &[0],
                len: depth,
                step: if gemm.a_transposed { m } else { 1 },
                b: packed,
                width: panel.width,
            };
            let accumulate = gemm.accumulate || start > 0;
            let mut target = Target { c: &mut *c, columns: panel.columns, accumulate, sums: None };
            let of_a = |row: usize| {
                if gemm.a_transposed { start * m + first + row } else { (first + row) * k + start }
            };
            let rows = (0..rows).map(|row| Place { a: of_a(row), c: row * n + panel.first });
            strips(isa, &terms, rows, &mut target);
        }
    }
}

/// Packs terms `start..` of the panel's columns, which `b` holds as rows `pitch` apart.
fn pack_columns(panel: Panel, b: &[f32], pitch: usize, start: usize, packed: &mut [f32]) {
    if panel.columns < panel.width {
        packed.fill(0.0);
    }
    for column in 0..panel.columns {
        let terms = &b[column * pitch + start..];
        for (row, &term) in packed.chunks_exact_mut(panel.width).zip(terms) {
            row[column] = term;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Gemm, matmul, matmul_serial};
    use crate::{Cpu, KernelPath};

    fn matrix(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[track_caller]
    fn check(cpu: &Cpu, gemm: Gemm) {
        let path = cpu.path;
        let (a, b, c) = (matrix(gemm.m * gemm.k, 1), matrix(gemm.k * gemm.n, 2), matrix(gemm.m * gemm.n, 3));
        let wide = |numbers: &[f32]| numbers.iter().copied().map(f64::from).collect::<Vec<f64>>();
        let mut exact = wide(&c);
        matmul_serial(KernelPath::Reference, gemm, &wide(&a), &wide(&b), &mut exact);
        let (mut fast, mut serial) = (c.clone(), c);
        matmul(cpu, gemm, &a, &b, &mut fast);
        matmul_serial(path, gemm, &a, &b, &mut serial);
        assert!(fast == serial, "{path} {gemm:?}: a row depends on the threads");
        for (fast, exact) in fast.iter().zip(&exact) {
            let bound = 1e-6 * (gemm.k + 1) as f64;
            assert!((f64::from(*fast) - exact).abs() <= bound, "{path} {gemm:?}: {fast} for {exact}");
        }
    }

    #[test]
    fn every_layout_and_ragged_size_agrees_with_the_reference() {
        let paths = KernelPath::ALL.into_iter().filter(|path| path.is_available());
        let cpus: Vec<Cpu> = paths.map(|path| Cpu::new(3, path)).collect();
        let sizes = [
            (1, 1, 1),
            (1, 10, 512),
            (5, 7, 3),
            (8, 32, 128),
            (9, 33, 129),
            (17, 16, 40),
            (64, 100, 300),
            (3, 65, 0),
            (0, 4, 4),
            (4, 0, 4),
        ];
        for (m, n, k) in sizes {
            for flags in 0..8 {
                let [a_transposed, b_transposed, accumulate] = [1, 2, 4].map(|flag| flags & flag != 0);
                for cpu in &cpus {
                    check(cpu, Gemm { m, n, k, a_transposed, b_transposed, accumulate });
                }
            }
        }
    }
}
