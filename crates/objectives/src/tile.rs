//! Exponentials over a tile of similarities, at temperatures at which none of them leaves the numbers.
//!
//! A softmax usually takes its largest logit off all others first. Logits here are cosines divided by a temperature,
//! so that their range is known beforehand, and unless the temperature is very low there is nothing to take off:
//! one exponential then serves the softmax of its row and that of its column.

use engine::kernels::{ChannelPass, KernelPath, LANES, Real, vectorized};

use crate::exponential::exp;

/// Whether the exponentials of all logits, their sums over `m` rows and the inverses of those are normal numbers.
pub(crate) fn needs_no_shift<T: Real>(temperature: f64, m: usize) -> bool {
    let largest_exponent = if T::as_f32(&[]).is_some() { 80.0 } else { 700.0 };
    1.0 / temperature + (m as f64).ln() < largest_exponent
}

/// Adds `exp(scale * similarity)` of a tile to the sums of its rows and, if there are any, those of its columns.
pub(crate) fn sum_exps<T: Real>(
    path: KernelPath,
    similarity: &[T],
    scale: f64,
    row_sums: &mut [f64],
    column_sums: Option<&mut [f64]>,
) {
    let columns = similarity.len() / row_sums.len();
    if path != KernelPath::Reference
        && let Some(similarity) = T::as_f32(similarity)
    {
        let mut sums = vec![0.0; columns];
        let scale = scale as f32;
        vectorized(path, LANES, SumExps { similarity, scale, row_sums, column_sums: &mut sums });
        return column_sums
            .into_iter()
            .flat_map(|total| total.iter_mut().zip(&sums))
            .for_each(|(total, &sum)| *total += f64::from(sum));
    }
    let mut none = vec![0.0; columns];
    let column_sums = column_sums.unwrap_or(&mut none);
    for (row, row_sum) in similarity.chunks_exact(columns).zip(row_sums) {
        for (s, column_sum) in row.iter().zip(&mut *column_sums) {
            let exponential = (scale * s.to_f64()).exp();
            *row_sum += exponential;
            *column_sum += exponential;
        }
    }
}

/// Replaces the similarity in row `i` and column `j` of a tile by `exp(scale * similarity) * (row_factors[i] +
/// column_factors[j])`.
pub(crate) fn weigh<T: Real>(
    path: KernelPath,
    similarity: &mut [T],
    scale: f64,
    row_factors: &[T],
    column_factors: &[T],
) {
    if path != KernelPath::Reference
        && let (Some(row_factors), Some(column_factors)) = (T::as_f32(row_factors), T::as_f32(column_factors))
        && let Some(similarity) = T::as_f32_mut(similarity)
    {
        let scale = scale as f32;
        return vectorized(path, LANES, Weigh { similarity, scale, row_factors, column_factors });
    }
    let scale = T::from_f64(scale);
    for (row, &row_factor) in similarity.chunks_exact_mut(column_factors.len()).zip(row_factors) {
        for (s, &column_factor) in row.iter_mut().zip(column_factors) {
            *s = (scale * *s).exp() * (row_factor + column_factor);
        }
    }
}

struct SumExps<'a> {
    similarity: &'a [f32],
    scale: f32,
    row_sums: &'a mut [f64],
    column_sums: &'a mut [f32],
}

impl ChannelPass for SumExps<'_> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let Self { similarity, scale, row_sums, column_sums } = self;
        for (row, row_sum) in similarity.chunks_exact(column_sums.len()).zip(row_sums) {
            let (chunks, rest) = row.as_chunks::<LANES>();
            let (sums, rest_sums) = column_sums.as_chunks_mut::<LANES>();
            let mut lanes = [0f32; LANES];
            for (chunk, sums) in chunks.iter().zip(sums) {
                for ((lane, sum), &s) in lanes.iter_mut().zip(sums).zip(chunk) {
                    let exponential = exp(scale * s);
                    *lane += exponential;
                    *sum += exponential;
                }
            }
            for ((lane, sum), &s) in lanes.iter_mut().zip(rest_sums).zip(rest) {
                let exponential = exp(scale * s);
                *lane += exponential;
                *sum += exponential;
            }
            *row_sum += f64::from(total(lanes));
        }
    }
}

/// The sum of the lanes, by halves: one after the other would be a chain of waits as long as the row's work.
#[inline(always)]
fn total<const LANES: usize>(mut lanes: [f32; LANES]) -> f32 {
    let mut len = LANES;
    while len > 1 {
        len /= 2;
        for i in 0..len {
            lanes[i] += lanes[i + len];
        }
    }
    lanes[0]
}

