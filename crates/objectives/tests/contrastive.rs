//! SupCon, DCL and align-uniform: PyTorch's values, central differences, closed forms, and any number of ranks.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::thread;

use collective::{Number, loopback};
use kernels::{Device, KernelPath, Real};
use objectives::align_uniform::AlignUniform;
use objectives::{Dcl, Encoded, Objective, ObjectiveStep, SupCon, TwoViews};
use safetensors::SafeTensors;

const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/contrastive.safetensors");
const CASES: [&str; 3] = ["few", "many", "sharp"];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    SupCon,
    Dcl,
    AlignUniform,
}

const KINDS: [Kind; 3] = [Kind::SupCon, Kind::Dcl, Kind::AlignUniform];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::SupCon => "supcon",
            Self::Dcl => "dcl",
            Self::AlignUniform => "align-uniform",
        }
    }

    fn objective(self, temperature: f64) -> Objective {
        Objective::TwoViews(match self {
            Self::SupCon => TwoViews::Supcon(SupCon { temperature }),
            Self::Dcl => TwoViews::Dcl(Dcl { temperature }),
            Self::AlignUniform => TwoViews::AlignUniform(AlignUniform { temperature }),
        })
    }
}

fn golden(case: &str, name: &str) -> Vec<f64> {
    let file = SafeTensors::deserialize(GOLDEN).unwrap();
    let tensor = file.tensor(&format!("{case}/{name}")).unwrap();
    tensor.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// A global batch, rows `[view][image]`, and which rank has which images.
struct Batch<'a> {
    z: &'a [f64],
    labels: &'a [u32],
    ranks: Vec<Vec<usize>>,
}

impl<'a> Batch<'a> {
    fn alone(z: &'a [f64], labels: &'a [u32]) -> Self {
        Self::dealt(z, labels, &[labels.len()])
    }

    fn dealt(z: &'a [f64], labels: &'a [u32], counts: &[usize]) -> Self {
        let mut images = 0..labels.len();
        Self { z, labels, ranks: counts.iter().map(|&n| images.by_ref().take(n).collect()).collect() }
    }

    fn width(&self) -> usize {
        self.z.len() / self.labels.len() / 2
    }

    /// The rows of a rank in the global batch.
    fn places(&self, rank: usize) -> Vec<usize> {
        let images = &self.ranks[rank];
        images.iter().copied().chain(images.iter().map(|image| self.labels.len() + image)).collect()
    }

