//! From similarities to weights, for candidates that are constants.
//!
//! With `e = exp(similarity / temperature - shift)`, a softmax weighs a candidate by `e`, to be divided by the sum of all;
//! noise contrastive estimation by `e / (1 + e)`, the probability that the candidate was drawn from the data, when
//! `shift` is `log(K Z / n)`. The loss needs `sum e` in the first case and `sum log(1 + e)` in the second, and an
//! estimate of `Z` needs `sum e` in both.
//!
//! Logarithms are few: `1 + e` are multiplied first, [`FACTORS`] of them at a time, in `f64`, where neither the
//! product of so many overflows nor a small `e` is lost.

use kernels::{ChannelPass, KernelPath, LANES, Real, exp, vectorized};

/// How a candidate's similarity becomes its part of a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Estimator {
    /// Cross entropy of the positive among the candidates.
    Softmax,
    /// Noise contrastive estimation: each candidate is classified as data or noise by itself.
    Nce,
}

/// Factors `1 + e` that are multiplied before a logarithm is taken: `e` is at most `e^87`, or `f32` overflows.
pub(crate) const FACTORS: usize = 8;

/// Turns the similarities of candidates (rows) and queries (columns) into weights.
///
/// - `similarity`: `[candidates, queries]`; minus infinity has no part in anything
/// - `shifts`, `exps`: `[queries]`; `e` is added to `exps`
/// - `logs`: `[queries]` if the estimator is NCE; `log(1 + e)` is added to it
pub(crate) fn weigh<T: Real>(
    path: KernelPath,
    scale: f64,
    shifts: &[T],
    similarity: &mut [T],
    exps: &mut [T],
    logs: Option<&mut [f64]>,
) {
    let Some(logs) = logs else { return weigh_rows(path, scale, shifts, similarity, exps, None) };
    let mut products = vec![1.0; logs.len()];
    for rows in similarity.chunks_mut(FACTORS * shifts.len()) {
        products.fill(1.0);
        weigh_rows(path, scale, shifts, rows, exps, Some(&mut products));
        logs.iter_mut().zip(&products).for_each(|(log, product)| *log += product.ln());
    }
}

/// The same, multiplying `1 + e` into `products` if there are any: the estimator is NCE then.
pub(crate) fn weigh_rows<T: Real>(
    path: KernelPath,
    scale: f64,
    shifts: &[T],
    similarity: &mut [T],
    exps: &mut [T],
    products: Option<&mut [f64]>,
) {
    if path != KernelPath::Reference
        && let (Some(shifts), Some(similarity), Some(exps)) =
            (T::as_f32(shifts), T::as_f32_mut(similarity), T::as_f32_mut(exps))
    {
        let scale = scale as f32;
        return match products {
            Some(products) => vectorized(path, LANES, Nce { scale, shifts, similarity, exps, products }),
            None => vectorized(path, LANES, Softmax { scale, shifts, similarity, exps }),
        };
    }
    let scale = T::from_f64(scale);
    let mut none = Vec::new();
    let products = products.unwrap_or(&mut none);
    for row in similarity.chunks_exact_mut(shifts.len()) {
        for (j, s) in row.iter_mut().enumerate() {
            let e = (scale * *s - shifts[j]).exp();
            exps[j] += e;
            *s = match products.get_mut(j) {
                Some(product) => {
                    *product *= 1.0 + e.to_f64();
                    e / (T::ONE + e)
                }
                None => e,
            };
        }
    }
}

struct Softmax<'a> {
    scale: f32,
    shifts: &'a [f32],
    similarity: &'a mut [f32],
    exps: &'a mut [f32],
}

impl ChannelPass for Softmax<'_> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let Self { scale, shifts, similarity, exps } = self;
        let (shift_lanes, shift_rest) = shifts.as_chunks::<LANES>();
        let (exp_lanes, exp_rest) = exps.as_chunks_mut::<LANES>();
        for row in similarity.chunks_exact_mut(shifts.len()) {
            let (lanes, rest) = row.as_chunks_mut::<LANES>();
            for ((s, shift), sum) in lanes.iter_mut().zip(shift_lanes).zip(&mut *exp_lanes) {
                for ((s, shift), sum) in s.iter_mut().zip(shift).zip(sum) {
                    *s = exp(scale * *s - shift);
                    *sum += *s;
                }
            }
            for ((s, shift), sum) in rest.iter_mut().zip(shift_rest).zip(&mut *exp_rest) {
                *s = exp(scale * *s - shift);
                *sum += *s;
            }
        }
    }
}

