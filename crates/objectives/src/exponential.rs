//! Exponentials over a row of logits, which is all the work of a softmax that is not a matrix product.
//!
//! `f64`, and `f32` on the reference path, call the library once per element. Otherwise a polynomial is
//! evaluated on [`LANES`] elements at a time, by the widest instructions of the path.

use kernels::{ChannelPass, KernelPath, LANES, Real, exp, vectorized};

/// `log sum_j exp(x_j)` of a row that arrives in pieces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSumExp {
    max: f64,
    /// `sum_j exp(x_j - max)`.
    sum: f64,
}

impl LogSumExp {
    pub(crate) const EMPTY: Self = Self { max: f64::NEG_INFINITY, sum: 0.0 };

    /// Takes in `x_j = scale * similarity_j`; an `x_j` of minus infinity has no part in the sum.
    pub(crate) fn add<T: Real>(&mut self, path: KernelPath, similarity: &[T], scale: f64) {
        let max = self.max.max(scale * largest(similarity));
        if max == f64::NEG_INFINITY {
            return;
        }
        self.sum = self.sum * (self.max - max).exp() + sum_exp(path, similarity, scale, max);
        self.max = max;
    }

    pub(crate) fn value(self) -> f64 {
        self.max + self.sum.ln()
    }
}

fn largest<T: Real>(values: &[T]) -> f64 {
    // Lanes, since a running maximum in one variable would be one long chain.
    let mut lanes = [T::from_f64(f64::NEG_INFINITY); LANES];
    for chunk in values.chunks(LANES) {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.into_iter().map(T::to_f64).fold(f64::NEG_INFINITY, f64::max)
}

/// `sum_j exp(scale * similarity_j - shift)`.
fn sum_exp<T: Real>(path: KernelPath, similarity: &[T], scale: f64, shift: f64) -> f64 {
    match T::as_f32(similarity) {
        Some(similarity) if path != KernelPath::Reference => {
            let mut sum = 0.0;
            vectorized(
                path,
                LANES,
                SumExp { similarity, scale: scale as f32, shift: shift as f32, sum: &mut sum },
            );
            sum
        }
        _ => similarity.iter().map(|s| (scale * s.to_f64() - shift).exp()).sum(),
    }
}

/// Replaces `similarity_j` by `exp(x_j - row_shift) + exp(x_j - column_shifts_j)`, `x_j = scale * similarity_j`.
pub(crate) fn add_two_exps<T: Real>(
    path: KernelPath,
    similarity: &mut [T],
    scale: f64,
    row_shift: T,
    column_shifts: &[T],
) {
    if path != KernelPath::Reference
        && let (Some(shift), Some(column_shifts)) =
            (T::as_f32(&[row_shift]).map(|shift| shift[0]), T::as_f32(column_shifts))
        && let Some(similarity) = T::as_f32_mut(similarity)
    {
        return vectorized(path, LANES, TwoExps { similarity, scale: scale as f32, shift, column_shifts });
    }
    let scale = T::from_f64(scale);
    for (s, &column_shift) in similarity.iter_mut().zip(column_shifts) {
        let x = scale * *s;
        *s = (x - row_shift).exp() + (x - column_shift).exp();
    }
}

struct SumExp<'a> {
    similarity: &'a [f32],
    scale: f32,
    shift: f32,
    sum: &'a mut f64,
}

impl ChannelPass for SumExp<'_> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let (chunks, rest) = self.similarity.as_chunks::<LANES>();
        let mut lanes = [0f32; LANES];
        for chunk in chunks {
            for (lane, &s) in lanes.iter_mut().zip(chunk) {
                *lane += exp(self.scale * s - self.shift);
            }
        }
        for (lane, &s) in lanes.iter_mut().zip(rest) {
            *lane += exp(self.scale * s - self.shift);
        }
        *self.sum = lanes.into_iter().map(f64::from).sum();
    }
}

struct TwoExps<'a> {
    similarity: &'a mut [f32],
    scale: f32,
    shift: f32,
    column_shifts: &'a [f32],
}

impl ChannelPass for TwoExps<'_> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let value = |s: f32, column_shift: f32| {
            let x = self.scale * s;
            exp(x - self.shift) + exp(x - column_shift)
        };
        let (chunks, rest) = self.similarity.as_chunks_mut::<LANES>();
        let (shift_chunks, rest_shifts) = self.column_shifts.as_chunks::<LANES>();
        for (chunk, shifts) in chunks.iter_mut().zip(shift_chunks) {
            for (s, &shift) in chunk.iter_mut().zip(shifts) {
                *s = value(*s, shift);
            }
        }
        for (s, &shift) in rest.iter_mut().zip(rest_shifts) {
            *s = value(*s, shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_in_pieces_is_the_sum_on_every_path() {
        let logits: Vec<f32> = (0..101).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        for scale in [0.5, 10.0, 200.0] {
            let direct = logits.iter().map(|&x| (scale * f64::from(x)).exp()).sum::<f64>().ln();
            for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
                for piece in [1, 7, 16, 40, 101] {
                    let mut sum = LogSumExp::EMPTY;
                    sum.add(path, &[f32::NEG_INFINITY], scale);
                    for part in logits.chunks(piece) {
                        sum.add(path, part, scale);
                    }
                    // The logits themselves are rounded to f32 at the size of the scale.
                    let error = (sum.value() - direct).abs();
                    assert!(error < 2e-7 * scale.max(5.0), "{path} {piece} {scale}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            let mut sum = LogSumExp::EMPTY;
            sum.add(path, &[0.5f32, f32::NAN, 0.1], 2.0);
            assert!(sum.value().is_nan(), "{path}");
            let mut row = [0.5f32, f32::NAN];
            add_two_exps(path, &mut row, 2.0, 1.0, &[1.0, 1.0]);
            assert!(row[0].is_finite() && row[1].is_nan(), "{path}");
        }
    }

    #[test]
    fn two_exponentials_are_those_of_the_library_on_every_path() {
        let similarity: Vec<f32> = (0..37).map(|i| i as f32 / 20.0 - 0.9).collect();
        let shifts: Vec<f32> = (0..37).map(|i| (i % 5) as f32 + 3.0).collect();
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            let mut row = similarity.clone();
            row[5] = f32::NEG_INFINITY;
            add_two_exps(path, &mut row, 4.0, 2.5, &shifts);
            assert_eq!(row[5], 0.0);
            for i in (0..37).filter(|&i| i != 5) {
                let x = 4.0 * f64::from(similarity[i]);
                let exact = (x - 2.5).exp() + (x - f64::from(shifts[i])).exp();
                assert!((f64::from(row[i]) - exact).abs() < 1e-6 * exact, "{path} {i}");
            }
        }
    }
}
