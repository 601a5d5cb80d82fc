//! The updates: SGD and AdamW as PyTorch, LARS as SimCLR.
//!
//! Biases and the parameters of norms take no weight decay unless `decay_all` says so, and never LARS's adapted
//! rate. What is fixed stays as it is. The state is one or two flat arrays in the places of the parameters, which is all that a checkpoint
//! holds besides the number of updates.

mod rules;

use std::ops::Range;

use crate::parameters::{ParameterEntry, ParameterKind, Parameters};
use kernels::{Device, Pool, Real, split};
use rules::{AdamW, Rule, Sgd};

/// Which update, with its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OptimizerKind {
    /// `v = momentum v + g; w -= lr v`.
    Sgd {
        /// Share of the last update's direction.
        momentum: f64,
    },
    /// `v = momentum v + lr trust g; w -= v` with `trust = eta |w| / |g|` per weight tensor, 1 where a norm is 0
    /// (You et al. 2017, arXiv:1708.03888, with the rate inside the momentum as google-research/simclr has it).
    Lars {
        /// Share of the last update.
        momentum: f64,
        /// The trust coefficient; SimCLR's is 0.001.
        eta: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101).
    AdamW {
        /// Memory of the first moment; 0.9 by default elsewhere.
        beta1: f64,
        /// Memory of the second moment; 0.999 by default elsewhere.
        beta2: f64,
        /// Added to the root of the second moment; 1e-8 by default elsewhere.
        eps: f64,
    },
}

/// An update with its weight decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerSpec {
    /// Which update.
    pub kind: OptimizerKind,
    /// Added to the gradient as `weight_decay * w`; AdamW shrinks the weight instead.
    pub weight_decay: f64,
    /// Whether biases and the parameters of norms decay as well.
    pub decay_all: bool,
}

/// An optimizer with its state.
#[derive(Debug, Clone)]
pub struct Optimizer<T> {
    spec: OptimizerSpec,
    slots: Vec<(&'static str, Vec<T>)>,
    /// Updates so far; AdamW's bias correction depends on it.
    pub updates: u64,
}

impl<T: Real> Optimizer<T> {
    /// Starts with a state of zeros.
    pub fn new(spec: OptimizerSpec, parameters: &Parameters<T>) -> Self {
        let slots = slot_names(spec.kind).iter().map(|&name| (name, vec![T::ZERO; parameters.values.len()]));
        Self { spec, slots: slots.collect(), updates: 0 }
    }

    /// Bytes of state per parameter.
    pub fn bytes_per_parameter(kind: OptimizerKind) -> usize {
        slot_names(kind).len() * size_of::<T>()
    }

    /// The state by name, each array in the places of the parameters.
    pub fn state(&self) -> Vec<(&'static str, &[T])> {
        self.slots.iter().map(|(name, values)| (*name, &values[..])).collect()
    }

    /// The state by name, to be loaded.
    pub fn state_mut(&mut self) -> Vec<(&'static str, &mut [T])> {
        self.slots.iter_mut().map(|(name, values)| (*name, &mut values[..])).collect()
    }

    /// Updates the parameters by their gradients at the learning rate `lr`.
    ///
    /// # Panics
    /// If the parameters are not those the optimizer was made for.
    pub fn step(&mut self, device: &Device, parameters: &mut Parameters<T>, lr: f64) {
        let Self { spec, slots, updates } = self;
        let pool = &device.cpu().pool;
        *updates += 1;
        let Parameters { entries, values, gradients, .. } = parameters;
        match spec.kind {
            OptimizerKind::Sgd { momentum } => {
                let rule = |entry: usize| Sgd {
                    momentum: T::from_f64(momentum),
                    decay: T::from_f64(spec.decay_of(&entries[entry])),
                    gradient_scale: T::ONE,
                    step_size: T::from_f64(lr),
                };
                update(pool, entries, (values, gradients), slots, rule);
            }
            OptimizerKind::Lars { momentum, eta } => {
                let trust = trust_ratios(pool, spec, eta, (entries, values, gradients));
                let rule = |entry: usize| Sgd {
                    momentum: T::from_f64(momentum),
                    decay: T::from_f64(spec.decay_of(&entries[entry])),
                    gradient_scale: T::from_f64(lr * trust[entry]),
                    step_size: T::ONE,
                };
                update(pool, entries, (values, gradients), slots, rule);
            }
            OptimizerKind::AdamW { beta1, beta2, eps } => {
                let corrections = [beta1, beta2].map(|beta| 1.0 - beta.powf(*updates as f64));
                let rule = |entry: usize| AdamW {
                    shrink: T::from_f64(1.0 - lr * spec.decay_of(&entries[entry])),
                    keep: [beta1, beta2].map(T::from_f64),
                    take: [1.0 - beta1, 1.0 - beta2].map(T::from_f64),
                    step_size: T::from_f64(lr / corrections[0]),
                    root_scale: T::from_f64(1.0 / corrections[1].sqrt()),
                    eps: T::from_f64(eps),
                };
                update(pool, entries, (values, gradients), slots, rule);
            }
        }
    }
}

impl OptimizerSpec {
    fn decay_of(&self, entry: &ParameterEntry) -> f64 {
        if self.decay_all || entry.kind == ParameterKind::Weight { self.weight_decay } else { 0.0 }
    }
}

fn slot_names(kind: OptimizerKind) -> &'static [&'static str] {
    match kind {
        OptimizerKind::Sgd { .. } | OptimizerKind::Lars { .. } => &["momentum"],
        OptimizerKind::AdamW { .. } => &["first_moment", "second_moment"],
    }
}

