//! Batch statistics over all rows of all ranks.

use super::passes::Sums;
use super::{add_partials, pieces};
use kernels::peers::{PeerError, Peers};
use kernels::{Cpu, Real};

/// Variance below which a channel counts as constant: PyTorch's `eps`.
pub(super) const EPSILON: f64 = 1e-5;

/// Count, mean and sum of squared deviations of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Moments {
    pub count: f64,
    pub mean: f64,
    pub squares: f64,
}

impl Moments {
    /// From a sum and a sum of squares over `count` values.
    fn from_sums(count: f64, sum: f64, squares: f64) -> Self {
        let mean = sum / count;
        // Rounding may leave a constant channel a little below zero.
        Self { count, mean, squares: (squares - sum * mean).max(0.0) }
    }

    /// The moments of both sets together (Chan, Golub, LeVeque 1979), right for any two counts.
    fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let difference = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + difference * (other.count / count),
            squares: self.squares
                + other.squares
                + difference * difference * (self.count * other.count / count),
        }
    }

    /// The variance that normalises.
    pub fn biased_variance(&self) -> f64 {
        self.squares / self.count
    }

    /// The variance that enters the running statistics.
    pub fn unbiased_variance(&self) -> f64 {
        self.squares / (self.count - 1.0).max(1.0)
    }
}

/// Merges the moments of every rank, in rank order, by one gather for several tensors of equal shape.
///
/// - `count`: values per channel on this rank
/// - `sums`: per tensor `[2, channels]`, sum and sum of squares on this rank
///
/// Returns the moments tensor by tensor, channel by channel.
pub(super) fn gather(
    count: usize,
    sums: &[&[f64]],
    peers: &mut dyn Peers,
) -> Result<Vec<Moments>, PeerError> {
    let channels = sums[0].len() / 2;
    let mut local = vec![count as f64];
    for sums in sums {
        let (sum, squares) = sums.split_at(channels);
        for (&sum, &squares) in sum.iter().zip(squares) {
            let moments = Moments::from_sums(count as f64, sum, squares);
            local.extend([moments.mean, moments.squares]);
        }
    }
    let gathered = peers.all_gather_f64(&local)?;
    let mut merged = vec![Moments::default(); sums.len() * channels];
    for rank in gathered.chunks_exact(local.len()) {
        for (merged, moments) in merged.iter_mut().zip(rank[1..].chunks_exact(2)) {
            *merged = merged.merge(Moments { count: rank[0], mean: moments[0], squares: moments[1] });
        }
    }
    Ok(merged)
}

/// Sum and sum of squares of each channel of `x [pixels, channels]`, into `sums [2, channels]`.
pub(crate) fn channel_sums<T: Real>(cpu: &Cpu, x: &[T], sums: &mut [f64]) {
    let channels = sums.len() / 2;
    let mut partials = vec![0.0; cpu.threads() * sums.len()];
    let passes = pieces(x, channels, cpu.threads())
        .zip(partials.chunks_exact_mut(sums.len()))
        .map(|(x, sums)| Sums { x, sums })
        .collect();
    cpu.run(channels, passes);
    add_partials(&partials, sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merging parts of a set in order gives the set's moments, whatever the sizes of the parts.
    #[test]
    fn merged_moments_are_those_of_the_whole() {
        let values: Vec<f64> = (0..17_u32).map(|i| 100.0 + f64::from(i * i % 13)).collect();
        let of = |values: &[f64]| {
            let sum = values.iter().sum::<f64>();
            let squares = values.iter().map(|v| v * v).sum::<f64>();
            if values.is_empty() {
                Moments::default()
            } else {
                Moments::from_sums(values.len() as f64, sum, squares)
            }
        };
        let whole = of(&values);
        for cuts in [[0, 1], [5, 6], [16, 17], [3, 3]] {
            let parts = [&values[..cuts[0]], &values[cuts[0]..cuts[1]], &values[cuts[1]..]];
            let merged = parts.into_iter().map(of).fold(Moments::default(), Moments::merge);
            assert_eq!(merged.count, 17.0);
            assert!((merged.mean - whole.mean).abs() < 1e-12, "{merged:?} {whole:?}");
            assert!((merged.squares - whole.squares).abs() < 1e-9, "{merged:?} {whole:?}");
        }
        let mean = values.iter().sum::<f64>() / 17.0;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        assert!((whole.unbiased_variance() - squares / 16.0).abs() < 1e-10);
        assert!((whole.biased_variance() - squares / 17.0).abs() < 1e-10);
    }
}
