//! Exponentials over a panel of similarities, at temperatures at which none of them leaves the numbers.
//!
//! A softmax usually takes its largest logit off all others first. Logits here are cosines divided by a temperature,
//! so that their range is known beforehand, and unless the temperature is very low there is nothing to take off:
//! one exponential then serves the softmax of its row and that of its column.

use kernels::{ChannelPass, KernelPath, PANEL, Real, exp2, vectorized};

use crate::exponential::add_two_exps;

/// Partial sums of a row, each of every so many columns: as many as a vector has numbers.
pub(crate) const LANES: usize = kernels::LANES;

/// Whether the exponentials of all logits, their sums over `m` rows and the inverses of those are normal numbers.
pub(crate) fn needs_no_shift<T: Real>(temperature: f64, m: usize) -> bool {
    let largest_exponent = if T::as_f32(&[]).is_some() { 80.0 } else { 700.0 };
    1.0 / temperature + (m as f64).ln() < largest_exponent
}

/// How the similarities of a panel, `[rows, PANEL]`, become logits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logits {
    pub(crate) path: KernelPath,
    /// Multiplies them.
    pub(crate) scale: f64,
    /// Whether some are minus infinity.
    pub(crate) excludes: bool,
}

impl Logits {
    /// Adds the exponentials of a panel to its rows' lanes, `[rows, LANES]`; returns the sums of its columns.
    pub(crate) fn sum_exps<T: Real>(self, panel: &[T], row_lanes: &mut [T]) -> [T; PANEL] {
        let mut column_sums = [T::ZERO; PANEL];
        if self.path != KernelPath::Reference
            && let (Some(panel), Some(row_lanes)) = (T::as_f32(panel), T::as_f32_mut(row_lanes))
            && let Some(sums) = T::as_f32_mut(&mut column_sums)
        {
            let scale = self.binary_scale();
            if self.excludes {
                vectorized(self.path, LANES, SumExps::<true> { panel, scale, row_lanes, column_sums: sums });
            } else {
                vectorized(self.path, LANES, SumExps::<false> { panel, scale, row_lanes, column_sums: sums });
            }
            return column_sums;
        }
        let scale = T::from_f64(self.scale);
        for (row, lanes) in panel.chunks_exact(PANEL).zip(row_lanes.chunks_exact_mut(LANES)) {
            for (j, (&s, column_sum)) in row.iter().zip(&mut column_sums).enumerate() {
                let exponential = (scale * s).exp();
                lanes[j % LANES] += exponential;
                *column_sum += exponential;
            }
        }
        column_sums
    }

    /// Replaces the similarity in row `i` and column `j` by its exponential times `row_factors[i] +
    /// column_factors[j]`; there may be fewer columns than in a panel.
    pub(crate) fn weigh<T: Real>(self, panel: &mut [T], row_factors: &[T], column_factors: &[T]) {
        let mut all_factors = [T::ZERO; PANEL];
        all_factors[..column_factors.len()].copy_from_slice(column_factors);
        if self.path != KernelPath::Reference
            && let (Some(row_factors), Some(column_factors)) =
                (T::as_f32(row_factors), T::as_f32(&all_factors))
            && let Some(panel) = T::as_f32_mut(panel)
        {
            let scale = self.binary_scale();
            return if self.excludes {
                vectorized(self.path, LANES, Weigh::<true> { panel, scale, row_factors, column_factors });
            } else {
                vectorized(self.path, LANES, Weigh::<false> { panel, scale, row_factors, column_factors });
            };
        }
        let scale = T::from_f64(self.scale);
        for (row, &row_factor) in panel.chunks_exact_mut(PANEL).zip(row_factors) {
            for (s, &column_factor) in row.iter_mut().zip(&all_factors) {
                *s = (scale * *s).exp() * (row_factor + column_factor);
            }
        }
    }

    /// Replaces the similarity in row `i` and column `j` by the sum of the exponentials of its logit less
    /// `row_shifts[i]` and less `column_shifts[j]`; there may be fewer columns than in a panel.
    pub(crate) fn weigh_shifted<T: Real>(self, panel: &mut [T], row_shifts: &[T], column_shifts: &[T]) {
        let mut all_shifts = [T::ZERO; PANEL];
        all_shifts[..column_shifts.len()].copy_from_slice(column_shifts);
        for (row, &row_shift) in panel.chunks_exact_mut(PANEL).zip(row_shifts) {
            add_two_exps(self.path, row, self.scale, row_shift, &all_shifts);
        }
    }

    /// What makes powers of two of the similarities instead of those of e.
    fn binary_scale(self) -> f32 {
        (self.scale * std::f64::consts::LOG2_E) as f32
    }
}

/// `2^x`; if there are any that are minus infinity, 0 for those.
#[inline(always)]
fn power<const EXCLUDES: bool>(x: f32) -> f32 {
    let power = exp2(x);
    if EXCLUDES && x == f32::NEG_INFINITY { 0.0 } else { power }
}

struct SumExps<'a, const EXCLUDES: bool> {
    panel: &'a [f32],
    scale: f32,
    row_lanes: &'a mut [f32],
    column_sums: &'a mut [f32],
}

