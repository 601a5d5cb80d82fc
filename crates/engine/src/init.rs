//! First values of the parameters, as torchvision and PyTorch distribute them.
//!
//! Counter based: an element is a function of the seed, its parameter's name and its index. It depends on no
//! thread, no order of construction and no other layer, so a network with another head has the same backbone.

use std::f64::consts::TAU;

use crate::kernels::Real;

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Initial {
    /// Normal with standard deviation sqrt(2 / fan_out): He's initialisation for ReLU, mode `fan_out`.
    HeNormal { fan_out: usize },
    /// Uniform in [-1 / sqrt(fan_in), 1 / sqrt(fan_in)]: PyTorch's default for linear layers.
    LinearUniform { fan_in: usize },
    /// The same value everywhere.
    Constant(f64),
}

/// Fills `values` with the elements of the parameter called `name`.
pub(crate) fn fill<T: Real>(initial: Initial, seed: u64, name: &str, values: &mut [T]) {
    let key = key(seed, name);
    match initial {
        Initial::Constant(value) => values.fill(T::from_f64(value)),
        Initial::LinearUniform { fan_in } => {
            let bound = 1.0 / (fan_in as f64).sqrt();
            for (i, value) in values.iter_mut().enumerate() {
                *value = T::from_f64(bound * (2.0 * unit(key, i as u64) - 1.0));
            }
        }
        Initial::HeNormal { fan_out } => {
            let deviation = (2.0 / fan_out as f64).sqrt();
            for (pair_idx, pair) in values.chunks_mut(2).enumerate() {
                // Box and Muller: two uniform numbers give two normal ones. 1 - u keeps the logarithm finite.
                let counter = 2 * pair_idx as u64;
                let radius = deviation * (-2.0 * (1.0 - unit(key, counter)).ln()).sqrt();
                let (sin, cos) = (TAU * unit(key, counter + 1)).sin_cos();
                for (value, direction) in pair.iter_mut().zip([cos, sin]) {
                    *value = T::from_f64(radius * direction);
                }
            }
        }
    }
}

const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed.wrapping_add(GOLDEN_RATIO)), |key, byte| {
        mix((key ^ u64::from(byte)).wrapping_add(GOLDEN_RATIO))
    })
}

/// The number at `counter` of the sequence `key`, uniform in [0, 1) with 53 bits.
fn unit(key: u64, counter: u64) -> f64 {
    let bits = mix(key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN_RATIO)));
    (bits >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(initial: Initial, seed: u64, name: &str) -> Vec<f64> {
        let mut values = vec![0.0; 100_001];
        fill(initial, seed, name, &mut values);
        values
    }

    /// Mean, variance and fourth standardised moment.
    fn moments(values: &[f64]) -> (f64, f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        (mean, variance, values.iter().map(|v| (v - mean).powi(4)).sum::<f64>() / n / variance.powi(2))
    }

    fn correlation(a: &[f64], b: &[f64]) -> f64 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        // Standard errors at 1e5 draws: mean 0.003 sigma, variance 0.5 %, kurtosis 0.016; five of each allowed.
        let (mean, variance, kurtosis) = moments(&drawn(Initial::HeNormal { fan_out: 576 }, 7, "conv"));
        assert!(mean.abs() < 1e-3, "{mean}");
        assert!((variance / (2.0 / 576.0) - 1.0).abs() < 0.025, "{variance}");
        assert!((kurtosis - 3.0).abs() < 0.08, "{kurtosis}");

        let uniform = drawn(Initial::LinearUniform { fan_in: 64 }, 7, "fc");
        let (mean, variance, kurtosis) = moments(&uniform);
        assert!(mean.abs() < 1.2e-3, "{mean}");
        assert!((variance * 64.0 * 3.0 - 1.0).abs() < 0.02, "{variance}");
        assert!((kurtosis - 1.8).abs() < 0.03, "{kurtosis}");
        assert!(uniform.iter().all(|v| v.abs() <= 0.125));
    }

    #[test]
    fn names_seeds_and_neighbours_are_independent() {
        let normal = Initial::HeNormal { fan_out: 2 };
        let values = drawn(normal, 1, "a");
        assert_eq!(values, drawn(normal, 1, "a"));
        let shifted = [&values[1..], &values[..1]].concat();
        for other in [drawn(normal, 2, "a"), drawn(normal, 1, "b"), drawn(normal, 1, "aa"), shifted] {
            let correlation = correlation(&values, &other);
            assert!(correlation.abs() < 0.016, "{correlation}");
        }
    }
}
