//! The bank step of the papers, 32,000 negatives for each of 256 images: what it allocates, and that this does not grow
//! with the data set.
//!
//! One test, alone in its process, since it measures what the process allocates.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

mod allocated;

use allocated::peak_of;
use collective::Communicator;
use engine::kernels::{KernelPath, Pool};
use objectives::{
    Bank, BankSpec, BankType, Compute, ContrastSpec, Encoded, Estimator, Normalizer, Npid, Objective, Storage,
};

const IMAGES: usize = 256;
const WIDTH: usize = 128;
const NEGATIVES: usize = 32_000;

/// Bytes at the peak of a step, commit included, with a bank of so many slots.
fn peak_of_a_step(slots: usize, negatives: usize) -> usize {
    let spec = ContrastSpec {
        temperature: 0.07,
        estimator: Estimator::Nce,
        negatives,
        exclude_positive: false,
        normalizer: Normalizer::Ema(0.99),
        feature_momentum: 0.5,
        refresh_age: 0,
    };
    let bank = BankSpec { slots, width: WIDTH, dtype: BankType::F32, mirror: true, seed: 1 };
    let mut objective = Objective::Npid(Npid::new(spec, 0.0, Bank::new(bank, 0, 1, Storage::Memory)));
    let pool = Pool::new(2, &[]);
    let compute = Compute { pool: &pool, path: KernelPath::detect() };
    let queries: Vec<f32> = (0..IMAGES * WIDTH).map(|i| (i * 7919 % 1013) as f32 - 506.0).collect();
    let positions: Vec<usize> = (0..IMAGES).collect();
    let encoded =
        Encoded { positions: &positions, indices: &positions, ..Encoded::of_queries(1, &[IMAGES], &queries) };
    let (used, outcome) = peak_of(|| {
        let outcome = objective.forward_backward(compute, &encoded, &mut Communicator::alone());
        objective.commit();
        outcome.unwrap()
    });
    assert!(outcome.loss.is_finite() && outcome.d_queries.iter().all(|d| d.is_finite()));
    used
}

#[test]
fn a_step_allocates_a_few_times_its_batch_and_a_rank_its_shards() {
    // Some copies of the batch's features, on their way and as sums, and a buffer for each thread.
    let features = IMAGES * WIDTH * size_of::<f32>();
    let limit = 12 * features + (1 << 20);
    let sampled = peak_of_a_step(50_000, NEGATIVES);
    println!("{sampled} bytes at the peak of a step");
    assert!(sampled < limit, "{sampled} bytes at the peak, {limit} allowed");
    let gathered = IMAGES * NEGATIVES * WIDTH * size_of::<f32>();
    assert!(limit < gathered / 1000, "the limit would not notice the gathered negatives");
    assert!(limit < IMAGES * NEGATIVES * size_of::<f32>() / 5, "nor their similarities");

    // The same with four times the data set, whatever the number of negatives, and with all of its slots as negatives.
    let four_times = peak_of_a_step(200_000, 1000);
    assert!(four_times < sampled + 4096, "{four_times} bytes with 200,000 slots, {sampled} with 50,000");
    let all = [10_000, 40_000].map(|slots| peak_of_a_step(slots, 0));
    assert!(all[0] < limit + (2 << 20), "{} bytes against all slots", all[0]);
    assert!(all[1] < all[0] + 4096, "{} bytes with 40,000 slots, {} with 10,000", all[1], all[0]);

    // A rank of 8 has its shard and a mirror of another.
    for (dtype, bytes) in [(BankType::F32, 4), (BankType::Bf16, 2)] {
        let spec = BankSpec { slots: 80_000, width: WIDTH, dtype, mirror: true, seed: 1 };
        let (used, bank) = peak_of(|| Bank::new(spec, 3, 8, Storage::Memory));
        let shards = 2 * 10_000 * (WIDTH * bytes + 4);
        assert!(used < shards + 4096, "{used} bytes for two shards of {dtype:?}, {shards} expected");
        drop(bank);
    }
}
