//! Weighted k-nearest-neighbour classification, the evaluation that needs no training.
//!
//! Section 3.4 of Wu et al. 2018 (arXiv:1805.01978): the `k` most similar rows of the bank vote for
//! their class with weight `exp(cos / 0.07)`. How many vote depends on the bank: see [`neighbours`].
//!
//! The bank's rows stay on the ranks that made them: queries travel, some at a time, each rank finds their neighbours
//! among its own rows, and a query's own rank keeps the nearest of all. What a rank holds beside its rows does not
//! grow with the bank.

use collective::{Communicator, Error};
use kernels::{Cpu, Gemm, matmul_serial};
use std::cmp::Ordering;

/// Neighbours that vote where the bank is large enough, as in the papers.
pub const NEIGHBOURS: usize = 200;

/// Divides the similarity in a neighbour's weight.
pub const TEMPERATURE: f64 = 0.07;

/// Queries of all ranks that travel at once.
const ROUND: usize = 1024;

/// Entries of the lists of neighbours that a rank sends at once: fewer queries travel where more neighbours vote.
const LISTED: usize = 1 << 22;

/// Queries scored at once by a thread: the kernel packs the bank anew for each tile, which few rows would not repay.
const TILE: usize = 64;

/// Rows of the bank that a tile is scored against at a time: their similarities fit the second cache.
const BLOCK: usize = 1024;

/// A rank's rows of the labelled unit features to compare with.
#[derive(Clone, Copy)]
pub struct Bank<'a> {
    /// `[m, width]`, unit rows. The bank's order is that of the ranks, and on a rank that of its rows.
    pub features: &'a [f32],
    /// `[m]`.
    pub labels: &'a [u32],
    /// Length of a row, the same on every rank.
    pub width: usize,
    /// Above the labels of every rank.
    pub classes: usize,
    /// Neighbours that vote, at least 1; where the ranks have fewer rows, all of them. The same on every rank.
    pub k: usize,
}

/// A rank's queries.
#[derive(Clone, Copy)]
pub enum Queries<'a> {
    /// The rank's own rows of the bank, each classified by all others (leave one out).
    Bank,
    /// Unit rows `[n, width]` that are no part of the bank.
    Others(&'a [f32]),
}

/// How many neighbours vote: `k`, or by rule where it is 0.
///
/// The rule is half as many as a class has images on average, at least 1 and at most [`NEIGHBOURS`]. Were it all of a
/// small bank, every class would vote with all its images, and an image left out of its own class would always be
/// outvoted: noise would be classified with 0 %, not by chance.
///
/// - `images_per_class`: labelled images of each class in the bank, of all ranks
pub fn neighbours(k: usize, images_per_class: &[u64]) -> usize {
    if k > 0 {
        return k;
    }
    let bank = images_per_class.iter().sum::<u64>() as usize;
    let occurring = images_per_class.iter().filter(|&&n| n > 0).count();
    (bank / (2 * occurring.max(1))).clamp(1, NEIGHBOURS)
}

/// Counts the rows of each class, `[classes]`, over all ranks.
///
/// # Errors
/// If a peer is lost.
///
/// # Panics
/// If a label is not below `classes`.
pub fn images_per_class(
    communicator: &mut Communicator,
    labels: &[u32],
    classes: usize,
) -> Result<Vec<u64>, Error> {
    let mut counts = vec![0u64; classes];
    labels.iter().for_each(|&label| counts[label as usize] += 1);
    communicator.all_reduce_sum(&mut counts)?;
    Ok(counts)
}

