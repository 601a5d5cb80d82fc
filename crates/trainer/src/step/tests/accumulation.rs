//! A step in chunks against PyTorch: tests/golden/accumulation.py says what is compared.

use super::calculus::second_step;
use super::*;
use crate::plan::Plan;
use safetensors::SafeTensors;

const PROJECTIONS: usize = 4;
const SAMPLES: usize = 12;
const IMAGES: usize = 8;
const SIZE: usize = 8;

/// The engine's f32 against f64, relative to a tensor's norm.
const BOUND: f64 = 2e-5;

/// As `noise` of tests/golden/engine.py: numbers in [-1, 1), a function of the name.
fn noise(name: &str, len: usize) -> Vec<f64> {
    let key = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |key, byte| (key ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let number = |i: u64| {
        let x = key.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (1..=len as u64).map(number).collect()
}

/// Draws every parameter as `build` of tests/golden/engine.py does.
fn draw(network: &mut Network<f32>) {
    let parameters = network.parameters_mut();
    for entry in &parameters.entries {
        let bound = (6.0 / (entry.len / entry.shape[0]) as f64).sqrt();
        let (centre, bound) = match entry.name.rsplit('.').collect::<Vec<_>>()[..] {
            ["weight", "bn2", ..] => (0.3, 0.15),
            ["weight", ..] if entry.shape.len() == 1 => (1.0, 0.5),
            ["weight", ..] => (0.0, bound),
            _ => (0.0, 0.2),
        };
        for (value, drawn) in parameters.values[entry.range()].iter_mut().zip(noise(&entry.name, entry.len)) {
            *value = (centre + bound * drawn) as f32;
        }
    }
}

#[track_caller]
fn check_digest(what: &str, values: &[f32], expected: &[f64]) {
    let values: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
    let dot = |other: &[f64]| values.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
    let projection = |k| dot(&noise(&format!("projection/{k}"), values.len()));
    let samples = (0..SAMPLES).map(|i| values[i * values.len() / SAMPLES]);
    let digest = [dot(&values).sqrt()].into_iter().chain((0..PROJECTIONS).map(projection)).chain(samples);
    let scale = expected[0] * (values.len() as f64).sqrt().max(1.0);
    for (ours, theirs) in digest.zip(expected) {
        assert!((ours - theirs).abs() <= BOUND * scale, "{what}: {ours} instead of {theirs}");
    }
}

#[test]
fn a_step_in_chunks_is_pytorchs() {
    let file = include_bytes!("../../../../../tests/golden/accumulation.safetensors");
    let file = SafeTensors::deserialize(file).unwrap();
    let expected = |name: &str| -> Vec<f64> {
        file.tensor(name)
            .unwrap()
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f64::from_le_bytes(*bytes))
            .collect()
    };
    let mut config = config("simclr", "resnet20");
    (config.train.global_batch, config.train.chunk, config.objective.temperature) = (IMAGES, 3, 0.5);
    let plan = Plan::resolve(&config, 0, 1).unwrap();
    let mut trainer = trainer(&plan, Group::alone());
    draw(&mut trainer.network);

    let len = SIZE * SIZE * 3;
    let views: Vec<f32> = noise("views", 2 * IMAGES * len).iter().map(|&value| value as f32).collect();
    let chunks = trainer.layout.own(0).into_iter();
    let rows = chunks.flat_map(|own| {
        let rows = [own.start..own.end, IMAGES + own.start..IMAGES + own.end].into_iter().flatten();
        rows.flat_map(|row| &views[row * len..(row + 1) * len]).copied().collect::<Vec<_>>()
    });
    let (images, indices): (Vec<f32>, Vec<usize>) = (rows.collect(), (0..IMAGES).collect());
    let batch =
        StepBatch { positions: &indices, indices: &indices, labels: &[], images: &images, jigsaw: &[] };
    let outcome = trainer.step(1, &batch, 0.01).unwrap();

    assert!((outcome.loss - expected("loss")[0]).abs() < 1e-5, "{} {:?}", outcome.loss, expected("loss"));
    let parameters = trainer.network.parameters();
    let digests = expected("gradients");
    for (entry, digest) in parameters.entries.iter().zip(digests.chunks_exact(1 + PROJECTIONS + SAMPLES)) {
        check_digest(&entry.name, &parameters.gradients[entry.range()], digest);
    }
    let digests = expected("running");
    for (entry, digest) in parameters.buffers.iter().zip(digests.chunks_exact(1 + PROJECTIONS + SAMPLES)) {
        check_digest(&entry.name, &parameters.buffer_values[entry.range()], digest);
    }
    assert_eq!(parameters.num_batches_tracked, 1);
}

/// Layer norm and frozen batch norm know no other rows: a batch is the same in one piece and in chunks.
#[test]
fn without_statistics_of_the_batch_chunks_change_nothing() {
    for (method, arch) in
        [("simclr", "vit-16-2-2"), ("moco", "vit-16-2-2"), ("simclr", "resnet20"), ("moco", "resnet20")]
    {
        let mut whole = config(method, arch);
        // A step by the statistics of the batch leaves other running ones than a new run has.
        let from = checkpoint(&Episode { steps: 0..1, ..Episode::new(&whole, 1) }.run());
        if arch == "resnet20" {
            whole.model.batch_norm = config::BatchNorm::Frozen;
        }
        let mut cut = whole.clone();
        cut.train.chunk = 3;
        let [(loss, whole), (loss_cut, cut)] =
            [&whole, &cut].map(|config| second_step(config, &from, |_| {}));
        assert!((loss / loss_cut - 1.0).abs() < 1e-6, "{method}: {loss} {loss_cut}");
        let gradients = |trainer: &Trainer| trainer.network.parameters().gradients.clone();
        let difference = relative_difference(&gradients(&whole), &gradients(&cut));
        assert!(difference > 0.0 && difference < 1e-5, "{method}, {arch}: gradients differ by {difference}");
    }
}
