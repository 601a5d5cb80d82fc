//! Batch norm (Ioffe & Szegedy 2015) with what follows it in a residual net, the sum and the ReLU.
//!
//! Forward, with `x^ = (x - mean) / sqrt(variance + eps)` over all rows of all ranks: `y = relu(scale x^ + shift
//! + shortcut)`. Backward, with `g` the gradient behind the ReLU and `m` the values per channel on all ranks:
//!
//! `d_x = scale / sqrt(variance + eps) * (g - sum(g) / m - x^ * sum(g x^) / m)`
//!
//! where both sums run over all ranks; `d_scale = sum(g x^)` and `d_shift = sum(g)` stay sums over this rank's
//! rows, because parameter gradients are summed over ranks afterwards. Statistics that are frozen do not depend on `x`,
//! and both means vanish from `d_x`.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::passes::{
    Addend, Affine, Apply, InputGradient, MaskedInputGradient, MaskedSums, ResidualSums, floor,
};
use super::statistics::{self, EPSILON, Moments};
use super::{add_partials, pieces, pieces_mut};
use crate::graph::{BatchNormNode, Graph, Norm, ParameterId, Shortcut};
use crate::parameters::Parameters;
use kernels::peers::{PeerError, Peers};
use kernels::{Cpu, KernelPath, Prologue, Real, vectorized};

/// One op: the main normalisation, and the shortcut's if that is projected.
pub(crate) struct BatchNorm<T> {
    channels: usize,
    relu: bool,
    has_shortcut: bool,
    norms: Vec<Normalisation<T>>,
    /// Values per channel on all ranks, in the last training pass; infinite if the statistics are of no batch.
    count: f64,
    /// Of each thread `[1 + norms, channels]`: sums of `g`, then of `g * (x - mean)` for each norm.
    partials: Vec<Mutex<Vec<f64>>>,
    sums: Vec<f64>,
}

struct Normalisation<T> {
    scale: Option<Range<usize>>,
    shift: Option<Range<usize>>,
    running_mean: Range<usize>,
    running_var: Range<usize>,
    inverse_deviation: Vec<f64>,
    mean: Vec<T>,
    affine: Affine<T>,
    gradient: InputGradient<T>,
}

/// What the forward pass reads and writes.
pub(crate) struct ForwardViews<'a, T> {
    pub x: &'a [T],
    /// The addend, or what the shortcut's norm normalises.
    pub shortcut: Option<&'a [T]>,
    pub y: &'a mut [T],
}

/// What the backward pass reads and writes.
pub(crate) enum BackwardViews<'a, T> {
    /// Without a shortcut.
    Single { x: &'a [T], d: &'a [T] },
    /// With one, `d` becomes the gradient of the addend: `d_y` where the ReLU let something through. `projected` is
    /// what the shortcut's norm normalises.
    Residual { x: &'a [T], projected: Option<&'a [T]>, y: &'a [T], d: &'a mut [T] },
}

impl<T: Real> BatchNorm<T> {
    pub fn new(graph: &Graph, node: &BatchNormNode, threads: usize) -> Self {
        // The mask of a sum is read off its output, which is kept for that reason only.
        assert!(node.relu || matches!(node.shortcut, Shortcut::None), "a residual sum ends in a ReLU");
        let norms: Vec<_> = node.norms().map(|norm| Normalisation::new(graph, norm)).collect();
        let channels = graph.shape(node.y).c;
        let n_sums = (1 + norms.len()) * channels;
        let partials = (0..threads).map(|_| Mutex::new(vec![0.0; n_sums])).collect();
        let sums = vec![0.0; n_sums];
        let has_shortcut = !matches!(node.shortcut, Shortcut::None);
        Self { channels, relu: node.relu, has_shortcut, norms, count: 0.0, partials, sums }
    }

    /// Bytes of buffers that [`BatchNorm::new`] allocates.
    pub fn predicted_bytes(graph: &Graph, node: &BatchNormNode, threads: usize) -> usize {
        let (channels, norms) = (graph.shape(node.y).c, node.norms().count());
        let per_norm = size_of::<f64>() + 6 * size_of::<T>();
        channels * (norms * per_norm + (threads + 1) * (1 + norms) * size_of::<f64>())
    }

    /// Takes the statistics of a training batch and stages them for the running ones.
    ///
    /// - `count`: values per channel on this rank; `sums`: per norm `[2, channels]`, sum and sum of squares
    /// - `staged`: as long as the running statistics; gets mean and unbiased variance
    pub fn use_batch_statistics(
        &mut self,
        (count, sums): (usize, &[&[f64]]),
        parameters: &Parameters<T>,
        staged: &mut [f64],
        peers: &mut dyn Peers,
    ) -> Result<(), PeerError> {
        self.clear_partials();
        let moments = statistics::gather(count, sums, peers)?;
        self.count = moments[0].count;
        for (norm, moments) in self.norms.iter_mut().zip(moments.chunks_exact(self.channels)) {
            norm.use_statistics(parameters, moments.iter().map(|m| (m.mean, m.biased_variance())));
            fill(&mut staged[norm.running_mean.clone()], moments.iter().map(|m| m.mean));
            fill(&mut staged[norm.running_var.clone()], moments.iter().map(Moments::unbiased_variance));
        }
        Ok(())
    }

