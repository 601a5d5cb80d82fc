//! The bank step of the papers, 32,000 negatives for each of 256 images: what it allocates, and that this does not grow
//! with the data set.
//!
//! One test, alone in its process, since it measures what the process allocates.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

mod allocated;

use std::thread;

use allocated::peak_of;
use kernels::{Device, KernelPath, split};
use objectives::{
    Bank, BankSpec, BankType, ContrastSpec, Encoded, Estimator, Normalizer, Npid, Objective, Storage,
};

const IMAGES: usize = 256;
const WIDTH: usize = 128;
const NEGATIVES: usize = 32_000;

const NCE: ContrastSpec = ContrastSpec {
    temperature: 0.07,
    estimator: Estimator::Nce,
    negatives: NEGATIVES,
    exclude_positive: false,
    normalizer: Normalizer::Ema(0.99),
    feature_momentum: 0.5,
    refresh_age: 0,
};

/// What a step takes, commit included.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Bytes at the peak, of all ranks.
    peak: usize,
    /// Bytes that rank 0 sends.
    sent: u64,
}

/// A step with a bank of so many slots, over so many ranks.
fn cost_of_a_step(world_size: usize, slots: usize, negatives: usize) -> Cost {
    let spec = ContrastSpec { negatives, ..NCE };
    let bank = BankSpec { slots, width: WIDTH, dtype: BankType::F32, mirror: true, seed: 1 };
    let counts: Vec<usize> = (0..world_size).map(|rank| split(IMAGES, world_size, rank).len()).collect();
    let ranks: Vec<_> = collective::loopback(world_size, 1)
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(rank, mut group)| {
            let bank = Bank::new(bank, rank, world_size, Storage::Memory);
            let objective = Objective::Npid(Npid::new(spec, 0.0, bank));
            let positions: Vec<usize> = split(IMAGES, world_size, rank).collect();
            let numbers = positions.iter().flat_map(|image| (0..WIDTH).map(move |i| image * WIDTH + i));
            let queries: Vec<f32> = numbers.map(|i| (i * 7919 % 1013) as f32 - 506.0).collect();
            (group.remove(0), objective, Device::of_threads(2, KernelPath::detect()), positions, queries)
        })
        .collect();
    let (peak, sent) = peak_of(|| {
        thread::scope(|scope| {
            let counts = &counts;
            let steps =
                ranks.into_iter().map(|(mut communicator, mut objective, device, positions, queries)| {
                    scope.spawn(move || {
                        let encoded = Encoded {
                            positions: &positions,
                            indices: &positions,
                            ..Encoded::of_queries(1, counts, &queries)
                        };
                        let outcome =
                            objective.forward_backward(&device, &encoded, &mut communicator).unwrap();
                        objective.commit();
                        assert!(outcome.loss.is_finite() && outcome.d_queries.iter().all(|d| d.is_finite()));
                        communicator.bytes_sent()
                    })
                });
            let steps: Vec<_> = steps.collect();
            steps.into_iter().map(|step| step.join().unwrap()).collect::<Vec<u64>>()[0]
        })
    });
    Cost { peak, sent }
}

/// Bytes at the peak of eight ranks that refresh so many slots each.
fn peak_of_a_refresh(due: usize) -> usize {
    const RANKS: usize = 8;
    let bank = BankSpec { slots: 80_000, width: WIDTH, dtype: BankType::F32, mirror: true, seed: 1 };
    let ranks: Vec<_> = collective::loopback(RANKS, 1)
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(rank, mut group)| {
            let spec = ContrastSpec { refresh_age: 2, ..NCE };
            let bank = Bank::new(bank, rank, RANKS, Storage::Memory);
            let slots: Vec<usize> = bank.own().slots().take(due).collect();
            let fresh = vec![0.5f32; due * WIDTH];
            (group.remove(0), Objective::Npid(Npid::new(spec, 0.0, bank)), slots, fresh)
        })
        .collect();
    let work = || {
        thread::scope(|scope| {
            for (mut communicator, mut objective, slots, fresh) in ranks {
                scope.spawn(move || objective.refresh(&slots, &fresh, &mut communicator).unwrap());
            }
        });
    };
    peak_of(work).0
}

#[test]
fn a_step_allocates_a_few_times_its_batch_and_a_rank_its_shards() {
    // Some copies of the batch's features, on their way and as sums, and a buffer for each thread.
    let features = IMAGES * WIDTH * size_of::<f32>();
    let limit = 12 * features + (1 << 20);
    let sampled = cost_of_a_step(1, 50_000, NEGATIVES).peak;
    println!("{sampled} bytes at the peak of a step");
    assert!(sampled < limit, "{sampled} bytes at the peak, {limit} allowed");
    let gathered = IMAGES * NEGATIVES * WIDTH * size_of::<f32>();
    assert!(limit < gathered / 1000, "the limit would not notice the gathered negatives");
    assert!(limit < IMAGES * NEGATIVES * size_of::<f32>() / 5, "nor their similarities");

    // The same with four times the data set, whatever the number of negatives, and with all of its slots as negatives.
    let four_times = cost_of_a_step(1, 200_000, 1000).peak;
    assert!(four_times < sampled + 4096, "{four_times} bytes with 200,000 slots, {sampled} with 50,000");
    let all = [10_000, 40_000].map(|slots| cost_of_a_step(1, slots, 0).peak);
    assert!(all[0] < limit + (2 << 20), "{} bytes against all slots", all[0]);
    assert!(all[1] < all[0] + 4096, "{} bytes with 40,000 slots, {} with 10,000", all[1], all[0]);

    // Nor do three ranks, between which queries travel and no slots: what is sent depends on neither number.
    let few = cost_of_a_step(3, 30_000, 1000);
    let more_slots = cost_of_a_step(3, 300_000, 1000);
    let more_negatives = cost_of_a_step(3, 30_000, NEGATIVES);
    for more in [more_slots, more_negatives] {
        // How the peaks of three threads fall together is chance.
        assert!(more.peak < few.peak + features, "{more:?} with more, {few:?} before");
        assert_eq!(more.sent, few.sent);
    }
    assert!(few.peak < 3 * limit, "{few:?}, {limit} allowed a rank");
    println!("{few:?} of three ranks");

    // A rank that refreshes 4000 slots keeps those and the 4000 that it mirrors, twice while a list grows, and gathers
    // 4096 at a time of all 32,000.
    let row = WIDTH * size_of::<f32>();
    let refreshed = peak_of_a_refresh(4000);
    let limit = 8 * (row * (4000 + 3 * 8000 / 2 + 4096) + (1 << 20));
    assert!(refreshed < limit, "{refreshed} bytes at the peak, {limit} allowed");
    assert!(limit < 8 * row * 32_000, "the limit would not notice all of them on every rank");

    // A rank of 8 has its shard and a mirror of another.
    for (dtype, bytes) in [(BankType::F32, 4), (BankType::Bf16, 2)] {
        let spec = BankSpec { slots: 80_000, width: WIDTH, dtype, mirror: true, seed: 1 };
        let (used, bank) = peak_of(|| Bank::new(spec, 3, 8, Storage::Memory));
        let shards = 2 * 10_000 * (WIDTH * bytes + 4);
        assert!(used < shards + 4096, "{used} bytes for two shards of {dtype:?}, {shards} expected");
        drop(bank);
    }
}
