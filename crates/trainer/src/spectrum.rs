//! How much of their space features use: the first sign of a collapse, before kNN shows it.

use collective::{Communicator, Error};
use kernels::{Cpu, Gemm, matmul};

/// Rows whose products are summed in `f32` before they enter the `f64` sums.
const BLOCK: usize = 256;

/// Spread of unit features over all ranks' rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Standard deviation of a coordinate, averaged over the coordinates: `1 / sqrt(f)` if the features are
    /// spread evenly over the sphere, 0 if they are all the same.
    pub std: f64,
    /// Exponential of the entropy of the covariance's eigenvalues, normalised to sum to 1 (Roy & Vetterli
    /// 2007): between 1 and `f`, the number of directions in which the features differ.
    pub effective_rank: f64,
}

/// Measures the spread of the rows of all ranks. The same on every rank.
///
/// - `unit_rows`: `[n, width]`, this rank's
///
/// # Errors
/// If a peer is lost.
pub fn spread(
    cpu: &Cpu,
    communicator: &mut Communicator,
    unit_rows: &[f32],
    width: usize,
) -> Result<Spread, Error> {
    let mut sums = vec![0f64; width + 1];
    for row in unit_rows.chunks_exact(width) {
        sums[width] += 1.0;
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    communicator.all_reduce_sum(&mut sums)?;
    let n = sums[width];
    let mean: Vec<f64> = sums[..width].iter().map(|sum| sum / n).collect();

    let mut covariance = products(cpu, unit_rows, &mean);
    communicator.all_reduce_sum(&mut covariance)?;
    covariance.iter_mut().for_each(|x| *x /= n);

    let variances = (0..width).map(|j| covariance[j * width + j]);
    let std = variances.map(f64::sqrt).sum::<f64>() / width as f64;
    Ok(Spread { std, effective_rank: effective_rank(&eigenvalues(&mut covariance, width)) })
}

/// Sum over the rows of the outer products of their differences to `mean`: `[width, width]`.
fn products(cpu: &Cpu, rows: &[f32], mean: &[f64]) -> Vec<f64> {
    let width = mean.len();
    let mut sums = vec![0f64; width * width];
    let mut centred = Vec::with_capacity(BLOCK * width);
    let mut block_sums = vec![0f32; width * width];
    for block in rows.chunks(BLOCK * width) {
        centred.clear();
        for row in block.chunks_exact(width) {
            centred.extend(row.iter().zip(mean).map(|(&x, mean)| (f64::from(x) - mean) as f32));
        }
        let n = block.len() / width;
        let gemm = Gemm { a_transposed: true, ..Gemm::new(width, width, n) };
        matmul(cpu, gemm, &centred, &centred, &mut block_sums);
        for (sum, &x) in sums.iter_mut().zip(&block_sums) {
            *sum += f64::from(x);
        }
    }
    sums
}

/// Exponential of the entropy of `eigenvalues` after normalisation; 1 if all are 0.
fn effective_rank(eigenvalues: &[f64]) -> f64 {
    // Rounding may leave a tiny negative one.
    let total: f64 = eigenvalues.iter().map(|x| x.max(0.0)).sum();
    if total == 0.0 {
        return 1.0;
    }
    let shares = eigenvalues.iter().map(|x| x / total).filter(|&share| share > 0.0);
    shares.map(|share| -share * share.ln()).sum::<f64>().exp()
}

/// Eigenvalues of a symmetric matrix `[d, d]`, ascending. The matrix is destroyed.
fn eigenvalues(a: &mut [f64], d: usize) -> Vec<f64> {
    let (diagonal, off_diagonal) = tridiagonalise(a, d);
    // Gershgorin: no eigenvalue is further out.
    let radius = |i: usize| off_diagonal[i].abs() + off_diagonal.get(i + 1).map_or(0.0, |x| x.abs());
    let bound = (0..d).map(|i| diagonal[i].abs() + radius(i)).fold(0.0, f64::max);
    let eigenvalue = |k: usize| {
        let (mut low, mut high) = (-bound, bound);
        // Each halving gains a bit: after these the interval is as narrow as rounding.
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if n_below(&diagonal, &off_diagonal, middle) > k { high = middle } else { low = middle }
        }
        0.5 * (low + high)
    };
    (0..d).map(eigenvalue).collect()
}

/// Householder's reduction (Golub & Van Loan, Matrix Computations, algorithm 8.3.1) to a tridiagonal matrix
/// with the same eigenvalues: its diagonal, and the entries left of it, of which the first is 0.
fn tridiagonalise(a: &mut [f64], d: usize) -> (Vec<f64>, Vec<f64>) {
    let mut off_diagonal = vec![0.0; d];
    for k in 0..d.saturating_sub(1) {
        let mut v: Vec<f64> = a[k * d + k + 1..(k + 1) * d].to_vec();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let target = if v[0] > 0.0 { -norm } else { norm };
        off_diagonal[k + 1] = target;
        v[0] -= target;
        let v_squared: f64 = v.iter().map(|x| x * x).sum();
        if v_squared == 0.0 {
            continue;
        }
        // A <- A - v q' - q v' with p = 2 A v / v'v and q = p - (p'v / v'v) v.
        let rows = (k + 1..d).zip(&v);
        let mut q = vec![0.0; v.len()];
        for (i, v_i) in rows.clone() {
            let row = &a[i * d + k + 1..(i + 1) * d];
            q.iter_mut().zip(row).for_each(|(q, a)| *q += 2.0 / v_squared * v_i * a);
        }
        let share = q.iter().zip(&v).map(|(p, v)| p * v).sum::<f64>() / v_squared;
        q.iter_mut().zip(&v).for_each(|(q, v)| *q -= share * v);
        for ((i, v_i), q_i) in rows.zip(&q) {
            let row = &mut a[i * d + k + 1..(i + 1) * d];
            for ((a, v_j), q_j) in row.iter_mut().zip(&v).zip(&q) {
                *a -= v_i * q_j + q_i * v_j;
            }
        }
    }
    ((0..d).map(|i| a[i * d + i]).collect(), off_diagonal)
}

