//! Vision transformers against PyTorch: features, embeddings, every gradient, ten updates.
//!
//! tests/golden/vit.py wrote the expected values and says how; nothing here comes from the engine itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod support;

use std::sync::LazyLock;

use engine::models::{Arch, Jigsaw, ModelSpec, PATCHES, Predictor, Role, Stem, Vit};
use engine::network::Network;
use engine::optim::{Optimizer, OptimizerKind, OptimizerSpec};
use engine::parameters::BufferUpdate;
use engine::parameters::ParameterKind;
use kernels::peers::Alone;
use kernels::{Device, KernelPath, Real};
use safetensors::SafeTensors;
use serde_json::Value;
use support::{cast, dot, network, noise, norm, options, relative_error, spec};

static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/vit.safetensors");
    std::fs::read(path).unwrap()
});

struct Case {
    index: usize,
    json: Value,
    spec: ModelSpec,
    rows: usize,
}

impl Case {
    fn load(index: usize) -> Self {
        let (_, metadata) = SafeTensors::read_metadata(&FILE).unwrap();
        let cases: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
        let json = cases[index].clone();
        let text = |key: &str| json[key].as_str().unwrap();
        let number = |key: &str| usize::try_from(json[key].as_u64().unwrap()).unwrap();
        let Arch::Vit(shape) = text("arch").parse().unwrap() else { panic!("a transformer") };
        let freeze_patch = json["freeze_patch"].as_bool().unwrap();
        let arch = Arch::Vit(Vit { patch: number("patch"), freeze_patch, ..shape });
        let predictor = json["predictor"].as_u64();
        let predictor = predictor.map(|hidden| Predictor { hidden: hidden as usize, last_norm: true });
        let spec = spec(arch, Stem::Cifar, text("head").parse().unwrap(), number("size"));
        Self { index, spec: ModelSpec { predictor, ..spec }, rows: number("rows"), json }
    }

    fn expected(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&FILE).unwrap();
        let tensor = tensors.tensor(&format!("{}/{name}", self.index)).unwrap();
        tensor.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    /// The weights of the script: drawn, but for the positions, which both sides compute.
    fn network<T: Real>(&self, path: KernelPath, threads: usize) -> Network<T> {
        let options = options(self.rows + 1);
        let mut network = Network::new(&self.spec, options, &Device::of_threads(threads, path));
        let first = network.parameters().clone();
        support::draw(&mut network);
        let positions = first.entries.iter().find(|entry| entry.name == "backbone.pos_embed").unwrap();
        network.parameters_mut().values[positions.range()].copy_from_slice(&first.values[positions.range()]);
        network
    }

    fn pass<T: Real>(&self, network: &mut Network<T>, step: usize) -> [Vec<f64>; 2] {
        let images = noise(&format!("images/{step}"), self.rows * self.spec.image_size.pow(2) * 3);
        network.forward_train(&cast(&images), self.rows, &mut Alone).unwrap();
        let made = [widened(network.features()), widened(network.embeddings())];
        let d = cast(&noise(&format!("d_embeddings/{step}"), made[1].len()));
        network.backward(&d, &mut Alone, &mut |_, _| {}).unwrap();
        network.commit_buffers(BufferUpdate::Momentum(0.1));
        made
    }
}

fn widened<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// Names, shapes and order are timm's; one pass forward and backward, on every path.
fn check_pass(index: usize) {
    let case = Case::load(index);
    let (features, embeddings) = (case.expected("features"), case.expected("embeddings"));
    let gradients = case.expected("gradients");
    let mut exact = case.network::<f64>(KernelPath::Reference, 2);
    let entries = exact.parameters().entries.clone();
    let names: Vec<Value> =
        entries.iter().map(|entry| serde_json::json!([entry.name, entry.shape])).collect();
    assert_eq!(Value::from(names), case.json["parameters"]);
    let check = |what: &str, made: [Vec<f64>; 2], ours: &[f64], bound: f64| {
        assert!(relative_error(&made[0], &features) < bound, "{what}: features");
        assert!(relative_error(&made[1], &embeddings) < bound, "{what}: embeddings");
        for entry in &entries {
            let (ours, theirs) = (&ours[entry.range()], &gradients[entry.range()]);
            // Some gradients are 0 but for rounding: that of the keys' bias, which moves all logits of a row.
            let scale = norm(theirs).max(1e-3 * norm(&gradients));
            let difference: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
            assert!(norm(&difference) < bound * scale, "{what}: gradient of {}", entry.name);
        }
    };
    let made = case.pass(&mut exact, 0);
    check("f64", made, &exact.parameters().gradients.clone(), 1e-10);
    for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
        let mut single = case.network::<f32>(path, 2);
        let made = case.pass(&mut single, 0);
        check(&path.to_string(), made, &widened(&single.parameters().gradients), 1e-4);
    }
}

