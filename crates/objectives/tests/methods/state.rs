//! What is kept: applied by a commit alone, saved and restored at any world size, mirrored, and no older than allowed.

use std::collections::BTreeMap;

use collective::Communicator;
use memmap2::MmapMut;
use objectives::sampled::Draw;
use objectives::state::BLOCK;
use objectives::{Array, ArrayType, Bank, BankSpec, BankType, ContrastSpec, Error, Objective, Storage};

use crate::fixtures::{
    Batch, Case, IMAGES, Method, NCE, SLOTS, Saved, WIDTH, WORLD_SIZES, bank_spec, cases, checkpoint, even,
    on_ranks, slots_of, state_of, train,
};

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

#[test]
fn a_step_that_is_not_committed_is_as_if_it_had_not_been() {
    for case in cases() {
        let undisturbed = train(&case, |_| even(IMAGES, 2), 3);
        let ranks = on_ranks(2, |rank, mut communicator| {
            let mut objective = case.objective(rank, 2);
            let deal = even(IMAGES, 2);
            let mut losses = Vec::new();
            for step in 1..=3 {
                let before = state_of(&objective);
                let lost = Batch::of_step(step + 50);
                lost.on_rank(&mut objective, &deal, &mut communicator).unwrap();
                assert!(state_of(&objective) == before, "{} changed before its commit", case.name);
                let made = Batch::of_step(step).on_rank(&mut objective, &deal, &mut communicator).unwrap();
                losses.push(made.loss);
                objective.commit();
                assert!(state_of(&objective) != before || before.is_empty(), "{} kept nothing", case.name);
                let after = state_of(&objective);
                objective.commit();
                assert!(state_of(&objective) == after, "{} applied a step twice", case.name);
            }
            (losses, state_of(&objective))
        });
        let (losses, states): (Vec<_>, Vec<_>) = ranks.into_iter().unzip();
        let expected: Vec<f64> = undisturbed.0.iter().map(|outcome| outcome.loss).collect();
        assert_eq!(losses[0], expected, "{}", case.name);
        assert!(checkpoint(states) == undisturbed.1, "{}: another state than the undisturbed", case.name);
    }
}

#[test]
fn a_lost_peer_leaves_everything_as_it_was() {
    for case in cases() {
        on_ranks(2, |rank, mut communicator| {
            if rank == 1 {
                return;
            }
            let mut objective = case.objective(rank, 2);
            let before = state_of(&objective);
            let error =
                Batch::of_step(1).on_rank(&mut objective, &even(IMAGES, 2), &mut communicator).unwrap_err();
            assert!(matches!(error, Error::Collective(_)), "{error}");
            objective.commit();
            assert!(state_of(&objective) == before, "{}", case.name);
        });
    }
}

/// Each slot's bytes, by its number.
fn digests(checkpoint: &[Saved]) -> BTreeMap<(usize, &'static str), Vec<u8>> {
    let mut digests = BTreeMap::new();
    for stem in ["objective.bank", "objective.bank_written"] {
        let bytes = slots_of(checkpoint, stem);
        for (slot, bytes) in bytes.chunks((bytes.len() / SLOTS).max(1)).enumerate() {
            digests.insert((slot, stem), bytes.to_vec());
        }
    }
    digests
}

/// What a rank keeps of its own, and of the rank before it.
fn kept(objective: &Objective) -> (Vec<Saved>, Vec<Saved>) {
    let mirror = objective.bank().map(Bank::mirror_state).unwrap_or_default();
    (state_of(objective), mirror.iter().map(Saved::of).collect())
}

/// Holds each rank's mirror against what the rank before it keeps.
#[track_caller]
fn check_mirrors(states: &[Vec<Saved>], mirrors: &[Vec<Saved>], what: &str) {
    for (rank, state) in states.iter().enumerate().filter(|_| states.len() > 1) {
        let sharded: Vec<Saved> = state.iter().filter(|array| array.sharded).cloned().collect();
        let mirror = &mirrors[(rank + 1) % states.len()];
        assert!(*mirror == sharded, "{what}: the mirror of rank {rank} of {} differs", states.len());
    }
}

fn restore(objective: &mut Objective, checkpoint: &[Saved]) {
    checkpoint.iter().for_each(|saved| objective.restore(&saved.array()).unwrap());
    objective.restored().unwrap();
}

/// Rows in memory that is mapped.
fn mapped(spec: &BankSpec, rank: usize, world_size: usize) -> Storage {
    let map = |slots: std::ops::Range<usize>| MmapMut::map_anon(spec.shard_bytes(slots.len())).unwrap();
    let own = map(spec.own_slots(rank, world_size));
    Storage::Mapped { own, mirror: spec.mirrored_slots(rank, world_size).map(map) }
}

