//! The methods as their papers write them, on one rank that holds everything; and the mistakes that many ranks can make.

use objectives::sampled::Draw;
use objectives::{ContrastSpec, Estimator, Normalizer};

use crate::fixtures::{
    Batch, Case, Deal, IMAGES, Method, Outcome, SEED, SLOTS, TEMPERATURE, WIDTH, checkpoint, slots_of,
    state_of,
};

/// A way to get a distributed bank or queue wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Right.
    None,
    /// Each rank takes the mean over its own images, and these are summed.
    LocalMean,
    /// Each rank averages over its own images, and the trainer's sum over ranks is divided by their number.
    MeanOfMeans,
    /// An image is compared with the candidates that its own rank holds, and with no others.
    OwnCandidates,
    /// Negatives are drawn by an image's place on its rank.
    LocalPositions,
    /// Each rank estimates the normalizer from its own images.
    LocalNormalizer,
    /// Keys enter the queue in rank order, whatever the order of the batch.
    RankOrder,
    /// Each rank's queue gets its own keys.
    OwnKeys,
    /// The bank is written, or the queue filled, before the loss.
    EarlyUpdate,
    /// A step that failed is made again, and its first attempt was remembered.
    AppliedTwice,
}

/// Everything that a method keeps.
pub struct Textbook {
    case: Case,
    mutant: Mutant,
    bank: Vec<f64>,
    /// A queue for each rank, which all are the same unless there is a mistake.
    queues: Vec<Vec<f64>>,
    pointers: Vec<usize>,
    /// Of each branch.
    normalizers: [Option<f64>; 2],
}

/// One rank's place in the batch.
struct Place {
    rank: usize,
    local: usize,
    images: usize,
}

impl Textbook {
    /// The state that the program's objective begins with.
    pub fn new(case: Case, mutant: Mutant, world_size: usize) -> Self {
        let state = checkpoint(vec![state_of(&case.objective(0, 1))]);
        let queue =
            state.iter().find(|array| array.name == "objective.queue").map(|array| f32s(&array.bytes));
        Self {
            case,
            mutant,
            bank: f32s(&slots_of(&state, "objective.bank")),
            queues: vec![queue.unwrap_or_default(); world_size],
            pointers: vec![0; world_size],
            normalizers: [None; 2],
        }
    }

    pub fn step(&mut self, batch: &Batch, deal: &Deal) -> Outcome {
        if self.mutant == Mutant::AppliedTwice {
            self.remember(batch, deal);
        }
        if self.mutant == Mutant::EarlyUpdate {
            self.remember(batch, deal);
        }
        let outcome = self.loss_and_gradient(batch, deal);
        if self.mutant != Mutant::EarlyUpdate {
            self.remember(batch, deal);
        }
        outcome
    }

    fn loss_and_gradient(&mut self, batch: &Batch, deal: &Deal) -> Outcome {
        let mut outcome = Outcome { loss: 0.0, d_queries: vec![], d_jigsaw: vec![], metrics: vec![] };
        match self.case.method {
            Method::Moco { .. } => {
                let positives = unit(&batch.keys[1]);
                let rows = batch.queries[0].clone();
                let negatives = |_: usize, place: &Place| rows_of(&self.queues[place.rank]);
                let spec = softmax(TEMPERATURE);
                let (loss, d) = self.contrast(&spec, (&rows, &positives), deal, &negatives, 0);
                (outcome.loss, outcome.d_queries) = (loss, d);
            }
            Method::MocoV3 => {
                for (queries, keys) in
                    [(&batch.queries[0], &batch.keys[1]), (&batch.queries[1], &batch.keys[0])]
                {
                    let keys = unit(keys);
                    let negatives = |position: usize, place: &Place| -> Vec<Vec<f64>> {
                        let own = &deal[place.rank];
                        let seen =
                            |other: &usize| self.mutant != Mutant::OwnCandidates || own.contains(other);
                        let others = (0..IMAGES).filter(|&other| other != position).filter(seen);
                        others.map(|other| row(&keys, other).to_vec()).collect()
                    };
                    let spec = softmax(TEMPERATURE);
                    let (loss, d) = self.contrast(&spec, (queries, &keys), deal, &negatives, 0);
                    outcome.loss += 2.0 * TEMPERATURE * loss;
                    outcome.d_queries.extend(d.iter().map(|d| 2.0 * TEMPERATURE * d));
                }
            }
            Method::Npid { spec, proximal } => {
                (outcome.loss, outcome.d_queries) =
                    self.against_bank(&spec, &batch.queries[0], batch, deal, (0, proximal));
            }
            Method::Pirl { spec, jigsaw_weight } => {
                let (of_f, d_f) = self.against_bank(&spec, &batch.queries[0], batch, deal, (0, 0.0));
                let (of_g, d_g) = self.against_bank(&spec, &batch.jigsaw, batch, deal, (1, 0.0));
                outcome.loss = (1.0 - jigsaw_weight) * of_f + jigsaw_weight * of_g;
                outcome.d_queries = d_f.iter().map(|d| (1.0 - jigsaw_weight) * d).collect();
                outcome.d_jigsaw = d_g.iter().map(|d| jigsaw_weight * d).collect();
            }
        }
        outcome
    }

