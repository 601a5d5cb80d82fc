//! NT-Xent as most implementations compute it, dense and with the gradient sent back through the gather, all
//! ranks simulated one after the other; and the mistakes they make.
//!
//! Rank `r` computes the losses of its own rows, `l_i = lse_i - s_ip(i)`, and differentiates their sum by every
//! gathered row: `D_r[i] = dl_r/du_i`. A row is thus the anchor in its own rank's `D` and a candidate in all. A
//! reduce-scatter sums the `D` of all ranks, each rank keeping its own rows, and parameter gradients are summed.

use crate::Outcome;
use crate::deal::Deal;
use crate::perceptron::Perceptron;

/// A way to get the distributed gradient wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Right.
    None,
    /// The gathered rows are constants: a row has a gradient as an anchor only.
    DetachedKeys,
    /// The reduce-scatter takes the mean.
    Average,
    /// No reduce-scatter: a rank's rows are candidates of its own anchors only.
    OwnSlot,
    /// Every rank masks, as its own, the columns that are rank 0's.
    RankZeroMask,
    /// A row's similarity with itself stays in the gradient's sums.
    SelfTerm,
    /// Every rank has its rows' gradient, and parameter gradients are averaged instead of summed.
    Unscaled,
}

const WIDTH: usize = Perceptron::OUTPUTS;

/// One step of `deal.world_size()` ranks; rows of the outcome in the order of the global batch.
pub fn train_step(
    mutant: Mutant,
    temperature: f64,
    deal: &Deal,
    perceptron: &Perceptron,
    images: &[f64],
) -> Outcome {
    let world_size = deal.world_size() as f64;
    let embeddings = perceptron.forward(images);
    let norms: Vec<f64> = embeddings.chunks_exact(WIDTH).map(|z| dot(z, z).sqrt()).collect();
    let unit: Vec<f64> = embeddings.iter().enumerate().map(|(i, z)| z / norms[i / WIDTH]).collect();
    let shares: Vec<Share> =
        (0..deal.world_size()).map(|rank| Share::of(rank, mutant, temperature, deal, &unit)).collect();

    // What stands for the reduce-scatter.
    let mut d_unit = vec![0.0; unit.len()];
    for (rank, share) in shares.iter().enumerate() {
        for place in deal.places(rank) {
            for (offset, d) in d_unit[place * WIDTH..(place + 1) * WIDTH].iter_mut().enumerate() {
                let index = place * WIDTH + offset;
                let all = || shares.iter().map(|share| share.d_gathered[index]).sum::<f64>();
                *d = match mutant {
                    Mutant::DetachedKeys | Mutant::OwnSlot => share.d_gathered[index],
                    Mutant::Average => all() / world_size,
                    Mutant::None | Mutant::RankZeroMask | Mutant::SelfTerm | Mutant::Unscaled => all(),
                };
            }
        }
    }
    let d_embeddings: Vec<f64> = unit
        .chunks_exact(WIDTH)
        .zip(d_unit.chunks_exact(WIDTH))
        .zip(&norms)
        .flat_map(|((u, d), norm)| {
            let radial = dot(u, d);
            u.iter().zip(d).map(move |(u, d)| (d - radial * u) / norm)
        })
        .collect();
    // A sum over all rows is the sum over ranks of their sums.
    let mut d_parameters = perceptron.backward(images, &d_embeddings);
    if mutant == Mutant::Unscaled {
        d_parameters.iter_mut().for_each(|d| *d /= world_size);
    }
    Outcome { loss: shares.iter().map(|share| share.loss).sum(), d_unit, d_embeddings, d_parameters }
}

/// What one rank computes before anything is reduced.
struct Share {
    loss: f64,
    /// `[m, d]`, rows in the order of the global batch.
    d_gathered: Vec<f64>,
}

impl Share {
    fn of(rank: usize, mutant: Mutant, temperature: f64, deal: &Deal, unit: &[f64]) -> Self {
        let row = |i: usize| &unit[i * WIDTH..(i + 1) * WIDTH];
        let m = unit.len() / WIDTH;
        // Columns in gathered order, which a mask without its rank's offset confuses.
        let gathered: Vec<usize> = (0..deal.world_size()).flat_map(|rank| deal.places(rank)).collect();
        let own = deal.places(rank);
        let mut share = Self { loss: 0.0, d_gathered: vec![0.0; unit.len()] };
        for (local, &i) in own.iter().enumerate() {
            let masked = if mutant == Mutant::RankZeroMask { gathered[local] } else { i };
            let positive = own[(local + own.len() / 2) % own.len()];
            let logit = |j: usize| dot(row(i), row(j)) / temperature;
            let sum: f64 = (0..m).filter(|&j| j != masked).map(|j| logit(j).exp()).sum();
            share.loss += (sum.ln() - logit(positive)) / m as f64;
            for j in 0..m {
                let probability = if j == masked { 0.0 } else { logit(j).exp() / sum };
                let d_logit = (probability - f64::from(u8::from(j == positive))) / (m as f64 * temperature);
                share.add(i, d_logit, row(j));
                if mutant != Mutant::DetachedKeys {
                    share.add(j, d_logit, row(i));
                }
            }
            if mutant == Mutant::SelfTerm {
                share.add(i, 2.0 * logit(i).exp() / sum / (m as f64 * temperature), row(i));
            }
        }
        share
    }

    fn add(&mut self, i: usize, factor: f64, row: &[f64]) {
        let sums = &mut self.d_gathered[i * WIDTH..(i + 1) * WIDTH];
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
