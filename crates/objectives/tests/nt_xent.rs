//! NT-Xent on one rank: PyTorch's values, central differences, closed forms, and tiles that do not fit.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use collective::{Communicator, Number};
use kernels::{Device, KernelPath, Real};
use objectives::unit::UnitGradient;
use objectives::unit::UnitRows;
use objectives::{Encoded, NtXent, Objective, ObjectiveStep, Reduction, TwoViews};
use safetensors::SafeTensors;

const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/objectives.safetensors");
const CASES: [&str; 4] = ["cifar", "imagenet", "sharp", "short_row"];

fn golden(case: &str, name: &str) -> Vec<f64> {
    let file = SafeTensors::deserialize(GOLDEN).unwrap();
    let tensor = file.tensor(&format!("{case}/{name}")).unwrap();
    tensor.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn step<T: Real + Number>(nt_xent: &NtXent, path: KernelPath, z: &[T], rows: usize) -> ObjectiveStep<T> {
    let device = Device::of_threads(2, path);
    let images = [rows / 2];
    let encoded = Encoded::of_queries(1, &images, z);
    let mut objective = Objective::TwoViews(TwoViews::Simclr(nt_xent.clone()));
    objective.forward_backward(&device, &encoded, &mut Communicator::alone()).unwrap()
}

fn unit_gradient(nt_xent: &NtXent, unit: &[f64], rows: usize) -> UnitGradient<f64> {
    let device = Device::of_threads(2, KernelPath::Reference);
    nt_xent.unit_gradient(&device, unit, &[rows], &mut Communicator::alone()).unwrap()
}

/// Largest difference, as a share of the largest value expected.
fn distance<T: Real>(got: &[T], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    let difference = got.iter().zip(expected).map(|(got, expected)| (got.to_f64() - expected).abs());
    difference.fold(0f64, |a, b| if b > a || b.is_nan() { b } else { a }) / largest
}

/// `rows` rows of numbers in [-1, 1) that repeat nowhere.
fn noise(seed: u64, rows: usize, width: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..rows * width).map(|_| next()).collect()
}

#[test]
fn values_are_pytorchs() {
    for case in CASES {
        let (z, temperature) = (golden(case, "z"), golden(case, "temperature")[0]);
        let rows = z.len() / width_of(case);
        let nt_xent = NtXent::new(temperature);
        let exact = step(&nt_xent, KernelPath::Reference, &z, rows);
        assert!((exact.loss - golden(case, "loss")[0]).abs() < 1e-12, "{case}: loss {}", exact.loss);
        let d_z = distance(&exact.d_queries, &golden(case, "d_z"));
        assert!(d_z < 1e-11, "{case}: d_z off by {d_z:e}");
        let unit = UnitRows::new(&z, width_of(case)).unit;
        let d_u = distance(&unit_gradient(&nt_xent, &unit, rows).d_unit, &golden(case, "d_u"));
        assert!(d_u < 1e-11, "{case}: d_u off by {d_u:e}");
    }
}

#[test]
fn single_precision_is_within_rounding_of_pytorchs_on_every_path() {
    for case in CASES {
        let (z, temperature) = (golden(case, "z"), golden(case, "temperature")[0]);
        let z: Vec<f32> = z.iter().map(|&z| z as f32).collect();
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            let got = step(&NtXent::new(temperature), path, &z, z.len() / width_of(case));
            // Logits are as large as 1 / temperature and rounded to 24 bits.
            let tolerance = 3e-7 * (1.0 / temperature).max(5.0);
            let loss = (got.loss - golden(case, "loss")[0]).abs();
            assert!(loss < tolerance, "{case} {path}: loss off by {loss:e}");
            let d_z = distance(&got.d_queries, &golden(case, "d_z"));
            assert!(d_z < tolerance, "{case} {path}: d_z off by {d_z:e}");
        }
    }
}

fn width_of(case: &str) -> usize {
    let file = SafeTensors::deserialize(GOLDEN).unwrap();
    file.tensor(&format!("{case}/z")).unwrap().shape()[1]
}

#[test]
fn gradients_match_central_differences() {
    let (rows, width) = (10, 6);
    let nt_xent = NtXent::new(0.3);
    let check = |at: &[f64], gradient: &[f64], loss: &dyn Fn(&[f64]) -> f64, what: &str| {
        for i in 0..at.len() {
            let moved = |h: f64| {
                let mut moved = at.to_vec();
                moved[i] += h;
                loss(&moved)
            };
            let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let error = (gradient[i] - difference).abs();
            assert!(error < 1e-9, "{what}[{i}]: {} against {difference}", gradient[i]);
        }
    };
    let z = noise(1, rows, width);
    let d_z = step(&nt_xent, KernelPath::Reference, &z, rows).d_queries;
    check(&z, &d_z, &|z| step(&nt_xent, KernelPath::Reference, z, rows).loss, "d_z");
    // By the unit rows, off the sphere: a self term left in, which vanishes from d_z, would show here.
    let unit = UnitRows::new(&z, width).unit;
    let d_unit = unit_gradient(&nt_xent, &unit, rows).d_unit;
    check(&unit, &d_unit, &|unit| unit_gradient(&nt_xent, unit, rows).loss, "d_unit");
}

