//! Random numbers of what objectives keep and draw: counter based, so that they are the same on any rank.
//!
//! A number is a function of the run's seed, what it is for, two words that name the stream, and its place in the
//! stream, by the finaliser of SplitMix64 (Steele, Lea, Flood 2014).

use std::f64::consts::TAU;

/// What a stream is for. The discriminants are part of what a seed means: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Purpose {
    /// First rows of a queue; streams are rows.
    Queue = 1,
    /// First values of a bank; streams are slots.
    Bank = 2,
    /// Negatives of an image; streams are steps and positions in the global batch.
    Negatives = 3,
}

const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draws {
    key: u64,
}

impl Draws {
    pub(crate) fn new(seed: u64, purpose: Purpose, stream: [u64; 2]) -> Self {
        let words = [purpose as u64, stream[0], stream[1]];
        let key = words.into_iter().fold(mix(seed.wrapping_add(GOLDEN_RATIO)), |key, word| {
            mix((key ^ word).wrapping_add(GOLDEN_RATIO))
        });
        Self { key }
    }

    fn bits(self, place: u64) -> u64 {
        mix(self.key.wrapping_add(place.wrapping_mul(GOLDEN_RATIO)))
    }

    /// A number of [0, 1), a multiple of 2^-53.
    pub(crate) fn unit(self, place: u64) -> f64 {
        (self.bits(place) >> 11) as f64 * (-53f64).exp2()
    }

    /// A whole number of [0, `n`). The bias of the multiplication is below `n / 2^64`.
    pub(crate) fn below(self, place: u64, n: usize) -> usize {
        ((u128::from(self.bits(place)) * n as u128) >> 64) as usize
    }

    /// A number of the standard normal distribution, by Box and Muller.
    pub(crate) fn normal(self, place: u64) -> f64 {
        // 1 - u keeps the logarithm finite.
        let radius = (-2.0 * (1.0 - self.unit(2 * place)).ln()).sqrt();
        radius * (TAU * self.unit(2 * place + 1)).cos()
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_uniform_normal_and_unlike_each_other() {
        let n = 20_000;
        let draws = Draws::new(5, Purpose::Negatives, [3, 4]);
        let mean = |values: &dyn Fn(u64) -> f64| (0..n).map(values).sum::<f64>() / n as f64;
        assert!((mean(&|i| draws.unit(i)) - 0.5).abs() < 0.01);
        assert!((mean(&|i| draws.below(i, 10) as f64) - 4.5).abs() < 0.1);
        assert!((0..n).all(|i| draws.below(i, 10) < 10));
        assert!(mean(&|i| draws.normal(i)).abs() < 0.03);
        assert!((mean(&|i| draws.normal(i).powi(2)) - 1.0).abs() < 0.05);
        let others = [
            Draws::new(6, Purpose::Negatives, [3, 4]),
            Draws::new(5, Purpose::Bank, [3, 4]),
            Draws::new(5, Purpose::Negatives, [4, 3]),
            Draws::new(5, Purpose::Negatives, [3, 5]),
        ];
        for other in others {
            let correlation = mean(&|i| (draws.unit(i) - 0.5) * (other.unit(i) - 0.5));
            assert!(correlation.abs() < 0.003, "{other:?}: {correlation}");
        }
    }
}
