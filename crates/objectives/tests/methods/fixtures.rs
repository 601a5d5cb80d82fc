//! Small objectives of every kind, batches for them, and ranks to run them on.

use std::thread;

use collective::{Communicator, Number, loopback};
use kernels::{Device, KernelPath, Real, split};
use objectives::{
    Array, ArrayType, Bank, BankSpec, BankType, ContrastSpec, Encoded, Estimator, Moco, MocoV3, Normalizer,
    Npid, Objective, ObjectiveStep, Pirl, Queue, Storage,
};

pub const WORLD_SIZES: [usize; 4] = [1, 2, 3, 4];
pub const SLOTS: usize = 23;
pub const IMAGES: usize = 7;
pub const WIDTH: usize = 6;
pub const SEED: u64 = 11;

/// An objective, to be built on any rank.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub method: Method,
}

#[derive(Debug, Clone, Copy)]
pub enum Method {
    Moco { queue: usize },
    MocoV3,
    Npid { spec: ContrastSpec, proximal: f64 },
    Pirl { spec: ContrastSpec, jigsaw_weight: f64 },
}

pub const TEMPERATURE: f64 = 0.3;

pub const NCE: ContrastSpec = ContrastSpec {
    temperature: TEMPERATURE,
    estimator: Estimator::Nce,
    negatives: 9,
    exclude_positive: false,
    normalizer: Normalizer::FirstBatch,
    feature_momentum: 0.5,
    refresh_age: 0,
};

pub const SOFTMAX: ContrastSpec = ContrastSpec { estimator: Estimator::Softmax, ..NCE };

/// Every method, with every one of its settings in one case at least.
pub fn cases() -> Vec<Case> {
    let npid = |name, spec, proximal| Case { name, method: Method::Npid { spec, proximal } };
    let pirl = |name, spec| Case { name, method: Method::Pirl { spec, jigsaw_weight: 0.3 } };
    let ema = ContrastSpec { normalizer: Normalizer::Ema(0.9), exclude_positive: true, ..NCE };
    vec![
        Case { name: "moco", method: Method::Moco { queue: 10 } },
        Case { name: "moco-short-queue", method: Method::Moco { queue: 5 } },
        Case { name: "moco-v3", method: Method::MocoV3 },
        npid("npid-nce", NCE, 0.0),
        npid("npid-nce-ema", ema, 1.5),
        npid("npid-nce-all", ContrastSpec { negatives: 0, ..NCE }, 0.0),
        npid("npid-softmax", SOFTMAX, 0.7),
        npid("npid-softmax-all", ContrastSpec { negatives: 0, ..SOFTMAX }, 0.0),
        pirl("pirl-nce", ema),
        pirl("pirl-softmax", SOFTMAX),
        pirl("pirl-softmax-all", ContrastSpec { negatives: 0, ..SOFTMAX }),
    ]
}

pub fn bank_spec() -> BankSpec {
    BankSpec { slots: SLOTS, width: WIDTH, dtype: BankType::F32, mirror: true, seed: SEED }
}

impl Case {
    pub fn objective(&self, rank: usize, world_size: usize) -> Objective {
        self.with_bank(Bank::new(bank_spec(), rank, world_size, Storage::Memory))
    }

    pub fn with_bank(&self, bank: Bank) -> Objective {
        match self.method {
            Method::Moco { queue } => Objective::Moco(Moco::new(TEMPERATURE, Queue::new(SEED, queue, WIDTH))),
            Method::MocoV3 => Objective::MocoV3(MocoV3::new(TEMPERATURE)),
            Method::Npid { spec, proximal } => Objective::Npid(Npid::new(spec, proximal, bank)),
            Method::Pirl { spec, jigsaw_weight } => Objective::Pirl(Pirl::new(spec, jigsaw_weight, bank)),
        }
    }

    pub fn has_bank(&self) -> bool {
        matches!(self.method, Method::Npid { .. } | Method::Pirl { .. })
    }
}

/// The images of each rank, by their positions in the global batch.
pub type Deal = Vec<Vec<usize>>;

pub fn even(images: usize, world_size: usize) -> Deal {
    (0..world_size).map(|rank| split(images, world_size, rank).collect()).collect()
}

