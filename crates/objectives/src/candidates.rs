//! Queries against all of many constant rows: a queue, the keys of a batch, a rank's part of a bank.
//!
//! The similarities are visited in tiles and never stored. Threads take tiles of candidates in turn, each with sums of
//! its own, which are added in thread order: memory is `O(threads q d)`, however many candidates there are.

use std::ops::Range;

use kernels::{Device, Packed, PackedGemm, Real};

use crate::weigh::{Estimator, weigh};

/// Candidates of a tile, and queries. In `f32` and at 128 columns the candidates, packed and not, the packed queries,
/// their sums and the tile fit a second-level cache of 1 MiB.
const TILE: usize = 256;
const QUERIES: usize = 128;

/// What is compared, and how similarities are weighed.
pub(crate) struct Queries<'a, T> {
    /// `[q, width]`, unit rows.
    pub(crate) rows: &'a [T],
    pub(crate) width: usize,
    /// One over the temperature.
    pub(crate) scale: f64,
    /// `[q]`: taken off each query's logits.
    pub(crate) shifts: &'a [T],
    pub(crate) estimator: Estimator,
}

/// What candidates do to queries; see [`crate::weigh`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sums<T> {
    /// `[q]`: `sum e`.
    pub(crate) exps: Vec<f64>,
    /// `[q]`: `sum log(1 + e)`, if the estimator is NCE, else 0.
    pub(crate) logs: Vec<f64>,
    /// `[q, width]`: candidates times their weights.
    pub(crate) weighted: Vec<T>,
}

/// Some queries, packed for both products of a tile.
struct Block<'a, T> {
    rows: Range<usize>,
    packed: Packed<T>,
    queries: &'a Queries<'a, T>,
}

impl<T: Real> Queries<'_, T> {
    pub(crate) fn len(&self) -> usize {
        self.shifts.len()
    }

    /// Weighs candidates `0..n`, but for each query the one that is excluded for it.
    ///
    /// `fill` writes a range of the candidates, `[range, width]`.
    pub(crate) fn against_all(
        &self,
        device: &Device,
        n: usize,
        excluded: &[Option<usize>],
        fill: impl Fn(Range<usize>, &mut [T]) + Sync,
    ) -> Sums<T> {
        assert_eq!(excluded.len(), self.len(), "what is excluded for each query");
        let starts = (0..self.len()).step_by(QUERIES);
        let blocks: Vec<_> = starts.map(|start| self.block(device, start)).collect();
        let threads = device.cpu().pool.threads();
        let mut parts: Vec<Sums<T>> = (0..threads).map(|_| Sums::zero(self.len(), self.width)).collect();
        device.cpu().pool.for_each_part(parts.iter_mut().collect(), |thread, sums| {
            let mut candidates = vec![T::ZERO; TILE.min(n) * self.width];
            let mut tile = vec![T::ZERO; TILE.min(n) * QUERIES.min(self.len())];
            for start in (thread * TILE..n).step_by(threads * TILE) {
                let range = start..n.min(start + TILE);
                let candidates = &mut candidates[..range.len() * self.width];
                fill(range.clone(), candidates);
                let packed = Packed::new(device.cpu().path, candidates, self.width);
                for block in &blocks {
                    let tile = &mut tile[..range.len() * block.rows.len()];
                    block.similarity(candidates, tile);
                    for (column, excluded) in excluded[block.rows.clone()].iter().enumerate() {
                        if let Some(candidate) = excluded.filter(|candidate| range.contains(candidate)) {
                            tile[(candidate - start) * block.rows.len() + column] =
                                T::from_f64(f64::NEG_INFINITY);
                        }
                    }
                    block.weigh(device, &packed, tile, sums);
                }
            }
        });
        parts.into_iter().reduce(Sums::plus).expect("a pool has a thread")
    }

    fn block(&self, device: &Device, start: usize) -> Block<'_, T> {
        let rows = start..self.len().min(start + QUERIES);
        let values = &self.rows[rows.start * self.width..rows.end * self.width];
        Block { rows, packed: Packed::transposed(device.cpu().path, values, self.width), queries: self }
    }
}

impl<T: Real> Block<'_, T> {
    /// `[candidates, queries]`.
    fn similarity(&self, candidates: &[T], tile: &mut [T]) {
        let product = PackedGemm {
            rows: candidates.len() / self.queries.width,
            terms: 0..self.queries.width,
            columns: 0..self.rows.len(),
            a_transposed: false,
            accumulate: false,
        };
        self.packed.multiply(&product, candidates, tile);
    }

    /// Adds a tile's candidates, times their weights, to the sums of these queries.
    fn weigh(&self, device: &Device, candidates: &Packed<T>, tile: &mut [T], sums: &mut Sums<T>) {
        let Queries { width, scale, shifts, estimator, .. } = *self.queries;
        let rows = self.rows.clone();
        let logs = (estimator == Estimator::Nce).then_some(&mut sums.logs[rows.clone()]);
        let mut exps = [T::ZERO; QUERIES];
        weigh(device.cpu().path, scale, &shifts[rows.clone()], tile, &mut exps[..rows.len()], logs);
        sums.exps[rows.clone()].iter_mut().zip(exps).for_each(|(sum, e)| *sum += e.to_f64());
        let product = PackedGemm {
            rows: rows.len(),
            terms: 0..tile.len() / rows.len(),
            columns: 0..width,
            a_transposed: true,
            accumulate: true,
        };
        candidates.multiply(&product, tile, &mut sums.weighted[rows.start * width..rows.end * width]);
    }
}

