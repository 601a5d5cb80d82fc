//! Winograd's convolution F(4x4, 3x3) in `f32`, for kernels of 3 with stride 1 and padding 1.
//!
//! Images are cut into tiles of 4 x 4 pixels; in the basis of [`transforms`](super::transforms) a
//! tile's convolution is one product per each of 36 points, so that 36 multiplications do the work
//! of 144. The products over channels are matrix products of the same strips as everywhere:
//!
//! | pass | rows of a strip | columns | terms |
//! | --- | --- | --- | --- |
//! | forward, data gradient | tiles | output (input) channels | input (output) channels |
//! | weight gradient | input channels | output channels | tiles |
//!
//! Work is divided by images as in direct convolution, in blocks of tiles whose transforms stay in
//! the cache. The gradient of a transformed weight never reaches memory: the 36 sums of a strip are
//! transformed back at once. Sides that are no multiple of four end in tiles cut off at the edge.

use std::ops::Range;

use super::aligned::AlignedVec;
use super::conv::ConvShape;
use super::division::{Strides, add_sums, add_weight_gradients, blocks, divide};
use super::panels::{Panel, Panels};
use super::pool::Pool;
use super::prologue;
use super::simd::{InstructionSet, MAX_ROWS};
use super::strip::{MAX_WIDTH, Rows, Target, Terms, strip};
use super::tiles::{Collect, Source, Spread, Tiles};
use super::transforms::{CollectWeights, Input, OutputGradient, POINTS, SpreadWeights};

/// Tiles in a block of the forward pass or the data gradient: for few channels as many as stay in
/// the second-level cache, for many channels enough to be worth reading the transformed weights.
const BLOCK_TILES: [usize; 2] = [32, 64];

/// Bytes of a block's transformed input, between those bounds.
const BLOCK_BYTES: usize = 256 << 10;

/// Tiles in a block of the weight gradient, where each block pays for transforming its sums back.
const GRADIENT_TILES: usize = 64;

/// Measured on a Zen 4 core over 16 to 512 channels and sides of 2 to 32, on every path.
const TRANSFORM_CHANNELS: f64 = 5.3;

/// Numbers between the planes of a transform, lest all 36 fall into one set of the cache.
const GAP: usize = 16;

/// The three passes of one shape, with their transformed weights and each thread's scratch.
pub(super) struct WinogradConv {
    isa: InstructionSet,
    plan: Plan,
    /// Transformed, of the pass under way: for each panel `[POINTS, depth, width]`.
    weights: AlignedVec<f32>,
    workers: Vec<Worker>,
}

/// What one thread writes while it works.
struct Worker {
    /// A block's transformed images, `[POINTS, tiles, channels]`.
    images: AlignedVec<f32>,
    /// The products of a block and one panel, `[POINTS, tiles, width]`; for the weight gradient the
    /// transformed output gradient, for each panel `[POINTS, tiles, width]`.
    outputs: AlignedVec<f32>,
    /// Its share of the weight gradient, panels of `[kh, kw, c_in]` rows.
    d_weights: AlignedVec<f32>,
    /// Its share of the channel sums, `[2, c_out]`.
    sums: AlignedVec<f64>,
}

/// Geometry, and how long every buffer is.
struct Plan {
    shape: ConvShape,
    /// Panels over the output channels.
    outputs: Panels,
    /// Panels over the input channels.
    inputs: Panels,
    /// Tiles in a block of the forward pass or the data gradient.
    block: usize,
    /// Tiles in a block of the weight gradient.
    gradient_block: usize,
}

impl Plan {
    fn new(shape: ConvShape, lanes: usize, threads: usize) -> Self {
        let channels = shape.c_in.max(shape.c_out);
        let [fewest, most] = BLOCK_TILES;
        let fitting = BLOCK_BYTES / size_of::<f32>() / (POINTS * channels);
        let all = shape.n.div_ceil(threads).max(1) * Tiles::new(&shape, shape.c_in).per_image();
        Self {
            shape,
            outputs: Panels { columns: shape.c_out, lanes },
            inputs: Panels { columns: shape.c_in, lanes },
            block: fitting.clamp(fewest, most).min(all),
            gradient_block: GRADIENT_TILES.min(all),
        }
    }