    /// Loss and gradient of all ranks, the gradient's rows in the order of the global batch.
    fn step<T: Real + Number>(&self, kind: Kind, temperature: f64, path: KernelPath) -> (f64, Vec<f64>) {
        let width = self.width();
        let counts: Vec<usize> = self.ranks.iter().map(Vec::len).collect();
        let group = loopback(self.ranks.len(), 1).unwrap();
        let steps: Vec<ObjectiveStep<T>> = thread::scope(|scope| {
            let counts = &counts;
            let ranks = group.into_iter().enumerate().map(|(rank, mut communicators)| {
                scope.spawn(move || {
                    let queries: Vec<T> = self
                        .places(rank)
                        .into_iter()
                        .flat_map(|row| self.z[row * width..][..width].iter().map(|&z| T::from_f64(z)))
                        .collect();
                    let labels: Vec<u32> = self.ranks[rank].iter().map(|&image| self.labels[image]).collect();
                    let device = Device::of_threads(2, path);
                    let mut objective = kind.objective(temperature);
                    let labels = if objective.needs().labels { &labels[..] } else { &[] };
                    let encoded = Encoded { labels, ..Encoded::of_queries(1, counts, &queries) };

                    objective.forward_backward(&device, &encoded, &mut communicators[0]).unwrap()
                })
            });
            let ranks: Vec<_> = ranks.collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let mut d_z = vec![f64::NAN; self.z.len()];
        for (rank, step) in steps.iter().enumerate() {
            assert_eq!(step.loss.to_bits(), steps[0].loss.to_bits(), "the same bits on every rank");
            assert_eq!(step.metrics, steps[0].metrics, "the same bits on every rank");
            for (place, row) in self.places(rank).into_iter().zip(step.d_queries.chunks_exact(width)) {
                d_z[place * width..][..width].iter_mut().zip(row).for_each(|(d, got)| *d = got.to_f64());
            }
        }
        (steps[0].loss, d_z)
    }
}

/// Largest difference, as a share of the largest value expected.
fn distance(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    let difference = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs());
    difference.fold(0f64, |a, b| if b > a || b.is_nan() { b } else { a }) / largest
}

/// Numbers in [-1, 1) that repeat nowhere.
fn noise(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn values_are_pytorchs_on_every_path() {
    for case in CASES {
        let z = golden(case, "z");
        let labels: Vec<u32> = golden(case, "labels").into_iter().map(|label| label as u32).collect();
        let temperature = golden(case, "temperature")[0];
        let batch = Batch::alone(&z, &labels);
        for kind in KINDS {
            let expected = golden(case, &format!("{}/loss", kind.name()))[0];
            let expected_d_z = golden(case, &format!("{}/d_z", kind.name()));
            let check = |(loss, d_z): (f64, Vec<f64>), tolerance: f64, what: KernelPath| {
                let loss = (loss - expected).abs();
                assert!(loss < tolerance, "{case} {kind:?} {what}: loss off by {loss:e}");
                let d_z = distance(&d_z, &expected_d_z);
                assert!(d_z < 10.0 * tolerance, "{case} {kind:?} {what}: d_z off by {d_z:e}");
            };
            check(batch.step::<f64>(kind, temperature, KernelPath::Reference), 1e-12, KernelPath::Reference);
            for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
                // Logits are rounded to 24 bits.
                check(
                    batch.step::<f32>(kind, temperature, path),
                    3e-7 * f64::max(1.0 / temperature, 5.0),
                    path,
                );
            }
        }
    }
}

const IMAGES: usize = 11;
const WIDTH: usize = 4;
const LABELS: [u32; IMAGES] = [0, 1, 0, 2, 2, 0, 3, 1, 2, 0, 1];
const TEMPERATURE: f64 = 0.4;

fn central_differences(z: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let moved = |i: usize, h: f64| {
        let mut moved = z.to_vec();
        moved[i] += h;
        loss(&moved)
    };
    (0..z.len()).map(|i| (moved(i, 1e-5) - moved(i, -1e-5)) / 2e-5).collect()
}

#[test]
fn gradients_of_any_world_size_match_central_differences() {
    let z = noise(1, 2 * IMAGES * WIDTH);
    for kind in KINDS {
        let loss =
            |z: &[f64]| Batch::alone(z, &LABELS).step::<f64>(kind, TEMPERATURE, KernelPath::Reference).0;
        let expected = central_differences(&z, loss);
        for counts in [&[IMAGES][..], &[6, 5], &[1, 10], &[5, 1, 5], &[4, 1, 3, 3]] {
            let (_, d_z) =
                Batch::dealt(&z, &LABELS, counts).step::<f64>(kind, TEMPERATURE, KernelPath::Reference);
            let off = distance(&d_z, &expected);
            assert!(off < 1e-8, "{kind:?} {counts:?}: off by {off:e}");
        }
    }
}

#[test]
fn any_world_size_and_order_computes_what_one_rank_computes() {
    let z = noise(2, 2 * IMAGES * WIDTH);
    for kind in KINDS {
        let alone = Batch::alone(&z, &LABELS).step::<f64>(kind, TEMPERATURE, KernelPath::Reference);
        for counts in [&[IMAGES][..], &[6, 5], &[1, 10], &[4, 4, 3], &[1, 1, 1, 8], &[4, 1, 3, 3]] {
            let mut batch = Batch::dealt(&z, &LABELS, counts);
            for turn in 0..3 {
                let (loss, d_z) = batch.step::<f64>(kind, TEMPERATURE, KernelPath::Reference);
                assert!((loss - alone.0).abs() < 1e-13, "{kind:?} {counts:?}: {loss} for {}", alone.0);
                let off = distance(&d_z, &alone.1);
                assert!(off < 1e-12, "{kind:?} {counts:?} {turn}: off by {off:e}");
                // Ranks change places, and then images too.
                batch.ranks.rotate_left(1);
                if turn == 1 {
                    batch.ranks.iter_mut().flatten().for_each(|image| *image = *image * 3 % IMAGES);
                }
            }
        }
    }
}

/// A way to get it wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mutant {
    None,
    /// A rank sees its own rows only.
    NoGather,
    /// The rows of other places are constants: a row has a gradient as an anchor only.
    DetachedKeys,
    /// Gradients are averaged instead of summed.
    Average,
    /// A row's similarity with itself is among its candidates.
    SelfTerm,
    /// SupCon: the only positive is the other view. DCL: the positive is a candidate. Align-uniform: half the alignment.
    Positives,
}