    /// Takes the running statistics for a training pass, as constants.
    pub fn freeze(&mut self, parameters: &Parameters<T>) {
        self.clear_partials();
        self.count = f64::INFINITY;
        self.use_running_statistics(parameters);
    }

    fn clear_partials(&mut self) {
        for partial in &mut self.partials {
            partial.get_mut().unwrap_or_else(PoisonError::into_inner).fill(0.0);
        }
    }

    /// Takes the running statistics, for evaluation.
    pub fn use_running_statistics(&mut self, parameters: &Parameters<T>) {
        for norm in &mut self.norms {
            let mean = &parameters.buffer_values[norm.running_mean.clone()];
            let variance = &parameters.buffer_values[norm.running_var.clone()];
            norm.use_statistics(parameters, mean.iter().zip(variance).map(|(m, v)| (m.to_f64(), v.to_f64())));
        }
    }

    /// Normalises by the statistics taken last, adds the shortcut and applies the ReLU.
    pub fn forward(&self, cpu: &Cpu, views: ForwardViews<'_, T>) {
        let (channels, threads) = (self.channels, cpu.threads());
        let mut shortcut = views.shortcut.map(|shortcut| pieces(shortcut, channels, threads));
        let passes = pieces(views.x, channels, threads)
            .zip(pieces_mut(views.y, channels, threads))
            .map(|(x, y)| {
                let shortcut = shortcut.as_mut().and_then(Iterator::next);
                let addend = match (shortcut, self.norms.get(1)) {
                    (None, _) => Addend::Nothing,
                    (Some(shortcut), None) => Addend::Plain(shortcut),
                    (Some(shortcut), Some(norm)) => Addend::Affine(shortcut, &norm.affine),
                };
                Apply { x, affine: &self.norms[0].affine, addend, floor: floor(self.relu), y }
            })
            .collect();
        cpu.run(channels, passes);
    }

    /// The normalisation as the convolutions behind it do it, by the statistics taken last.
    pub fn prologue(&self) -> Prologue<'_, T> {
        let Affine { multiplier, offset } = &self.norms[0].affine;
        Prologue { multiplier, offset, relu: self.relu }
    }

    /// Adds up what the gradients of some pixels say about the statistics, for one thread; masks a residual sum's.
    ///
    /// Every pixel is added once between [`BatchNorm::use_batch_statistics`], or [`BatchNorm::freeze`], and
    /// [`BatchNorm::backward`].
    pub fn add_gradients(&self, path: KernelPath, thread: usize, views: BackwardViews<'_, T>) {
        let mut partial = self.partials[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let sums = &mut partial[..];
        let Normalisation { mean: centre, affine, .. } = &self.norms[0];
        match views {
            BackwardViews::Single { x, d } => {
                let floor = floor(self.relu);
                vectorized(path, self.channels, MaskedSums { x, affine, centre, floor, d, sums });
            }
            BackwardViews::Residual { x, projected: None, y, d } => {
                vectorized(path, self.channels, ResidualSums { x: [x], centre: [centre], y, d, sums });
            }
            BackwardViews::Residual { x, projected: Some(projected), y, d } => {
                let (x, centre) = ([x, projected], [&centre[..], &self.norms[1].mean]);
                vectorized(path, self.channels, ResidualSums { x, centre, y, d, sums });
            }
        }
    }

    /// [`BatchNorm::add_gradients`] of all pixels.
    pub fn add_all_gradients(&self, cpu: &Cpu, views: BackwardViews<'_, T>) {
        let (channels, threads) = (self.channels, cpu.threads());
        let parts = match views {
            BackwardViews::Single { x, d } => pieces(x, channels, threads)
                .zip(pieces(d, channels, threads))
                .map(|(x, d)| BackwardViews::Single { x, d })
                .collect::<Vec<_>>(),
            BackwardViews::Residual { x, projected, y, d } => {
                let mut projected = projected.map(|projected| pieces(projected, channels, threads));
                pieces(x, channels, threads)
                    .zip(pieces(y, channels, threads))
                    .zip(pieces_mut(d, channels, threads))
                    .map(|((x, y), d)| {
                        let projected = projected.as_mut().and_then(Iterator::next);
                        BackwardViews::Residual { x, projected, y, d }
                    })
                    .collect()
            }
        };
        cpu.pool.for_each_part(parts, |thread, views| self.add_gradients(cpu.path, thread, views));
    }

    /// Computes the gradients of the parameters from what was added up, and prepares those of the inputs.
    ///
    /// Writes into `parameters.gradients`; in [`BatchNorm::parameter_ranges`]' places.
    pub fn backward(
        &mut self,
        parameters: &mut Parameters<T>,
        peers: &mut dyn Peers,
    ) -> Result<(), PeerError> {
        self.sums.fill(0.0);
        for partial in &mut self.partials {
            let partial = partial.get_mut().unwrap_or_else(PoisonError::into_inner);
            self.sums.iter_mut().zip(partial).for_each(|(sum, partial)| *sum += *partial);
        }
        let (g, products) = self.sums.split_at(self.channels);
        for (norm, products) in self.norms.iter().zip(products.chunks_exact(self.channels)) {
            let d_scale = products.iter().zip(&norm.inverse_deviation).map(|(sum, inverse)| sum * inverse);
            if let Some(scale) = &norm.scale {
                fill(&mut parameters.gradients[scale.clone()], d_scale.map(T::from_f64));
            }
            if let Some(shift) = &norm.shift {
                fill(&mut parameters.gradients[shift.clone()], g.iter().map(|&sum| T::from_f64(sum)));
            }
        }
        let gathered = peers.all_gather_f64(&self.sums)?;
        add_partials(&gathered, &mut self.sums);
        let (g, products) = self.sums.split_at(self.channels);
        for (norm, products) in self.norms.iter_mut().zip(products.chunks_exact(self.channels)) {
            norm.prepare_gradient(&parameters.values, self.count, g, products);
        }
        Ok(())
    }

    /// Writes the gradient of the input `x` of one of the norms, for some pixels, as [`BatchNorm::backward`] has
    /// prepared it.
    ///
    /// - `d`: that of the output, or what the backward pass has made of it
    pub fn input_gradient(&self, norm: usize, path: KernelPath, (x, d): (&[T], &[T]), d_x: &mut [T]) {
        // Behind a shortcut `d` is masked already: nothing more is held back.
        let floor = floor(self.relu && !self.has_shortcut);
        let Normalisation { mean, affine, gradient, .. } = &self.norms[norm];
        vectorized(
            path,
            self.channels,
            MaskedInputGradient { x, affine, centre: mean, gradient, floor, d, d_x },
        );
    }

    /// The places of the parameters, scale before shift, the shortcut's last.
    pub fn parameter_ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.norms.iter().flat_map(|norm| [norm.scale.clone(), norm.shift.clone()]).flatten()
    }
}

