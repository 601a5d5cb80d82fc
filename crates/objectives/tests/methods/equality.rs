//! However a global batch is spread over ranks, each method makes the steps that one rank makes.

use objectives::sampled::Draw;
use objectives::{Bank, BankSpec, BankType, Storage};

use crate::fixtures::{
    Batch, Case, Deal, IMAGES, Method, Outcome, Saved, WORLD_SIZES, bank_spec, cases, checkpoint, distance,
    even, on_ranks, shuffled, state_of, train,
};
use crate::textbook::{Mutant, Textbook};

/// What rounding may do to sums of some dozen terms, a few steps one after the other.
const ROUNDING: f64 = 1e-11;
/// What a mistake must do at least.
const NOTICED: f64 = 1e-3;
const STEPS: u64 = 4;

/// The worst distance of any part of any step.
fn furthest(got: &[Outcome], expected: &[Outcome]) -> f64 {
    let of_step = |(got, expected): (&Outcome, &Outcome)| {
        let parts = [
            distance(&[got.loss], &[expected.loss]),
            distance(&got.d_queries, &expected.d_queries),
            distance(&got.d_jigsaw, &expected.d_jigsaw),
        ];
        parts.into_iter().fold(0f64, f64::max)
    };
    got.iter().zip(expected).map(of_step).fold(0f64, f64::max)
}

/// Ages are counts and exact; the other figures are sums.
#[track_caller]
fn assert_same_metrics(got: &[Outcome], expected: &[Outcome], what: &str) {
    for (got, expected) in got.iter().zip(expected) {
        for (&(name, got), &(expected_name, expected)) in got.metrics.iter().zip(&expected.metrics) {
            assert_eq!(name, expected_name, "{what}");
            let exact = name.starts_with("bank_age");
            let off =
                if exact { f64::from(u8::from(got != expected)) } else { distance(&[got], &[expected]) };
            assert!(off < ROUNDING, "{what}: {name} {got} instead of {expected}");
        }
        assert_eq!(got.metrics.len(), expected.metrics.len(), "{what}");
    }
}

/// Bank and queue have the same bits; the normalizer, a sum over the batch, is the same within rounding.
#[track_caller]
fn assert_same_state(got: &[Saved], expected: &[Saved], what: &str) {
    for stem in ["objective.bank", "objective.bank_written"] {
        let slots = |state| crate::fixtures::slots_of(state, stem);
        assert!(slots(got) == slots(expected), "{what}: `{stem}` differs");
    }
    for array in expected.iter().filter(|array| !array.sharded) {
        let other = got.iter().find(|other| other.name == array.name).unwrap();
        if array.name.ends_with("normalizer") {
            let f64s = |saved: &Saved| -> Vec<f64> {
                saved.bytes.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
            };
            assert!(distance(&f64s(other), &f64s(array)) < ROUNDING, "{what}: {}", array.name);
        } else {
            assert!(other == array, "{what}: {} differs", array.name);
        }
    }
}

#[track_caller]
fn check(case: &Case, deal_of_step: impl Fn(u64) -> Deal + Sync, alone: &(Vec<Outcome>, Vec<Saved>)) {
    let what = format!("{} by {:?}", case.name, deal_of_step(1));
    let (outcomes, state) = train(case, deal_of_step, STEPS);
    let off = furthest(&outcomes, &alone.0);
    assert!(off < ROUNDING, "{what}: off by {off:e}");
    assert_same_metrics(&outcomes, &alone.0, &what);
    assert_same_state(&state, &alone.1, &what);
}

#[test]
fn any_deal_of_the_images_makes_the_steps_of_one_rank() {
    for case in cases() {
        let alone = train(&case, |_| even(IMAGES, 1), STEPS);
        for world_size in WORLD_SIZES {
            check(&case, |_| even(IMAGES, world_size), &alone);
            check(&case, |step| shuffled(&even(IMAGES, world_size), step), &alone);
        }
        for counts in [&[6, 1][..], &[1, 6], &[1, 5, 1], &[1, 1, 1, 4]] {
            let order = |step| {
                let mut images = shuffled(&even(IMAGES, 1), 40 + step).remove(0).into_iter();
                counts.iter().map(|&count| images.by_ref().take(count).collect()).collect()
            };
            check(&case, order, &alone);
        }
    }
}

#[test]
fn the_program_does_what_the_textbook_says() {
    for case in cases() {
        let (outcomes, _) = train(&case, |_| even(IMAGES, 2), STEPS);
        let off = furthest(&outcomes, &textbook(case, Mutant::None, |_| even(IMAGES, 2)));
        assert!(off < ROUNDING, "{}: off by {off:e}", case.name);
    }
}

fn textbook(case: Case, mutant: Mutant, deal_of_step: impl Fn(u64) -> Deal) -> Vec<Outcome> {
    let mut textbook = Textbook::new(case, mutant, deal_of_step(1).len());
    (1..=STEPS).map(|step| textbook.step(&Batch::of_step(step), &deal_of_step(step))).collect()
}

