//! Direct convolution in `f32`, any kernel, stride, padding and number of channels.
//!
//! Work is divided by images: thread `t` of `T` takes images `n t / T .. n (t + 1) / T` in blocks
//! that stay in its cache. A block is copied into a frame of zeros, and every pass is a sum of
//! strips over it:
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

use super::aligned::AlignedVec;
use super::backward::{Backward, InputGradient};
use super::conv::ConvShape;
use super::division::{Strides, TRANSPOSED, add_sums, add_weight_gradients, blocks, divide};
use super::frame::Frame;
use super::panels::Panels;
use super::pool::Pool;
use super::prologue::Input;
use super::simd::InstructionSet;
use super::taps::Taps;
use super::window::{FEWEST_PIXELS, Output, Weights, Window};

/// Bytes of framed images in a block: a fifth of the smallest second-level cache in use, since what the images are made
/// from and what is made from them pass through it as well.
const BLOCK_BYTES: usize = 96 << 10;

/// Output pixels in a block of the weight gradient, at least: the gradient is read and written once
/// per block.
const GRADIENT_PIXELS: usize = 256;

/// The three passes of one shape, with their packed weights and each thread's scratch.
pub(super) struct DirectConv {
    isa: InstructionSet,
    plan: Plan,
    /// Of the pass under way: packed for [`Window::forward`] or one after the other for the windows
    /// of [`Window::backward`].
    weights: AlignedVec<f32>,
    workers: Vec<Worker>,
}

/// What one thread writes while it works.
struct Worker {
    /// A block of framed images.
    framed: AlignedVec<f32>,
    /// The block's output gradient in panels.
    dy: AlignedVec<f32>,
    /// Its share of the weight gradient, panels of `[kh, kw, c_in]` rows.
    d_weights: AlignedVec<f32>,
    /// Its share of the channel sums, `[2, c_out]`.
    sums: AlignedVec<f64>,
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

    fn bytes(&self, threads: usize) -> usize {
        AlignedVec::<f32>::bytes(self.weights_len())
            + threads
                * (AlignedVec::<f32>::bytes(self.framed_len())
                    + AlignedVec::<f32>::bytes(self.dy_len())
                    + AlignedVec::<f32>::bytes(self.d_weights_len())
                    + AlignedVec::<f64>::bytes(2 * self.shape.c_out))
    }
}

impl DirectConv {
    pub(super) fn new(shape: ConvShape, isa: InstructionSet, threads: usize) -> Self {
        let plan = Plan::new(shape, isa.lanes(), threads);
        let worker = || Worker {
            framed: AlignedVec::zeroed(plan.framed_len()),
            dy: AlignedVec::zeroed(plan.dy_len()),
            d_weights: AlignedVec::zeroed(plan.d_weights_len()),
            sums: AlignedVec::zeroed(2 * shape.c_out),
        };
        let workers = (0..threads).map(|_| worker()).collect();
        Self { isa, weights: AlignedVec::zeroed(plan.weights_len()), workers, plan }
    }

    pub(super) fn predicted_bytes(shape: &ConvShape, isa: InstructionSet, threads: usize) -> usize {
        Plan::new(*shape, isa.lanes(), threads).bytes(threads)
    }

    /// Numbers of scratch for [`DirectConv::backward`].
    pub(super) fn scratch_len(shape: &ConvShape, isa: InstructionSet, threads: usize) -> usize {
        threads * Plan::new(*shape, isa.lanes(), threads).gradient_block * shape.output_len()
    }

    pub(super) fn forward(
        &mut self,
        pool: &Pool,
        n: usize,
        input: Input<'_, f32>,
        w: &[f32],
        y: &mut [f32],
        sums: Option<&mut [f64]>,
    ) {
        let Self { isa, plan, weights, workers } = self;
        let (isa, c_out, input_len, output_len) =
            (*isa, plan.shape.c_out, plan.shape.input_len(), plan.shape.output_len());
        let strides = Strides::forward(&plan.shape);
        let layout = Layout { strides, taps: &plan.forward.taps, panels: plan.outputs };
        pack_weights(pool, w, layout, weights);
        let weights = Weights { panels: plan.outputs, packed: weights };
        let with_sums = sums.is_some();
        pool.for_each_part(divide(pool, workers, n, y, output_len), |_, (images, y, worker)| {
            let (sum, squares) = worker.sums.split_at_mut(c_out);
            sum.fill(0.0);
            squares.fill(0.0);
            for (block, y) in blocks(images, plan.block).zip(y.chunks_mut(plan.block * output_len)) {
                let input = input.slice(block.start * input_len..block.end * input_len);
                let framed = plan.input.place(isa, input, &mut worker.framed);
                let mut output =
                    Output { c: y, accumulate: false, sums: with_sums.then_some([&mut *sum, &mut *squares]) };
                plan.forward.sum(isa, framed, weights, &mut output);
            }
        });
        if let Some(sums) = sums {
            add_sums(workers[..pool.threads()].iter().map(|worker| &worker.sums[..]), sums);
        }
    }