    fn channels(&self) -> usize {
        self.shape.c_in.max(self.shape.c_out)
    }

    fn weights_len(&self) -> usize {
        POINTS * self.shape.c_in * self.shape.c_out
    }

    fn images_len(&self) -> usize {
        POINTS * (self.block.max(self.gradient_block) * self.channels() + GAP)
    }

    fn outputs_len(&self) -> usize {
        let panels = self.shape.c_out.div_ceil(2 * self.outputs.lanes);
        let products = POINTS * (self.block * 2 * self.outputs.lanes + GAP);
        products.max(POINTS * (self.gradient_block * self.shape.c_out + panels * GAP))
    }

    fn bytes(&self, threads: usize) -> usize {
        AlignedVec::<f32>::bytes(self.weights_len())
            + threads
                * (AlignedVec::<f32>::bytes(self.images_len())
                    + AlignedVec::<f32>::bytes(self.outputs_len())
                    + AlignedVec::<f32>::bytes(self.shape.weight_len())
                    + AlignedVec::<f64>::bytes(2 * self.shape.c_out))
    }

    /// Where the transformed output gradient of one panel lies, and the distance of its planes.
    fn d_output_panel(&self, panel: Panel) -> (usize, usize) {
        let index = panel.first / (2 * self.outputs.lanes);
        (POINTS * (self.gradient_block * panel.first + index * GAP), self.gradient_block * panel.width + GAP)
    }
}

impl WinogradConv {
    /// Whether the method can do this shape: vectors run along the channels, so these must fill them.
    pub(super) fn applies(shape: &ConvShape, isa: InstructionSet) -> bool {
        let ConvShape { c_in, c_out, kernel, stride, pad, .. } = *shape;
        (kernel, stride, pad) == (3, 1, 1)
            && c_in.is_multiple_of(isa.lanes())
            && c_out.is_multiple_of(isa.lanes())
    }

    /// Whether the method is faster than direct convolution where it applies.
    ///
    /// Of the direct method's multiplications a quarter remain, and the transforms cost as much as
    /// some [`TRANSFORM_CHANNELS`] channels of them; both are also spent on pixels of tiles that are
    /// cut off.
    pub(super) fn pays(shape: &ConvShape) -> bool {
        let inverse = |channels: usize| TRANSFORM_CHANNELS / channels as f64;
        let cost_per_pixel = 0.25 + inverse(shape.c_in) + inverse(shape.c_out);
        let pixels = 16 * Tiles::new(shape, shape.c_in).per_image();
        cost_per_pixel * pixels as f64 <= (shape.h * shape.w) as f64
    }

    pub(super) fn new(shape: ConvShape, isa: InstructionSet, threads: usize) -> Self {
        let plan = Plan::new(shape, isa.lanes(), threads);
        let worker = || Worker {
            images: AlignedVec::zeroed(plan.images_len()),
            outputs: AlignedVec::zeroed(plan.outputs_len()),
            d_weights: AlignedVec::zeroed(shape.weight_len()),
            sums: AlignedVec::zeroed(2 * shape.c_out),
        };
        let workers = (0..threads).map(|_| worker()).collect();
        Self { isa, weights: AlignedVec::zeroed(plan.weights_len()), workers, plan }
    }

    pub(super) fn predicted_bytes(shape: &ConvShape, isa: InstructionSet, threads: usize) -> usize {
        Plan::new(*shape, isa.lanes(), threads).bytes(threads)
    }

    pub(super) fn forward(
        &mut self,
        pool: &Pool,
        n: usize,
        input: prologue::Input<'_, f32>,
        w: &[f32],
        y: &mut [f32],
        sums: Option<&mut [f64]>,
    ) {
        let shape = self.plan.shape;
        let pass = Pass {
            isa: self.isa,
            block: self.plan.block,
            source: Tiles::new(&shape, shape.c_in),
            target: Tiles::new(&shape, shape.c_out),
            panels: self.plan.outputs,
            accumulate: false,
            with_sums: sums.is_some(),
        };
        pass.transform_weights(pool, w, Strides::forward(&shape), false, &mut self.weights);
        let weights = &self.weights[..];
        pool.for_each_part(
            divide(pool, &mut self.workers, n, y, shape.output_len()),
            |_, (images, y, worker)| {
                worker.sums.fill(0.0);
                let input = input.slice(images.start * shape.input_len()..images.end * shape.input_len());
                pass.run(input, weights, y, worker);
            },
        );
        if let Some(sums) = sums {
            add_sums(self.workers[..pool.threads()].iter().map(|worker| &worker.sums[..]), sums);
        }
    }

