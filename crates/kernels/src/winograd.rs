//! Winograd's convolution F(4x4, 3x3) in `f32`, for kernels of 3 with stride 1 or 2 and padding 1.
//!
//! Outputs are cut into tiles of 4 x 4 pixels; in the basis of [`transforms`](super::transforms) a
//! tile's convolution is one product per each of 36 points, so that 36 multiplications do the work
//! of 144. With stride 2 the input has four phases in a basis of 25 points, and 81 multiplications
//! are left ([`phases`](super::phases)). The products over channels are matrix products of the same
//! strips as everywhere:
//!
//! | pass | rows of a strip | columns | terms |
//! | --- | --- | --- | --- |
//! | forward | tiles | output channels | input channels, of each phase |
//! | data gradient, of each phase | tiles | input channels | output channels |
//! | weight gradient, of each phase | input channels | output channels | tiles |
//!
//! Work is divided by images as in direct convolution, in blocks of tiles whose transforms stay in
//! the cache. Sides that are no multiple of four end in tiles cut off at the edge.

use std::ops::Range;

use super::division::{Strides, add_sums, add_weight_gradients, blocks, divide, even_blocks};
use super::operands::{Backward, Forward, InputGradient};
use super::panels::Panels;
use super::phases::{Phase, with_sizes};
use super::planes::Planes;
use super::pool::Pool;
use super::products::{AddGradient, Multiply};
use super::prologue;
use super::shape::ConvShape;
use super::simd::InstructionSet;
use super::tiles::{Collect, Source, Spread, Tiles};
use super::transforms::{Map, OutputGradient};
use super::winograd_plan::{Part, Plan};
use super::winograd_weights::SpreadWeights;

/// Measured on a Zen 4 core over 16 to 512 channels and sides of 2 to 32, on every path.
const TRANSFORM_CHANNELS: f64 = 5.3;

/// The same with stride 2, over 16 to 512 channels: at 16 and 32 both methods are as fast, within 7 %.
const STRIDED_TRANSFORM_CHANNELS: f64 = 4.5;

/// Bytes of the next block's pixels, and of this one's results, that are fetched while a block is multiplied.
const AHEAD_BYTES: usize = 128 << 10;

/// The three passes of one shape.
pub(super) struct WinogradConv {
    isa: InstructionSet,
    threads: usize,
    plan: Plan,
}

/// What one thread writes while it works, in the order of [`Plan::pieces`].
struct Worker<'a> {
    /// The planes of a block's images.
    images: &'a mut [f32],
    /// The planes of a block's products with one panel or, for the weight gradient, of one panel of
    /// its output gradient.
    outputs: &'a mut [f32],
    /// A strip's share of the transformed weight gradient.
    products: &'a mut [f32],
    /// The output gradient of a chunk, if it is made here.
    made: &'a mut [f32],
    /// Its share of the weight gradient, panels of `[kh, kw, c_in]` rows.
    d_weights: &'a mut [f32],
    /// Its share of the channel sums, `[2, c_out]`.
    sums: &'a mut [f64],
}

impl WinogradConv {
    /// Whether the method can do this shape: vectors run along the channels, so these must fill them.
    pub(super) fn applies(shape: &ConvShape, isa: InstructionSet) -> bool {
        let ConvShape { c_in, c_out, kernel, stride, pad, .. } = *shape;
        (kernel, pad) == (3, 1)
            && (stride == 1 || stride == 2)
            && c_in.is_multiple_of(isa.lanes())
            && c_out.is_multiple_of(isa.lanes())
    }

    /// Whether the method is faster than direct convolution where it applies.
    ///
    /// Of the direct method's multiplications a quarter remain, or 81 of 144 with stride 2, and the
    /// transforms cost as much as some [`TRANSFORM_CHANNELS`] channels of them; both are also spent on
    /// pixels of tiles that are cut off.
    pub(super) fn pays(shape: &ConvShape) -> bool {
        let (multiplications, transform) = match shape.stride {
            1 => (0.25, TRANSFORM_CHANNELS),
            _ => (81.0 / 144.0, STRIDED_TRANSFORM_CHANNELS),
        };
        let inverse = |channels: usize| transform / channels as f64;
        let cost_per_pixel = multiplications + inverse(shape.c_in) + inverse(shape.c_out);
        let pixels = 16 * Tiles::new(shape).per_image();
        cost_per_pixel * pixels as f64 <= (shape.out_h() * shape.out_w()) as f64
    }

