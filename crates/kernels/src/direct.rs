//! Direct convolution in `f32`, any kernel, stride, padding and number of channels.
//!
//! Work is divided by images: thread `t` of `T` takes images `n t / T .. n (t + 1) / T` in blocks
//! that stay in its cache. A block is copied into a frame of zeros, in planes of a few channels for the
//! weight gradient, and every pass is a sum of strips over it:
//!
//! | pass | rows of a strip | columns | terms |
//! | --- | --- | --- | --- |
//! | forward | output pixels | output channels | kernel taps × input channels |
//! | data gradient | input pixels of one remainder | input channels | the taps they meet × output channels |
//! | weight gradient | kernel taps × input channels | output channels | output pixels |
//!
//! A pixel never depends on the division. Each thread keeps its own weight gradient and channel
//! sums, which are added in thread order at the end. Weights are packed into panels once per call,
//! the panels divided over the threads.

use super::division::{Strides, TRANSPOSED, add_sums, add_weight_gradients, blocks, divide};
use super::frame::Frame;
use super::operands::{Backward, Forward, InputGradient};
use super::panels::Panels;
use super::pool::Pool;
use super::prologue::Input;
use super::scratch::{Pieces, f64s};
use super::shape::ConvShape;
use super::simd::InstructionSet;
use super::taps::Taps;
use super::window::{FEWEST_PIXELS, Output, Weights, Window};

/// Bytes of framed images in a block, measured on a second-level cache of 512 KiB: what the images are made from and what is
/// made from them pass through it as well.
const BLOCK_BYTES: usize = 96 << 10;

/// Output pixels in a block of the weight gradient, at least: the gradient is read and written once
/// per block.
const GRADIENT_PIXELS: usize = 256;

/// The three passes of one shape.
pub(super) struct DirectConv {
    isa: InstructionSet,
    threads: usize,
    plan: Plan,
}

/// What one thread writes while it works, in the order of [`Plan::pieces`].
struct Worker<'a> {
    /// A block of framed images.
    framed: &'a mut [f32],
    /// The output gradient of a block, if it is made here.
    made: &'a mut [f32],
    /// The same in panels.
    dy: &'a mut [f32],
    /// Its share of the weight gradient, panels of `[kh, kw, c_in]` rows.
    d_weights: &'a mut [f32],
    /// Its share of the channel sums, `[2, c_out]`.
    sums: &'a mut [f64],
}

/// Geometry, and how long every buffer is.
struct Plan {
    shape: ConvShape,
    forward: Window,
    input: Frame,
    /// The input as the weight gradient reads it.
    input_planes: Frame,
    backward: Vec<Window>,
    d_output: Frame,
    taps: Taps,
    /// Panels over the output channels.
    outputs: Panels,
    /// Panels over the input channels.
    inputs: Panels,
    /// Images in a block of the forward pass.
    block: usize,
    /// Images in a block of the data gradient.
    backward_block: usize,
    /// Images in a block of the weight gradient, whose data gradient is computed next.
    gradient_block: usize,
}

impl Plan {
    fn new(shape: ConvShape, lanes: usize, threads: usize) -> Self {
        let input = Frame::input(&shape);
        let input_planes = Frame::input_planes(&shape);
        let (d_output, backward) = Window::backward(&shape);
        let most = shape.n.div_ceil(threads).max(1);
        let block = |len: usize, pixels: usize| {
            let fewest = pixels.div_ceil(shape.out_h() * shape.out_w());
            (BLOCK_BYTES / size_of::<f32>() / len).max(fewest).clamp(1, most)
        };
        let gradient_block = block(input_planes.len().max(shape.output_len()), GRADIENT_PIXELS);
        Self {
            shape,
            forward: Window::forward(&shape),
            input,
            input_planes,
            backward,
            d_output,
            taps: Taps::new(&shape, gradient_block),
            outputs: Panels { columns: shape.c_out, lanes },
            inputs: Panels { columns: shape.c_in, lanes },
            block: block(input.len(), FEWEST_PIXELS),
            backward_block: block(d_output.len(), FEWEST_PIXELS),
            gradient_block,
        }
    }

    fn weights_len(&self) -> usize {
        let ConvShape { kernel, c_in, c_out, .. } = self.shape;
        kernel * kernel * (c_in * self.outputs.stored()).max(c_out * self.inputs.stored())
    }

    fn framed_len(&self) -> usize {
        (self.block * self.input.len())
            .max(self.gradient_block * self.input_planes.len())
            .max(self.backward_block * self.d_output.len())
    }

    fn dy_len(&self) -> usize {
        if self.outputs.is_one_full_panel() {
            return 0;
        }
        self.gradient_block * self.shape.out_h() * self.shape.out_w() * self.outputs.stored()
    }

