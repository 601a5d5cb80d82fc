//! The networks of one model: which parameters they share, and what they compute with the same ones.

mod support;

use engine::models::{Arch, Head, Jigsaw, ModelSpec, PATCHES, Predictor, Role, Stem};
use engine::network::Network;
use kernels::peers::Alone;
use kernels::{Device, DeviceOptions, KernelPath};
use support::{noise, options, relative_error, spec};

const SIZE: usize = 8;
const ROWS: usize = 5;

fn network(spec: &ModelSpec, role: Role) -> Network<f64> {
    let rows = if role == Role::Patches { ROWS * PATCHES } else { ROWS };
    Network::with_role(spec, role, options(rows), &Device::of_threads(2, KernelPath::detect()))
}

fn moco() -> ModelSpec {
    let head = Head::MocoV3 { hidden: 9, out: 6 };
    let predictor = Some(Predictor { hidden: 7, last_norm: false });
    ModelSpec { predictor, ..spec(Arch::ResNet20, Stem::Cifar, head, SIZE) }
}

fn pirl() -> ModelSpec {
    let jigsaw = Some(Jigsaw { patch_size: 6 });
    ModelSpec { jigsaw, ..spec(Arch::ResNet20, Stem::Cifar, Head::Linear { out: 4 }, SIZE) }
}

fn names(network: &Network<f64>) -> Vec<(String, Vec<usize>)> {
    let parameters = network.parameters();
    let entries = parameters.entries.iter().filter(|entry| !entry.name.starts_with("backbone."));
    entries.map(|entry| (entry.name.clone(), entry.shape.clone())).collect()
}

#[test]
fn heads_have_the_papers_layers() {
    let named = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
    let projector = [
        named("head.0.weight", &[9, 64]),
        named("head.1.weight", &[9]),
        named("head.1.bias", &[9]),
        named("head.3.weight", &[6, 9]),
    ];
    assert_eq!(names(&network(&moco(), Role::Momentum)), projector);
    let predictor = [
        named("predictor.0.weight", &[7, 6]),
        named("predictor.1.weight", &[7]),
        named("predictor.1.bias", &[7]),
        named("predictor.3.weight", &[6, 7]),
    ];
    assert_eq!(names(&network(&moco(), Role::Trained)), [projector, predictor].concat());
    let jigsaw = [
        named("jigsaw_head.0.weight", &[4, 64]),
        named("jigsaw_head.0.bias", &[4]),
        named("jigsaw_head.1.weight", &[4, 36]),
        named("jigsaw_head.1.bias", &[4]),
    ];
    assert_eq!(names(&network(&pirl(), Role::Patches)), jigsaw);
    let head = [named("head.0.weight", &[4, 64]), named("head.0.bias", &[4])];
    assert_eq!(names(&network(&pirl(), Role::Trained)), [&head[..], &jigsaw].concat());
    // The last norm of the projector has running statistics all the same.
    let trained = network(&moco(), Role::Trained);
    assert!(trained.parameters().buffers.iter().any(|buffer| buffer.name == "head.4.running_var"));
}

/// A momentum encoder starts as the trained network does, computes the same with the same parameters, and takes less
/// memory.
#[test]
fn a_momentum_encoder_is_the_trained_one_without_its_predictor() {
    let plain = ModelSpec { predictor: None, ..moco() };
    let (mut trained, mut momentum) = (network(&plain, Role::Trained), network(&moco(), Role::Momentum));
    let places = trained.parameters().places_of(momentum.parameters());
    let len = momentum.parameters().values.len();
    assert_eq!(places, [(0..len, 0..len)]);
    assert_eq!(trained.parameters().values, momentum.parameters().values);
    let images = noise("images", ROWS * SIZE * SIZE * 3);
    let expected = trained.forward_train(&images, ROWS, &mut Alone).unwrap().to_vec();
    assert_eq!(momentum.forward_train(&images, ROWS, &mut Alone).unwrap(), expected);
    assert_eq!(momentum.staged_statistics(), trained.staged_statistics());
    let device = DeviceOptions::of_threads(2, KernelPath::detect());
    let bytes = |role| Network::<f64>::predicted_bytes_of(&moco(), role, &options(64), &device);
    assert!(2 * bytes(Role::Momentum) < bytes(Role::Trained), "{} bytes", bytes(Role::Momentum));
}

#[test]
#[should_panic(expected = "everything but the images has a gradient")]
fn a_momentum_encoder_has_no_gradient() {
    let mut momentum = network(&moco(), Role::Momentum);
    momentum.forward_train(&noise("images", ROWS * SIZE * SIZE * 3), ROWS, &mut Alone).unwrap();
    momentum.backward(&noise("d", ROWS * 6), &mut Alone, &mut |_, _| {}).unwrap();
}

#[test]
fn patches_share_the_backbone() {
    let (trained, mut patches) = (network(&pirl(), Role::Trained), network(&pirl(), Role::Patches));
    for (here, there) in trained.parameters().places_of(patches.parameters()) {
        assert_eq!(trained.parameters().values[here], patches.parameters().values[there]);
    }
    let n = ROWS * PATCHES;
    let embeddings = patches.forward_train(&noise("patches", n * 6 * 6 * 3), n, &mut Alone).unwrap();
    assert_eq!(embeddings.len(), ROWS * 4);
}

/// One row of patches depends on its own nine alone, but for the statistics: with running ones, not at all.
#[test]
fn nine_patches_make_a_row() {
    let mut patches = network(&pirl(), Role::Patches);
    let (n, image) = (3 * PATCHES, PATCHES * 6 * 6 * 3);
    let pixels = noise("patches", 3 * image);
    let together = patches.forward_eval(&pixels, n).embeddings.to_vec();
    assert_eq!(together.len(), 3 * 4);
    for (row, pixels) in pixels.chunks_exact(image).enumerate() {
        let alone = patches.forward_eval(pixels, PATCHES).embeddings;
        assert!(relative_error(alone, &together[row * 4..][..4]) < 1e-14, "row {row}");
    }
}
