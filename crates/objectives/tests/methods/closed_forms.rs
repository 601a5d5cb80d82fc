//! What a method has to give without any computation to compare with.

use collective::Communicator;
use objectives::unit::UnitRows;
use objectives::{ContrastSpec, Moco, MocoV3, Needs, Npid, Objective, Queue, Reduction};

use crate::fixtures::{
    Batch, Case, IMAGES, Method, NCE, SEED, SLOTS, WIDTH, cases, distance, even, slots_of, state_of, train,
};

/// The case at a temperature at which nothing can be told from anything.
fn hot(case: Case) -> Objective {
    const HOT: f64 = 1e9;
    match case.method {
        Method::Moco { queue } => Objective::Moco(Moco::new(HOT, Queue::new(SEED, queue, WIDTH))),
        Method::MocoV3 => Objective::MocoV3(MocoV3::new(HOT)),
        Method::Npid { spec, .. } => {
            let spec = ContrastSpec { temperature: HOT, ..spec };
            Case { method: Method::Npid { spec, proximal: 0.0 }, ..case }.objective(0, 1)
        }
        Method::Pirl { spec, jigsaw_weight } => {
            let spec = ContrastSpec { temperature: HOT, ..spec };
            Case { method: Method::Pirl { spec, jigsaw_weight }, ..case }.objective(0, 1)
        }
    }
}

#[test]
fn a_hot_temperature_gives_chance() {
    for case in cases() {
        let mut objective = hot(case);
        let deal = even(IMAGES, 1);
        let step = Batch::of_step(1).on_rank(&mut objective, &deal, &mut Communicator::alone()).unwrap();
        let chance = objective.chance_loss(IMAGES);
        assert!((step.loss / chance - 1.0).abs() < 1e-8, "{}: {} for {chance}", case.name, step.loss);
    }
}

#[test]
fn chance_is_what_the_methods_say() {
    let chance = |name: &str| {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        case.objective(0, 1).chance_loss(IMAGES)
    };
    let (k, all) = (9f64, SLOTS as f64);
    let expected = [
        ("moco", 11f64.ln()),
        ("moco-v3", 2.0 * 0.3 * 2.0 * 7f64.ln()),
        ("npid-nce", (k + 1.0).ln() + k * ((k + 1.0) / k).ln()),
        ("npid-softmax", (k + 1.0).ln()),
        ("npid-softmax-all", all.ln()),
        ("pirl-softmax-all", all.ln()),
    ];
    for (name, expected) in expected {
        assert!((chance(name) - expected).abs() < 1e-12, "{name}: {} for {expected}", chance(name));
    }
}

#[test]
fn an_objective_says_what_it_needs() {
    for case in cases() {
        let objective = case.objective(0, 1);
        let (queries, keys, jigsaw): (&[usize], &[usize], bool) = match case.method {
            Method::Moco { .. } => (&[0], &[1], false),
            Method::MocoV3 => (&[0, 1], &[0, 1], false),
            Method::Npid { .. } => (&[0], &[], false),
            Method::Pirl { .. } => (&[0], &[], true),
        };
        assert_eq!(objective.needs(), Needs { queries, keys, jigsaw, labels: false }, "{}", case.name);
        assert_eq!(objective.reduction(), Reduction::Sum);
        assert_eq!(objective.bank().is_some(), case.has_bank());
    }
}

#[test]
fn a_bank_without_momentum_holds_the_last_features() {
    let spec = ContrastSpec { feature_momentum: 0.0, ..NCE };
    let case = Case { name: "npid", method: Method::Npid { spec, proximal: 0.0 } };
    let before = slots_of(&state_of(&case.objective(0, 1)), "objective.bank");
    let (steps, world_size) = (3, 3);
    let (_, state) = train(&case, |_| even(IMAGES, world_size), steps);
    let rows = slots_of(&state, "objective.bank");
    let written = slots_of(&state, "objective.bank_written");
    let mut visited = 0;
    for slot in 0..SLOTS {
        let last = (1..=steps).rev().find_map(|step| {
            let batch = Batch::of_step(step);
            let position = batch.indices.iter().position(|&index| index == slot)?;
            let row = &batch.queries[0][position * WIDTH..(position + 1) * WIDTH];
            Some((step, UnitRows::new(row, WIDTH).unit))
        });
        let got = &rows[slot * WIDTH * 4..(slot + 1) * WIDTH * 4];
        let step = u32::from_le_bytes(written[4 * slot..4 * slot + 4].try_into().unwrap());
        match last {
            Some((last, feature)) => {
                let got = got.as_chunks::<4>().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes)));
                assert!(distance(&got.collect::<Vec<_>>(), &feature) < 1e-7, "slot {slot}");
                assert_eq!(u64::from(step), last, "slot {slot}");
                visited += 1;
            }
            None => assert_eq!((step, got), (0, &before[slot * WIDTH * 4..(slot + 1) * WIDTH * 4])),
        }
    }
    assert!((10..SLOTS).contains(&visited), "{visited} slots were visited: the test would not see the rest");
}

#[test]
fn pirl_without_jigsaws_is_npid() {
    let pirl = Case { name: "pirl", method: Method::Pirl { spec: NCE, jigsaw_weight: 0.0 } };
    let npid = Case { name: "npid", method: Method::Npid { spec: NCE, proximal: 0.0 } };
    let [(with, _), (without, _)] = [pirl, npid].map(|case| train(&case, |_| even(IMAGES, 2), 3));
    for (with, without) in with.iter().zip(&without) {
        assert!((with.loss - without.loss).abs() < 1e-13, "{} {}", with.loss, without.loss);
        assert!(distance(&with.d_queries, &without.d_queries) < 1e-13);
        assert!(with.d_jigsaw.iter().all(|&d| d == 0.0));
    }
}

#[test]
fn a_diverged_embedding_shows_in_the_loss() {
    for case in cases() {
        let mut batch = Batch::of_step(1);
        batch.queries[0][3] = f64::NAN;
        let mut objective = case.objective(0, 1);
        let step = batch.on_rank(&mut objective, &even(IMAGES, 1), &mut Communicator::alone()).unwrap();
        assert!(step.loss.is_nan(), "{}: {}", case.name, step.loss);
    }
}

#[test]
#[should_panic(expected = "a temperature of 0.01; at least 0.03 is needed")]
fn a_temperature_that_loses_logits_is_refused() {
    let spec = ContrastSpec { temperature: 0.01, ..NCE };
    let bank = objectives::Bank::new(crate::fixtures::bank_spec(), 0, 1, objectives::Storage::Memory);
    let _refused = Npid::new(spec, 0.0, bank);
}