impl<const EXCLUDES: bool> ChannelPass for SumExps<'_, EXCLUDES> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let mut column_sums = [0f32; PANEL];
        let (rows, _) = self.panel.as_chunks::<PANEL>();
        let (row_lanes, _) = self.row_lanes.as_chunks_mut::<LANES>();
        for (row, lanes) in rows.iter().zip(row_lanes) {
            let (chunks, _) = row.as_chunks::<LANES>();
            let (sums, _) = column_sums.as_chunks_mut::<LANES>();
            for (chunk, sums) in chunks.iter().zip(sums) {
                for ((lane, sum), &s) in lanes.iter_mut().zip(sums).zip(chunk) {
                    let exponential = power::<EXCLUDES>(self.scale * s);
                    *lane += exponential;
                    *sum += exponential;
                }
            }
        }
        self.column_sums.copy_from_slice(&column_sums);
    }
}

struct Weigh<'a, const EXCLUDES: bool> {
    panel: &'a mut [f32],
    scale: f32,
    row_factors: &'a [f32],
    column_factors: &'a [f32],
}

impl<const EXCLUDES: bool> ChannelPass for Weigh<'_, EXCLUDES> {
    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let (rows, _) = self.panel.as_chunks_mut::<PANEL>();
        let (factors, _) = self.column_factors.as_chunks::<LANES>();
        for (row, &row_factor) in rows.iter_mut().zip(self.row_factors) {
            let (chunks, _) = row.as_chunks_mut::<LANES>();
            for (chunk, factors) in chunks.iter_mut().zip(factors) {
                for (s, &factor) in chunk.iter_mut().zip(factors) {
                    *s = power::<EXCLUDES>(self.scale * *s) * (row_factor + factor);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: f64 = 5.0;

    /// 3 rows of a panel. One similarity is excluded.
    fn panel() -> Vec<f32> {
        let mut panel: Vec<f32> = (0..3 * PANEL).map(|i| ((i * 37) % 111) as f32 / 56.0 - 1.0).collect();
        panel[40] = f32::NEG_INFINITY;
        panel
    }

    fn on_all_paths() -> impl Iterator<Item = Logits> {
        let paths = KernelPath::ALL.into_iter().filter(|path| path.is_available());
        paths.map(|path| Logits { path, scale: SCALE, excludes: true })
    }

    #[test]
    fn rows_and_columns_are_summed_on_every_path() {
        let panel = panel();
        let exact = |i: usize, j: usize| (SCALE * f64::from(panel[PANEL * i + j])).exp();
        for logits in on_all_paths() {
            let mut lanes = [1.0; 3 * LANES];
            let columns = logits.sum_exps(&panel, &mut lanes);
            for (i, lanes) in lanes.chunks(LANES).enumerate() {
                let row: f64 = lanes.iter().copied().map(f64::from).sum();
                let sum = LANES as f64 + (0..PANEL).map(|j| exact(i, j)).sum::<f64>();
                assert!((row / sum - 1.0).abs() < 1e-6, "{logits:?} row {i}: {row} for {sum}");
            }
            for (j, column) in columns.into_iter().enumerate() {
                let sum: f64 = (0..3).map(|i| exact(i, j)).sum();
                assert!(
                    (f64::from(column) / sum - 1.0).abs() < 1e-6,
                    "{logits:?} column {j}: {column} for {sum}"
                );
            }
        }
    }

    #[test]
    fn weights_are_those_of_the_library_on_every_path() {
        let panel = panel();
        let (rows, columns) = ([0.5f32, 0.25, 2.0], [1.0f32, 3.0].repeat(15));
        for logits in on_all_paths() {
            let mut got = panel.clone();
            logits.weigh(&mut got, &rows, &columns);
            assert_eq!(got[40], 0.0, "{logits:?}");
            for (i, (&got, &s)) in got.iter().zip(&panel).enumerate() {
                let column = columns.get(i % PANEL).copied().unwrap_or_default();
                let exact = (SCALE * f64::from(s)).exp() * f64::from(rows[i / PANEL] + column);
                assert!((f64::from(got) - exact).abs() <= 1e-6 * exact, "{logits:?} {i}: {got} for {exact}");
            }
        }
    }

    #[test]
    fn what_excludes_nothing_needs_no_exclusion() {
        for logits in on_all_paths() {
            let mut panel = panel();
            panel[40] = 0.5;
            let without = Logits { excludes: false, ..logits };
            let (mut lanes, mut same_lanes) = ([0.0; 3 * LANES], [0.0; 3 * LANES]);
            assert_eq!(logits.sum_exps(&panel, &mut lanes), without.sum_exps(&panel, &mut same_lanes));
            assert_eq!(lanes, same_lanes, "{logits:?}");
            let mut same = panel.clone();
            logits.weigh(&mut panel, &[1.0; 3], &[0.0; PANEL]);
            without.weigh(&mut same, &[1.0; 3], &[0.0; PANEL]);
            assert_eq!(panel, same, "{logits:?}");
        }
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        for logits in on_all_paths() {
            for excludes in [false, true] {
                let logits = Logits { excludes, ..logits };
                let mut panel = vec![0.5f32; PANEL];
                panel[3] = f32::NAN;
                let mut lanes = [0.0; LANES];
                let columns = logits.sum_exps(&panel, &mut lanes);
                assert!((0..PANEL).all(|j| columns[j].is_nan() == (j == 3)), "{columns:?}");
                assert!((0..LANES).all(|j| lanes[j].is_nan() == (j == 3)), "{lanes:?}");
                logits.weigh(&mut panel, &[1.0], &[1.0; PANEL]);
                assert!((0..PANEL).all(|j| panel[j].is_nan() == (j == 3)), "{panel:?}");
            }
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