/// The losses as the papers write them: `anchors` against `keys`, which differ for the mutant that detaches.
fn textbook(kind: Kind, mutant: Mutant, batch: &Batch<'_>, anchors: &[f64], keys: &[f64]) -> f64 {
    let (m, width) = (2 * IMAGES, WIDTH);
    let unit = |z: &[f64], i: usize| {
        let row = &z[i * width..][..width];
        let norm = row.iter().map(|z| z * z).sum::<f64>().sqrt();
        row.iter().map(|z| z / norm).collect::<Vec<_>>()
    };
    let similarity =
        |i: usize, j: usize| unit(anchors, i).iter().zip(unit(keys, j)).map(|(a, b)| a * b).sum::<f64>();
    let rank_of = |i: usize| batch.ranks.iter().position(|images| images.contains(&(i % IMAGES))).unwrap();
    let sees = |i: usize, j: usize| mutant != Mutant::NoGather || rank_of(i) == rank_of(j);
    let candidate = |i: usize, j: usize| sees(i, j) && (i != j || mutant == Mutant::SelfTerm);
    let is_pair = |i: usize, j: usize| i != j && i % IMAGES == j % IMAGES;
    let all = || (0..m).flat_map(|i| (0..m).map(move |j| (i, j)));
    if kind == Kind::AlignUniform {
        let share = if mutant == Mutant::Positives { 0.5 } else { 1.0 };
        let pairs = all().filter(|&(i, j)| is_pair(i, j));
        let align = pairs.map(|(i, j)| 2.0 - 2.0 * similarity(i, j)).sum::<f64>() / m as f64;
        let exps: Vec<f64> = all()
            .filter(|&(i, j)| candidate(i, j))
            .map(|(i, j)| ((similarity(i, j) - 1.0) / TEMPERATURE).exp())
            .collect();
        return share * align + (exps.iter().sum::<f64>() / (m * (m - 1)) as f64).ln();
    }
    let in_denominator = |i: usize, j: usize| {
        candidate(i, j) && (kind == Kind::SupCon || mutant == Mutant::Positives || !is_pair(i, j))
    };
    let is_positive = |i: usize, j: usize| match (kind, mutant) {
        (Kind::SupCon, Mutant::Positives) | (Kind::Dcl, _) => is_pair(i, j),
        _ => i != j && batch.labels[i % IMAGES] == batch.labels[j % IMAGES] && sees(i, j),
    };
    let row_loss = |i: usize| {
        let positives: Vec<usize> = (0..m).filter(|&j| is_positive(i, j)).collect();
        let sum: f64 =
            (0..m).filter(|&j| in_denominator(i, j)).map(|j| (similarity(i, j) / TEMPERATURE).exp()).sum();
        let drawn =
            positives.iter().map(|&j| similarity(i, j) / TEMPERATURE).sum::<f64>() / positives.len() as f64;
        sum.ln() - drawn
    };
    (0..m).map(row_loss).sum::<f64>() / m as f64
}

