//! The engine against PyTorch and torchvision: passes, gradients, ten updates, running statistics.
//!
//! tests/golden/engine.py wrote the expected values and says how; nothing here comes from the engine itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod support;

use std::sync::LazyLock;

use engine::models::{Arch, Head, Jigsaw, ModelSpec, PATCHES, Predictor, Role, Stem};
use engine::network::Network;
use engine::optim::{Optimizer, OptimizerKind, OptimizerSpec};
use engine::parameters::BufferUpdate;
use kernels::peers::Alone;
use kernels::{Device, KernelPath, Real};
use safetensors::SafeTensors;
use serde_json::Value;
use support::{cast, dot, draw, noise, norm, options, relative_error, spec};

/// One row per tensor: norm, projections, elements.
const PROJECTIONS: usize = 4;
const SAMPLES: usize = 12;
const STEPS: usize = 10;

/// How far f64 may be off: rounding only, after ten updates too.
const EXACT: f64 = 1e-9;

/// Beyond PyTorch's own error in f32, for what is continuous: the embeddings of one pass.
const F32_SLACK: f64 = 1e-5;

/// The same for gradients: where rounding carries one ReLU over its kink, and PyTorch's rounding did not, a tensor's
/// gradient jumps by some hundredths, in nets as small as these.
const F32_KINK_SLACK: f64 = 5e-2;

/// The same for the weights after ten updates, which move little.
const F32_UPDATES_SLACK: f64 = 1e-2;

static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/engine.safetensors");
    std::fs::read(path).unwrap()
});

struct Case {
    index: usize,
    json: Value,
    spec: ModelSpec,
    role: Role,
    /// Of images; of a jigsaw, patches.
    rows: usize,
}

impl Case {
    fn load(index: usize) -> Self {
        let (_, metadata) = SafeTensors::read_metadata(&FILE).unwrap();
        let cases: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
        let json = cases[index].clone();
        let text = |key: &str| json[key].as_str().unwrap();
        let number = |key: &str| usize::try_from(json[key].as_u64().unwrap()).unwrap();
        let arch: Arch = text("arch").parse().unwrap();
        let stem: Stem = text("stem").parse().unwrap();
        let predictor =
            json["predictor"].as_u64().map(|hidden| Predictor { hidden: hidden as usize, last_norm: false });
        let size = number("size");
        let (head, role) = match text("head").strip_prefix("jigsaw-") {
            Some(out) => (Head::Linear { out: out.parse().unwrap() }, Role::Patches),
            None => (text("head").parse().unwrap(), Role::Trained),
        };
        let jigsaw = (role == Role::Patches).then_some(Jigsaw { patch_size: size });
        let spec = ModelSpec { predictor, jigsaw, ..spec(arch, stem, head, size) };
        Self { index, spec, role, rows: number("rows"), json }
    }

    fn network<T: Real>(&self, path: KernelPath) -> Network<T> {
        let device = Device::of_threads(2, path);
        let mut network = Network::with_role(&self.spec, self.role, options(self.rows), &device);
        draw(&mut network);
        network
    }

    fn expected(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&FILE).unwrap();
        let tensor = tensors.tensor(&format!("{}/{name}", self.index)).unwrap();
        tensor.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn images<T: Real>(&self, step: usize) -> Vec<T> {
        cast(&noise(&format!("images/{step}"), self.rows * self.spec.image_size.pow(2) * 3))
    }

    fn d_embeddings<T: Real>(&self, step: usize) -> Vec<T> {
        let rows = if self.role == Role::Patches { self.rows / PATCHES } else { self.rows };
        cast(&noise(&format!("d_embeddings/{step}"), rows * self.spec.embedding_width()))
    }

    /// The engine's f32 may be eight times as far from f64 as PyTorch's own, plus `slack`.
    fn f32_bound(&self, what: &str, slack: f64) -> f64 {
        8.0 * self.json["f32_error"][what].as_f64().unwrap() + slack
    }

