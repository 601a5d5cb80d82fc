//! Whole networks against central differences, in f64.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod support;

use engine::models::{Arch, BatchNormScope, Head, Jigsaw, ModelSpec, PATCHES, Predictor, Role, Stem};
use engine::network::Network;
use engine::parameters::BufferUpdate;
use kernels::peers::Alone;
use kernels::{Device, KernelPath};
use support::{dot, network, noise, spec};

/// `sum(embeddings * d_embeddings)`, whose gradients `backward` computes.
fn loss(network: &mut Network<f64>, images: &[f64], d_embeddings: &[f64], n: usize) -> f64 {
    dot(network.forward_train(images, n, &mut Alone).unwrap(), d_embeddings)
}

/// Compares the derivative along a random direction, in all parameters and in some kinds of them, with the slope of
/// the loss.
#[track_caller]
fn check(spec: &ModelSpec, (n, threads): (usize, usize), suffixes: &[&str]) {
    let network = network::<f64>(spec, n + 1, threads);
    let images = noise("images", n * spec.image_size.pow(2) * 3);
    check_network(network, (&images, n), spec.embedding_width() * n, suffixes);
}

#[track_caller]
fn check_network(
    mut network: Network<f64>,
    (images, n): (&[f64], usize),
    n_embeddings: usize,
    suffixes: &[&str],
) {
    let spec = network.spec().clone();
    let d_embeddings = noise("d_embeddings", n_embeddings);
    loss(&mut network, images, &d_embeddings, n);
    let mut announced = vec![];
    network
        .backward(&d_embeddings, &mut Alone, &mut |range, values| {
            assert_eq!(range.len(), values.len());
            announced.extend(range);
        })
        .unwrap();
    announced.sort_unstable();
    let parameters = network.parameters().clone();
    assert_eq!(announced, (0..parameters.values.len()).collect::<Vec<_>>(), "every gradient once");

    // Relative to the size of the weights, so that no layer moves much more than another.
    let mut direction = noise("direction", parameters.values.len());
    direction.iter_mut().zip(&parameters.values).for_each(|(direction, value)| *direction *= value);
    for suffix in suffixes {
        let mut direction = direction.clone();
        for entry in parameters.entries.iter().filter(|entry| !entry.name.ends_with(suffix)) {
            direction[entry.range()].fill(0.0);
        }
        let slope = dot(&parameters.gradients, &direction);
        let mut at = |t: f64| {
            let moved = network.parameters_mut().values.iter_mut().zip(&parameters.values).zip(&direction);
            moved.for_each(|((value, first), direction)| *value = first + t * direction);
            loss(&mut network, images, &d_embeddings, n)
        };
        // A long step may meet the kink of a ReLU and a short one drown in rounding: one of them must agree.
        let mut measured = vec![];
        let bound = 3e-6 * slope.abs().max(1e-2 * support::norm(&parameters.gradients));
        let agrees = [1e-7, 1e-8, 1e-9].iter().any(|step| {
            measured.push((at(*step) - at(-step)) / (2.0 * step));
            (measured[measured.len() - 1] - slope).abs() < bound
        });
        assert!(agrees, "{spec:?} {suffix}: {measured:?} measured, {slope} computed");
    }
}

/// Everything, and one kind of parameter at a time.
const KINDS: [&str; 7] = [
    "",
    "conv1.weight",
    "bn1.weight",
    "bn2.bias",
    "downsample.0.weight",
    "downsample.1.weight",
    "head.0.weight",
];

#[test]
fn resnet20_with_every_head() {
    for head in [Head::SimclrV1, Head::SimclrV2, Head::Mlp { hidden: 7, out: 5 }, Head::Linear { out: 3 }] {
        check(&spec(Arch::ResNet20, Stem::Cifar, head, 8), (3, 2), &KINDS);
    }
}

#[test]
fn deeper_nets_with_both_stems() {
    let head = Head::Linear { out: 5 };
    check(&spec(Arch::ResNet18, Stem::Cifar, head, 9), (2, 1), &[""]);
    check(&spec(Arch::ResNet18, Stem::Imagenet, head, 35), (2, 1), &["", "conv1.weight"]);
    check(&spec(Arch::ResNet34, Stem::Cifar, head, 7), (3, 2), &[""]);
    check(&spec(Arch::ResNet50, Stem::Imagenet, head, 33), (2, 2), &[""]);
}

/// By running statistics that are not those of the batch, which no rank's peers are asked for, and which stay.
#[test]
fn frozen_statistics() {
    let head = Head::MocoV3 { hidden: 7, out: 5 };
    let nets: [(Arch, Stem, usize, &[&str]); 2] =
        [(Arch::ResNet20, Stem::Cifar, 8, &KINDS), (Arch::ResNet50, Stem::Imagenet, 33, &[""])];
    for (arch, stem, size, suffixes) in nets {
        let spec = ModelSpec { batch_norm: BatchNormScope::Frozen, ..spec(arch, stem, head, size) };
        let mut network = network::<f64>(&spec, 4, 2);
        for (entry, value) in network.parameters().buffers.clone().iter().zip(noise("scales", 1000)) {
            let drawn = noise(&entry.name, entry.len);
            let is_variance = entry.name.ends_with("running_var");
            let drawn = drawn.iter().map(|x| if is_variance { 2.0 + x + value } else { 0.5 * x });
            let buffers = &mut network.parameters_mut().buffer_values[entry.range()];
            buffers.iter_mut().zip(drawn).for_each(|(buffer, x)| *buffer = x);
        }
        let buffers = network.parameters().buffer_values.clone();
        let images = noise("images", 3 * size * size * 3);
        let evaluated = network.forward_eval(&images, 3).embeddings.to_vec();
        assert_eq!(network.forward_train(&images, 3, &mut Alone).unwrap(), evaluated);
        network.commit_buffers(BufferUpdate::Momentum(0.1));
        assert_eq!(
            (&network.parameters().buffer_values, network.parameters().num_batches_tracked),
            (&buffers, 0)
        );
        check_network(network, (&images, 3), 3 * 5, suffixes);
    }
}

#[test]
fn a_projector_with_its_predictor() {
    let predictor = Some(Predictor { hidden: 6, last_norm: false });
    let head = Head::MocoV3 { hidden: 7, out: 5 };
    let spec = ModelSpec { predictor, ..spec(Arch::ResNet20, Stem::Cifar, head, 8) };
    let suffixes =
        ["", "head.0.weight", "head.1.bias", "head.3.weight", "predictor.0.weight", "predictor.3.weight"];
    check(&spec, (4, 2), &suffixes);
}

#[test]
fn patches_joined_by_their_head() {
    let jigsaw = Some(Jigsaw { patch_size: 6 });
    let spec = ModelSpec { jigsaw, ..spec(Arch::ResNet20, Stem::Cifar, Head::Linear { out: 4 }, 8) };
    let n = 2 * PATCHES;
    let mut network = Network::with_role(
        &spec,
        Role::Patches,
        support::options(n),
        &Device::of_threads(2, KernelPath::detect()),
    );
    support::draw(&mut network);
    let patches = noise("patches", n * 6 * 6 * 3);
    let suffixes = ["", "conv1.weight", "jigsaw_head.0.weight", "jigsaw_head.1.weight", "jigsaw_head.1.bias"];
    check_network(network, (&patches, n), 2 * 4, &suffixes);
}