/// How many eigenvalues of a tridiagonal matrix are smaller than `x`: Sturm's count of the negative pivots of
/// `A - x`.
fn n_below(diagonal: &[f64], off_diagonal: &[f64], x: f64) -> usize {
    let mut count = 0;
    let mut pivot = 1.0;
    for (a, b) in diagonal.iter().zip(off_diagonal) {
        pivot = a - x - b * b / pivot;
        if pivot == 0.0 {
            pivot = f64::MIN_POSITIVE;
        }
        count += usize::from(pivot < 0.0);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knn::normalize_rows;
    use kernels::KernelPath;

    fn measure(mut rows: Vec<f32>, width: usize) -> Spread {
        normalize_rows(&mut rows, width);
        let cpu = Cpu::new(2, KernelPath::Portable);
        spread(&cpu, &mut Communicator::alone(), &rows, width).unwrap()
    }

    /// Deterministic values that look random, in [-1, 1].
    fn noise(n: usize) -> Vec<f32> {
        let hash = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11;
        (0..n).map(|i| (hash(i * i + i) % 20001) as f32 / 10000.0 - 1.0).collect()
    }

    #[test]
    fn eigenvalues_are_those_of_known_matrices() {
        let found = eigenvalues(&mut [2.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 5.0], 3);
        for (found, expected) in found.iter().zip([1.0, 3.0, 5.0]) {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        }
        assert_eq!(eigenvalues(&mut [7.0], 1).len(), 1);
        assert_eq!(eigenvalues(&mut [0.0; 16], 4), [0.0; 4]);

        // A dense matrix: trace and squared norm are the sums of the eigenvalues' powers.
        let d = 13;
        let half = noise(d * d);
        let mut a: Vec<f64> = (0..d * d).map(|i| f64::from(half[i] + half[i % d * d + i / d])).collect();
        let trace: f64 = (0..d).map(|i| a[i * d + i]).sum();
        let squares: f64 = a.iter().map(|x| x * x).sum();
        let found = eigenvalues(&mut a, d);
        assert!((found.iter().sum::<f64>() - trace).abs() < 1e-12, "{found:?}");
        assert!((found.iter().map(|x| x * x).sum::<f64>() - squares).abs() < 1e-11, "{found:?}");
        assert!(found.is_sorted());
    }

    #[test]
    fn features_all_the_same_have_no_spread() {
        let Spread { std, effective_rank } = measure([0.3f32, -0.2, 0.9].repeat(40), 3);
        assert!(std < 1e-7, "{std}");
        assert!((1.0..=3.0).contains(&effective_rank), "{effective_rank}");
    }

    #[test]
    fn features_on_a_line_have_rank_one() {
        let rows = (0..100).flat_map(|i| [1.0, 0.0, 0.001 * i as f32, 0.0]).collect();
        let effective_rank = measure(rows, 4).effective_rank;
        assert!((effective_rank - 1.0).abs() < 0.02, "{effective_rank}");
    }

    #[test]
    fn features_along_every_axis_have_full_rank() {
        // 600 rows, so that several blocks are summed.
        let width = 6;
        let rows = (0..600).flat_map(|i| (0..width).map(move |j| f32::from(i % width == j))).collect();
        let Spread { std, effective_rank } = measure(rows, width);
        // A coordinate is 1 with probability 1/6; the mean takes away one direction.
        assert!((std - (5f64 / 36.0).sqrt()).abs() < 1e-6, "{std}");
        assert!((effective_rank - 5.0).abs() < 1e-4, "{effective_rank}");
    }

    #[test]
    fn ranks_together_measure_what_one_measures_alone() {
        let width = 5;
        let mut rows = noise(41 * width);
        normalize_rows(&mut rows, width);
        let alone = measure(rows.clone(), width);
        let ends = [0, 11, 12, 41];
        std::thread::scope(|scope| {
            let ranks =
                collective::loopback(3, 1).unwrap().into_iter().enumerate().map(|(rank, mut group)| {
                    let rows = &rows[ends[rank] * width..ends[rank + 1] * width];
                    scope.spawn(move || {
                        let cpu = Cpu::new(1, KernelPath::Portable);
                        spread(&cpu, &mut group[0], rows, width).unwrap()
                    })
                });
            for rank in ranks.collect::<Vec<_>>() {
                let together = rank.join().unwrap();
                assert!((together.std - alone.std).abs() < 1e-7, "{together:?} {alone:?}");
                assert!(
                    (together.effective_rank - alone.effective_rank).abs() < 1e-4,
                    "{together:?} {alone:?}"
                );
            }
        });
    }

    #[test]
    fn the_spread_is_pytorchs() {
        let golden = crate::knn::golden::Golden::read();
        let Spread { std, effective_rank } = measure(golden.bank.clone(), golden.width);
        let [expected_std, expected_rank] = golden.spread;
        assert!((std - expected_std).abs() < 1e-6, "{std} {expected_std}");
        assert!((effective_rank - expected_rank).abs() < 1e-4, "{effective_rank} {expected_rank}");
    }
}