    pub(super) fn backward_data(
        &mut self,
        pool: &Pool,
        n: usize,
        dy: &[f32],
        w: &[f32],
        dx: &mut [f32],
        accumulate: bool,
    ) {
        let shape = self.plan.shape;
        // With padding 1 the gradient is a convolution of `dy` and the weights turned around.
        let pass = Pass {
            isa: self.isa,
            block: self.plan.block,
            source: Tiles::new(&shape, shape.c_out),
            target: Tiles::new(&shape, shape.c_in),
            panels: self.plan.inputs,
            accumulate,
            with_sums: false,
        };
        pass.transform_weights(pool, w, Strides::backward(&shape), true, &mut self.weights);
        let weights = &self.weights[..];
        pool.for_each_part(
            divide(pool, &mut self.workers, n, dx, shape.input_len()),
            |_, (images, dx, worker)| {
                let dy = &dy[images.start * shape.output_len()..images.end * shape.output_len()];
                pass.run(prologue::Input::plain(dy), weights, dx, worker);
            },
        );
    }

    pub(super) fn backward_weights(
        &mut self,
        pool: &Pool,
        n: usize,
        input: prologue::Input<'_, f32>,
        dy: &[f32],
        dw: &mut [f32],
    ) {
        let Self { isa, plan, workers, .. } = self;
        let shape = plan.shape;
        pool.for_each_part(divide(pool, workers, n, &mut [], 0), |_, (images, _, worker)| {
            let input = input.slice(images.start * shape.input_len()..images.end * shape.input_len());
            let dy = &dy[images.start * shape.output_len()..images.end * shape.output_len()];
            worker.d_weights.fill(0.0);
            for tiles in blocks(0..Tiles::new(&shape, shape.c_in).count(input.x), plan.gradient_block) {
                add_block_gradient(*isa, plan, tiles, (input, dy), worker);
            }
        });
        let parts = workers[..pool.threads()].iter().map(|worker| &worker.d_weights[..]);
        add_weight_gradients(pool, &shape, plan.outputs, &parts.collect::<Vec<_>>(), dw);
    }
}

