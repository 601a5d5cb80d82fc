//! Weighted k-nearest-neighbour classification, the evaluation that needs no training.
//!
//! Section 3.4 of Wu et al. 2018 (arXiv:1805.01978): the `k` most similar rows of the bank vote for
//! their class with weight `exp(cos / 0.07)`.

use engine::kernels::{Gemm, KernelPath, Pool, matmul_serial};

/// Neighbours that vote, unless the bank is smaller.
pub const NEIGHBOURS: usize = 200;

/// Divides the similarity in a neighbour's weight.
pub const TEMPERATURE: f64 = 0.07;

/// Queries scored at once by a thread: the kernel packs the bank anew for each tile, which few rows would not
/// repay, and a tile holds its similarities to the whole bank.
const TILE: usize = 64;

/// Labelled unit features to compare with.
#[derive(Clone, Copy)]
pub struct Bank<'a> {
    /// `[m, width]`, unit rows.
    pub features: &'a [f32],
    /// `[m]`.
    pub labels: &'a [u32],
    /// Length of a row.
    pub width: usize,
}

/// Queries, and where they stand in the bank if they are part of it.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// `[n, width]`, unit rows.
    pub features: &'a [f32],
    /// Bank row of the first query when the queries are bank rows themselves: a row is then not its
    /// own neighbour (leave one out).
    pub offset_in_bank: Option<usize>,
}