    fn train<T: Real>(&self, network: &mut Network<T>, step: usize) -> Vec<f64> {
        let embeddings = network.forward_train(&self.images(step), self.rows, &mut Alone).unwrap();
        let embeddings = widened(embeddings);
        network.backward(&self.d_embeddings(step), &mut Alone, &mut |_, _| {}).unwrap();
        network.commit_buffers(BufferUpdate::Momentum(0.1));
        embeddings
    }
}

fn widened<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

fn digest(values: &[f64]) -> Vec<f64> {
    let projection = |k| dot(values, &noise(&format!("projection/{k}"), values.len()));
    let samples = (0..SAMPLES).map(|i| values[i * values.len() / SAMPLES]);
    [norm(values)].into_iter().chain((0..PROJECTIONS).map(projection)).chain(samples).collect()
}

/// Compares one tensor with its digest, relative to its norm.
#[track_caller]
fn check_digest(what: &str, values: &[f64], expected: &[f64]) {
    let scale = expected[0] * (values.len() as f64).sqrt().max(1.0);
    for (ours, theirs) in digest(values).iter().zip(expected) {
        // Some tensors are 0 but for rounding: the mean of a layer behind a norm without shift.
        assert!((ours - theirs).abs() <= EXACT * scale + 1e-14, "{what}: {ours} instead of {theirs}");
    }
}

#[track_caller]
fn check_tensors<'a>(what: &str, tensors: impl Iterator<Item = (&'a str, &'a [f64])>, expected: &[f64]) {
    let rows = expected.chunks_exact(1 + PROJECTIONS + SAMPLES);
    let mut n = 0;
    for ((name, values), expected) in tensors.zip(rows.clone()) {
        check_digest(&format!("{what} of {name}"), values, expected);
        n += 1;
    }
    assert_eq!(n, rows.len(), "{what}: tensors");
}

fn parameters<'a>(
    network: &'a Network<f64>,
    values: &'a [f64],
) -> impl Iterator<Item = (&'a str, &'a [f64])> {
    network.parameters().entries.iter().map(|entry| (&entry.name[..], &values[entry.range()]))
}

fn buffers(network: &Network<f64>) -> impl Iterator<Item = (&str, &[f64])> {
    let parameters = network.parameters();
    parameters.buffers.iter().map(|entry| (&entry.name[..], &parameters.buffer_values[entry.range()]))
}

/// Names, shapes and order are PyTorch's; one training pass forward and backward; then evaluation.
fn check_pass(index: usize) {
    let case = Case::load(index);
    let mut network = case.network::<f64>(KernelPath::detect());
    let names: Vec<Value> = network
        .parameters()
        .entries
        .iter()
        .map(|entry| serde_json::json!([entry.name, entry.shape]))
        .collect();
    assert_eq!(Value::from(names), case.json["parameters"]);
    let names: Vec<&str> = buffers(&network).map(|(name, _)| name).collect();
    assert_eq!(Value::from(names), case.json["buffers"]);

    network.forward_train(&case.images(0), case.rows, &mut Alone).unwrap();
    check_digest("features", network.features(), &case.expected("features"));
    let embeddings = case.train(&mut network, 0);
    let expected = case.expected("embeddings");
    assert!(relative_error(&embeddings, &expected) < EXACT);
    let gradients = network.parameters().gradients.clone();
    check_tensors("gradient", parameters(&network, &gradients), &case.expected("gradients"));
    check_tensors("running statistics", buffers(&network), &case.expected("running"));
    assert_eq!(network.parameters().num_batches_tracked, 1);

    let fast = [KernelPath::Portable, KernelPath::Avx2, KernelPath::Avx512];
    for path in fast.into_iter().filter(|path| path.is_available()) {
        let mut single = case.network::<f32>(path);
        let error = relative_error(&case.train(&mut single, 0), &expected);
        assert!(error < case.f32_bound("embeddings", F32_SLACK), "embeddings in f32, {path}: {error}");
        for entry in &network.parameters().entries {
            let ours = widened(&single.parameters().gradients[entry.range()]);
            let error = relative_error(&ours, &gradients[entry.range()]);
            let bound = case.f32_bound("gradients", F32_KINK_SLACK);
            assert!(error < bound, "gradient of {} in f32, {path}: {error}", entry.name);
        }
    }

    // The script evaluates the last net it trained, or the first pass's where it trains none.
    if case.json["optimizers"].as_array().unwrap().is_empty() {
        let evaluated = network.forward_eval(&case.images(1), case.rows).embeddings.to_vec();
        check_digest("evaluation", &evaluated, &case.expected("evaluated"));
    }
}

