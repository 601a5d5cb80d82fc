//! PyTorch's values, of two steps each, in `f64` and in `f32` on every path.

use collective::{Communicator, Number};
use kernels::{Device, KernelPath, Real};
use objectives::{
    Array, ArrayType, Bank, BankSpec, BankType, ContrastSpec, Encoded, Estimator, Moco, MocoV3, Normalizer,
    Npid, Objective, ObjectiveStep, Pirl, Queue, Storage,
};
use safetensors::SafeTensors;

use crate::fixtures::{distance, slots_of, state_of};

const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/methods.safetensors");
const SLOTS: usize = 30;
const IMAGES: usize = 6;
const WIDTH: usize = 20;

fn bytes(name: &str) -> Option<Vec<u8>> {
    let file = SafeTensors::deserialize(GOLDEN).unwrap();
    file.tensor(name).ok().map(|tensor| tensor.data().to_vec())
}

fn f64s(name: &str) -> Option<Vec<f64>> {
    let bytes = bytes(name)?;
    Some(bytes.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
}

fn numbers(name: &str) -> Vec<usize> {
    let bytes = bytes(name).unwrap_or_default();
    bytes.as_chunks::<8>().0.iter().map(|&bytes| usize::from_le_bytes(bytes)).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
}

/// The case's objective as it was before its first step.
fn objective(case: &str) -> Objective {
    let nce = ContrastSpec {
        temperature: 0.1,
        estimator: Estimator::Nce,
        negatives: 12,
        exclude_positive: false,
        normalizer: Normalizer::FirstBatch,
        feature_momentum: 0.5,
        refresh_age: 0,
    };
    let softmax = ContrastSpec { estimator: Estimator::Softmax, ..nce };
    let spec = BankSpec { slots: SLOTS, width: WIDTH, dtype: BankType::F32, mirror: true, seed: 17 };
    let bank = Bank::new(spec, 0, 1, Storage::Memory);
    let npid = |spec, proximal, bank| Objective::Npid(Npid::new(spec, proximal, bank));
    let pirl = |spec, weight, bank| Objective::Pirl(Pirl::new(spec, weight, bank));
    let mut objective = match case {
        "moco" => Objective::Moco(Moco::new(0.2, Queue::new(1, 10, WIDTH))),
        "moco_v3" => Objective::MocoV3(MocoV3::new(0.3)),
        "npid_nce" => npid(nce, 0.0, bank),
        "npid_ema" => {
            let normalizer = Normalizer::Ema(0.9);
            let spec = ContrastSpec { normalizer, exclude_positive: true, feature_momentum: 0.3, ..nce };
            npid(spec, 2.0, bank)
        }
        "npid_softmax" => npid(softmax, 0.5, bank),
        "npid_full" => npid(ContrastSpec { negatives: 0, feature_momentum: 0.0, ..softmax }, 0.0, bank),
        "npid_nce_all" => npid(ContrastSpec { negatives: 0, ..nce }, 0.0, bank),
        "pirl_nce" => pirl(ContrastSpec { negatives: 9, ..nce }, 0.3, bank),
        "pirl_softmax" => pirl(ContrastSpec { negatives: 70, exclude_positive: true, ..softmax }, 0.5, bank),
        "pirl_full_ema" => {
            pirl(ContrastSpec { negatives: 0, normalizer: Normalizer::Ema(0.5), ..nce }, 0.6, bank)
        }
        _ => panic!("no case `{case}`"),
    };
    for (name, stem, rows) in [("bank", "objective.bank.slots-0-30", SLOTS), ("queue", "objective.queue", 10)]
    {
        if let Some(bytes) = bytes(&format!("{case}/{name}")) {
            let (name, shape) = (stem.to_owned(), vec![rows, WIDTH]);
            let array = Array { name, element: ArrayType::F32, shape, bytes: &bytes, sharded: true };
            objective.restore(&array).unwrap();
        }
    }
    objective
}

fn step<T: Real + Number>(
    objective: &mut Objective,
    case: &str,
    step: u64,
    path: KernelPath,
) -> ObjectiveStep<T> {
    let read = |name: &str| -> Vec<T> {
        let values = f64s(&format!("{case}/{step}/{name}")).unwrap_or_default();
        values.into_iter().map(T::from_f64).collect()
    };
    let encoded = Encoded {
        step,
        images: &[IMAGES],
        positions: &numbers(&format!("{case}/{step}/positions")),
        indices: &numbers(&format!("{case}/{step}/indices")),
        labels: &[],
        queries: &read("queries"),
        keys: &read("keys"),
        jigsaw: &read("jigsaw"),
    };
    let device = Device::of_threads(2, path);
    let outcome = objective.forward_backward(&device, &encoded, &mut Communicator::alone()).unwrap();
    objective.commit();
    outcome
}

/// Both steps of a case, the state after them included.
#[track_caller]
fn check<T: Real + Number>(case: &str, path: KernelPath, tolerance: f64) {
    let mut objective = objective(case);
    for number in 1..=2 {
        let got = step::<T>(&mut objective, case, number, path);
        let expected = |name: &str| f64s(&format!("{case}/{number}/{name}"));
        let loss = (got.loss / expected("loss").unwrap()[0] - 1.0).abs();
        assert!(loss < tolerance, "{case} {path} step {number}: loss {} off by {loss:e}", got.loss);
        for (name, d) in [("d_queries", &got.d_queries), ("d_jigsaw", &got.d_jigsaw)] {
            let d: Vec<f64> = d.iter().map(|d| d.to_f64()).collect();
            let off = distance(&d, &expected(name).unwrap_or_default());
            assert!(off < tolerance, "{case} {path} step {number}: {name} off by {off:e}");
        }
    }
    let state = state_of(&objective);
    if let Some(bank) = bytes(&format!("{case}/bank_after")) {
        let off = distance(&f32s(&slots_of(&state, "objective.bank")), &f32s(&bank));
        assert!(off < tolerance.max(1e-7), "{case} {path}: bank off by {off:e}");
    }
    let array = |name: &str| state.iter().find(|array| array.name == name).map(|array| &array.bytes);
    if let Some(queue) = bytes(&format!("{case}/queue_after")) {
        let off = distance(&f32s(array("objective.queue").unwrap()), &f32s(&queue));
        assert!(off < tolerance.max(1e-7), "{case} {path}: queue off by {off:e}");
    }
    if let Some(expected) = f64s(&format!("{case}/log_normalizers_after")) {
        let bytes = array("objective.log_normalizer").unwrap().as_chunks::<8>().0;
        let got: Vec<f64> = bytes.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
        let off = distance(&got, &expected);
        assert!(off < tolerance, "{case} {path}: normalizers off by {off:e}");
    }
}

const CASES: [&str; 10] = [
    "moco",
    "moco_v3",
    "npid_nce",
    "npid_ema",
    "npid_softmax",
    "npid_full",
    "npid_nce_all",
    "pirl_nce",
    "pirl_softmax",
    "pirl_full_ema",
];

#[test]
fn values_are_pytorchs() {
    for case in CASES {
        // The second step begins from a bank that is rounded to f32, in ties to either side.
        check::<f64>(case, KernelPath::Reference, 1e-11);
    }
}

#[test]
fn single_precision_is_within_rounding_of_pytorchs_on_every_path() {
    for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
        for case in CASES {
            check::<f32>(case, path, 5e-6);
        }
    }
}
