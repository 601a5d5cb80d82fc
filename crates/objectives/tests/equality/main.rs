//! However a global batch is spread over ranks, the loss and its gradients are those of one rank that holds it.
//!
//! Numbered as in the project's notes on methods: T1 the loss, T2 the gradient by the embeddings, T3 by every
//! parameter, T4 the weights after twenty steps, T5 finite differences, T6 mistakes that must be noticed, T7
//! any order of the images, T8 uneven ranks, T10 tiles. T9, half precision, waits for a device that has it.
//! Everything runs in `f64`, over real sockets, one thread a rank; the mutants alone are simulated
//! ([`textbook`]), since the program has no switch to make mistakes by.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

mod deal;
mod networks;
mod perceptron;
mod textbook;

use std::thread;

use collective::{Communicator, loopback};
use deal::{Deal, noise};
use kernels::{Device, KernelPath};
use objectives::unit::UnitRows;
use objectives::{NtXent, ObjectiveStep};
use perceptron::Perceptron;
use textbook::Mutant;

const WORLD_SIZES: [usize; 4] = [1, 2, 3, 4];
const IMAGES: usize = 11;
/// What rounding may do to a sum of some hundred terms in `f64`.
const ROUNDING: f64 = 1e-12;
/// What a mistake must do at least, or the comparison would be no test.
const NOTICED: f64 = 1e-2;

/// All that the ranks &device together, rows in the order `[view][image]` of the global batch.
#[derive(Debug, Clone)]
struct Outcome {
    loss: f64,
    d_unit: Vec<f64>,
    d_embeddings: Vec<f64>,
    d_parameters: Vec<f64>,
}

/// How far two outcomes are apart, each part relative to its largest value.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Distances {
    loss: f64,
    d_unit: f64,
    d_embeddings: f64,
    d_parameters: f64,
}

impl Outcome {
    fn distances(&self, expected: &Self) -> Distances {
        Distances {
            loss: distance(&[self.loss], &[expected.loss]),
            d_unit: distance(&self.d_unit, &expected.d_unit),
            d_embeddings: distance(&self.d_embeddings, &expected.d_embeddings),
            d_parameters: distance(&self.d_parameters, &expected.d_parameters),
        }
    }
}

impl Distances {
    #[track_caller]
    fn assert_rounding(self, what: &str) {
        let Self { loss, d_unit, d_embeddings, d_parameters } = self;
        for distance in [loss, d_unit, d_embeddings, d_parameters] {
            assert!(distance < ROUNDING, "{what}: {self:?}");
        }
    }
}

/// Largest difference as a share of the largest value expected; not-a-number is infinitely far.
fn distance(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0f64, |a, b| if b.is_nan() { f64::INFINITY } else { a.max(b.abs()) })
    };
    let difference = largest(&mut got.iter().zip(expected).map(|(got, expected)| got - expected));
    difference / largest(&mut expected.iter().copied())
}