/// Applies `rule(entry)` to every parameter, the flat arrays cut into one piece per thread.
fn update<T: Real, R: Rule<T>>(
    pool: &Pool,
    entries: &[ParameterEntry],
    (values, gradients): (&mut [T], &[T]),
    slots: &mut [(&'static str, Vec<T>)],
    rule: impl Fn(usize) -> R + Sync,
) {
    let len = values.len();
    let mut rest = values;
    let mut slots: Vec<&mut [T]> = slots.iter_mut().map(|(_, values)| &mut values[..]).collect();
    let parts = (0..pool.threads()).map(|thread| {
        let range = split(len, pool.threads(), thread);
        let values = cut(&mut rest, range.len());
        let slots = slots.iter_mut().map(|rest| cut(rest, range.len())).collect::<Vec<_>>();
        (range, values, slots)
    });
    pool.for_each_part(parts.collect(), |_, (part, values, mut slots): (Range<usize>, _, Vec<&mut [T]>)| {
        for (entry_idx, range) in intersections(entries, &part) {
            if entries[entry_idx].kind == ParameterKind::Fixed {
                continue;
            }
            let own = range.start - part.start..range.end - part.start;
            let slots: Vec<&mut [T]> = slots.iter_mut().map(|slot| &mut slot[own.clone()]).collect();
            let values: &mut [T] = values;
            rule(entry_idx).apply(&mut values[own], &gradients[range], slots);
        }
    });
}

/// Takes the first `len` elements off `rest`.
fn cut<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    rest.split_off_mut(..len).expect("the ranges tile the parameters")
}

/// The stretches of `part` that belong to one parameter each.
fn intersections(
    entries: &[ParameterEntry],
    part: &Range<usize>,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    let first = entries.partition_point(|entry| entry.range().end <= part.start);
    let part = part.clone();
    entries.iter().enumerate().skip(first).map_while(move |(entry_idx, entry)| {
        let range = entry.offset.max(part.start)..entry.range().end.min(part.end);
        (!range.is_empty()).then_some((entry_idx, range))
    })
}

/// LARS's `eta |w| / |g + decay w|` for each weight tensor; 1 for everything else and where a norm is 0.
fn trust_ratios<T: Real>(
    pool: &Pool,
    spec: &OptimizerSpec,
    eta: f64,
    (entries, values, gradients): (&[ParameterEntry], &[T], &[T]),
) -> Vec<f64> {
    // Partial sums of squares per thread and parameter, added in thread order.
    let mut partials = vec![[0.0; 2]; pool.threads() * entries.len()];
    pool.for_each_part(partials.chunks_exact_mut(entries.len()).collect(), |thread, sums| {
        let part = split(values.len(), pool.threads(), thread);
        for (entry_idx, range) in intersections(entries, &part) {
            let decay = spec.decay_of(&entries[entry_idx]);
            sums[entry_idx] = rules::squared_norms(&values[range.clone()], &gradients[range], decay);
        }
    });
    let ratio = |(entry_idx, entry): (usize, &ParameterEntry)| {
        let sum =
            |norm: usize| partials[entry_idx..].iter().step_by(entries.len()).map(|s| s[norm]).sum::<f64>();
        let (w, g) = (sum(0).sqrt(), sum(1).sqrt());
        if entry.kind == ParameterKind::Weight && w > 0.0 && g > 0.0 { eta * w / g } else { 1.0 }
    };
    entries.iter().enumerate().map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::KernelPath;

    const KINDS: [OptimizerKind; 3] = [
        OptimizerKind::Sgd { momentum: 0.9 },
        OptimizerKind::Lars { momentum: 0.9, eta: 0.001 },
        OptimizerKind::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8 },
    ];

    /// A weight of 37 elements, a bias of 5 and a scale of 3.
    fn parameters() -> Parameters<f64> {
        let kinds = [ParameterKind::Weight, ParameterKind::Bias, ParameterKind::Norm];
        let mut entries = vec![];
        let mut offset = 0;
        for (kind, len) in kinds.into_iter().zip([37, 5, 3]) {
            entries.push(ParameterEntry { name: format!("{kind:?}"), shape: vec![len], offset, len, kind });
            offset += len;
        }
        let number = |i: usize| ((i * 7919) % 101) as f64 / 50.0 - 1.0;
        Parameters {
            entries,
            values: (0..offset).map(number).collect(),
            gradients: (100..100 + offset).map(number).collect(),
            buffers: vec![],
            buffer_values: vec![],
            num_batches_tracked: 0,
        }
    }

    fn spec(kind: OptimizerKind, weight_decay: f64, decay_all: bool) -> OptimizerSpec {
        OptimizerSpec { kind, weight_decay, decay_all }
    }

    fn stepped(spec: OptimizerSpec, threads: usize) -> Vec<f64> {
        let mut parameters = parameters();
        let mut optimizer = Optimizer::new(spec, &parameters);
        let device = Device::of_threads(threads, KernelPath::detect());
        for lr in [0.1, 0.05, 0.2] {
            optimizer.step(&device, &mut parameters, lr);
        }
        parameters.values
    }

    #[test]
    fn biases_and_norms_decay_only_when_asked() {
        for kind in KINDS {
            let plain = stepped(spec(kind, 0.0, false), 1);
            let weights = stepped(spec(kind, 0.3, false), 1);
            let all = stepped(spec(kind, 0.3, true), 1);
            assert_eq!(weights[37..], plain[37..], "{kind:?}");
            assert_eq!(weights[..37], all[..37], "{kind:?}");
            for i in 0..45 {
                assert_ne!(all[i], plain[i], "{kind:?}, element {i}");
            }
        }
    }

    /// Cutting the arrays differently changes nothing, but for the order of the sums in a norm.
    #[test]
    fn threads_do_not_matter() {
        for kind in KINDS {
            let one = stepped(spec(kind, 0.1, false), 1);
            for (a, b) in one.iter().zip(stepped(spec(kind, 0.1, false), 4)) {
                assert!((a - b).abs() < 1e-14, "{kind:?}: {a} {b}");
            }
        }
    }

    /// `w = (1), g = 0`: the trust ratio is 1 where a norm is 0, so only the decay moves the weight.
    #[test]
    fn lars_trusts_fully_where_a_norm_is_zero() {
        let mut parameters = parameters();
        parameters.gradients.fill(0.0);
        let before = parameters.values.clone();
        let lars = |decay| spec(OptimizerKind::Lars { momentum: 0.9, eta: 0.001 }, decay, false);
        let device = Device::of_threads(2, KernelPath::detect());
        Optimizer::new(lars(0.0), &parameters).step(&device, &mut parameters, 0.5);
        assert_eq!(parameters.values, before);
        // With decay the direction is w itself, and the ratio eta / decay: w shrinks by lr * eta.
        Optimizer::new(lars(0.2), &parameters).step(&device, &mut parameters, 0.5);
        for (after, before) in parameters.values[..37].iter().zip(&before) {
            assert!((after - before * (1.0 - 0.5 * 0.001)).abs() < 1e-15);
        }
        // From zero weights the gradient counts in full.
        parameters.values.fill(0.0);
        parameters.gradients.fill(2.0);
        Optimizer::new(lars(0.2), &parameters).step(&device, &mut parameters, 0.5);
        assert_eq!(parameters.values, vec![-1.0; 45]);
    }

    /// State and counter are all there is: copied over, another optimizer goes on bit by bit.
    #[test]
    fn state_carries_over() {
        for kind in KINDS {
            let spec = spec(kind, 0.1, false);
            let device = Device::of_threads(2, KernelPath::detect());
            let mut parameters = parameters();
            let mut first = Optimizer::new(spec, &parameters);
            first.step(&device, &mut parameters, 0.1);
            let mut second = Optimizer::new(spec, &parameters);
            let mut copy = parameters.clone();
            for ((name, to), (source, from)) in second.state_mut().into_iter().zip(first.state()) {
                assert_eq!(name, source);
                to.copy_from_slice(from);
            }
            second.updates = first.updates;
            first.step(&device, &mut parameters, 0.1);
            second.step(&device, &mut copy, 0.1);
            assert_eq!(parameters.values, copy.values, "{kind:?}");
        }
    }
}