/// The same numbers of images, but others.
pub fn shuffled(deal: &Deal, seed: u64) -> Deal {
    let images: usize = deal.iter().map(Vec::len).sum();
    let keys = noise(seed, images);
    let mut order: Vec<usize> = (0..images).collect();
    order.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
    let mut order = order.into_iter();
    deal.iter().map(|images| order.by_ref().take(images.len()).collect()).collect()
}

/// Numbers in [-1, 1) by SplitMix64.
pub fn noise(seed: u64, len: usize) -> Vec<f64> {
    let number = |index: u64| {
        let mut z = (seed << 32).wrapping_add(index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len as u64).map(number).collect()
}

/// The embeddings of a step's whole batch, as networks that need no training would make them.
#[derive(Debug, Clone)]
pub struct Batch {
    pub step: u64,
    /// Of each position.
    pub indices: Vec<usize>,
    /// `[2][images, WIDTH]`: of both views, of which an objective looks at those that it needs.
    pub queries: [Vec<f64>; 2],
    pub keys: [Vec<f64>; 2],
    pub jigsaw: Vec<f64>,
}

impl Batch {
    pub fn of_step(step: u64) -> Self {
        let rows = |what: u64| noise(10 * step + what, IMAGES * WIDTH);
        Self {
            step,
            // 23 is a prime: no image comes twice in a batch.
            indices: (0..IMAGES).map(|position| (5 * step as usize + 4 * position) % SLOTS).collect(),
            queries: [rows(0), rows(1)],
            keys: [rows(2), rows(3)],
            jigsaw: rows(4),
        }
    }

    /// One rank's step, not committed.
    pub fn on_rank(
        &self,
        objective: &mut Objective,
        deal: &Deal,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<f64>, objectives::Error> {
        let device = Device::of_threads(1, KernelPath::Reference);
        step_on_rank(self, objective, deal, &device, communicator)
    }
}

/// One rank's step, in any precision and on any path.
pub fn step_on_rank<T: Real + Number>(
    batch: &Batch,
    objective: &mut Objective,
    deal: &Deal,
    device: &Device,
    communicator: &mut Communicator,
) -> Result<ObjectiveStep<T>, objectives::Error> {
    let own = &deal[communicator.rank()];
    let needs = objective.needs();
    let take = |rows: &[f64]| -> Vec<T> {
        let rows = own.iter().flat_map(|position| &rows[position * WIDTH..(position + 1) * WIDTH]);
        rows.map(|&value| T::from_f64(value)).collect()
    };
    let views = |of_views: &[Vec<f64>; 2], needed: &[usize]| -> Vec<T> {
        needed.iter().flat_map(|&view| take(&of_views[view])).collect()
    };
    let images: Vec<usize> = deal.iter().map(Vec::len).collect();
    let indices: Vec<usize> = own.iter().map(|&position| batch.indices[position]).collect();
    let encoded = Encoded {
        step: batch.step,
        images: &images,
        positions: own,
        indices: &indices,
        labels: &[],
        queries: &views(&batch.queries, needs.queries),
        keys: &views(&batch.keys, needs.keys),
        jigsaw: &if needs.jigsaw { take(&batch.jigsaw) } else { Vec::new() },
    };
    objective.forward_backward(device, &encoded, communicator)
}

/// Runs `body` on every rank and returns what each returned, in rank order.
pub fn on_ranks<R: Send>(world_size: usize, body: impl Fn(usize, Communicator) -> R + Sync) -> Vec<R> {
    let group = loopback(world_size, 1).unwrap();
    thread::scope(|scope| {
        let body = &body;
        let spawn = |(rank, mut communicators): (usize, Vec<Communicator>)| {
            scope.spawn(move || body(rank, communicators.pop().unwrap()))
        };
        let ranks: Vec<_> = group.into_iter().enumerate().map(spawn).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What a step of all ranks gives, rows by position in the global batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub loss: f64,
    /// `[views][images, WIDTH]`
    pub d_queries: Vec<f64>,
    pub d_jigsaw: Vec<f64>,
    pub metrics: Vec<(&'static str, f64)>,
}

/// Puts the ranks' rows together, `[view][image]` each.
pub fn join(deal: &Deal, ranks: &[ObjectiveStep<f64>]) -> Outcome {
    let images: usize = deal.iter().map(Vec::len).sum();
    let joined = |rows_of: &dyn Fn(&ObjectiveStep<f64>) -> Vec<f64>| {
        let per_image = rows_of(&ranks[0]).len() / deal[0].len();
        let views = per_image / WIDTH;
        let mut all = vec![f64::NAN; images * per_image];
        for (own, rank) in deal.iter().zip(ranks) {
            for (row, values) in rows_of(rank).chunks_exact(WIDTH).enumerate() {
                let place = row / own.len() * images + own[row % own.len()];
                assert!(row / own.len() < views);
                all[place * WIDTH..(place + 1) * WIDTH].copy_from_slice(values);
            }
        }
        all
    };
    for rank in ranks {
        assert_eq!(rank.loss.to_bits(), ranks[0].loss.to_bits(), "the same bits on every rank");
        assert_eq!(rank.metrics, ranks[0].metrics, "the same bits on every rank");
    }
    Outcome {
        loss: ranks[0].loss,
        d_queries: joined(&|rank| rank.d_queries.clone()),
        d_jigsaw: joined(&|rank| rank.d_jigsaw.clone()),
        metrics: ranks[0].metrics.clone(),
    }
}

/// An array of a checkpoint, as a file would hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    pub name: String,
    pub element: ArrayType,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
    pub sharded: bool,
}

impl Saved {
    pub fn of(array: &Array<'_>) -> Self {
        let Array { name, element, shape, bytes, sharded } = array.clone();
        Self { name, element, shape, bytes: bytes.to_vec(), sharded }
    }

    pub fn array(&self) -> Array<'_> {
        let Self { name, element, shape, bytes, sharded } = self.clone();
        drop(bytes);
        Array { name, element, shape, bytes: &self.bytes, sharded }
    }
}

pub fn state_of(objective: &Objective) -> Vec<Saved> {
    objective.state().iter().map(Saved::of).collect()
}

/// What a checkpoint of all ranks would hold: sharded arrays of each, replicated ones once.
pub fn checkpoint(ranks: Vec<Vec<Saved>>) -> Vec<Saved> {
    let replicated = |arrays: &[Saved]| arrays.iter().filter(|a| !a.sharded).cloned().collect::<Vec<_>>();
    let common = replicated(&ranks[0]);
    for rank in &ranks {
        assert_eq!(replicated(rank), common, "the same bits on every rank");
    }
    let sharded = ranks.into_iter().flatten().filter(|array| array.sharded);
    common.into_iter().chain(sharded).collect()
}

/// `stem` of all slots, in slot order, from the blocks of any world size.
pub fn slots_of(checkpoint: &[Saved], stem: &str) -> Vec<u8> {
    let mut blocks: Vec<(usize, &[u8])> = checkpoint
        .iter()
        .filter_map(|array| {
            let slots = array.name.strip_prefix(stem)?.strip_prefix(".slots-")?;
            Some((slots.split_once('-')?.0.parse().unwrap(), &array.bytes[..]))
        })
        .collect();
    blocks.sort_unstable_by_key(|block| block.0);
    blocks.into_iter().flat_map(|(_, bytes)| bytes).copied().collect()
}

/// So many steps of all ranks, and their state at the end.
pub fn train(
    case: &Case,
    deal_of_step: impl Fn(u64) -> Deal + Sync,
    steps: u64,
) -> (Vec<Outcome>, Vec<Saved>) {
    let world_size = deal_of_step(1).len();
    let ranks = on_ranks(world_size, |rank, mut communicator| {
        let mut objective = case.objective(rank, world_size);
        let steps: Vec<_> = (1..=steps)
            .map(|step| {
                let batch = Batch::of_step(step);
                let step = batch.on_rank(&mut objective, &deal_of_step(step), &mut communicator).unwrap();
                objective.commit();
                step
            })
            .collect();
        (steps, state_of(&objective))
    });
    let (steps_of_ranks, states): (Vec<_>, Vec<_>) = ranks.into_iter().unzip();
    let outcomes = (1..=steps).map(|step| {
        let ranks: Vec<_> = steps_of_ranks.iter().map(|steps| steps[step as usize - 1].clone()).collect();
        join(&deal_of_step(step), &ranks)
    });
    (outcomes.collect(), checkpoint(states))
}

/// Largest difference as a share of the largest value expected; not-a-number is infinitely far.
pub fn distance(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0f64, |a, b| if b.is_nan() { f64::INFINITY } else { a.max(b.abs()) })
    };
    let difference = largest(&mut got.iter().zip(expected).map(|(got, expected)| got - expected));
    if difference == 0.0 { 0.0 } else { difference / largest(&mut expected.iter().copied()) }
}