    fn d_weights_len(&self) -> usize {
        self.taps.depth() * self.outputs.stored()
    }

    /// What a call writes besides its results. Shared are the weights, packed for [`Window::forward`] or one after the other
    /// for the windows of [`Window::backward`].
    fn pieces(&self, threads: usize) -> Pieces<5> {
        let made = self.gradient_block * self.shape.output_len();
        let sums = f64s(2 * self.shape.c_out);
        let of_thread = [self.framed_len(), made, self.dy_len(), self.d_weights_len(), sums];
        Pieces { shared: self.weights_len(), threads, of_thread }
    }
}

impl DirectConv {
    pub(super) fn new(shape: ConvShape, isa: InstructionSet, threads: usize) -> Self {
        Self { isa, threads, plan: Plan::new(shape, isa.lanes(), threads) }
    }

    /// Numbers of scratch for every pass.
    pub(super) fn scratch_len(&self) -> usize {
        self.plan.pieces(self.threads).len()
    }

    pub(super) fn forward(&self, pool: &Pool, n: usize, forward: Forward<'_, f32>) {
        let Forward { input, w, y, sums, scratch } = forward;
        let (weights, mut workers) = self.cut(scratch);
        let Self { isa, plan, .. } = self;
        let (isa, c_out, input_len, output_len) =
            (*isa, plan.shape.c_out, plan.shape.input_len(), plan.shape.output_len());
        let strides = Strides::forward(&plan.shape);
        let layout = Layout { strides, taps: &plan.forward.taps, panels: plan.outputs };
        pack_weights(pool, w, layout, weights);
        let weights = Weights { panels: plan.outputs, packed: weights };
        let with_sums = sums.is_some();
        pool.for_each_part(divide(pool, &mut workers, n, y, output_len), |_, (images, y, worker)| {
            let (sum, squares) = worker.sums.split_at_mut(c_out);
            sum.fill(0.0);
            squares.fill(0.0);
            for (block, y) in blocks(images, plan.block).zip(y.chunks_mut(plan.block * output_len)) {
                let input = input.slice(block.start * input_len..block.end * input_len);
                let framed = plan.input.place(isa, input, worker.framed);
                let mut output =
                    Output { c: y, accumulate: false, sums: with_sums.then_some([&mut *sum, &mut *squares]) };
                plan.forward.sum(isa, framed, weights, &mut output);
            }
        });
        if let Some(sums) = sums {
            add_sums(workers.iter().map(|worker| &worker.sums[..]), sums);
        }
    }

    /// Both gradients, block by block, so that the second one finds the output's gradient in the cache.
    pub(super) fn backward(&self, pool: &Pool, n: usize, backward: Backward<'_, f32>) {
        let Backward { input, d_y, w, d_w, d_x, scratch } = backward;
        let (weights, mut workers) = self.cut(scratch);
        let Self { isa, plan, .. } = self;
        let (isa, input_len, output_len) = (*isa, plan.shape.input_len(), plan.shape.output_len());
        let InputGradient { d_x, accumulate, then } = d_x.unwrap_or_default();
        let width = if d_x.is_empty() { 0 } else { input_len };
        if width > 0 {
            plan.pack_backward_weights(pool, w, weights);
        }
        let weights = &*weights;
        pool.for_each_part(divide(pool, &mut workers, n, d_x, width), |thread, (images, d_x, worker)| {
            let made = std::mem::take(&mut worker.made);
            if images.is_empty() {
                worker.d_weights.fill(0.0);
            }
            for block in blocks(images.clone(), plan.gradient_block) {
                let x = input.slice(block.start * input_len..block.end * input_len);
                let d_y = d_y.of(block.clone(), output_len, &mut *made);
                plan.add_weight_gradient(isa, (x, d_y), worker, block.start > images.start);
                if width > 0 {
                    let d_x =
                        &mut d_x[(block.start - images.start) * width..(block.end - images.start) * width];
                    plan.input_gradient(isa, (d_y, weights), d_x, worker, accumulate);
                    if let Some(then) = then {
                        then(thread, block, d_x);
                    }
                }
            }
        });
        let parts = workers.iter().map(|worker| &worker.d_weights[..]);
        add_weight_gradients(pool, &plan.shape, plan.outputs, &parts.collect::<Vec<_>>(), d_w);
    }