/// Ten updates of AdamW that decays everything; what is fixed stays.
fn check_updates(index: usize) {
    let case = Case::load(index);
    let mut network = case.network::<f64>(KernelPath::Reference, 2);
    let before = network.parameters().values.clone();
    let device = Device::of_threads(2, KernelPath::detect());
    let kind = OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-4 };
    let spec = OptimizerSpec { kind, weight_decay: 0.1, decay_all: true };
    let mut optimizer = Optimizer::new(spec, network.parameters());
    for step in 0..10 {
        case.pass(&mut network, step);
        optimizer.step(&device, network.parameters_mut(), 0.001);
    }
    let parameters = network.parameters();
    let expected = case.expected("trained");
    let rows = expected.chunks_exact(expected.len() / parameters.entries.len());
    for (entry, expected) in parameters.entries.iter().zip(rows) {
        let values = &parameters.values[entry.range()];
        let projection = |k| dot(values, &noise(&format!("projection/{k}"), values.len()));
        let digest: Vec<f64> = [norm(values)].into_iter().chain((0..4).map(projection)).collect();
        for (ours, theirs) in digest.iter().zip(expected) {
            let bound = 1e-9 * (1.0 + expected[0] * values.len() as f64);
            assert!((ours - theirs).abs() < bound, "{}: {ours} instead of {theirs}", entry.name);
        }
        let stays = entry.kind == ParameterKind::Fixed;
        assert_eq!(values == &before[entry.range()], stays, "{}", entry.name);
    }
}

#[test]
fn a_pass_of_three_heads() {
    check_pass(0);
}

#[test]
fn a_pass_of_one_image_in_patches_of_five() {
    check_pass(1);
}

#[test]
fn a_pass_with_moco_v3s_heads() {
    check_pass(2);
}

#[test]
fn updates() {
    check_updates(0);
    check_updates(2);
}

/// timm's parameter counts: 5,717,416, 22,050,664 and 86,567,656 with a head of 1000 classes.
#[test]
fn sizes_are_timms() {
    let of = |vit: Vit| {
        let head = engine::models::Head::Linear { out: 1000 };
        spec(Arch::Vit(vit), Stem::Imagenet, head, 224).n_parameters(Role::Trained)
    };
    assert_eq!([Vit::TINY, Vit::SMALL, Vit::BASE].map(of), [5_717_416, 22_050_664, 86_567_656]);
}

/// A row depends on no other one, on no number of rows, and on no thread.
#[test]
fn rows_are_independent() {
    let case = Case::load(0);
    let image = case.spec.image_size.pow(2) * 3;
    let images: Vec<f32> = cast(&noise("images", 4 * image));
    let mut two = case.network::<f32>(KernelPath::detect(), 2);
    let together = two.forward_eval(&images, 4).embeddings.to_vec();
    let mut one = case.network::<f32>(KernelPath::detect(), 1);
    for (row, expected) in together.chunks_exact(case.spec.embedding_width()).enumerate() {
        let alone = one.forward_eval(&images[row * image..][..image], 1).embeddings;
        assert_eq!(alone, expected, "row {row}");
    }
}

/// What is announced to other ranks is what is trained, once; and images lie in memory only while they are needed.
#[test]
fn fixed_parameters_have_no_gradient() {
    for freeze_patch in [true, false] {
        let mut case = Case::load(0);
        let Arch::Vit(vit) = case.spec.arch else { unreachable!("a transformer") };
        case.spec.arch = Arch::Vit(Vit { freeze_patch, ..vit });
        let mut network = network::<f64>(&case.spec, case.rows, 2);
        let images = noise("images", case.rows * case.spec.image_size.pow(2) * 3);
        let n = network.forward_train(&images, case.rows, &mut Alone).unwrap().len();
        let mut announced = vec![];
        network.backward(&noise("d", n), &mut Alone, &mut |range, _| announced.extend(range)).unwrap();
        announced.sort_unstable();
        let entries = &network.parameters().entries;
        let trained = entries.iter().filter(|entry| entry.kind != ParameterKind::Fixed);
        assert_eq!(announced, trained.flat_map(|entry| entry.range()).collect::<Vec<_>>());
        let fixed = entries.iter().filter(|entry| entry.kind == ParameterKind::Fixed).count();
        assert_eq!(fixed, if freeze_patch { 3 } else { 1 });
    }
}

/// The patches of a jigsaw share everything but their positions, which are of their own size.
#[test]
fn a_jigsaws_patches_share_what_is_trained() {
    let mut case = Case::load(0);
    case.spec.jigsaw = Some(Jigsaw { patch_size: 8 });
    let trained = network::<f64>(&case.spec, 2, 2);
    let options = options(2 * PATCHES);
    let patches = Network::<f64>::with_role(
        &case.spec,
        Role::Patches,
        options,
        &Device::of_threads(1, KernelPath::detect()),
    );
    let places = trained.parameters().places_of(patches.parameters());
    let shared: usize = places.iter().map(|(_, here)| here.len()).sum();
    let positions = (1 + 2 * 2) * case.spec.feature_width();
    assert_eq!(shared + positions, patches.parameters().values.len());
}