fn optimizer(kind: &str) -> (OptimizerSpec, f64) {
    let (kind, lr) = match kind {
        "sgd" => (OptimizerKind::Sgd { momentum: 0.9 }, SGD_LR),
        "lars" => (OptimizerKind::Lars { momentum: 0.9, eta: 0.5 }, LARS_LR),
        _ => (OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, ADAMW_LR),
    };
    (OptimizerSpec { kind, weight_decay: 0.01, decay_all: false }, lr)
}

/// As in the script.
const SGD_LR: f64 = 0.0002;
const LARS_LR: f64 = 0.0001;
const ADAMW_LR: f64 = 0.001;

fn trained<T: Real>(case: &Case, kind: &str) -> Network<T> {
    let mut network = case.network::<T>(KernelPath::detect());
    let device = Device::of_threads(2, KernelPath::detect());
    let (spec, base_lr) = optimizer(kind);
    let mut optimizer = Optimizer::new(spec, network.parameters());
    for step in 0..STEPS {
        case.train(&mut network, step);
        optimizer.step(&device, network.parameters_mut(), base_lr * (1.0 - step as f64 / 20.0));
    }
    assert_eq!(optimizer.updates, 10);
    network
}

/// Ten updates at a falling rate.
fn check_updates(index: usize, kind: &str) {
    let case = Case::load(index);
    let mut network = trained::<f64>(&case, kind);
    let values = network.parameters().values.clone();
    check_tensors(kind, parameters(&network, &values), &case.expected(&format!("{kind}/parameters")));
    check_tensors(kind, buffers(&network), &case.expected(&format!("{kind}/running")));
    if case.json["optimizers"].as_array().unwrap().last().unwrap() == kind {
        let evaluated = network.forward_eval(&case.images(1), case.rows).embeddings.to_vec();
        check_digest("evaluation", &evaluated, &case.expected("evaluated"));
    }
    let single = trained::<f32>(&case, kind);
    for entry in &network.parameters().entries {
        let ours = widened(&single.parameters().values[entry.range()]);
        let error = relative_error(&ours, &values[entry.range()]);
        assert!(error < case.f32_bound(kind, F32_UPDATES_SLACK), "{kind} in f32, {}: {error}", entry.name);
    }
}

#[test]
fn resnet20_with_an_mlp_head() {
    check_pass(0);
}

#[test]
fn resnet20_with_the_simclr_head() {
    check_pass(1);
}

#[test]
fn resnet18_with_the_imagenet_stem() {
    check_pass(2);
}

#[test]
fn resnet34_at_an_odd_size() {
    check_pass(3);
}

#[test]
fn resnet50_with_the_imagenet_stem() {
    check_pass(4);
}

#[test]
fn resnet20_with_moco_v3s_projector_and_predictor() {
    check_pass(5);
}

#[test]
fn resnet20_with_the_head_of_simclr_v2() {
    check_pass(6);
}

#[test]
fn resnet20_over_the_patches_of_a_jigsaw() {
    check_pass(7);
}

#[test]
fn sgd_updates() {
    check_updates(0, "sgd");
    check_updates(1, "sgd");
    check_updates(5, "sgd");
}

#[test]
fn lars_updates() {
    check_updates(0, "lars");
    check_updates(1, "lars");
    check_updates(6, "lars");
}

#[test]
fn adamw_updates() {
    check_updates(0, "adamw");
    check_updates(1, "adamw");
}