    fn against_bank(
        &mut self,
        spec: &ContrastSpec,
        rows: &[f64],
        batch: &Batch,
        deal: &Deal,
        (branch, proximal): (usize, f64),
    ) -> (f64, Vec<f64>) {
        let positives: Vec<f64> =
            batch.indices.iter().flat_map(|&index| row(&self.bank, index)).copied().collect();
        let bank = self.bank.clone();
        let mutant = self.mutant;
        let negatives = |position: usize, place: &Place| -> Vec<Vec<f64>> {
            let own_slot = batch.indices[position];
            let slots: Vec<usize> = if spec.negatives == 0 {
                (0..SLOTS).filter(|&slot| slot != own_slot).collect()
            } else {
                let (count, exclude_positive) = (spec.negatives, spec.exclude_positive);
                let draw = Draw { seed: SEED, step: batch.step, count, slots: SLOTS, exclude_positive };
                let position = if mutant == Mutant::LocalPositions { place.local } else { position };
                draw.of_image(position, own_slot).collect()
            };
            let owned = |slot: &usize| {
                let share = |rank: usize| rank * (SLOTS / deal.len()) + rank.min(SLOTS % deal.len());
                (share(place.rank)..share(place.rank + 1)).contains(slot)
            };
            let seen = slots.into_iter().filter(|slot| mutant != Mutant::OwnCandidates || owned(slot));
            seen.map(|slot| row(&bank, slot).to_vec()).collect()
        };
        let (mut loss, mut d) = self.contrast(spec, (rows, &positives), deal, &negatives, branch);
        let u = unit(rows);
        let share = 1.0 / IMAGES as f64;
        loss += proximal * share * u.iter().zip(&positives).map(|(f, m)| (f - m).powi(2)).sum::<f64>();
        let pull: Vec<f64> =
            u.iter().zip(&positives).map(|(f, m)| 2.0 * proximal * share * (f - m)).collect();
        d.iter_mut().zip(through_norm(rows, &pull)).for_each(|(d, pull)| *d += pull);
        (loss, d)
    }

    /// Loss and gradient by the rows, `IMAGES` of them.
    fn contrast(
        &self,
        spec: &ContrastSpec,
        (rows, positives): (&[f64], &[f64]),
        deal: &Deal,
        negatives: &dyn Fn(usize, &Place) -> Vec<Vec<f64>>,
        branch: usize,
    ) -> (f64, Vec<f64>) {
        let u = unit(rows);
        let places = places(deal);
        let logits: Vec<Vec<f64>> = (0..IMAGES)
            .map(|position| {
                let candidates = negatives(position, &places[position]);
                let all = std::iter::once(row(positives, position).to_vec()).chain(candidates);
                all.map(|candidate| dot(row(&u, position), &candidate) / spec.temperature).collect()
            })
            .collect();
        let z = |rank: usize| {
            self.normalizers[branch].unwrap_or_else(|| {
                let local = self.mutant == Mutant::LocalNormalizer;
                estimate(&logits, &|position| !local || places[position].rank == rank)
            })
        };
        let (mut loss, mut d_u) = (0.0, vec![0.0; rows.len()]);
        for (position, logits) in logits.iter().enumerate() {
            let place = &places[position];
            let share = match self.mutant {
                Mutant::LocalMean => 1.0 / place.images as f64,
                Mutant::MeanOfMeans => 1.0 / (place.images * deal.len()) as f64,
                _ => 1.0 / IMAGES as f64,
            };
            let (of_image, by_logits) = match spec.estimator {
                Estimator::Softmax => {
                    let total: f64 = logits.iter().map(|x| x.exp()).sum();
                    let by =
                        logits.iter().enumerate().map(|(j, x)| x.exp() / total - f64::from(u8::from(j == 0)));
                    (total.ln() - logits[0], by.collect::<Vec<_>>())
                }
                Estimator::Nce => {
                    let k = if spec.negatives == 0 { SLOTS - 1 } else { spec.negatives };
                    let noise = k as f64 / SLOTS as f64;
                    let h = |x: f64| {
                        let p = x.exp() / z(place.rank);
                        p / (p + noise)
                    };
                    let negatives: f64 = logits[1..].iter().map(|&x| -(1.0 - h(x)).ln()).sum();
                    let by = logits.iter().enumerate().map(|(j, &x)| h(x) - f64::from(u8::from(j == 0)));
                    (negatives - h(logits[0]).ln(), by.collect())
                }
            };
            loss += share * of_image;
            let candidates =
                std::iter::once(row(positives, position).to_vec()).chain(negatives(position, place));
            for (candidate, by) in candidates.zip(by_logits) {
                for (d, value) in row_mut(&mut d_u, position).iter_mut().zip(&candidate) {
                    *d += share * by / spec.temperature * value;
                }
            }
        }
        (loss, through_norm(rows, &d_u))
    }