/// Divides each row of `features` (`[n, width]`) by its norm, or by 1e-12 if that is smaller.
pub fn normalize_rows(features: &mut [f32], width: usize) {
    for row in features.chunks_exact_mut(width) {
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

/// Predicts the class of each of this rank's queries, `[n]`, by the rows of all ranks. Ties go to the lowest class;
/// a query that is near no row, being NaN or alone, has no class.
///
/// A query travels to every other rank, `4 width` bytes, and comes back with its neighbours there, `8 k`.
///
/// # Errors
/// If a peer is lost.
///
/// # Panics
/// If lengths disagree. Callers build bank and queries from one network, so this is a bug.
pub fn classify(
    cpu: &Cpu,
    communicator: &mut Communicator,
    bank: Bank<'_>,
    queries: Queries<'_>,
) -> Result<Vec<Option<u32>>, Error> {
    let Bank { features, labels, width, classes, k } = bank;
    assert_eq!(features.len(), labels.len() * width, "bank of {} rows of width {width}", labels.len());
    assert!(k > 0, "no neighbours");
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let own = match queries {
        Queries::Bank => features,
        Queries::Others(features) => features,
    };
    let n = own.len() / width;
    let mut lengths = vec![0u64; 2 * world_size];
    communicator.all_gather(&[n as u64, labels.len() as u64], &mut lengths)?;
    let counts: Vec<usize> = lengths.iter().step_by(2).map(|&n| n as usize).collect();
    let rows_of_all = lengths.iter().skip(1).step_by(2).sum::<u64>() as usize;
    // Lists are no longer than the bank, whatever is asked for.
    let k = k.min(rows_of_all).max(1);
    let bank = Bank { k, ..bank };

    let mut predictions = Vec::with_capacity(n);
    let at_once = (ROUND.min(LISTED / k) / world_size).max(1);
    for first in (0..counts.iter().copied().max().unwrap_or(0)).step_by(at_once) {
        let of_rank = |rank: usize| first.min(counts[rank])..(first + at_once).min(counts[rank]);
        let mine = of_rank(rank);
        let lengths: Vec<usize> = (0..world_size).map(|rank| of_rank(rank).len() * width).collect();
        let mut rows = vec![0f32; lengths.iter().sum()];
        communicator.all_gather_counts(&own[mine.start * width..mine.end * width], &lengths, &mut rows)?;
        let before = lengths[..rank].iter().sum::<usize>() / width;
        // A row that is compared with itself is one of this rank's own.
        let itself = |query: usize| match queries {
            Queries::Bank if (before..before + mine.len()).contains(&query) => Some(first + query - before),
            _ => None,
        };
        let (similarities, labels) = nearest(cpu, bank, &rows, &itself);
        let returning: Vec<usize> = (0..world_size).map(|rank| of_rank(rank).len() * k).collect();
        let lists = returning[rank];
        let mut found_similarities = vec![0f32; world_size * lists];
        communicator.all_to_all(&similarities, &returning, &mut found_similarities)?;
        let mut found_labels = vec![0u32; world_size * lists];
        communicator.all_to_all(&labels, &returning, &mut found_labels)?;

        let mut neighbours = Vec::with_capacity(world_size * k);
        for query in 0..mine.len() {
            let list = query * k..(query + 1) * k;
            neighbours.clear();
            for (similarities, labels) in found_similarities.chunks(lists).zip(found_labels.chunks(lists)) {
                let found = similarities[list.clone()].iter().zip(&labels[list.clone()]);
                neighbours.extend(found.map(|(&similarity, &label)| (similarity, label)));
            }
            // Stable: equally similar ones stay in the order of the bank.
            neighbours.sort_by(|a, b| b.0.total_cmp(&a.0));
            neighbours.truncate(k);
            predictions.push(vote(&neighbours, classes));
        }
    }
    Ok(predictions)
}

/// Counts the predictions that are the expected class.
pub fn n_correct(predictions: &[Option<u32>], expected: &[u32]) -> usize {
    predictions.iter().zip(expected).filter(|&(&predicted, &expected)| predicted == Some(expected)).count()
}

/// Similarities and labels of the rows nearest to each of `queries`, both `[n, bank.k]`, in falling order; places
/// that are left have similarity minus infinity, and so no weight.
///
/// - `itself`: the bank's row that is a query, which is then not its neighbour
fn nearest(
    cpu: &Cpu,
    bank: Bank<'_>,
    queries: &[f32],
    itself: &(dyn Fn(usize) -> Option<usize> + Sync),
) -> (Vec<f32>, Vec<u32>) {
    let Bank { width, k, .. } = bank;
    let n = queries.len() / width;
    let mut similarities = vec![f32::NEG_INFINITY; n * k];
    let mut labels = vec![0u32; n * k];
    let per_thread = n.div_ceil(cpu.threads()).max(1);
    let parts = similarities
        .chunks_mut(per_thread * k)
        .zip(labels.chunks_mut(per_thread * k))
        .enumerate()
        .map(|(thread, part)| (thread * per_thread, part))
        .collect();
    cpu.pool.for_each_part(parts, |_, (first, (similarities, labels))| {
        let mut scores = vec![0f32; TILE * BLOCK.min(bank.labels.len())];
        let tiles = similarities.chunks_mut(TILE * k).zip(labels.chunks_mut(TILE * k));
        for (tile, (similarities, labels)) in tiles.enumerate() {
            let first = first + tile * TILE;
            let rows = labels.len() / k;
            let mut nearest: Vec<Nearest> = (0..rows).map(|_| Nearest::new(k)).collect();
            for (block, features) in bank.features.chunks(BLOCK * width).enumerate() {
                let m = features.len() / width;
                let gemm = Gemm { b_transposed: true, ..Gemm::new(rows, m, width) };
                let scores = &mut scores[..rows * m];
                matmul_serial(
                    cpu.path,
                    gemm,
                    &queries[first * width..(first + rows) * width],
                    features,
                    scores,
                );
                for (i, (nearest, scores)) in nearest.iter_mut().zip(scores.chunks_exact(m)).enumerate() {
                    let itself = itself(first + i);
                    for (row, &similarity) in (block * BLOCK..).zip(scores) {
                        if nearest.is_near(similarity) && itself != Some(row) {
                            nearest.add(similarity, row);
                        }
                    }
                }
            }
            let places = similarities.chunks_exact_mut(k).zip(labels.chunks_exact_mut(k));
            for (nearest, (similarities, labels)) in nearest.into_iter().zip(places) {
                for (place, (similarity, row)) in nearest.in_order().into_iter().enumerate() {
                    (similarities[place], labels[place]) = (similarity, bank.labels[row]);
                }
            }
        }
    });
    (similarities, labels)
}

/// The rows most similar to a query, of those that were offered in the bank's order.
struct Nearest {
    /// How many are wanted, at least 1.
    k: usize,
    /// Similarities and rows: the nearest, and some that came after they were last told apart.
    found: Vec<(f32, usize)>,
    /// A later row that is no nearer than this is none of them.
    least: f32,
}

impl Nearest {
    fn new(k: usize) -> Self {
        Self { k, found: Vec::with_capacity(2 * k), least: f32::NEG_INFINITY }
    }

    #[inline(always)]
    fn is_near(&self, similarity: f32) -> bool {
        // What is no number is near nothing.
        similarity > self.least
    }

    fn add(&mut self, similarity: f32, row: usize) {
        self.found.push((similarity, row));
        if self.found.len() == 2 * self.k {
            self.found.select_nth_unstable_by(self.k - 1, nearer_first);
            self.found.truncate(self.k);
            self.least = self.found[self.k - 1].0;
        }
    }

    /// At most `k`, the nearest first.
    fn in_order(mut self) -> Vec<(f32, usize)> {
        self.found.sort_unstable_by(nearer_first);
        self.found.truncate(self.k);
        self.found
    }
}

/// Falling similarity; equally similar rows in the order of the bank. Sums of f64 depend on their order: this one does
/// not depend on how the selection went.
fn nearer_first(a: &(f32, usize), b: &(f32, usize)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The class with the largest sum of weights; of equal ones the lowest. None where nobody votes.
fn vote(neighbours: &[(f32, u32)], classes: usize) -> Option<u32> {
    let mut weights = vec![0f64; classes];
    for &(similarity, label) in neighbours {
        weights[label as usize] += (f64::from(similarity) / TEMPERATURE).exp();
    }
    let mut best = None;
    let mut largest = 0.0;
    for (class, &weight) in (0..).zip(&weights) {
        if weight > largest {
            (best, largest) = (Some(class), weight);
        }
    }
    best
}

#[cfg(test)]
pub(crate) mod golden;

#[cfg(test)]
mod tests {
    use super::golden::Golden;
    use super::*;
    use crate::fixtures::over_ranks;
    use kernels::KernelPath;
    use std::ops::Range;

    /// The bank of all ranks, and how many neighbours vote.
    #[derive(Clone, Copy)]
    struct All<'a> {
        features: &'a [f32],
        labels: &'a [u32],
        width: usize,
        k: usize,
    }

    impl<'a> All<'a> {
        fn classes(self) -> usize {
            self.labels.iter().max().map_or(0, |&class| class as usize + 1)
        }

        /// What all ranks predict, in rank order: of `queries`, or of the bank's rows.
        fn classify(
            self,
            world_size: usize,
            threads: usize,
            path: KernelPath,
            queries: Option<&[f32]>,
        ) -> Vec<Option<u32>> {
            let Self { width, k, .. } = self;
            let predictions = over_ranks(world_size, |communicator| {
                let rank = communicator.rank();
                let rows = dealt(self.labels.len(), rank, world_size);
                let bank = Bank {
                    features: &self.features[rows.start * width..rows.end * width],
                    labels: &self.labels[rows],
                    width,
                    classes: self.classes(),
                    k,
                };
                let queries = queries.map_or(Queries::Bank, |queries| {
                    let rows = dealt(queries.len() / width, rank, world_size);
                    Queries::Others(&queries[rows.start * width..rows.end * width])
                });
                classify(&Cpu::new(threads, path), communicator, bank, queries).unwrap()
            });
            predictions.concat()
        }
    }

    /// Uneven shares; with few rows some ranks have none.
    fn dealt(n: usize, rank: usize, world_size: usize) -> Range<usize> {
        let start = |rank: usize| n * rank * rank / (world_size * world_size);
        start(rank)..start(rank + 1)
    }

    fn unit_rows(rows: &[[f32; 2]]) -> Vec<f32> {
        let mut rows = rows.concat();
        normalize_rows(&mut rows, 2);
        rows
    }

    #[track_caller]
    fn check(bank: &[[f32; 2]], labels: &[u32], queries: Option<&[[f32; 2]]>, expected: &[u32]) {
        let (features, queries) = (unit_rows(bank), queries.map(unit_rows));
        let all = All { features: &features, labels, width: 2, k: NEIGHBOURS };
        let expected: Vec<Option<u32>> = expected.iter().copied().map(Some).collect();
        for world_size in [1, 2, 3] {
            let predicted = all.classify(world_size, 2, KernelPath::Portable, queries.as_deref());
            assert_eq!(predicted, expected, "{world_size} ranks");
        }
    }

    #[test]
    fn nearest_rows_win() {
        check(
            &[[1., 0.], [0., 1.], [-1., 0.]],
            &[0, 1, 2],
            Some(&[[2., 0.1], [0.1, 3.], [-1., -0.2]]),
            &[0, 1, 2],
        );
        // One near neighbour outweighs three far ones: exp(1/0.07) against 3 exp(0).
        check(&[[1., 0.], [0., 1.], [0., 1.], [0., 1.]], &[1, 0, 0, 0], Some(&[[1., 0.]]), &[1]);
    }

    #[test]
    fn ties_go_to_the_lowest_class() {
        check(&[[1., 0.], [1., 0.]], &[3, 1], Some(&[[1., 0.]]), &[1]);
    }

    #[test]
    fn a_row_of_the_bank_is_not_its_own_neighbour() {
        let bank = [[1., 0.], [1., 0.05], [0., 1.], [0.05, 1.]];
        check(&bank, &[0, 1, 2, 3], None, &[1, 0, 3, 2]);
        check(&bank, &[0, 1, 2, 3], Some(&bank), &[0, 1, 2, 3]);
    }

    #[test]
    fn only_the_nearest_two_hundred_vote() {
        // 200 rows of class 0 at cos 0.5 fill the votes; the thousand of class 1 behind them have none.
        let mut bank = vec![[0.5f32, 0.866_025_4]; NEIGHBOURS];
        bank.extend(vec![[0.499f32, 0.866_602]; 1000]);
        let mut labels: Vec<u32> = (0..bank.len()).map(|i| u32::from(i >= NEIGHBOURS)).collect();
        check(&bank, &labels, Some(&[[1., 0.]]), &[0]);
        bank.reverse();
        labels.reverse();
        check(&bank, &labels, Some(&[[1., 0.]]), &[0]);
    }

    #[test]
    fn of_equally_similar_rows_the_first_vote() {
        // 300 rows alike: the two hundred that vote are of class 1 by 101 to 99, the rest are all of class 0.
        let bank = vec![[1f32, 0.]; 300];
        let labels: Vec<u32> = (0..300).map(|i| u32::from((99..NEIGHBOURS).contains(&i))).collect();
        check(&bank, &labels, Some(&[[1., 0.]]), &[1]);
    }

    #[test]
    fn many_queries_over_rounds_tiles_and_threads() {
        let n = ROUND + 3 * TILE + 5;
        let angle = |i: usize| std::f32::consts::TAU * i as f32 / n as f32;
        let rows: Vec<[f32; 2]> = (0..n).map(|i| [angle(i).cos(), angle(i).sin()]).collect();
        let labels: Vec<u32> = (0..n as u32).collect();
        // With every row a class of its own the nearest is the row itself.
        check(&rows, &labels, Some(&rows), &labels);
    }

    /// Pseudo-random unit rows, and classes.
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
    fn naive(bank: All<'_>, queries: Option<&[f32]>) -> Vec<Option<u32>> {
        let classify = |(i, query): (usize, &[f32])| {
            let mut scored: Vec<(f64, usize)> = bank
                .features
                .chunks_exact(bank.width)
                .map(|row| row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
                .zip(0..)
                .filter(|&(_, j)| queries.is_some() || j != i)
                .collect();
            scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            scored.truncate(bank.k);
            let score = |class| {
                let votes = scored.iter().filter(|&&(_, j)| bank.labels[j] == class);
                votes.map(|(cosine, _)| (cosine / 0.07).exp()).sum::<f64>()
            };
            let voted = |&class: &u32| scored.iter().any(|&(_, j)| bank.labels[j] == class);
            let classes = (0..bank.classes() as u32).rev().filter(voted);
            classes.max_by(|&a, &b| score(a).total_cmp(&score(b)))
        };
        queries.unwrap_or(bank.features).chunks_exact(bank.width).enumerate().map(classify).collect()
    }

    #[test]
    fn ranks_threads_and_kernels_classify_as_the_definition_does() {
        for (m, n, width, ks) in [
            (1, 3, 1, &[1, 200][..]),
            (30, 7, 5, &[1, 2, 7, 30, 500]),
            (201, 64, 9, &[1, 7, 200, 500]),
            (450, 97, 33, &[2, 200, 500]),
            (BLOCK + 700, 5, 8, &[1, 200]),
        ] {
            let (features, labels) = rows(m, width, 6, 11);
            let (queries, _) = rows(n, width, 6, 12);
            for &k in ks {
                let bank = All { features: &features, labels: &labels, width, k };
                let expected = naive(bank, Some(&queries));
                for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
                    assert_eq!(bank.classify(1, 3, path, Some(&queries)), expected, "{k} of {m} {path}");
                }
                let left_out = naive(bank, None);
                for world_size in [1, 2, 4] {
                    let predicted = bank.classify(world_size, 1, KernelPath::Portable, Some(&queries));
                    assert_eq!(predicted, expected, "{k} of {m} on {world_size} ranks");
                    let predicted = bank.classify(world_size, 2, KernelPath::Portable, None);
                    assert_eq!(predicted, left_out, "{k} of {m} on {world_size} ranks");
                }
            }
        }
    }

    #[test]
    fn predictions_are_pytorchs() {
        let golden = Golden::read();
        #[track_caller]
        fn check(bank: All<'_>, queries: &[f32], predicted: &[u32], left_out: &[u32]) {
            for world_size in [1, 3] {
                let classify = |queries| -> Vec<u32> {
                    let classes = bank.classify(world_size, 2, KernelPath::detect(), queries);
                    classes.into_iter().map(|class| class.expect("a class")).collect()
                };
                assert_eq!(classify(Some(queries)), predicted);
                assert_eq!(classify(None), left_out);
            }
        }
        let width = golden.width;
        let bank = All { features: &golden.bank, labels: &golden.labels, width, k: NEIGHBOURS };
        check(bank, &golden.queries, &golden.predicted, &golden.left_out);
        for case in &golden.cases {
            let of_row = |&row: &usize| &golden.bank[row * width..(row + 1) * width];
            let features: Vec<f32> = case.rows.iter().flat_map(of_row).copied().collect();
            let labels: Vec<u32> = case.rows.iter().map(|&row| golden.labels[row]).collect();
            let bank = All { features: &features, labels: &labels, width, k: case.k };
            check(bank, &golden.queries, &case.predicted, &case.left_out);
            let counts = images_per_class(&mut Communicator::alone(), &labels, bank.classes()).unwrap();
            assert_eq!(neighbours(0, &counts) == case.k, case.by_rule, "{}: {counts:?}", case.name);
        }
    }

    #[test]
    fn half_a_class_votes_unless_a_number_is_given() {
        #[track_caller]
        fn check(k: usize, images_per_class: &[u64], expected: usize) {
            assert_eq!(neighbours(k, images_per_class), expected);
        }
        check(0, &[32, 32], 16);
        // Classes without an image do not count.
        check(0, &[0, 32, 0, 32], 16);
        check(0, &[5, 2], 1);
        check(0, &[1, 1, 1], 1);
        check(0, &[1], 1);
        check(0, &[0], 1);
        check(0, &[7, 0], 3);
        // From 400 images a class on it is the papers' number.
        check(0, &[398; 10], 199);
        check(0, &[400; 10], 200);
        check(0, &[600; 10], 200);
        check(0, &[1300; 1000], 200);
        check(16, &[32, 32], 16);
        check(500, &[32, 32], 500);
    }

    #[test]
    fn counts_of_classes_are_of_all_ranks() {
        let counts = over_ranks(3, |communicator| {
            let labels = [&[0, 2, 2][..], &[], &[2, 3]][communicator.rank()];
            images_per_class(communicator, labels, 5).unwrap()
        });
        assert_eq!(counts, vec![[1, 0, 3, 1, 0]; 3]);
    }

    #[test]
    fn long_lists_go_in_more_rounds() {
        // A thousand rows that are nearer, and eight thousand that outvote them if all have a vote.
        let k = 9000;
        let features: Vec<f32> =
            (0..k).flat_map(|i| if i < 1000 { [0.1, 0.995] } else { [0.0, 1.0] }).collect();
        let labels: Vec<u32> = (0..k).map(|i| u32::from(i < 1000)).collect();
        let bank = All { features: &features, labels: &labels, width: 2, k };
        let n = LISTED / k + 7;
        let queries = [1.0, 0.0].repeat(n);
        assert_eq!(bank.classify(1, 2, KernelPath::detect(), Some(&queries)), vec![Some(0); n]);
        let fewer = All { k: 8000, ..bank };
        assert_eq!(fewer.classify(2, 1, KernelPath::detect(), Some(&queries[..6])), vec![Some(0); 3]);
        let nearest = All { k: 1999, ..bank };
        assert_eq!(nearest.classify(2, 1, KernelPath::detect(), Some(&queries[..6])), vec![Some(1); 3]);
    }

    #[test]
    fn rows_that_are_no_numbers_are_nobodys_neighbours() {
        for nan in [f32::NAN, -f32::NAN] {
            let features = [nan, nan, 0.0, 1.0, 1.0, 0.0];
            let bank = All { features: &features, labels: &[0, 1, 2], width: 2, k: 3 };
            for world_size in [1, 3] {
                let queries = [1.0, 0.1, 0.1, 1.0, nan, 1.0];
                let predicted = bank.classify(world_size, 1, KernelPath::Portable, Some(&queries));
                assert_eq!(predicted, [Some(2), Some(1), None], "{world_size} ranks");
            }
        }
    }

    /// Queries and lists of neighbours are sent, and no row of the bank, however large it is.
    #[test]
    fn the_bank_does_not_travel() {
        let (queries, _) = rows(6, 8, 3, 1);
        let sent = |m: usize| {
            let (features, labels) = rows(m, 8, 3, 2);
            over_ranks(2, |communicator| {
                let bank = Bank { features: &features, labels: &labels, width: 8, classes: 3, k: 15 };
                let (cpu, queries) = (Cpu::new(1, KernelPath::Portable), Queries::Others(&queries));
                classify(&cpu, communicator, bank, queries).unwrap();
                communicator.bytes_sent()
            })
        };
        // How many queries and rows there are; six queries; lists for the other rank's six.
        let expected = 16 + 6 * 8 * 4 + 6 * 15 * 8;
        assert_eq!((sent(10), sent(3000)), (vec![expected; 2], vec![expected; 2]));
    }
}
