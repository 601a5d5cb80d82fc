//! How a convolution's work is divided over the threads and their shares are joined.

use std::ops::Range;

use super::panels::Panels;
use super::pool::{Pool, split};
use super::shape::ConvShape;

/// Channels whose weights are transposed at a time, so that a cache line is used up before it is lost.
pub(super) const TRANSPOSED: usize = 16;

/// Hands each thread its images, their part of `data` (rows of `width`) and its scratch.
pub(super) fn divide<'a, 'b, W, T>(
    pool: &Pool,
    workers: &'a mut [W],
    n: usize,
    data: &'b mut [T],
    width: usize,
) -> Vec<(Range<usize>, &'b mut [T], &'a mut W)> {
    let threads = pool.threads();
    let mut rest = data;
    let parts = workers.iter_mut().take(threads).enumerate().map(|(thread, worker)| {
        let images = split(n, threads, thread);
        let part = rest.split_off_mut(..images.len() * width).expect("the images fit their buffer");
        (images, part, worker)
    });
    parts.collect()
}

/// Cuts a range into blocks.
pub(super) fn blocks(range: Range<usize>, block: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(block).map(move |start| start..(start + block).min(end))
}

/// Cuts `0..len` into blocks of nearly the same size, all but the last of whole `strips`, of which `most` is a multiple
/// unless it is `len`.
pub(super) fn even_blocks(len: usize, most: usize, strips: usize) -> impl Iterator<Item = Range<usize>> {
    let count = len.div_ceil(most);
    let strips_of = move |index| split(len.div_ceil(strips), count, index);
    (0..count).map(strips_of).map(move |of| of.start * strips..len.min(of.end * strips))
}

/// Where a weight lies in `[c_out, c_in, kh, kw]`, as the rows and columns of a product see it:
/// `column * i + depth * j + tap`.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    pub(super) column: usize,
    pub(super) depth: usize,
}

impl Strides {
    /// Columns are output channels, depth is input channels.
    pub(super) fn forward(shape: &ConvShape) -> Self {
        let taps = shape.kernel * shape.kernel;
        Self { column: shape.c_in * taps, depth: taps }
    }

    /// Columns are input channels, depth is output channels.
    pub(super) fn backward(shape: &ConvShape) -> Self {
        let taps = shape.kernel * shape.kernel;
        Self { column: taps, depth: shape.c_in * taps }
    }
}

/// Adds the threads' channel sums, in their order.
pub(super) fn add_sums<'a>(parts: impl Iterator<Item = &'a [f64]>, sums: &mut [f64]) {
    sums.fill(0.0);
    for part in parts {
        for (sum, part) in sums.iter_mut().zip(part) {
            *sum += part;
        }
    }
}

/// Adds the threads' weight gradients, in their order; the panels are divided over the threads.
///
/// - `parts`: of each thread, panels of `[kh, kw, c_in]` rows; `dw`: `[c_out, c_in, kh, kw]`
pub(super) fn add_weight_gradients(
    pool: &Pool,
    shape: &ConvShape,
    outputs: Panels,
    parts: &[&[f32]],
    dw: &mut [f32],
) {
    let taps = shape.kernel * shape.kernel;
    let depth = shape.c_in * taps;
    let panels: Vec<_> = outputs.iter().zip(dw.chunks_mut(2 * outputs.lanes * depth)).collect();
    pool.for_each_part(panels, |_, (panel, dw)| {
        dw.fill(0.0);
        for part in parts {
            let part = &part[panel.range(depth)];
            for channels in blocks(0..shape.c_in, TRANSPOSED) {
                for (column, dw) in dw.chunks_exact_mut(depth).enumerate() {
                    let some = dw[channels.start * taps..channels.end * taps].chunks_exact_mut(taps);
                    for (channel, dw) in channels.clone().zip(some) {
                        for (tap, dw) in dw.iter_mut().enumerate() {
                            *dw += part[(tap * shape.c_in + channel) * panel.width + column];
                        }
                    }
                }
            }
        }
    });
}
