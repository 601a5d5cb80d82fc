//! The fused ops other than convolution: what each computes forward and backward.
//!
//! An op gets slices and a [`Cpu`](kernels::Cpu); where its data lives is the network's business.

pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod embed;
pub(crate) mod gelu;
pub(crate) mod layer_norm;
pub(crate) mod linear;
mod passes;
pub(crate) mod pool;
mod statistics;
pub(crate) mod token_linear;

#[cfg(test)]
mod tests;

pub(crate) use batch_norm::BatchNorm;
pub(crate) use pool::MaxPool;
pub(crate) use statistics::channel_sums;

use kernels::{Conv2d, Real, split};

/// What a node of the graph needs besides its operands.
pub(crate) enum Op<T: Real> {
    Conv(Conv2d),
    BatchNorm(BatchNorm<T>),
    MaxPool(MaxPool),
    AveragePool,
    Linear,
    Tokens,
}

/// Cuts rows of `width` elements into one piece per thread; the same cut for any data of as many rows.
fn pieces<T>(values: &[T], width: usize, threads: usize) -> impl Iterator<Item = &[T]> {
    let rows = values.len() / width;
    (0..threads).map(move |thread| {
        let range = split(rows, threads, thread);
        &values[range.start * width..range.end * width]
    })
}

/// As [`pieces`], to be written.
fn pieces_mut<T>(values: &mut [T], width: usize, threads: usize) -> impl Iterator<Item = &mut [T]> {
    let rows = values.len() / width;
    let mut rest = values;
    (0..threads).map(move |thread| {
        let len = split(rows, threads, thread).len() * width;
        rest.split_off_mut(..len).expect("the ranges tile the rows")
    })
}

/// Adds the `threads` partial sums `[threads, sums.len()]` in thread order.
fn add_partials(partials: &[f64], sums: &mut [f64]) {
    sums.fill(0.0);
    for partial in partials.chunks_exact(sums.len()) {
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum += partial;
        }
    }
}