#[test]
fn tiles_of_any_size_give_the_dense_result() {
    // So many that the smallest tiles are visited in groups of two and of four.
    let (rows, width) = (140, 9);
    let z = noise(2, rows, width);
    let dense = NtXent { block_rows: rows, ..NtXent::new(0.2) };
    let expected = step(&dense, KernelPath::Reference, &z, rows);
    for block_rows in [1, 2, 3, 5, 7, 16, 25, 100] {
        let got = step(&NtXent { block_rows, ..dense }, KernelPath::Reference, &z, rows);
        let loss = (got.loss - expected.loss).abs();
        assert!(loss < 1e-14, "{block_rows}: {} against {}", got.loss, expected.loss);
        let d_z = distance(&got.d_queries, &expected.d_queries);
        assert!(d_z < 1e-13, "{block_rows}: off by {d_z:e}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (rows, width) = (500, 32);
    let z: Vec<f32> = noise(3, rows, width).iter().map(|&z| z as f32).collect();
    let with_threads = |threads| {
        let device = Device::of_threads(threads, KernelPath::detect());
        NtXent::new(0.2).forward_backward(&device, &z, &[rows], &mut Communicator::alone()).unwrap()
    };
    assert_eq!(with_threads(1), with_threads(3));
}

#[test]
fn a_hot_temperature_knows_nothing() {
    let (rows, width) = (14, 5);
    let z = noise(4, rows, width);
    let objective = Objective::TwoViews(TwoViews::Simclr(NtXent::new(1e9)));
    let step = step(&NtXent::new(1e9), KernelPath::Reference, &z, rows);
    assert!((step.loss - 13f64.ln()).abs() < 1e-8);
    assert_eq!(objective.chance_loss(rows / 2), 13f64.ln());
    assert_eq!(objective.reduction(), Reduction::Sum);
    assert!(step.d_queries.iter().all(|d| d.abs() < 1e-8));
}

#[test]
fn pairs_that_agree_and_are_orthogonal_to_all_others_have_a_closed_form() {
    // Row i and its other view are the i-th axis: one similarity of 1, all others 0.
    let (images, temperature) = (6, 0.25);
    let mut z = vec![0.0; 2 * images * images];
    for row in 0..2 * images {
        z[row * images + row % images] = 2.0 + row as f64;
    }
    let got = step(&NtXent::new(temperature), KernelPath::Reference, &z, 2 * images);
    let positive = (1.0 / temperature).exp();
    let expected = -(positive / (positive + (2 * images - 2) as f64)).ln();
    assert!((got.loss - expected).abs() < 1e-13, "{} against {expected}", got.loss);
}

#[test]
fn one_image_has_nothing_to_be_told_from() {
    let got = step(&NtXent::new(0.5), KernelPath::Reference, &noise(7, 2, 4), 2);
    assert!(got.loss.abs() < 1e-15, "{}", got.loss);
    assert!(got.d_queries.iter().all(|d| d.abs() < 1e-15));
}

#[test]
fn permuting_images_permutes_gradients() {
    let (images, width) = (9, 4);
    let z = noise(5, 2 * images, width);
    let order: Vec<usize> = (0..images).map(|i| (i * 4 + 2) % images).collect();
    let permuted = |rows: &[f64]| -> Vec<f64> {
        let both = order.iter().copied().chain(order.iter().map(|i| images + i));
        both.flat_map(|row| rows[row * width..(row + 1) * width].to_vec()).collect()
    };
    let nt_xent = NtXent::new(0.1);
    let straight = step(&nt_xent, KernelPath::Reference, &z, 2 * images);
    let shuffled = step(&nt_xent, KernelPath::Reference, &permuted(&z), 2 * images);
    assert!((straight.loss - shuffled.loss).abs() < 1e-14);
    assert!(distance(&shuffled.d_queries, &permuted(&straight.d_queries)) < 1e-13);
}

#[test]
fn a_diverged_embedding_shows_in_the_loss() {
    for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
        let mut z: Vec<f32> = noise(6, 40, 8).iter().map(|&z| z as f32).collect();
        z[100] = f32::NAN;
        assert!(step(&NtXent::new(0.2), path, &z, 40).loss.is_nan(), "{path}");
    }
}

#[test]
#[should_panic(expected = "every rank has two views of an image: [6, 0]")]
fn a_rank_without_images_is_refused() {
    let device = Device::of_threads(1, KernelPath::Reference);
    NtXent::new(0.2).forward_backward(&device, &[1f64; 12], &[6, 0], &mut Communicator::alone()).unwrap();
}