struct Nce<'a> {
    scale: f32,
    shifts: &'a [f32],
    similarity: &'a mut [f32],
    exps: &'a mut [f32],
    products: &'a mut [f64],
}

impl ChannelPass for Nce<'_> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let Self { scale, shifts, similarity, exps, products } = self;
        let (shift_lanes, shift_rest) = shifts.as_chunks::<LANES>();
        let (exp_lanes, exp_rest) = exps.as_chunks_mut::<LANES>();
        let (product_lanes, product_rest) = products.as_chunks_mut::<LANES>();
        for row in similarity.chunks_exact_mut(shifts.len()) {
            let (lanes, rest) = row.as_chunks_mut::<LANES>();
            let sums = exp_lanes.iter_mut().zip(&mut *product_lanes);
            for ((s, shift), (sum, product)) in lanes.iter_mut().zip(shift_lanes).zip(sums) {
                for (((s, shift), sum), product) in s.iter_mut().zip(shift).zip(sum).zip(product) {
                    let e = exp(scale * *s - shift);
                    *sum += e;
                    *product *= 1.0 + f64::from(e);
                    *s = e / (1.0 + e);
                }
            }
            let sums = exp_rest.iter_mut().zip(&mut *product_rest);
            for ((s, shift), (sum, product)) in rest.iter_mut().zip(shift_rest).zip(sums) {
                let e = exp(scale * *s - shift);
                *sum += e;
                *product *= 1.0 + f64::from(e);
                *s = e / (1.0 + e);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 11 candidates of 37 queries: two groups of lanes and some more, and a group of factors and some more.
    fn tile() -> Vec<f32> {
        let mut tile: Vec<f32> = (0..11 * 37).map(|i| ((i * 37) % 407) as f32 / 204.0 - 1.0).collect();
        tile[40] = f32::NEG_INFINITY;
        tile
    }

    #[test]
    fn weights_and_sums_are_those_of_the_library_on_every_path() {
        let (tile, scale) = (tile(), 9.0);
        let shifts: Vec<f32> = (0..37).map(|j| j as f32 / 4.0).collect();
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            for nce in [false, true] {
                let (mut got, mut exps, mut logs) = (tile.clone(), vec![0f32; 37], vec![0.0; 37]);
                weigh(path, scale, &shifts, &mut got, &mut exps, nce.then_some(&mut logs[..]));
                assert_eq!(got[40], 0.0, "{path}");
                for j in 0..37 {
                    let e = |i: usize| (scale * f64::from(tile[37 * i + j]) - f64::from(shifts[j])).exp();
                    let sum: f64 = (0..11).map(e).sum();
                    assert!(
                        (f64::from(exps[j]) / sum - 1.0).abs() < 1e-6,
                        "{path} {j}: {} for {sum}",
                        exps[j]
                    );
                    let log: f64 = (0..11).map(|i| e(i).ln_1p()).sum();
                    assert!(
                        (logs[j] - if nce { log } else { 0.0 }).abs() < 1e-6 * log,
                        "{path} {j}: {logs:?}"
                    );
                    for i in 0..11 {
                        let weight = if nce { e(i) / (1.0 + e(i)) } else { e(i) };
                        let error = (f64::from(got[37 * i + j]) - weight).abs();
                        assert!(error <= 2e-6 * weight, "{path} {i} {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn not_a_number_is_not_hidden_and_many_likely_candidates_do_not_overflow() {
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            let (mut tile, mut exps, mut logs) = ([0.5f32, f32::NAN], [0f32; 2], [0f64; 2]);
            weigh(path, 2.0, &[1.0, 1.0], &mut tile, &mut exps, Some(&mut logs));
            assert!(
                tile[0].is_finite() && tile[1].is_nan() && exps[1].is_nan() && logs[1].is_nan(),
                "{path}"
            );
            let (mut tile, mut exps, mut logs) = ([1f32; 24], [0f32], [0f64]);
            weigh(path, 85.0, &[0.0], &mut tile, &mut exps, Some(&mut logs));
            assert!((logs[0] - 24.0 * 85.0).abs() < 1e-6, "{path}: {logs:?}");
            assert!(tile.iter().all(|&weight| weight == 1.0), "{path}: {tile:?}");
        }
    }
}
