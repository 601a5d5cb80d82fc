//! What the integration tests share: numbers that look random, and small networks.

#![allow(dead_code, reason = "each test program uses its part")]

use engine::models::{Arch, BatchNormScope, Head, ModelSpec, Stem};
use engine::network::{Network, NetworkOptions};
use kernels::{Convolution, Device, KernelPath, Real};

const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// `len` numbers in [-1, 1), a function of the name: the same as `noise` in tests/golden/engine.py.
pub fn noise(name: &str, len: usize) -> Vec<f64> {
    let key = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |key, byte| (key ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let number = |i: u64| {
        let x = key.wrapping_add(i.wrapping_mul(GOLDEN_RATIO));
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (1..=len as u64).map(number).collect()
}

pub fn cast<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

pub fn spec(arch: Arch, stem: Stem, head: Head, image_size: usize) -> ModelSpec {
    ModelSpec {
        arch,
        stem,
        head,
        batch_norm: BatchNormScope::Global,
        image_size,
        zero_init_residual: false,
        predictor: None,
        jigsaw: None,
    }
}

pub fn options(max_rows: usize) -> NetworkOptions {
    NetworkOptions { max_rows, seed: 1, convolution: Convolution::Auto }
}

/// A network whose parameters are all different from their first values, scales and shifts too.
pub fn network<T: Real>(spec: &ModelSpec, max_rows: usize, threads: usize) -> Network<T> {
    let mut network =
        Network::new(spec, options(max_rows), &Device::of_threads(threads, KernelPath::detect()));
    draw(&mut network);
    network
}

/// Draws every parameter as tests/golden/engine.py does.
pub fn draw<T: Real>(network: &mut Network<T>) {
    let parameters = network.parameters_mut();
    for entry in &parameters.entries {
        let bound = (6.0 / (entry.len / entry.shape[0]) as f64).sqrt();
        let (centre, bound) = match entry.name.rsplit('.').collect::<Vec<_>>()[..] {
            // Short residual branches keep a deep random net well conditioned.
            ["weight", "bn2" | "bn3", ..] => (0.3, 0.15),
            ["weight", ..] if entry.shape.len() == 1 => (1.0, 0.5),
            ["weight", ..] => (0.0, bound),
            _ => (0.0, 0.2),
        };
        for (value, drawn) in parameters.values[entry.range()].iter_mut().zip(noise(&entry.name, entry.len)) {
            *value = T::from_f64(centre + bound * drawn);
        }
    }
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `|a - b| / |b|` in the Euclidean norm.
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(b)
}
