//! A network's learnt values and running statistics: flat arrays, with PyTorch's names and layouts.

use std::ops::Range;

use crate::init::{self, Initial};
use kernels::Real;

/// What a parameter is, as far as an optimizer cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterKind {
    /// Weight of a convolution or a linear layer: decayed, adapted by LARS.
    Weight,
    /// Bias of a linear layer, or the class token of a vision transformer, which timm counts among them (its
    /// `no_weight_decay`).
    Bias,
    /// Scale or shift of a batch norm or a layer norm.
    Norm,
    /// Stays as it was drawn: it has no gradient and no optimizer's state.
    Fixed,
}

/// One parameter and its place in the flat arrays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterEntry {
    /// PyTorch's name, as `backbone.layer1.0.conv1.weight` or `head.0.bias`.
    pub name: String,
    /// PyTorch's shape: convolutions `[out, in, kh, kw]`, linear layers `[out, in]`.
    pub shape: Vec<usize>,
    /// Index of its first value.
    pub offset: usize,
    /// Number of its values.
    pub len: usize,
    /// What it is.
    pub kind: ParameterKind,
}

impl ParameterEntry {
    /// Its place in the flat arrays.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// One running statistic and its place in the flat array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferEntry {
    /// PyTorch's name, as `backbone.bn1.running_mean`.
    pub name: String,
    /// `[channels]`.
    pub shape: Vec<usize>,
    /// Index of its first value.
    pub offset: usize,
    /// Number of its values.
    pub len: usize,
}

impl BufferEntry {
    /// Its place in the flat array.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// Parameters, their gradients and the running statistics of one network.
///
/// Plain data: the optimizer updates it, the checkpoint reads and writes it, ranks sum its gradients.
#[derive(Debug, Clone)]
pub struct Parameters<T> {
    /// The parameters in PyTorch's order, which is also the order of the flat arrays, without gaps.
    pub entries: Vec<ParameterEntry>,
    /// All values.
    pub values: Vec<T>,
    /// All gradients: of this rank's rows alone until the ranks have summed them.
    pub gradients: Vec<T>,
    /// The running statistics in PyTorch's order, without gaps.
    pub buffers: Vec<BufferEntry>,
    /// All running statistics.
    pub buffer_values: Vec<T>,
    /// Updates of the running statistics so far: every batch norm's `num_batches_tracked`.
    pub num_batches_tracked: u64,
}

/// A parameter before it has values.
#[derive(Debug, Clone)]
pub(crate) struct ParameterSpec {
    pub entry: ParameterEntry,
    pub initial: Initial,
}

/// A running statistic before it has values.
#[derive(Debug, Clone)]
pub(crate) struct BufferSpec {
    pub entry: BufferEntry,
    pub initial: f64,
}

/// How a batch's statistics enter the running ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BufferUpdate {
    /// `running = (1 - momentum) * running + momentum * batch`; PyTorch's default is 0.1.
    Momentum(f64),
    /// The mean of all batches so far, `count` of them with this one: to calibrate a network.
    Cumulative {
        /// Batches so far, this one included.
        count: u64,
    },
}

impl<T: Real> Parameters<T> {
    /// Draws every parameter from `seed`, its name and the element's index alone.
    pub(crate) fn draw(parameters: &[ParameterSpec], buffers: &[BufferSpec], seed: u64) -> Self {
        let len = parameters.iter().map(|spec| spec.entry.len).sum();
        let mut values = vec![T::ZERO; len];
        for spec in parameters {
            init::fill(spec.initial, seed, &spec.entry.name, &mut values[spec.entry.range()]);
        }
        let mut buffer_values = vec![T::ZERO; buffers.iter().map(|spec| spec.entry.len).sum()];
        for spec in buffers {
            buffer_values[spec.entry.range()].fill(T::from_f64(spec.initial));
        }
        Self {
            entries: parameters.iter().map(|spec| spec.entry.clone()).collect(),
            values,
            gradients: vec![T::ZERO; len],
            buffers: buffers.iter().map(|spec| spec.entry.clone()).collect(),
            buffer_values,
            num_batches_tracked: 0,
        }
    }

    /// Where the parameters of `other` lie in these arrays and in its own: neighbours in both as one stretch.
    ///
    /// What is fixed and has another shape there, as the positions of another image size have, is not shared.
    ///
    /// # Panics
    /// If `other` has a parameter, by name, that is not among these.
    pub fn places_of(&self, other: &Self) -> Vec<(Range<usize>, Range<usize>)> {
        let mut places: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        for theirs in &other.entries {
            let ours = self.entries.iter().find(|ours| ours.name == theirs.name);
            let ours = ours.unwrap_or_else(|| panic!("no parameter {} to share", theirs.name));
            if ours.shape != theirs.shape {
                assert_eq!(theirs.kind, ParameterKind::Fixed, "another shape of {}", theirs.name);
                continue;
            }
            match places.last_mut() {
                Some((here, there)) if (here.end, there.end) == (ours.offset, theirs.offset) => {
                    (here.end, there.end) = (ours.range().end, theirs.range().end);
                }
                _ => places.push((ours.range(), theirs.range())),
            }
        }
        places
    }

    /// Lets a batch's `statistics` enter the running ones.
    pub(crate) fn update_buffers(&mut self, statistics: &[f64], update: BufferUpdate) {
        let share = match update {
            BufferUpdate::Momentum(momentum) => momentum,
            BufferUpdate::Cumulative { count } => 1.0 / count as f64,
        };
        for (running, statistic) in self.buffer_values.iter_mut().zip(statistics) {
            *running = T::from_f64((1.0 - share) * running.to_f64() + share * statistic);
        }
        self.num_batches_tracked += 1;
    }
}