impl<T: Real> Sums<T> {
    pub(crate) fn zero(queries: usize, width: usize) -> Self {
        Self { exps: vec![0.0; queries], logs: vec![0.0; queries], weighted: vec![T::ZERO; queries * width] }
    }

    fn plus(mut self, other: Self) -> Self {
        self.exps.iter_mut().zip(other.exps).for_each(|(a, b)| *a += b);
        self.logs.iter_mut().zip(other.logs).for_each(|(a, b)| *a += b);
        self.weighted.iter_mut().zip(other.weighted).for_each(|(a, b)| *a += b);
        self
    }
}

/// Copies rows of `f32` into rows of any number.
pub(crate) fn widen<T: Real>(from: &[f32], to: &mut [T]) {
    if let Some(to) = T::as_f32_mut(to) {
        return to.copy_from_slice(from);
    }
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = T::from_f64(f64::from(from)));
}

#[cfg(test)]
mod tests {
    use kernels::KernelPath;

    use super::*;
    use crate::unit::{UnitRows, dot};

    fn unit_rows(seed: usize, rows: usize, width: usize) -> Vec<f64> {
        let noise = (0..rows * width).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.5 - 1.0);
        UnitRows::new(&noise.collect::<Vec<_>>(), width).unit
    }

    /// All paths and numbers of threads against plain loops.
    #[track_caller]
    fn check(q: usize, n: usize, width: usize, estimator: Estimator) {
        let (rows, candidates) = (unit_rows(1, q, width), unit_rows(2, n, width));
        let (scale, shifts) = (8.0, (0..q).map(|i| 8.0 + (i % 3) as f64).collect::<Vec<_>>());
        let excluded: Vec<_> = (0..q).map(|i| (i % 2 == 0).then_some((i * 31) % (n + 1))).collect();
        let mut expected = Sums::zero(q, width);
        for i in 0..q {
            let query = &rows[i * width..(i + 1) * width];
            for (_, candidate) in
                candidates.chunks(width).enumerate().filter(|&(j, _)| excluded[i] != Some(j))
            {
                let e = (scale * dot(query, candidate) - shifts[i]).exp();
                let nce = estimator == Estimator::Nce;
                expected.exps[i] += e;
                expected.logs[i] += if nce { e.ln_1p() } else { 0.0 };
                let weight = if nce { e / (1.0 + e) } else { e };
                let sums = &mut expected.weighted[i * width..(i + 1) * width];
                sums.iter_mut().zip(candidate).for_each(|(sum, c)| *sum += weight * c);
            }
        }
        let close = |got: &[f64], expected: &[f64], tolerance: f64| {
            let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
            got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() <= tolerance * largest)
        };
        for threads in [1, 3] {
            let reference = Device::of_threads(threads, KernelPath::Reference);
            let queries = Queries { rows: &rows, width, scale, shifts: &shifts, estimator };
            let got = queries.against_all(&reference, n, &excluded, |range, out| {
                out.copy_from_slice(&candidates[range.start * width..range.end * width]);
            });
            let parts = [&got.exps, &got.logs, &got.weighted];
            for (got, expected) in parts.iter().zip([&expected.exps, &expected.logs, &expected.weighted]) {
                assert!(close(got, expected, 1e-13), "{q} {n} {width}, {threads} threads");
            }
            for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
                let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
                let (rows, shifts, candidates) = (narrow(&rows), narrow(&shifts), narrow(&candidates));
                let queries = Queries { rows: &rows, width, scale, shifts: &shifts, estimator };
                let got =
                    queries.against_all(&Device::of_threads(threads, path), n, &excluded, |range, out| {
                        widen(&candidates[range.start * width..range.end * width], out);
                    });
                let weighted: Vec<f64> = got.weighted.iter().map(|&value| f64::from(value)).collect();
                for (got, expected) in [&got.exps, &got.logs, &weighted].into_iter().zip([
                    &expected.exps,
                    &expected.logs,
                    &expected.weighted,
                ]) {
                    assert!(close(got, expected, 1e-5), "{path}: {q} {n} {width}, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn tiles_that_do_not_fit_give_the_plain_result() {
        for estimator in [Estimator::Softmax, Estimator::Nce] {
            for (q, n, width) in [(1, 1, 1), (3, 700, 5), (130, 513, 16), (257, 40, 20), (5, 256, 128)] {
                check(q, n, width, estimator);
            }
        }
    }
}