/// Adds the weight gradient of a block of tiles to the thread's share.
fn add_block_gradient(
    isa: InstructionSet,
    plan: &Plan,
    tiles: Range<usize>,
    (x, dy): (prologue::Input<'_, f32>, &[f32]),
    worker: &mut Worker,
) {
    let Worker { images, outputs, d_weights, .. } = worker;
    let c_in = plan.shape.c_in;
    let plane = plan.gradient_block * c_in + GAP;
    let (input, d_output) = (Tiles::new(&plan.shape, c_in), Tiles::new(&plan.shape, plan.shape.c_out));
    let source = Source::input(input, x);
    isa.run(Spread::<_, 6> { map: Input, source, block: tiles.clone(), planes: images, plane });
    let mut sums = Sums([0.0; POINTS * MAX_ROWS * MAX_WIDTH]);
    for panel in plan.outputs.iter() {
        let (start, d_plane) = plan.d_output_panel(panel);
        let transformed = &mut outputs[start..][..POINTS * d_plane];
        let channels = panel.first..panel.first + panel.width;
        isa.run(Spread::<_, 4> {
            map: OutputGradient,
            source: Source { tiles: d_output, before: 0, channels, images: dy, prologue: None },
            block: tiles.clone(),
            planes: transformed,
            plane: d_plane,
        });
        let d_weights = &mut d_weights[panel.range(9 * c_in)];
        for first in (0..c_in).step_by(isa.rows()) {
            let count = isa.rows().min(c_in - first);
            let mut rows = Rows::default();
            for row in 0..count {
                rows.push(first + row, row * panel.width);
            }
            for point in 0..POINTS {
                let terms = Terms {
                    a: &images[point * plane..],
                    runs: &[0],
                    len: tiles.len(),
                    step: c_in,
                    b: &transformed[point * d_plane..],
                    width: panel.width,
                };
                let c = &mut sums.0[point * count * panel.width..];
                let mut target = Target { c, columns: panel.width, accumulate: false, sums: None };
                strip(isa, &terms, &rows, &mut target);
            }
            isa.run(CollectWeights {
                planes: &sums.0,
                rows: count,
                width: panel.width,
                d_weights: &mut d_weights[first * panel.width..],
                tap: c_in * panel.width,
                accumulate: true,
            });
        }
    }
}

/// The gradients of some transformed weights.
#[repr(align(64))]
struct Sums([f32; POINTS * MAX_ROWS * MAX_WIDTH]);

/// The forward pass or the data gradient: one convolution, of the one or the other images.
struct Pass {
    isa: InstructionSet,
    block: usize,
    source: Tiles,
    target: Tiles,
    /// Panels over the channels of the target.
    panels: Panels,
    accumulate: bool,
    with_sums: bool,
}

impl Pass {
    /// Transforms the weights, the panels divided over the threads.
    fn transform_weights(
        &self,
        pool: &Pool,
        w: &[f32],
        strides: Strides,
        flipped: bool,
        weights: &mut [f32],
    ) {
        let depth = POINTS * self.source.channels;
        let panel_len = 2 * self.panels.lanes * depth;
        let parts = self.panels.iter().zip(weights.chunks_mut(panel_len)).collect();
        pool.for_each_part(parts, |_, (panel, transformed)| {
            self.isa.run(SpreadWeights {
                w: &w[panel.first * strides.column..],
                column: strides.column,
                depth: strides.depth,
                flipped,
                width: panel.width,
                panel: &mut transformed[..panel.width * depth],
            });
        });
    }

    /// Convolves the images of one thread.
    fn run(
        &self,
        source: prologue::Input<'_, f32>,
        weights: &[f32],
        target: &mut [f32],
        worker: &mut Worker,
    ) {
        let Worker { images: transformed, outputs, sums, .. } = worker;
        let channels = self.source.channels;
        let plane = self.block * channels + GAP;
        let half = sums.len() / 2;
        let (sum, squares) = sums.split_at_mut(half);
        for tiles in blocks(0..self.source.count(source.x), self.block) {
            let source = Source::input(self.source, source);
            let (block, planes) = (tiles.clone(), &mut transformed[..]);
            self.isa.run(Spread::<_, 6> { map: Input, source, block, planes, plane });
            for panel in self.panels.iter() {
                let product_plane = self.block * panel.width + GAP;
                let weights = &weights[panel.range(POINTS * channels)];
                for (point, weights) in weights.chunks_exact(channels * panel.width).enumerate() {
                    let products = &mut outputs[point * product_plane..];
                    self.multiply(&transformed[point * plane..], weights, tiles.len(), panel.width, products);
                }
                let columns = panel.first..panel.first + panel.width;
                self.isa.run(Collect {
                    tiles: self.target,
                    block: tiles.clone(),
                    channels: columns.clone(),
                    planes: outputs,
                    plane: product_plane,
                    images: target,
                    accumulate: self.accumulate,
                    sums: self.with_sums.then(|| [&mut sum[columns.clone()], &mut squares[columns]]),
                });
            }
        }
    }

    /// Multiplies the tiles of one plane and one panel of weights.
    fn multiply(&self, images: &[f32], weights: &[f32], tiles: usize, width: usize, products: &mut [f32]) {
        let channels = self.source.channels;
        let terms = Terms { a: images, runs: &[0], len: channels, step: 1, b: weights, width };
        let mut target = Target { c: products, columns: width, accumulate: false, sums: None };
        for first in (0..tiles).step_by(self.isa.rows()) {
            let mut rows = Rows::default();
            for tile in first..(first + self.isa.rows()).min(tiles) {
                rows.push(tile * channels, tile * width);
            }
            strip(self.isa, &terms, &rows, &mut target);
        }
    }
}