#[test]
fn mistakes_are_noticed() {
    let z = noise(3, 2 * IMAGES * WIDTH);
    for counts in [&[IMAGES][..], &[7, 4], &[4, 5, 2], &[2, 4, 3, 2]] {
        let batch = Batch::dealt(&z, &LABELS, counts);
        for kind in KINDS {
            let (loss, d_z) = batch.step::<f64>(kind, TEMPERATURE, KernelPath::Reference);
            let mutants = [
                Mutant::NoGather,
                Mutant::DetachedKeys,
                Mutant::Average,
                Mutant::SelfTerm,
                Mutant::Positives,
            ];
            for mutant in [Mutant::None].into_iter().chain(mutants) {
                let keys =
                    |moved: &[f64]| if mutant == Mutant::DetachedKeys { z.clone() } else { moved.to_vec() };
                let mut wrong = central_differences(&z, |z| textbook(kind, mutant, &batch, z, &keys(z)));
                if mutant == Mutant::Average {
                    wrong.iter_mut().for_each(|d| *d /= batch.ranks.len() as f64);
                }
                let off = distance(&wrong, &d_z);
                let none_alone = matches!(mutant, Mutant::NoGather | Mutant::Average) && counts.len() == 1;
                if mutant == Mutant::None || none_alone {
                    let right = textbook(kind, mutant, &batch, &z, &z);
                    assert!((loss - right).abs() < 1e-12 && off < 1e-8, "{kind:?}: off by {off:e}");
                } else {
                    assert!(off > 1e-2, "{kind:?} {mutant:?} {counts:?}: off by {off:e}");
                }
            }
        }
    }
}

#[test]
fn a_hot_temperature_and_orthogonal_rows_know_nothing() {
    let z = noise(4, 2 * IMAGES * WIDTH);
    for kind in [Kind::SupCon, Kind::Dcl] {
        let (loss, d_z) = Batch::alone(&z, &LABELS).step::<f64>(kind, 1e9, KernelPath::Reference);
        let chance = kind.objective(1e9).chance_loss(IMAGES);
        assert!((loss - chance).abs() < 1e-8, "{kind:?}: {loss} for {chance}");
        assert!(d_z.iter().all(|d| d.abs() < 1e-8), "{kind:?}");
    }
    assert_eq!(Kind::SupCon.objective(0.1).chance_loss(IMAGES), 21f64.ln());
    assert_eq!(Kind::Dcl.objective(0.1).chance_loss(IMAGES), 20f64.ln());
    let m = 2 * IMAGES;
    let axes: Vec<f64> = (0..m * m).map(|i| if i / m == i % m { 3.0 } else { 0.0 }).collect();
    let (loss, _) = Batch::alone(&axes, &LABELS).step::<f64>(Kind::AlignUniform, 0.7, KernelPath::Reference);
    assert!((loss - Kind::AlignUniform.objective(0.7).chance_loss(IMAGES)).abs() < 1e-12);
    assert!((loss - (2.0 - 1.0 / 0.7)).abs() < 1e-12, "{loss}");
}

#[test]
fn without_shared_labels_supcon_is_simclr() {
    let z = noise(5, 2 * IMAGES * WIDTH);
    let labels: Vec<u32> = (0..IMAGES as u32).collect();
    let (loss, d_z) = Batch::alone(&z, &labels).step::<f64>(Kind::SupCon, TEMPERATURE, KernelPath::Reference);
    let device = Device::of_threads(1, KernelPath::Reference);
    let mut alone = collective::Communicator::alone();
    let simclr = objectives::NtXent::new(TEMPERATURE)
        .forward_backward(&device, &z, &[2 * IMAGES], &mut alone)
        .unwrap();
    assert!((loss - simclr.loss).abs() < 1e-13);
    assert!(distance(&d_z, &simclr.d_queries) < 1e-12);
}

#[test]
#[should_panic(expected = "one image has no negatives")]
fn dcl_of_one_image_is_refused() {
    let device = Device::of_threads(1, KernelPath::Reference);
    let encoded = Encoded::of_queries(1, &[1], &[1f64, 2.0, 3.0, 4.0]);
    let mut alone = collective::Communicator::alone();
    Kind::Dcl.objective(0.5).forward_backward(&device, &encoded, &mut alone).unwrap();
}