impl<T: Real> Normalisation<T> {
    fn new(graph: &Graph, norm: &Norm) -> Self {
        let channels = graph.shape(norm.x).c;
        let range = |id: ParameterId| graph.parameters[id.0].entry.range();
        let zeros = || vec![T::ZERO; channels];
        Self {
            scale: norm.scale.map(range),
            shift: norm.shift.map(range),
            running_mean: graph.buffers[norm.running_mean].entry.range(),
            running_var: graph.buffers[norm.running_mean + 1].entry.range(),
            inverse_deviation: vec![0.0; channels],
            mean: zeros(),
            affine: Affine { multiplier: zeros(), offset: zeros() },
            gradient: InputGradient { on_gradient: zeros(), on_centred: zeros(), constant: zeros() },
        }
    }

    /// Prepares the normalisation from mean and variance of each channel.
    fn use_statistics(&mut self, parameters: &Parameters<T>, statistics: impl Iterator<Item = (f64, f64)>) {
        let scale = self.scale.clone().map(|range| &parameters.values[range]);
        let shift = self.shift.clone().map(|range| &parameters.values[range]);
        for (channel, (mean, variance)) in statistics.enumerate() {
            let inverse = 1.0 / (variance + EPSILON).sqrt();
            let multiplier = scale.map_or(1.0, |scale| scale[channel].to_f64()) * inverse;
            let shift = shift.map_or(0.0, |shift| shift[channel].to_f64());
            self.inverse_deviation[channel] = inverse;
            self.mean[channel] = T::from_f64(mean);
            self.affine.multiplier[channel] = T::from_f64(multiplier);
            self.affine.offset[channel] = T::from_f64(shift - mean * multiplier);
        }
    }

    /// Prepares the input gradient from the sums over all ranks of `g` and `g * (x - mean)`.
    fn prepare_gradient(&mut self, values: &[T], count: f64, g: &[f64], products: &[f64]) {
        let scale = self.scale.clone().map(|range| &values[range]);
        for channel in 0..g.len() {
            let inverse = self.inverse_deviation[channel];
            let on_gradient = scale.map_or(1.0, |scale| scale[channel].to_f64()) * inverse;
            let on_centred = -on_gradient * inverse * inverse * products[channel] / count;
            self.gradient.on_gradient[channel] = T::from_f64(on_gradient);
            self.gradient.on_centred[channel] = T::from_f64(on_centred);
            self.gradient.constant[channel] = T::from_f64(-on_gradient * g[channel] / count);
        }
    }
}

fn fill<T>(target: &mut [T], values: impl Iterator<Item = T>) {
    for (target, value) in target.iter_mut().zip(values) {
        *target = value;
    }
}