/// Makes eight steps on one rank, and two each on 1, 3, 2 and 4 ranks of which each goes on from what those before saved:
/// nothing is lost or changed on the way, mirrors included.
#[track_caller]
fn check_goes_on(case: &Case, objective: impl Fn(usize, usize) -> Objective + Sync, what: &str) {
    // What each rank restored and mirrored, and what it had after some steps.
    let run = |world_size, saved: Option<&[Saved]>, steps: std::ops::RangeInclusive<u64>| {
        let ranks = on_ranks(world_size, |rank, mut communicator| {
            let mut objective = objective(rank, world_size);
            if let Some(saved) = saved {
                restore(&mut objective, saved);
            }
            let restored = kept(&objective);
            for step in steps.clone() {
                let deal = even(IMAGES, world_size);
                Batch::of_step(step).on_rank(&mut objective, &deal, &mut communicator).unwrap();
                objective.commit();
            }
            (restored, kept(&objective))
        });
        let (restored, after): (Vec<_>, Vec<_>) = ranks.into_iter().unzip();
        [restored, after].map(|ranks| {
            let (states, mirrors): (Vec<_>, Vec<_>) = ranks.into_iter().unzip();
            check_mirrors(&states, &mirrors, what);
            checkpoint(states)
        })
    };
    let [_, undisturbed] = run(1, None, 1..=8);
    let mut saved: Option<Vec<Saved>> = None;
    for (from, world_size) in [(0, 1), (2, 3), (4, 2), (6, 4)] {
        let [restored, after] = run(world_size, saved.as_deref(), from + 1..=from + 2);
        if let Some(saved) = &saved {
            assert!(digests(&restored) == digests(saved), "{what} at {world_size} ranks");
            let common = |state: &[Saved]| state.iter().filter(|a| !a.sharded).cloned().collect::<Vec<_>>();
            assert!(common(&restored) == common(saved), "{what} at {world_size} ranks");
        }
        saved = Some(after);
    }
    let digests_after = digests(&saved.unwrap());
    assert!(digests_after == digests(&undisturbed), "{what}: not as if undisturbed");
    assert_eq!(digests_after.len(), if case.has_bank() { 2 * SLOTS } else { 0 });
}

#[test]
fn a_run_goes_on_at_any_world_size_with_every_slot() {
    for case in cases() {
        check_goes_on(&case, |rank, world_size| case.objective(rank, world_size), case.name);
    }
}

/// Halves, and rows in mapped memory, are dealt out anew as they are.
#[test]
fn any_kind_of_bank_goes_on_at_any_world_size() {
    let case = case("npid-nce");
    for (dtype, is_mapped) in [(BankType::Bf16, false), (BankType::F32, true), (BankType::Bf16, true)] {
        let spec = BankSpec { dtype, ..bank_spec() };
        let objective = |rank, world_size| {
            let storage = if is_mapped { mapped(&spec, rank, world_size) } else { Storage::Memory };
            case.with_bank(Bank::new(spec, rank, world_size, storage))
        };
        check_goes_on(&case, objective, &format!("{dtype:?}, mapped: {is_mapped}"));
    }
}

#[test]
fn a_lost_ranks_slots_are_in_the_next_ranks_mirror() {
    let case = case("npid-nce");
    for world_size in [2, 3, 4] {
        let ranks = on_ranks(world_size, |rank, mut communicator| {
            let mut objective = case.objective(rank, world_size);
            for step in 1..=5 {
                let deal = even(IMAGES, world_size);
                Batch::of_step(step).on_rank(&mut objective, &deal, &mut communicator).unwrap();
                objective.commit();
            }
            kept(&objective)
        });
        let (states, mirrors): (Vec<_>, Vec<_>) = ranks.into_iter().unzip();
        let whole = checkpoint(states.clone());
        for lost in 0..world_size {
            let mirror = mirrors[(lost + 1) % world_size].clone();
            let survivors = states.iter().enumerate().filter(|&(rank, _)| rank != lost);
            let mut rebuilt: Vec<Saved> = survivors.flat_map(|(_, state)| state.clone()).collect();
            rebuilt.extend(mirror);
            assert!(digests(&rebuilt) == digests(&whole), "rank {lost} of {world_size}");
            // And they are enough to go on without it.
            let mut alone = case.objective(0, 1);
            rebuilt.retain(|array| array.sharded || array.name.ends_with("normalizer"));
            restore(&mut alone, &rebuilt);
            assert!(digests(&state_of(&alone)) == digests(&whole), "rank {lost} of {world_size}");
        }
    }
}