/// Runs `body` on every rank with its two communicators and returns what each returned, in rank order.
fn on_ranks<R: Send>(world_size: usize, body: impl Fn(usize, [Communicator; 2]) -> R + Sync) -> Vec<R> {
    let group = loopback(world_size, 2).unwrap();
    thread::scope(|scope| {
        let body = &body;
        let ranks = group
            .into_iter()
            .enumerate()
            .map(|(rank, communicators)| scope.spawn(move || body(rank, communicators.try_into().unwrap())));
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// The program's own objective on every rank, behind a perceptron whose parameter gradients are summed.
fn distributed(nt_xent: &NtXent, deal: &Deal) -> Outcome {
    let perceptron = Perceptron::new();
    let images = noise(1, 2 * deal.images() * Perceptron::INPUTS);
    let rows = deal.rows();
    let ranks = on_ranks(deal.world_size(), |rank, [mut communicator, mut gradients]| {
        let device = Device::of_threads(1, KernelPath::Reference);
        let images = deal.take(rank, &images, Perceptron::INPUTS);
        let embeddings = perceptron.forward(&images);
        let unit = UnitRows::new(&embeddings, Perceptron::OUTPUTS).unit;
        let on_sphere = nt_xent.unit_gradient(&device, &unit, &rows, &mut communicator).unwrap();
        let ObjectiveStep { loss, d_queries: d_embeddings, .. } =
            nt_xent.forward_backward(&device, &embeddings, &rows, &mut communicator).unwrap();
        assert_eq!(on_sphere.loss.to_bits(), loss.to_bits());
        let mut d_parameters = perceptron.backward(&images, &d_embeddings);
        gradients.all_reduce_sum(&mut d_parameters).unwrap();
        Outcome { loss, d_unit: on_sphere.d_unit, d_embeddings, d_parameters }
    });
    for rank in &ranks {
        assert_eq!(rank.loss.to_bits(), ranks[0].loss.to_bits(), "the same bits on every rank");
        assert_eq!(rank.d_parameters, ranks[0].d_parameters, "the same bits on every rank");
    }
    deal.join(ranks)
}

/// The same by a mistaken trainer, or by a right one of another construction.
fn simulated(mutant: Mutant, temperature: f64, deal: &Deal) -> Outcome {
    let perceptron = Perceptron::new();
    let images = noise(1, 2 * deal.images() * Perceptron::INPUTS);
    textbook::train_step(mutant, temperature, deal, &perceptron, &images)
}

#[test]
fn t1_t2_t3_any_world_size_computes_what_one_rank_computes() {
    let nt_xent = NtXent::new(0.3);
    let alone = distributed(&nt_xent, &Deal::even(IMAGES, 1));
    for world_size in WORLD_SIZES {
        let outcome = distributed(&nt_xent, &Deal::even(IMAGES, world_size));
        outcome.distances(&alone).assert_rounding(&format!("{world_size} ranks"));
    }
}

#[test]
fn a_rank_sends_its_unit_rows_its_log_sums_and_its_loss_and_no_gradient() {
    let width = 128;
    for world_size in WORLD_SIZES {
        let deal = Deal::even(IMAGES, world_size);
        let z = noise(3, 2 * IMAGES * width);
        on_ranks(world_size, |rank, [mut communicator, _]| {
            let device = Device::of_threads(1, KernelPath::Reference);
            let own = deal.take(rank, &z, width);
            NtXent::new(0.3).forward_backward(&device, &own, &deal.rows(), &mut communicator).unwrap();
            let numbers = deal.rows()[rank] * (width + 1) + 1;
            let expected = (world_size - 1) * numbers * size_of::<f64>();
            assert_eq!(communicator.bytes_sent(), expected as u64);
        });
    }
}

#[test]
fn t5_the_gradient_of_many_ranks_matches_central_differences() {
    let (images, width, rows) = (5, 3, 10);
    let z = noise(2, rows * width);
    let nt_xent = NtXent::new(0.4);
    let loss = |z: &[f64]| {
        let device = Device::of_threads(1, KernelPath::Reference);
        nt_xent.forward_backward(&device, z, &[rows], &mut Communicator::alone()).unwrap().loss
    };
    for world_size in WORLD_SIZES {
        let deal = Deal::even(images, world_size);
        let ranks = on_ranks(world_size, |rank, [mut communicator, _]| {
            let device = Device::of_threads(1, KernelPath::Reference);
            let own = deal.take(rank, &z, width);
            nt_xent.forward_backward(&device, &own, &deal.rows(), &mut communicator).unwrap().d_queries
        });
        let gradient = deal.put_together(&ranks);
        for i in 0..z.len() {
            let moved = |h: f64| {
                let mut z = z.clone();
                z[i] += h;
                loss(&z)
            };
            let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((gradient[i] - difference).abs() < 1e-9, "{world_size} ranks, {i}: {}", gradient[i]);
        }
    }
}

#[test]
fn t6_mistakes_are_noticed() {
    let temperature = 0.3;
    let alone = distributed(&NtXent::new(temperature), &Deal::even(IMAGES, 1));
    for world_size in WORLD_SIZES {
        let deal = Deal::even(IMAGES, world_size);
        let right = simulated(Mutant::None, temperature, &deal);
        right.distances(&alone).assert_rounding(&format!("no mistake, {world_size} ranks"));
        if world_size == 1 {
            // Alone, all but a wrong self term and detached keys are no mistakes.
            for mutant in [Mutant::Average, Mutant::OwnSlot, Mutant::RankZeroMask, Mutant::Unscaled] {
                simulated(mutant, temperature, &deal).distances(&alone).assert_rounding("alone");
            }
            continue;
        }
        let check = |mutant: Mutant, noticed_in: [bool; 4]| {
            let off = simulated(mutant, temperature, &deal).distances(&alone);
            let parts = [off.loss, off.d_unit, off.d_embeddings, off.d_parameters];
            for (part, noticed) in parts.into_iter().zip(noticed_in) {
                let as_expected = if noticed { part > NOTICED } else { part < ROUNDING };
                assert!(as_expected, "{mutant:?}, {world_size} ranks, noticed in {noticed_in:?}: {off:?}");
            }
        };
        check(Mutant::DetachedKeys, [false, true, true, true]);
        check(Mutant::Average, [false, true, true, true]);
        check(Mutant::OwnSlot, [false, true, true, true]);
        check(Mutant::RankZeroMask, [true, true, true, true]);
        // Seen on the sphere only: the normalisation takes it out again.
        check(Mutant::SelfTerm, [false, true, false, false]);
        // Each rank's rows are right, and the trainer takes the mean of what has to be summed.
        check(Mutant::Unscaled, [false, false, false, true]);
    }
}

#[test]
fn t7_any_order_of_the_images_gives_the_same() {
    let nt_xent = NtXent::new(0.3);
    let alone = distributed(&nt_xent, &Deal::even(IMAGES, 1));
    for world_size in WORLD_SIZES {
        for seed in 0..3 {
            let deal = Deal::even(IMAGES, world_size).shuffled(seed);
            let outcome = distributed(&nt_xent, &deal);
            outcome.distances(&alone).assert_rounding(&format!("{deal:?}"));
        }
    }
}

#[test]
fn t8_uneven_ranks_give_the_same() {
    let nt_xent = NtXent::new(0.3);
    let alone = distributed(&nt_xent, &Deal::even(IMAGES, 1));
    for counts in [&[10, 1][..], &[1, 10], &[5, 1, 5], &[1, 1, 1, 8], &[4, 1, 3, 3]] {
        let outcome = distributed(&nt_xent, &Deal::with_counts(counts));
        outcome.distances(&alone).assert_rounding(&format!("{counts:?} images"));
    }
}

#[test]
fn t10_tiles_give_the_dense_result() {
    let dense = NtXent { block_rows: 2 * IMAGES, ..NtXent::new(0.3) };
    let alone = distributed(&dense, &Deal::even(IMAGES, 1));
    for world_size in WORLD_SIZES {
        for block_rows in [1, 2, 3, 5, 64] {
            let nt_xent = NtXent { block_rows, ..NtXent::new(0.3) };
            let outcome = distributed(&nt_xent, &Deal::even(IMAGES, world_size));
            outcome.distances(&alone).assert_rounding(&format!("{world_size} ranks, blocks of {block_rows}"));
        }
    }
}