/// Divides each row of `features` (`[n, width]`) by its norm, or by 1e-12 if that is smaller.
pub fn normalize_rows(features: &mut [f32], width: usize) {
    for row in features.chunks_exact_mut(width) {
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

/// Predicts the class of every query: `[n]`. Ties go to the lowest class.
///
/// # Panics
/// If the widths disagree or the bank is empty. Callers build both from one network, so this is a bug.
pub fn classify(pool: &Pool, path: KernelPath, bank: Bank<'_>, queries: Queries<'_>) -> Vec<u32> {
    let m = bank.labels.len();
    assert_eq!(bank.features.len(), m * bank.width, "bank of {m} rows of width {}", bank.width);
    assert!(m > 0, "an empty bank has no neighbours");
    let n = queries.features.len() / bank.width;
    let n_classes = bank.labels.iter().max().map_or(0, |&c| c as usize + 1);

    let mut predictions = vec![0u32; n];
    let per_thread = n.div_ceil(pool.threads()).max(1);
    let parts: Vec<(usize, &mut [u32])> = predictions
        .chunks_mut(per_thread)
        .enumerate()
        .map(|(thread, part)| (thread * per_thread, part))
        .collect();
    pool.for_each_part(parts, |_, (first, predictions)| {
        let mut similarity = vec![0f32; TILE.min(predictions.len()) * m];
        let mut nearest = Vec::with_capacity(m);
        for (tile, predictions) in predictions.chunks_mut(TILE).enumerate() {
            let row = first + tile * TILE;
            let rows = predictions.len();
            let gemm = Gemm { b_transposed: true, ..Gemm::new(rows, m, bank.width) };
            let tile_features = &queries.features[row * bank.width..(row + rows) * bank.width];
            matmul_serial(path, gemm, tile_features, bank.features, &mut similarity[..rows * m]);
            for (i, prediction) in predictions.iter_mut().enumerate() {
                let itself = queries.offset_in_bank.map(|offset| offset + row + i);
                select_nearest(&similarity[i * m..(i + 1) * m], itself, &mut nearest);
                *prediction = vote(&similarity[i * m..(i + 1) * m], bank.labels, &nearest, n_classes);
            }
        }
    });
    predictions
}

/// Bank rows by falling similarity, at most [`NEIGHBOURS`] of them and without the query `itself`; equally
/// similar ones in the order of the bank.
fn select_nearest(similarity: &[f32], itself: Option<usize>, nearest: &mut Vec<u32>) {
    nearest.clear();
    nearest.extend((0..similarity.len() as u32).filter(|&j| Some(j as usize) != itself));
    let by_similarity =
        |&a: &u32, &b: &u32| similarity[b as usize].total_cmp(&similarity[a as usize]).then(a.cmp(&b));
    if nearest.len() > NEIGHBOURS {
        nearest.select_nth_unstable_by(NEIGHBOURS - 1, by_similarity);
        nearest.truncate(NEIGHBOURS);
    }
    // Sums of f64 depend on their order: this one does not depend on how the selection went.
    nearest.sort_unstable_by(by_similarity);
}

/// The class with the largest sum of weights; of equal ones the lowest.
fn vote(similarity: &[f32], labels: &[u32], nearest: &[u32], n_classes: usize) -> u32 {
    let mut weights = vec![0f64; n_classes];
    for &j in nearest {
        weights[labels[j as usize] as usize] += (f64::from(similarity[j as usize]) / TEMPERATURE).exp();
    }
    let mut best = 0;
    for (class, &weight) in weights.iter().enumerate() {
        if weight > weights[best] {
            best = class;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Golden;

    #[track_caller]
    fn check(
        bank: &[[f32; 2]],
        labels: &[u32],
        queries: &[[f32; 2]],
        offset: Option<usize>,
        expected: &[u32],
    ) {
        let pool = Pool::new(2, &[]);
        let flat = |rows: &[[f32; 2]]| {
            let mut rows: Vec<f32> = rows.iter().flatten().copied().collect();
            normalize_rows(&mut rows, 2);
            rows
        };
        let (features, query_features) = (flat(bank), flat(queries));
        let bank = Bank { features: &features, labels, width: 2 };
        let queries = Queries { features: &query_features, offset_in_bank: offset };
        assert_eq!(classify(&pool, KernelPath::Portable, bank, queries), expected);
    }

    #[test]
    fn nearest_rows_win() {
        check(
            &[[1., 0.], [0., 1.], [-1., 0.]],
            &[0, 1, 2],
            &[[2., 0.1], [0.1, 3.], [-1., -0.2]],
            None,
            &[0, 1, 2],
        );
        // One near neighbour outweighs three far ones: exp(1/0.07) against 3 exp(0).
        check(&[[1., 0.], [0., 1.], [0., 1.], [0., 1.]], &[1, 0, 0, 0], &[[1., 0.]], None, &[1]);
    }

    #[test]
    fn ties_go_to_the_lowest_class() {
        check(&[[1., 0.], [1., 0.]], &[3, 1], &[[1., 0.]], None, &[1]);
    }

    #[test]
    fn a_row_of_the_bank_is_not_its_own_neighbour() {
        check(&[[1., 0.], [1., 0.05], [0., 1.]], &[0, 1, 2], &[[1., 0.]], Some(0), &[1]);
        check(&[[1., 0.], [1., 0.05], [0., 1.]], &[0, 1, 2], &[[1., 0.]], None, &[0]);
    }

    #[test]
    fn only_the_nearest_two_hundred_vote() {
        // 200 rows of class 0 at cos 0.5 fill the votes; the thousand of class 1 behind them have none.
        let mut bank = vec![[0.5f32, 0.866_025_4]; NEIGHBOURS];
        bank.extend(vec![[0.499f32, 0.866_602]; 1000]);
        let labels: Vec<u32> = (0..bank.len()).map(|i| u32::from(i >= NEIGHBOURS)).collect();
        check(&bank, &labels, &[[1., 0.]], None, &[0]);
    }

    #[test]
    fn many_queries_over_tiles_and_threads() {
        let n = 3 * TILE + 5;
        let angle = |i: usize| std::f32::consts::TAU * i as f32 / n as f32;
        let rows: Vec<[f32; 2]> = (0..n).map(|i| [angle(i).cos(), angle(i).sin()]).collect();
        let labels: Vec<u32> = (0..n as u32).collect();
        // With every row a class of its own the nearest is the row itself.
        check(&rows, &labels, &rows, None, &labels);
    }

    /// Pseudo-random unit rows, a class each.
    fn rows(n: usize, width: usize, n_classes: u32, seed: u64) -> (Vec<f32>, Vec<u32>) {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f32 / (1u64 << 31) as f32 - 0.5
        };
        let mut features: Vec<f32> = (0..n * width).map(|_| next()).collect();
        normalize_rows(&mut features, width);
        let labels = (0..n).map(|_| ((next() + 0.5) * n_classes as f32) as u32).collect();
        (features, labels)
    }

    /// The protocol as one would say it, a row at a time and in `f64`.
    fn naive(bank: Bank<'_>, queries: Queries<'_>) -> Vec<u32> {
        let classify = |(i, query): (usize, &[f32])| {
            let mut scored: Vec<(f64, usize)> = bank
                .features
                .chunks_exact(bank.width)
                .map(|row| row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
                .zip(0..)
                .filter(|&(_, j)| queries.offset_in_bank.is_none_or(|offset| j != offset + i))
                .collect();
            scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            scored.truncate(200);
            let score = |class| {
                let votes = scored.iter().filter(|&&(_, j)| bank.labels[j] == class);
                votes.map(|(cosine, _)| (cosine / 0.07).exp()).sum::<f64>()
            };
            let classes = 0..=bank.labels.iter().copied().max().unwrap();
            classes.rev().max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap()
        };
        queries.features.chunks_exact(bank.width).enumerate().map(classify).collect()
    }

    #[test]
    fn tiles_threads_and_kernels_classify_as_the_definition_does() {
        for (m, n, width) in [(1, 3, 1), (30, 7, 5), (201, 64, 9), (450, 97, 33)] {
            let (features, labels) = rows(m, width, 6, 11);
            let (query_features, _) = rows(n, width, 6, 12);
            let bank = Bank { features: &features, labels: &labels, width };
            for threads in [1, 3] {
                let pool = Pool::new(threads, &[]);
                let queries = Queries { features: &query_features, offset_in_bank: None };
                for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
                    assert_eq!(classify(&pool, path, bank, queries), naive(bank, queries), "{m} {path}");
                }
                // A part of the bank, left out of itself.
                let own = m / 3..m;
                let queries =
                    Queries { features: &features[own.start * width..], offset_in_bank: Some(own.start) };
                assert_eq!(classify(&pool, KernelPath::Portable, bank, queries), naive(bank, queries), "{m}");
            }
        }
    }

    #[test]
    fn predictions_are_pytorchs() {
        let golden = Golden::read();
        let width = golden.width;
        let bank = Bank { features: &golden.bank, labels: &golden.labels, width };
        let pool = Pool::new(2, &[]);
        let queries = Queries { features: &golden.queries, offset_in_bank: None };
        assert_eq!(classify(&pool, KernelPath::detect(), bank, queries), golden.predicted);
        let queries = Queries { features: &golden.bank, offset_in_bank: Some(0) };
        assert_eq!(classify(&pool, KernelPath::detect(), bank, queries), golden.left_out);
    }
}
