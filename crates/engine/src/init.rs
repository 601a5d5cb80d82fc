//! First values of the parameters, as torchvision, PyTorch and facebookresearch/moco-v3 distribute them.
//!
//! Counter based: an element is a function of the seed, its parameter's name and its index. It depends on no
//! thread, no order of construction and no other layer, so a network with another head has the same backbone.

use std::f64::consts::TAU;

use kernels::Real;

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Initial {
    /// Normal with standard deviation sqrt(2 / fan_out): He's initialisation for ReLU, mode `fan_out`.
    HeNormal { fan_out: usize },
    /// Uniform in [-1 / sqrt(fan_in), 1 / sqrt(fan_in)]: PyTorch's default for linear layers.
    LinearUniform { fan_in: usize },
    /// Uniform in [-b, b], b = sqrt(6 / (fan_in + fan_out)): Glorot & Bengio 2010.
    XavierUniform { fan_in: usize, fan_out: usize },
    /// Normal with a standard deviation.
    Normal { deviation: f64 },
    /// Sines and cosines of the place in a grid of `side` by `side` patches, behind a first row of zeros.
    Positions { side: usize, width: usize },
    /// The same value everywhere.
    Constant(f64),
}

/// Fills `values` with the elements of the parameter called `name`.
pub(crate) fn fill<T: Real>(initial: Initial, seed: u64, name: &str, values: &mut [T]) {
    let key = key(seed, name);
    match initial {
        Initial::Constant(value) => values.fill(T::from_f64(value)),
        Initial::LinearUniform { fan_in } => uniform(key, 1.0 / (fan_in as f64).sqrt(), values),
        Initial::XavierUniform { fan_in, fan_out } => {
            uniform(key, (6.0 / (fan_in + fan_out) as f64).sqrt(), values);
        }
        Initial::HeNormal { fan_out } => normal(key, (2.0 / fan_out as f64).sqrt(), values),
        Initial::Normal { deviation } => normal(key, deviation, values),
        Initial::Positions { side, width } => positions(side, width, values),
    }
}

fn uniform<T: Real>(key: u64, bound: f64, values: &mut [T]) {
    for (i, value) in values.iter_mut().enumerate() {
        *value = T::from_f64(bound * (2.0 * unit(key, i as u64) - 1.0));
    }
}

fn normal<T: Real>(key: u64, deviation: f64, values: &mut [T]) {
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

/// MoCo v3's position embedding (Chen, Xie & He 2021, arXiv:2104.02057, section 5.4): a quarter of the width each for
/// the sines and cosines of the row, then of the column, at wavelengths that grow from `TAU` to 10,000 times that. Row
/// comes first because facebookresearch/moco-v3 calls `meshgrid` with its default order of indices.
fn positions<T: Real>(side: usize, width: usize, values: &mut [T]) {
    let quarter = width / 4;
    let (class_token, patches) = values.split_at_mut(width);
    class_token.fill(T::ZERO);
    for (patch, row) in patches.chunks_exact_mut(width).enumerate() {
        for (i, value) in row.iter_mut().enumerate() {
            let place = if i < 2 * quarter { patch / side } else { patch % side };
            let angle = place as f64 / 10_000_f64.powf((i % quarter) as f64 / quarter as f64);
            let is_sine = (i / quarter).is_multiple_of(2);
            *value = T::from_f64(if is_sine { angle.sin() } else { angle.cos() });
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

        let xavier = drawn(Initial::XavierUniform { fan_in: 300, fan_out: 84 }, 7, "qkv");
        let (_, variance, _) = moments(&xavier);
        assert!((variance * 384.0 / 2.0 - 1.0).abs() < 0.02, "{variance}");
        assert!(xavier.iter().all(|v| v.abs() <= 0.125));
        let (_, variance, _) = moments(&drawn(Initial::Normal { deviation: 1e-6 }, 7, "token"));
        assert!((variance / 1e-12 - 1.0).abs() < 0.025, "{variance}");
    }

    /// facebookresearch/moco-v3's rule, by hand: width 8, so two wavelengths, 1 and 100.
    #[test]
    fn positions_are_sines_and_cosines_of_row_and_column() {
        let mut values = vec![7.0; 5 * 8];
        fill(Initial::Positions { side: 2, width: 8 }, 1, "pos_embed", &mut values);
        assert_eq!(values[..8], [0.0; 8]);
        // The patch in the second row and the first column, and its neighbour to the right.
        let (sin, cos) = ([1f64.sin(), 0.01f64.sin()], [1f64.cos(), 0.01f64.cos()]);
        assert_eq!(values[3 * 8..4 * 8], [sin[0], sin[1], cos[0], cos[1], 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(values[4 * 8..], [sin, cos, sin, cos].concat());
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