    /// Both gradients, block by block, so that the second one finds the output's gradient in the cache.
    pub(super) fn backward(&mut self, pool: &Pool, n: usize, backward: Backward<'_, f32>) {
        let Backward { input, d_y, w, d_w, d_x, scratch } = backward;
        let Self { isa, plan, weights, workers } = self;
        let (isa, input_len, output_len) = (*isa, plan.shape.input_len(), plan.shape.output_len());
        let InputGradient { d_x, accumulate, then } = d_x.unwrap_or_default();
        let width = if d_x.is_empty() { 0 } else { input_len };
        if width > 0 {
            plan.pack_backward_weights(pool, w, weights);
        }
        let parts = divide(pool, workers, n, d_x, width).into_iter();
        let parts = parts.zip(scratch.chunks_mut(plan.gradient_block * output_len)).collect();
        pool.for_each_part(parts, |thread, ((images, d_x, worker), scratch)| {
            if images.is_empty() {
                worker.d_weights.fill(0.0);
            }
            for block in blocks(images.clone(), plan.gradient_block) {
                let x = input.slice(block.start * input_len..block.end * input_len);
                let d_y = d_y.of(block.clone(), output_len, scratch);
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
        let parts = workers[..pool.threads()].iter().map(|worker| &worker.d_weights[..]);
        add_weight_gradients(pool, &plan.shape, plan.outputs, &parts.collect::<Vec<_>>(), d_w);
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
        worker: &mut Worker,
        accumulate: bool,
    ) {
        if !accumulate && self.backward.iter().any(|window| window.depth() == 0) {
            // No output reads these pixels.
            d_x.fill(0.0);
        }
        let (output_len, input_len) = (self.shape.output_len(), self.shape.input_len());
        let blocks = d_y.chunks(self.backward_block * output_len);
        for (d_y, d_x) in blocks.zip(d_x.chunks_mut(self.backward_block * input_len)) {
            let framed = self.d_output.place(isa, Input::plain(d_y), &mut worker.framed);
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
        worker: &mut Worker,
        accumulate: bool,
    ) {
        let framed = self.input_planes.place(isa, x, &mut worker.framed);
        let d_y = if self.outputs.is_one_full_panel() {
            d_y
        } else {
            let packed = &mut worker.dy[..d_y.len() / self.shape.c_out * self.outputs.stored()];
            pack_panels(self.outputs, d_y, packed);
            packed
        };
        self.taps.sum(isa, framed, (self.outputs, d_y), &mut worker.d_weights, accumulate);
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

#[cfg(test)]
mod tests {
    use super::{AlignedVec, ConvShape, DirectConv, InstructionSet};
    use crate::kernels::KernelPath;

    #[test]
    fn buffers_are_as_large_as_predicted() {
        let shape = ConvShape { n: 5, h: 9, w: 9, c_in: 3, c_out: 33, kernel: 3, stride: 2, pad: 1 };
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            let isa = InstructionSet::new(path);
            let conv = DirectConv::new(shape, isa, 3);
            let floats =
                conv.workers.iter().flat_map(|worker| [&worker.framed, &worker.dy, &worker.d_weights]);
            let floats: usize =
                floats.chain([&conv.weights]).map(|buffer| AlignedVec::<f32>::bytes(buffer.len())).sum();
            let sums: usize =
                conv.workers.iter().map(|worker| AlignedVec::<f64>::bytes(worker.sums.len())).sum();
            assert_eq!(DirectConv::predicted_bytes(&shape, isa, 3), floats + sums, "{path}");
        }
    }
}