    pub(super) fn new(shape: ConvShape, isa: InstructionSet, threads: usize) -> Self {
        Self { isa, threads, plan: Plan::new(shape, isa, threads) }
    }

    /// Numbers of scratch for every pass.
    pub(super) fn scratch_len(&self) -> usize {
        self.plan.pieces(self.threads).len()
    }

    pub(super) fn forward(&self, pool: &Pool, n: usize, forward: Forward<'_, f32>) {
        let Forward { input, w, y, sums, scratch } = forward;
        let (weights, mut workers) = self.cut(scratch);
        let shape = self.plan.shape;
        let pass = Pass {
            isa: self.isa,
            plan: &self.plan,
            sources: self.plan.input_parts(),
            targets: vec![self.plan.output_part()],
            panels: self.plan.outputs,
            accumulate: false,
            with_sums: sums.is_some(),
        };
        pass.transform_weights(pool, w, Strides::forward(&shape), false, weights);
        let parts = divide(pool, &mut workers, n, y, shape.output_len());
        pool.for_each_part(parts, |_, (images, y, worker)| {
            worker.sums.fill(0.0);
            let input = input.slice(images.start * shape.input_len()..images.end * shape.input_len());
            pass.run(input, weights, y, worker);
        });
        if let Some(sums) = sums {
            add_sums(workers.iter().map(|worker| &worker.sums[..]), sums);
        }
    }

    /// Both gradients, chunk by chunk, so that the second one finds the output's gradient in the cache.
    pub(super) fn backward(&self, pool: &Pool, n: usize, backward: Backward<'_, f32>) {
        let Backward { input, d_y, w, d_w, d_x, scratch } = backward;
        let (weights, mut workers) = self.cut(scratch);
        let Self { isa, plan, .. } = self;
        let shape = plan.shape;
        let InputGradient { d_x, accumulate, then } = d_x.unwrap_or_default();
        // With padding 1 the gradient is a convolution, or one for each phase, of `dy` and the weights turned around.
        let pass = Pass {
            isa: *isa,
            plan,
            // Strided, a window of the output's gradient begins where its pixels do.
            sources: vec![Part { before: [2 - shape.stride; 2], ..plan.output_part() }],
            targets: plan.input_parts(),
            panels: plan.inputs,
            accumulate,
            with_sums: false,
        };
        let width = if d_x.is_empty() { 0 } else { shape.input_len() };
        if width > 0 {
            pass.transform_weights(pool, w, Strides::backward(&shape), true, weights);
        }
        let weights = &*weights;
        pool.for_each_part(divide(pool, &mut workers, n, d_x, width), |thread, (images, d_x, worker)| {
            let made = std::mem::take(&mut worker.made);
            worker.d_weights.fill(0.0);
            for chunk in blocks(images.clone(), plan.chunk) {
                let x = input.slice(chunk.start * shape.input_len()..chunk.end * shape.input_len());
                let rest = &input.x[chunk.start * shape.input_len()..images.end * shape.input_len()];
                let d_y = d_y.of(chunk.clone(), shape.output_len(), &mut *made);
                let last = (images.end - chunk.start) * plan.tiles.per_image();
                for tiles in even_blocks(chunk.len() * plan.tiles.per_image(), plan.gradient_block, 1) {
                    let next = tiles.end..last.min(tiles.end + plan.gradient_block);
                    let ahead = at_most_ahead(&rest[plan.tiles.numbers(&next, shape.input_len())]);
                    add_block_gradient(*isa, plan, tiles, (x, d_y, ahead), worker);
                }
                if width > 0 {
                    let d_x =
                        &mut d_x[(chunk.start - images.start) * width..(chunk.end - images.start) * width];
                    pass.run(prologue::Input::plain(d_y), weights, d_x, worker);
                    if let Some(then) = then {
                        then(thread, chunk, d_x);
                    }
                }
            }
        });
        let parts = workers.iter().map(|worker| &worker.d_weights[..]);
        add_weight_gradients(pool, &shape, plan.outputs, &parts.collect::<Vec<_>>(), d_w);
    }