struct Weigh<'a> {
    similarity: &'a mut [f32],
    scale: f32,
    row_factors: &'a [f32],
    column_factors: &'a [f32],
}

impl ChannelPass for Weigh<'_> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let Self { similarity, scale, row_factors, column_factors } = self;
        let (factors, rest_factors) = column_factors.as_chunks::<LANES>();
        for (row, &row_factor) in similarity.chunks_exact_mut(column_factors.len()).zip(row_factors) {
            let (chunks, rest) = row.as_chunks_mut::<LANES>();
            for (chunk, factors) in chunks.iter_mut().zip(factors) {
                for (s, &factor) in chunk.iter_mut().zip(factors) {
                    *s = exp(scale * *s) * (row_factor + factor);
                }
            }
            for (s, &factor) in rest.iter_mut().zip(rest_factors) {
                *s = exp(scale * *s) * (row_factor + factor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 rows of 37: two groups of lanes and some more. One similarity is excluded.
    fn tile() -> Vec<f32> {
        let mut tile: Vec<f32> = (0..111).map(|i| ((i * 37) % 111) as f32 / 56.0 - 1.0).collect();
        tile[40] = f32::NEG_INFINITY;
        tile
    }

    fn paths() -> impl Iterator<Item = KernelPath> {
        KernelPath::ALL.into_iter().filter(|path| path.is_available())
    }

    #[test]
    fn rows_and_columns_are_summed_on_every_path() {
        let tile = tile();
        let scale = 5.0;
        let exact = |i: usize| (scale * f64::from(tile[i])).exp();
        for path in paths() {
            let (mut rows, mut columns) = ([1.0; 3], [2.0; 37]);
            sum_exps(path, &tile, scale, &mut rows, Some(&mut columns));
            let mut only_rows = [1.0; 3];
            sum_exps(path, &tile, scale, &mut only_rows, None);
            assert_eq!(rows, only_rows, "{path}");
            for (i, row) in rows.into_iter().enumerate() {
                let sum = 1.0 + (0..37).map(|j| exact(37 * i + j)).sum::<f64>();
                assert!((row / sum - 1.0).abs() < 1e-6, "{path} row {i}: {row} for {sum}");
            }
            for (j, column) in columns.into_iter().enumerate() {
                let sum = 2.0 + (0..3).map(|i| exact(37 * i + j)).sum::<f64>();
                assert!((column / sum - 1.0).abs() < 1e-6, "{path} column {j}: {column} for {sum}");
            }
        }
    }

    #[test]
    fn weights_are_those_of_the_library_on_every_path() {
        let tile = tile();
        let (rows, columns) = ([0.5f32, 0.25, 2.0], (0..37).map(|j| j as f32 / 9.0).collect::<Vec<_>>());
        for path in paths() {
            let mut got = tile.clone();
            weigh(path, &mut got, 5.0, &rows, &columns);
            assert_eq!(got[40], 0.0, "{path}");
            for (i, (&got, &s)) in got.iter().zip(&tile).enumerate() {
                let exact = (5.0 * f64::from(s)).exp() * f64::from(rows[i / 37] + columns[i % 37]);
                assert!((f64::from(got) - exact).abs() <= 1e-6 * exact, "{path} {i}: {got} for {exact}");
            }
        }
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        for path in paths() {
            let mut tile = [0.5f32, f32::NAN, 0.25, 0.75];
            let (mut rows, mut columns) = ([0.0; 2], [0.0; 2]);
            sum_exps(path, &tile, 2.0, &mut rows, Some(&mut columns));
            assert_eq!([rows, columns].map(|sums| sums.map(f64::is_nan)), [[true, false], [false, true]]);
            weigh(path, &mut tile, 2.0, &[1.0, 1.0], &[1.0, 1.0]);
            assert_eq!(tile.map(f32::is_nan), [false, true, false, false]);
        }
    }

    #[test]
    fn only_very_low_temperatures_need_a_shift() {
        let cases = [(0.5, true), (0.05, true), (0.015, true), (0.014, false), (0.001, false)];
        for (temperature, expected) in cases {
            assert_eq!(needs_no_shift::<f32>(temperature, 65_536), expected, "{temperature}");
        }
        assert!(needs_no_shift::<f64>(0.002, 65_536) && !needs_no_shift::<f64>(0.001, 65_536));
    }
}