#[test]
fn what_a_checkpoint_lacks_is_named() {
    let case = case("npid-nce");
    let states = on_ranks(3, |rank, _| state_of(&case.objective(rank, 3)));
    let all = checkpoint(states);
    let without = |name: &str| {
        let mut objective = case.objective(1, 2);
        for saved in all.iter().filter(|saved| saved.name != name) {
            objective.restore(&saved.array()).unwrap();
        }
        objective.restored().map_err(|error| error.to_string())
    };
    assert_eq!(without("nothing"), Ok(()));
    // Rank 1 of 2 has slots 12 to 22, and mirrors 0 to 11; the checkpoint is of 0 to 7, 8 to 15 and 16 to 22.
    let cases = [
        ("objective.bank.slots-8-16", "the checkpoint lacks slots 12 to 15 of `objective.bank`"),
        (
            "objective.bank_written.slots-16-23",
            "the checkpoint lacks slots 16 to 22 of `objective.bank_written`",
        ),
        ("objective.bank.slots-0-8", "the checkpoint lacks slots 0 to 7 of `objective.bank`"),
        ("objective.log_normalizer", "the checkpoint lacks `objective.log_normalizer`"),
    ];
    for (name, expected) in cases {
        assert_eq!(without(name), Err(expected.to_owned()), "{name}");
    }
}

/// The checkpoint is of 23 images.
#[test]
fn a_bank_of_another_number_of_images_is_refused() {
    let case = case("npid-nce");
    let all = checkpoint(on_ranks(3, |rank, _| state_of(&case.objective(rank, 3))));
    // Of one image more, the last entry is missing: to the rank that owns it.
    let entries = |name: &str| name.starts_with("objective.bank") && name.contains(".slots-16-23");
    let mut shorter = case.objective(1, 2);
    let outcomes: Vec<_> = all
        .iter()
        .filter(|saved| !entries(&saved.name))
        .map(|saved| shorter.restore(&saved.array()))
        .collect();
    assert!(outcomes.iter().all(Result::is_ok));
    let error = shorter.restored().unwrap_err().to_string();
    assert!(
        error.starts_with(
            "the checkpoint's memory bank has 16 entries, one an image, and the data set has 23"
        ),
        "{error}"
    );
    // Of one image less, an entry is too many.
    let bytes = [0; 24 * 4];
    let longer = Array {
        name: "objective.bank_written.slots-16-24".to_owned(),
        element: ArrayType::U32,
        shape: vec![8],
        bytes: &bytes[..32],
        sharded: true,
    };
    let error = case.objective(0, 2).restore(&longer).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "the checkpoint's memory bank has 24 entries, one an image, and the data set has 23"
        ),
        "{error}"
    );
}

#[test]
fn an_array_of_another_objective_is_refused() {
    let array = |name: &str, shape: &[usize], bytes| {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        Array { name, element: ArrayType::F32, shape, bytes, sharded: true }
    };
    let check = |case: Case, array: &Array<'_>, expected: &str| {
        let error = case.objective(0, 1).restore(array).unwrap_err().to_string();
        assert_eq!(error, expected);
    };
    let unknown = "the objective keeps no `objective.queue`: the checkpoint is of another objective";
    for name in ["npid-nce", "pirl-softmax", "moco-v3"] {
        check(case(name), &array("objective.queue", &[1, 6], &[0; 24]), unknown);
    }
    let beyond = "the checkpoint's memory bank has 24 entries, one an image, and the data set has 23 images: an entry \
                  would belong to another image";
    check(case("npid-nce"), &array("objective.bank.slots-20-24", &[4, 6], &[0; 96]), beyond);
    let narrow = "`objective.bank.slots-0-2` should be F32 [2, 6] of 48 bytes, and is F32 [2, 5] of 40 bytes in \
                  the checkpoint";
    check(case("npid-nce"), &array("objective.bank.slots-0-2", &[2, 5], &[0; 40]), narrow);
}

#[test]
fn a_batch_with_an_image_twice_or_without_a_slot_is_refused_on_every_rank() {
    let case = case("pirl-nce");
    let refused = |index: usize, expected: &str| {
        let mut batch = Batch::of_step(1);
        batch.indices[6] = index;
        on_ranks(2, |rank, mut communicator| {
            let mut objective = case.objective(rank, 2);
            let before = state_of(&objective);
            let error = batch.on_rank(&mut objective, &even(IMAGES, 2), &mut communicator).unwrap_err();
            assert_eq!(error.to_string(), expected, "rank {rank}");
            objective.commit();
            assert!(state_of(&objective) == before);
        });
    };
    let first = Batch::of_step(1).indices[0];
    refused(first, &format!("image {first} of the data set is twice in the global batch of step 1"));
    refused(SLOTS, "image 23 has no slot in a bank of 23");
}