    /// Room for the transformed weights, and for each thread.
    fn cut<'a>(&self, scratch: &'a mut [f32]) -> (&'a mut [f32], Vec<Worker<'a>>) {
        let (weights, threads) = self.plan.pieces(self.threads).cut(scratch);
        let worker = |[images, outputs, products, made, d_weights, sums]: [&'a mut [f32]; 6]| Worker {
            images,
            outputs,
            products,
            made,
            d_weights,
            sums: bytemuck::cast_slice_mut(sums),
        };
        (weights, threads.into_iter().map(worker).collect())
    }
}

/// Adds the weight gradient of a block of tiles to the thread's share, and fetches the pixels `ahead`.
fn add_block_gradient(
    isa: InstructionSet,
    plan: &Plan,
    tiles: Range<usize>,
    (x, dy, mut ahead): (prologue::Input<'_, f32>, &[f32], &[f32]),
    worker: &mut Worker<'_>,
) {
    let Worker { images, outputs, products, d_weights, .. } = worker;
    let c_in = plan.shape.c_in;
    let image_planes = plan.gradient_planes();
    let chunks = c_in / plan.lanes;
    for (part, first) in plan.input_parts().iter().zip((0..).step_by(chunks)) {
        part.spread(isa, (plan.tiles, tiles.clone()), x, (image_planes, first), images);
    }
    let lattice = plan.output_part().lattice;
    for panel in plan.outputs.iter() {
        let d_output_planes = plan.d_output_planes(panel);
        let channels = panel.first..panel.first + panel.width;
        let source = Source { lattice, before: [0; 2], channels, images: dy, prologue: None };
        let part = (plan.tiles, tiles.clone());
        match plan.side {
            6 => spread_gradient::<6>(isa, source, part, d_output_planes, outputs),
            _ => spread_gradient::<5>(isa, source, part, d_output_planes, outputs),
        }
        for (&phase, first) in plan.phases.iter().zip((0..).step_by(chunks)) {
            isa.run(AddGradient {
                phase,
                tiles: tiles.len(),
                chunks: first..first + chunks,
                image_planes,
                images,
                d_output_planes,
                d_outputs: outputs,
                d_weights: &mut d_weights[panel.range(9 * c_in)],
                products,
                ahead: std::mem::take(&mut ahead),
            });
        }
    }
}

/// Transforms a block of tiles of the output's gradient into `SIDE` x `SIDE` planes.
fn spread_gradient<const SIDE: usize>(
    isa: InstructionSet,
    source: Source<'_>,
    (tiles, block): (Tiles, Range<usize>),
    planes: Planes,
    transformed: &mut [f32],
) where
    OutputGradient: Map<4, SIDE>,
{
    let map = OutputGradient;
    isa.run(Spread::<_, 4, 4, SIDE, SIDE, SIDE> { map, source, tiles, block, planes, chunk: 0, transformed });
}

/// The forward pass or the data gradient: a convolution of the sum of some sources, or one for each target.
struct Pass<'a> {
    isa: InstructionSet,
    plan: &'a Plan,
    sources: Vec<Part>,
    targets: Vec<Part>,
    /// Panels over the channels of the target.
    panels: Panels,
    accumulate: bool,
    with_sums: bool,
}