#[test]
fn mistakes_are_noticed() {
    let applies = |mutant: Mutant, case: &Case| match mutant {
        Mutant::None => false,
        Mutant::LocalMean | Mutant::MeanOfMeans => true,
        Mutant::OwnCandidates => !matches!(case.method, Method::Moco { .. }),
        Mutant::LocalPositions => case.has_bank() && !case.name.ends_with("-all"),
        Mutant::LocalNormalizer => case.has_bank() && case.name.contains("nce"),
        Mutant::RankOrder | Mutant::OwnKeys => matches!(case.method, Method::Moco { .. }),
        Mutant::EarlyUpdate => !matches!(case.method, Method::MocoV3),
        Mutant::AppliedTwice => !matches!(case.method, Method::MocoV3),
    };
    for case in cases() {
        let (alone, _) = train(&case, |_| even(IMAGES, 1), STEPS);
        for mutant in [
            Mutant::LocalMean,
            Mutant::MeanOfMeans,
            Mutant::OwnCandidates,
            Mutant::LocalPositions,
            Mutant::LocalNormalizer,
            Mutant::RankOrder,
            Mutant::OwnKeys,
            Mutant::EarlyUpdate,
            Mutant::AppliedTwice,
        ] {
            if !applies(mutant, &case) {
                continue;
            }
            for world_size in WORLD_SIZES {
                // Uneven, and in another order than the batch's.
                let deal = |step| shuffled(&even(IMAGES, world_size), 7 * step);
                let off = furthest(&textbook(case, mutant, deal), &alone);
                let alone_too = matches!(mutant, Mutant::EarlyUpdate | Mutant::AppliedTwice);
                let reordered =
                    matches!(mutant, Mutant::LocalPositions | Mutant::RankOrder | Mutant::OwnKeys);
                if world_size > 1 || alone_too {
                    assert!(off > NOTICED, "{} {mutant:?}, {world_size} ranks: off by {off:e}", case.name);
                } else if !reordered {
                    assert!(off < ROUNDING, "{} {mutant:?} is none alone: off by {off:e}", case.name);
                }
            }
        }
    }
}

#[test]
fn fifty_updates_leave_the_same_bits_at_any_world_size() {
    for case in cases() {
        let state = |world_size| train(&case, |step| shuffled(&even(IMAGES, world_size), step), 50).1;
        let alone = state(1);
        for world_size in [2, 3, 4] {
            assert_same_state(&state(world_size), &alone, &format!("{}, {world_size} ranks", case.name));
        }
    }
}

#[test]
fn fifty_updates_of_halves_leave_the_same_bits_at_any_world_size() {
    let case = cases().into_iter().find(|case| case.name == "npid-nce").unwrap();
    let spec = BankSpec { dtype: BankType::Bf16, ..bank_spec() };
    let state = |world_size| {
        let ranks = on_ranks(world_size, |rank, mut communicator| {
            let mut objective = case.with_bank(Bank::new(spec, rank, world_size, Storage::Memory));
            for step in 1..=50 {
                let deal = shuffled(&even(IMAGES, world_size), step);
                Batch::of_step(step).on_rank(&mut objective, &deal, &mut communicator).unwrap();
                objective.commit();
            }
            state_of(&objective)
        });
        checkpoint(ranks)
    };
    let alone = state(1);
    assert_eq!(alone[1].bytes.len(), 2 * 23 * 6, "{:?}", alone[1].name);
    for world_size in [2, 3, 4] {
        assert_same_state(&state(world_size), &alone, &format!("{world_size} ranks"));
    }
}

/// The gradient is the derivative of the loss, the state being what it was.
#[test]
fn gradients_match_central_differences() {
    for case in cases() {
        let mut objective = case.objective(0, 1);
        let deal = even(IMAGES, 1);
        let mut alone = collective::Communicator::alone();
        // The normalizer of a first step depends on its batch, and is no function that is differentiated.
        Batch::of_step(1).on_rank(&mut objective, &deal, &mut alone).unwrap();
        objective.commit();
        let batch = Batch::of_step(2);
        let got = batch.on_rank(&mut objective, &deal, &mut alone).unwrap();
        let views = objective.needs().queries.len();
        let mut check = |which: &dyn Fn(&mut Batch) -> &mut Vec<f64>, gradient: &[f64], what: &str| {
            for (i, gradient) in gradient.iter().enumerate() {
                let mut at = |h: f64| {
                    let mut moved = batch.clone();
                    which(&mut moved)[i] += h;
                    moved.on_rank(&mut objective, &deal, &mut alone).unwrap().loss
                };
                let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
                let error = (gradient - difference).abs();
                assert!(error < 2e-8, "{} {what}[{i}]: {gradient} against {difference}", case.name);
            }
        };
        for (view, gradient) in got.d_queries.chunks(got.d_queries.len() / views).enumerate() {
            check(&|batch| &mut batch.queries[view], gradient, "d_queries");
        }
        check(&|batch| &mut batch.jigsaw, &got.d_jigsaw, "d_jigsaw");
    }
}

#[test]
fn negatives_are_uniform_and_never_the_positive_if_that_is_excluded() {
    let draw = Draw { seed: 3, step: 9, count: 60_000, slots: 12, exclude_positive: false };
    let counts = |draw: Draw| {
        let mut counts = [0usize; 12];
        draw.of_image(4, 7).for_each(|slot| counts[slot] += 1);
        counts
    };
    assert!(counts(draw).iter().all(|count| count.abs_diff(5000) < 300), "{:?}", counts(draw));
    let others = counts(Draw { exclude_positive: true, ..draw });
    assert_eq!(others[7], 0);
    let near = |slot: usize| others[slot].abs_diff(60_000 / 11) < 300;
    assert!((0..12).all(|slot| slot == 7 || near(slot)), "{others:?}");
    // Another step, position or seed draws others, and so does no world size: there is none in it.
    let first = |draw: Draw, position| draw.of_image(position, 7).take(50).collect::<Vec<_>>();
    assert_eq!(first(draw, 4), first(draw, 4));
    assert_ne!(first(draw, 4), first(draw, 5));
    assert_ne!(first(draw, 4), first(Draw { step: 10, ..draw }, 4));
    assert_ne!(first(draw, 4), first(Draw { seed: 4, ..draw }, 4));
}