    /// What the step leaves behind.
    fn remember(&mut self, batch: &Batch, deal: &Deal) {
        match self.case.method {
            Method::Moco { queue } => {
                let keys = unit(&batch.keys[1]);
                for rank in 0..deal.len() {
                    let in_rank_order = deal.iter().flatten().copied().collect::<Vec<_>>();
                    let order = match self.mutant {
                        Mutant::OwnKeys => deal[rank].clone(),
                        Mutant::RankOrder => in_rank_order,
                        _ => (0..IMAGES).collect(),
                    };
                    for position in order {
                        let place = self.pointers[rank] % queue;
                        row_mut(&mut self.queues[rank], place)
                            .copy_from_slice(&rounded(row(&keys, position)));
                        self.pointers[rank] += 1;
                    }
                }
            }
            Method::MocoV3 => {}
            Method::Npid { spec, .. } => self.write(&spec, batch, deal, &[&batch.queries[0]]),
            Method::Pirl { spec, .. } => self.write(&spec, batch, deal, &[&batch.queries[0], &batch.jigsaw]),
        }
    }

    fn write(&mut self, spec: &ContrastSpec, batch: &Batch, deal: &Deal, branches: &[&Vec<f64>]) {
        // From the bank as the loss saw it.
        for (branch, rows) in branches.iter().enumerate() {
            let u = unit(rows);
            let logits: Vec<Vec<f64>> = (0..IMAGES)
                .map(|position| {
                    let own = batch.indices[position];
                    let (count, exclude_positive) = (spec.negatives, spec.exclude_positive);
                    let draw = Draw { seed: SEED, step: batch.step, count, slots: SLOTS, exclude_positive };
                    let negatives: Vec<usize> = match count {
                        0 => (0..SLOTS).filter(|&slot| slot != own).collect(),
                        _ => draw.of_image(position, own).collect(),
                    };
                    let slots = std::iter::once(own).chain(negatives);
                    slots
                        .map(|slot| dot(row(&u, position), row(&self.bank, slot)) / spec.temperature)
                        .collect()
                })
                .collect();
            let places = places(deal);
            let own_rank_only = self.mutant == Mutant::LocalNormalizer;
            let of_batch = estimate(&logits, &|position| !own_rank_only || places[position].rank == 0);
            self.normalizers[branch] = Some(match (self.normalizers[branch], spec.normalizer) {
                (None, _) => of_batch,
                (Some(z), Normalizer::FirstBatch) => z,
                (Some(z), Normalizer::Ema(momentum)) => momentum * z + (1.0 - momentum) * of_batch,
            });
        }
        let f = unit(branches[0]);
        for (position, &index) in batch.indices.iter().enumerate() {
            let momentum = spec.feature_momentum;
            let old = row(&self.bank, index).iter().zip(row(&f, position));
            let moved: Vec<f64> = old.map(|(m, f)| momentum * m + (1.0 - momentum) * f).collect();
            row_mut(&mut self.bank, index).copy_from_slice(&rounded(&unit(&moved)));
        }
    }
}

/// `Z`: the mean over all candidates of the images in `seen`, times the slots.
fn estimate(logits: &[Vec<f64>], seen: &dyn Fn(usize) -> bool) -> f64 {
    let seen = logits.iter().enumerate().filter(|&(position, _)| seen(position));
    let exps: Vec<f64> = seen.flat_map(|(_, logits)| logits.iter().map(|x| x.exp())).collect();
    exps.iter().sum::<f64>() / exps.len() as f64 * SLOTS as f64
}

fn softmax(temperature: f64) -> ContrastSpec {
    ContrastSpec { temperature, ..crate::fixtures::SOFTMAX }
}

fn places(deal: &Deal) -> Vec<Place> {
    let place = |position: usize| {
        let rank = deal.iter().position(|images| images.contains(&position)).unwrap();
        let local = deal[rank].iter().position(|&own| own == position).unwrap();
        Place { rank, local, images: deal[rank].len() }
    };
    (0..IMAGES).map(place).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn row(rows: &[f64], i: usize) -> &[f64] {
    &rows[i * WIDTH..(i + 1) * WIDTH]
}

fn row_mut(rows: &mut [f64], i: usize) -> &mut [f64] {
    &mut rows[i * WIDTH..(i + 1) * WIDTH]
}

fn rows_of(rows: &[f64]) -> Vec<Vec<f64>> {
    rows.chunks(WIDTH).map(<[f64]>::to_vec).collect()
}

fn unit(rows: &[f64]) -> Vec<f64> {
    rows.chunks(WIDTH).flat_map(|z| z.iter().map(|value| value / dot(z, z).sqrt())).collect()
}

fn through_norm(rows: &[f64], d_u: &[f64]) -> Vec<f64> {
    let both = rows.chunks(WIDTH).zip(d_u.chunks(WIDTH));
    both.flat_map(|(z, d)| {
        let norm = dot(z, z).sqrt();
        let radial = dot(z, d) / norm;
        z.iter().zip(d).map(move |(z, d)| (d - radial * z / norm) / norm).collect::<Vec<_>>()
    })
    .collect()
}

fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value as f32)).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
}