impl Pass<'_> {
    /// The taps between two parts, of which at most one is a phase.
    fn taps(&self, source: &Part, target: &Part) -> Phase {
        if self.sources.len() > 1 { source.phase } else { target.phase }
    }

    /// Channels of all sources.
    fn channels(&self) -> usize {
        self.sources.iter().map(|source| source.lattice.channels).sum()
    }

    /// Transforms the weights, the panels divided over the threads.
    fn transform_weights(
        &self,
        pool: &Pool,
        w: &[f32],
        strides: Strides,
        flipped: bool,
        weights: &mut [f32],
    ) {
        let mut rest = weights;
        let panels =
            self.targets.iter().flat_map(|target| self.panels.iter().map(move |panel| (target, panel)));
        let parts = panels.map(|(target, panel)| {
            let planes = self.plan.weight_planes(self.channels(), panel);
            let transformed = rest.split_off_mut(..planes.len()).expect("the panels fit their buffer");
            (target, panel, planes, transformed)
        });
        pool.for_each_part(parts.collect(), |_, (target, panel, planes, transformed)| {
            let mut first = 0;
            for source in &self.sources {
                let rows = first..first + source.lattice.channels;
                first = rows.end;
                self.isa.run(SpreadWeights {
                    phase: self.taps(source, target),
                    w: &w[panel.first * strides.column..],
                    column: strides.column,
                    depth: strides.depth,
                    flipped,
                    width: panel.width,
                    planes,
                    rows,
                    panel: transformed,
                });
            }
        });
    }

    /// For each point of a target the vectors of channels of the sources that have it.
    fn terms(&self, target: &Part) -> Vec<Range<usize>> {
        let (side, lanes) = (self.plan.side, self.plan.lanes);
        let terms = |point| {
            let mut terms = 0..0;
            let mut first = 0;
            for source in &self.sources {
                let chunks = first..first + source.lattice.channels / lanes;
                first = chunks.end;
                if source.phase.has(point, side) && target.phase.has(point, side) {
                    assert!(
                        terms.is_empty() || terms.end == chunks.start,
                        "phases with a point side by side"
                    );
                    terms = if terms.is_empty() { chunks } else { terms.start..chunks.end };
                }
            }
            terms
        };
        (0..side * side).map(terms).collect()
    }

    /// Convolves one thread's images.
    fn run(
        &self,
        source: prologue::Input<'_, f32>,
        weights: &[f32],
        target: &mut [f32],
        worker: &mut Worker<'_>,
    ) {
        let Worker { images, outputs, sums, .. } = worker;
        let &Self { isa, plan, .. } = self;
        let image_planes = plan.image_planes(self.channels());
        let terms: Vec<_> = self.targets.iter().map(|target| self.terms(target)).collect();
        let half = sums.len() / 2;
        let (sum, squares) = sums.split_at_mut(half);
        let count = target.len() / self.targets[0].lattice.image * plan.tiles.per_image();
        for tiles in even_blocks(count, plan.block, plan.rows) {
            let mut chunk = 0;
            for part in &self.sources {
                part.spread(isa, (plan.tiles, tiles.clone()), source, (image_planes, chunk), images);
                chunk += part.lattice.channels / plan.lanes;
            }
            let mut weights = weights;
            let next = tiles.end..count.min(tiles.end + plan.block);
            // The first product fetches for all: panels and phases read and write the same stretch of memory.
            let mut is_first = true;
            for (part, terms) in self.targets.iter().zip(&terms) {
                for panel in self.panels.iter() {
                    let weight_planes = plan.weight_planes(self.channels(), panel);
                    let product_planes = plan.product_planes(panel.width);
                    let (transformed, rest) = weights.split_at(weight_planes.len());
                    weights = rest;
                    let ahead = if std::mem::take(&mut is_first) {
                        let next = plan.tiles.numbers(&next, self.sources[0].lattice.image);
                        let results = plan.tiles.numbers(&tiles, part.lattice.image);
                        [at_most_ahead(&source.x[next]), at_most_ahead(&target[results])]
                    } else {
                        [&[][..]; 2]
                    };
                    isa.run(Multiply {
                        tiles: tiles.len(),
                        terms,
                        image_planes,
                        images,
                        weight_planes,
                        weights: transformed,
                        product_planes,
                        products: outputs,
                        ahead,
                    });
                    let columns = panel.first..panel.first + panel.width;
                    with_sizes!(part.phase, [R, C, TR, TC, SIDE], {
                        isa.run(Collect::<R, C, SIDE> {
                            tiles: plan.tiles,
                            lattice: part.lattice,
                            block: tiles.clone(),
                            channels: columns.clone(),
                            planes: product_planes,
                            products: outputs,
                            images: target,
                            accumulate: self.accumulate,
                            sums: self.with_sums.then(|| [&mut sum[columns.clone()], &mut squares[columns]]),
                        });
                    });
                }
            }
        }
    }
}

/// As many of the numbers as are worth a place in the second-level cache: [`AHEAD_BYTES`].
fn at_most_ahead(numbers: &[f32]) -> &[f32] {
    &numbers[..numbers.len().min(AHEAD_BYTES / size_of::<f32>())]
}