    /// Room for the packed weights, and for each thread.
    fn cut<'a>(&self, scratch: &'a mut [f32]) -> (&'a mut [f32], Vec<Worker<'a>>) {
        let (weights, threads) = self.plan.pieces(self.threads).cut(scratch);
        let worker = |[framed, made, dy, d_weights, sums]: [&'a mut [f32]; 5]| Worker {
            framed,
            made,
            dy,
            d_weights,
            sums: bytemuck::cast_slice_mut(sums),
        };
        (weights, threads.into_iter().map(worker).collect())
    }
}

impl Plan {
    /// Packs the weights for each window of the data gradient, one after the other.
    fn pack_backward_weights(&self, pool: &Pool, w: &[f32], weights: &mut [f32]) {
        let strides = Strides::backward(&self.shape);
        let mut rest = weights;
        for window in &self.backward {
            let part = rest.split_off_mut(..self.packed_len(window)).expect("the windows share the taps");
            pack_weights(pool, w, Layout { strides, taps: &window.taps, panels: self.inputs }, part);
        }
    }

    fn packed_len(&self, window: &Window) -> usize {
        window.depth() * self.inputs.stored()
    }

    /// Computes the data gradient of some images.
    fn input_gradient(
        &self,
        isa: InstructionSet,
        (d_y, weights): (&[f32], &[f32]),
        d_x: &mut [f32],
        worker: &mut Worker<'_>,
        accumulate: bool,
    ) {
        if !accumulate && self.backward.iter().any(|window| window.depth() == 0) {
            // No output reads these pixels.
            d_x.fill(0.0);
        }
        let (output_len, input_len) = (self.shape.output_len(), self.shape.input_len());
        let blocks = d_y.chunks(self.backward_block * output_len);
        for (d_y, d_x) in blocks.zip(d_x.chunks_mut(self.backward_block * input_len)) {
            let framed = self.d_output.place(isa, Input::plain(d_y), worker.framed);
            let mut weights = weights;
            for window in self.backward.iter().filter(|window| window.depth() > 0) {
                let (packed, rest) = weights.split_at(self.packed_len(window));
                let mut output = Output { c: &mut *d_x, accumulate, sums: None };
                window.sum(isa, framed, Weights { panels: self.inputs, packed }, &mut output);
                weights = rest;
            }
        }
    }

    /// Adds the weight gradient of a block of images to the thread's share, or begins it.
    fn add_weight_gradient(
        &self,
        isa: InstructionSet,
        (x, d_y): (Input<'_, f32>, &[f32]),
        worker: &mut Worker<'_>,
        accumulate: bool,
    ) {
        let framed = self.input_planes.place(isa, x, worker.framed);
        let d_y = if self.outputs.is_one_full_panel() {
            d_y
        } else {
            let packed = &mut worker.dy[..d_y.len() / self.shape.c_out * self.outputs.stored()];
            pack_panels(self.outputs, d_y, packed);
            packed
        };
        self.taps.sum(isa, framed, (self.outputs, d_y), worker.d_weights, accumulate);
    }
}

/// Packs rows into panels, a few rows at a time, so that memory is read in its order.
fn pack_panels(panels: Panels, rows: &[f32], packed: &mut [f32]) {
    let pitch = panels.columns;
    let count = rows.len() / pitch;
    for some in blocks(0..count, 16) {
        for panel in panels.iter() {
            let packed = &mut packed[panel.range(count)][some.start * panel.width..some.end * panel.width];
            panel.pack_rows(&rows[some.start * pitch..some.end * pitch], pitch, packed);
        }
    }
}

/// How weights are packed.
#[derive(Clone, Copy)]
struct Layout<'a> {
    strides: Strides,
    taps: &'a [usize],
    panels: Panels,
}

/// Packs weights into panels of `[taps, depth]` rows, the panels divided over the threads.
fn pack_weights(pool: &Pool, w: &[f32], layout: Layout<'_>, packed: &mut [f32]) {
    let Layout { strides, taps, panels } = layout;
    // The weights are columns x depth x taps, and the shorter stride steps over the taps alone.
    let depth = w.len() / (panels.columns * strides.column.min(strides.depth));
    let mut rest = packed;
    let parts = panels.iter().map(|panel| {
        let part =
            rest.split_off_mut(..taps.len() * depth * panel.width).expect("the panels fit their buffer");
        (panel, part)
    });
    pool.for_each_part(parts.collect(), |_, (panel, packed)| {
        if panel.columns < panel.width {
            packed.fill(0.0);
        }
        for channels in blocks(0..depth, TRANSPOSED) {
            for column in 0..panel.columns {
                for channel in channels.clone() {
                    let w = &w[(panel.first + column) * strides.column + channel * strides.depth..];
                    for (index, &tap) in taps.iter().enumerate() {
                        packed[(index * depth + channel) * panel.width + column] = w[tap];
                    }
                }
            }
        }
    });
}