#[test]
fn mapped_memory_holds_what_memory_holds() {
    for dtype in [BankType::F32, BankType::Bf16] {
        let case = case("npid-softmax");
        let spec = BankSpec { dtype, ..bank_spec() };
        let states = on_ranks(2, |rank, mut communicator| {
            let storages = [Storage::Memory, mapped(&spec, rank, 2)];
            storages.map(|storage| {
                let mut objective = case.with_bank(Bank::new(spec, rank, 2, storage));
                let deal = even(IMAGES, 2);
                for step in 1..=3 {
                    Batch::of_step(step).on_rank(&mut objective, &deal, &mut communicator).unwrap();
                    objective.commit();
                }
                kept(&objective)
            })
        });
        for [memory, mapped] in states {
            assert!(memory == mapped, "{dtype:?}");
        }
    }
}

#[test]
fn a_rank_keeps_its_shard_and_a_mirror_and_no_more() {
    for (slots, world_size) in [(1000, 1), (1000, 4), (1001, 4), (4000, 16)] {
        for dtype in [BankType::F32, BankType::Bf16] {
            let spec = BankSpec { slots, width: 8, dtype, mirror: true, seed: 1 };
            let per_slot = 4 + spec.shard_bytes(1);
            let mut owned = Vec::new();
            for rank in 0..world_size {
                let bank = Bank::new(spec, rank, world_size, Storage::Memory);
                let kept = bank.own().bytes() + bank.mirror().map_or(0, |mirror| mirror.bytes());
                let shares = if world_size == 1 { 1 } else { 2 };
                // Memory comes in words of 8 bytes.
                let limit = shares * (slots.div_ceil(world_size) * per_slot + 8);
                assert!(kept <= limit, "{kept} bytes of {slots} slots on rank {rank} of {world_size}");
                owned.extend(bank.own().slots());
            }
            assert_eq!(owned, (0..slots).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_large_shard_is_saved_in_blocks_that_no_world_size_moves() {
    let spec = BankSpec { slots: 3 * BLOCK + 10, width: 1, dtype: BankType::Bf16, mirror: true, seed: 1 };
    let names = |rank, world_size| -> Vec<String> {
        let case = case("npid-softmax");
        let objective = case.with_bank(Bank::new(spec, rank, world_size, Storage::Memory));
        let state = objective.state();
        assert!(state.iter().all(|array| array.bytes.len() <= 4 * BLOCK && array.sharded));
        let rows = state
            .into_iter()
            .filter_map(|array| array.name.strip_prefix("objective.bank.slots-").map(str::to_owned));
        rows.collect()
    };
    assert_eq!(names(0, 1), ["0-65536", "65536-131072", "131072-196608", "196608-196618"]);
    assert_eq!(names(1, 2), ["98309-131072", "131072-196608", "196608-196618"]);
}

/// Runs with refreshed slots: the largest age that was read in each step, and what is kept at the end.
fn refreshed(age: u64, world_size: usize) -> (Vec<f64>, Vec<Saved>) {
    let spec = ContrastSpec { refresh_age: age, negatives: 0, ..NCE };
    let case = Case { name: "npid", method: Method::Npid { spec, proximal: 0.0 } };
    let ranks = on_ranks(world_size, |rank, mut communicator| {
        let mut objective = case.objective(rank, world_size);
        let mut ages = Vec::new();
        for step in 1..=60 {
            let mut batch = Batch::of_step(step);
            // Some images are never in a batch.
            batch.indices = (0..IMAGES).map(|position| (step as usize + 2 * position) % 17).collect();
            let deal = even(IMAGES, world_size);
            let made = batch.on_rank(&mut objective, &deal, &mut communicator).unwrap();
            ages.push(made.metrics.iter().find(|metric| metric.0 == "bank_age_max").unwrap().1);
            let due = objective.due(step);
            assert!(due.iter().all(|slot| !batch.indices.contains(slot)), "the batch is fresh");
            let fresh = |&slot: &usize| crate::fixtures::noise(100 * step + slot as u64, WIDTH);
            let embeddings: Vec<f64> = due.iter().flat_map(fresh).collect();
            if age > 0 {
                objective.refresh(&due, &embeddings, &mut communicator).unwrap();
            }
            objective.commit();
        }
        let mirror = objective.bank().unwrap().mirror_state().iter().map(Saved::of).collect::<Vec<_>>();
        (ages, state_of(&objective), mirror)
    });
    for (rank, (ages, state, _)) in ranks.iter().enumerate() {
        assert_eq!(*ages, ranks[0].0);
        let mirror = &ranks[(rank + 1) % world_size].2;
        let own: Vec<_> = state.iter().filter(|array| array.sharded).cloned().collect();
        assert!(world_size == 1 || *mirror == own, "the mirror is refreshed too");
    }
    let (ages, state) = (ranks[0].0.clone(), checkpoint(ranks.into_iter().map(|rank| rank.1).collect()));
    (ages, state)
}

#[test]
fn a_refresh_bounds_the_age_of_what_is_read_at_any_world_size() {
    let (ages, _) = refreshed(0, 1);
    assert_eq!(ages[59], 60.0, "the images that are never in a batch grow old");
    for age in [1, 2, 3, 5, 12] {
        let alone = refreshed(age, 1);
        let oldest = alone.0.iter().fold(0f64, |oldest, &age| oldest.max(age));
        assert!(oldest <= age as f64 && oldest > 0.5 * age as f64, "{oldest} steps where {age} are allowed");
        for world_size in &WORLD_SIZES[1..] {
            let ranks = refreshed(age, *world_size);
            assert_eq!(ranks.0, alone.0, "{world_size} ranks");
            assert!(digests(&ranks.1) == digests(&alone.1), "{world_size} ranks");
        }
    }
}

#[test]
#[should_panic(expected = "slots of an objective that has no bank")]
fn an_objective_without_a_bank_refreshes_nothing() {
    let mut objective = case("moco").objective(0, 1);
    assert!(objective.due(1).is_empty());
    let _refused = objective.refresh(&[0], &[0f64; WIDTH], &mut Communicator::alone());
}

/// Kept apart from the bank: which steps wrote which slots, and what they hold.
#[test]
fn ages_and_drift_are_those_of_the_slots_that_are_read() {
    for name in ["npid-nce", "npid-nce-ema", "npid-softmax-all", "pirl-softmax"] {
        let case = case(name);
        let (Method::Npid { spec, .. } | Method::Pirl { spec, .. }) = case.method else { unreachable!() };
        for world_size in [1, 3] {
            let mut written = [0; SLOTS];
            let mut slots = vec![0f64; SLOTS * WIDTH];
            Bank::new(bank_spec(), 0, 1, Storage::Memory).own().read(0..SLOTS, &mut slots);
            let (outcomes, _) = train(&case, |_| even(IMAGES, world_size), 9);
            for (step, outcome) in (1..).zip(outcomes) {
                let Batch { indices, queries, .. } = Batch::of_step(step);
                let draw = Draw {
                    seed: bank_spec().seed,
                    step,
                    count: spec.negatives,
                    slots: SLOTS,
                    exclude_positive: spec.exclude_positive,
                };
                let of_image = |(position, &own)| draw.of_image(position, own).chain([own]);
                let read: Vec<usize> = match spec.negatives {
                    0 => (0..SLOTS).collect(),
                    _ => indices.iter().enumerate().flat_map(of_image).collect(),
                };
                let ages: Vec<f64> = read.iter().map(|&slot| (step - written[slot]) as f64).collect();
                let mut drift = 0.0;
                for (query, &own) in queries[0].chunks_exact(WIDTH).zip(&indices) {
                    let slot = &mut slots[own * WIDTH..][..WIDTH];
                    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
                    let of_query = norm(query);
                    let cosine =
                        query.iter().zip(&*slot).map(|(f, m)| f * m).sum::<f64>() / of_query / norm(slot);
                    drift += (1.0 - cosine) / IMAGES as f64;
                    let m = spec.feature_momentum;
                    slot.iter_mut()
                        .zip(query)
                        .for_each(|(slot, f)| *slot = m * *slot + (1.0 - m) * f / of_query);
                    let of_slot = norm(slot);
                    slot.iter_mut().for_each(|slot| *slot /= of_slot);
                    written[own] = step;
                }
                let metric = |name| outcome.metrics.iter().find(|metric| metric.0 == name).unwrap().1;
                let what = format!("{name} on {world_size} ranks, step {step}");
                let mean = ages.iter().sum::<f64>() / ages.len() as f64;
                assert!(
                    (metric("bank_age") - mean).abs() < 1e-12,
                    "{what}: {} for {mean}",
                    metric("bank_age")
                );
                assert_eq!(metric("bank_age_max"), ages.iter().copied().fold(0.0, f64::max), "{what}");
                assert!(
                    (metric("bank_drift") - drift).abs() < 1e-6,
                    "{what}: {} for {drift}",
                    metric("bank_drift")
                );
            }
        }
    }
}
