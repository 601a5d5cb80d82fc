//! How Winograd's convolution is cut up: the parts of its input, blocks of tiles, and how long its buffers are.

use std::ops::Range;

use super::lattice::Lattice;
use super::panels::{Panel, Panels};
use super::phases::{Phase, with_sizes};
use super::planes::Planes;
use super::products::AddGradient;
use super::prologue;
use super::scratch::{Pieces, f64s};
use super::shape::ConvShape;
use super::simd::InstructionSet;
use super::tiles::{Source, Spread, Tiles};
use super::transforms::Input;

/// Tiles in a block of the forward pass or the data gradient: few, for their planes to stay in the second-level cache, and
/// enough to be worth reading the transformed weights. Twice as many differed by less than the noise on a Zen 3 and a Zen 4.
const BLOCK_TILES: usize = 32;

/// Tiles in a block of the weight gradient, where each block pays for transforming its sums back.
const GRADIENT_TILES: usize = 64;

/// Bytes of the output's gradient that both gradients visit at once: a part of the second-level cache.
const CHUNK_BYTES: usize = 64 << 10;

/// Geometry, and how long every buffer is.
pub(super) struct Plan {
    pub(super) shape: ConvShape,
    /// Of the input.
    pub(super) phases: &'static [Phase],
    /// The basis has so many times so many points.
    pub(super) side: usize,
    pub(super) tiles: Tiles,
    pub(super) lanes: usize,
    /// Rows of a strip.
    pub(super) rows: usize,
    /// Panels over the output channels.
    pub(super) outputs: Panels,
    /// Panels over the input channels.
    pub(super) inputs: Panels,
    /// Tiles in a block of the forward pass or the data gradient.
    pub(super) block: usize,
    /// Tiles in a block of the weight gradient.
    pub(super) gradient_block: usize,
    /// Images that both gradients visit before the next are begun.
    pub(super) chunk: usize,
}

impl Plan {
    pub(super) fn new(shape: ConvShape, isa: InstructionSet, threads: usize) -> Self {
        let lanes = isa.lanes();
        let phases = Phase::all(&shape);
        let side = if shape.stride == 1 { 6 } else { 5 };
        let images = shape.n.div_ceil(threads).max(1);
        let tiles = Tiles::new(&shape);
        let per_image = tiles.per_image();
        let all = images * per_image;
        let chunk = CHUNK_BYTES / size_of::<f32>() / shape.output_len();
        Self {
            shape,
            phases,
            side,
            tiles,
            lanes,
            rows: isa.rows(),
            outputs: Panels { columns: shape.c_out, lanes },
            inputs: Panels { columns: shape.c_in, lanes },
            // No strip of a whole block has rows that do not exist.
            block: BLOCK_TILES.next_multiple_of(2 * isa.rows()).min(all),
            gradient_block: GRADIENT_TILES.min(all),
            chunk: chunk.max(GRADIENT_TILES.div_ceil(per_image)).min(images),
        }
    }

    /// Of a block's images, in groups of as many tiles as a strip has rows.
    pub(super) fn image_planes(&self, channels: usize) -> Planes {
        // A strip that is one vector wide has two groups.
        let points = self.side * self.side;
        Planes::new(points, self.block.next_multiple_of(2 * self.rows), self.rows, channels, self.lanes)
    }

    /// Of a block's products with a panel, in the same groups.
    pub(super) fn product_planes(&self, width: usize) -> Planes {
        self.image_planes(width)
    }

    /// Of a panel of weights, a row per channel.
    pub(super) fn weight_planes(&self, channels: usize, panel: Panel) -> Planes {
        Planes::new(self.side * self.side, channels, 1, panel.width, self.lanes)
    }

    /// Of a block's images for the weight gradient, in one group.
    pub(super) fn gradient_planes(&self) -> Planes {
        let (points, channels) = (self.side * self.side, self.phases.len() * self.shape.c_in);
        Planes::new(points, self.gradient_block, self.gradient_block, channels, self.lanes)
    }

    /// Of a panel of a block's output gradient, a row per tile.
    pub(super) fn d_output_planes(&self, panel: Panel) -> Planes {
        Planes::new(self.side * self.side, self.gradient_block, 1, panel.width, self.lanes)
    }

    fn weights_len(&self) -> usize {
        let len = |panels: Panels, channels| {
            panels.iter().map(|panel| self.weight_planes(channels, panel).len()).sum::<usize>()
        };
        let phases = self.phases.len();
        len(self.outputs, phases * self.shape.c_in).max(phases * len(self.inputs, self.shape.c_out))
    }

    fn images_len(&self) -> usize {
        let channels = (self.phases.len() * self.shape.c_in).max(self.shape.c_out);
        self.image_planes(channels).len().max(self.gradient_planes().len())
    }

    fn outputs_len(&self) -> usize {
        let panels = || self.outputs.iter().chain(self.inputs.iter());
        let products = panels().map(|panel| self.product_planes(panel.width).len());
        let d_outputs = self.outputs.iter().map(|panel| self.d_output_planes(panel).len());
        products.chain(d_outputs).max().unwrap_or(0)
    }

    /// The phases of the input.
    pub(super) fn input_parts(&self) -> Vec<Part> {
        let ConvShape { h, w, c_in, .. } = self.shape;
        let part =
            |&phase: &Phase| Part { phase, lattice: phase.pixels([h, w], c_in), before: phase.before() };
        self.phases.iter().map(part).collect()
    }

    /// All of the output, in the whole basis.
    pub(super) fn output_part(&self) -> Part {
        let shape = &self.shape;
        let lattice = Phase::all_pixels([shape.out_h(), shape.out_w()], shape.c_out);
        Part { phase: Phase::full(shape), lattice, before: [0; 2] }
    }

    /// What a call writes besides its results. Shared are the transformed weights, the planes of each panel; a thread has
    /// planes of images and of outputs, products of a strip, an output gradient, a weight gradient and channel sums.
    pub(super) fn pieces(&self, threads: usize) -> Pieces<6> {
        let of_thread = [
            self.images_len(),
            self.outputs_len(),
            AddGradient::PRODUCTS,
            self.chunk * self.shape.output_len(),
            self.shape.weight_len(),
            f64s(2 * self.shape.c_out),
        ];
        Pieces { shared: self.weights_len(), threads, of_thread }
    }
}

/// The pixels of one phase of the input, or all of the output.
pub(super) struct Part {
    pub(super) phase: Phase,
    pub(super) lattice: Lattice,
    /// Pixels that a window reaches above and left of its tile.
    pub(super) before: [usize; 2],
}

impl Part {
    /// Transforms a block of its tiles.
    pub(super) fn spread(
        &self,
        isa: InstructionSet,
        tiles: (Tiles, Range<usize>),
        input: prologue::Input<'_, f32>,
        (planes, chunk): (Planes, usize),
        transformed: &mut [f32],
    ) {
        let &Self { phase, lattice, before } = self;
        let prologue::Input { x: images, prologue } = input;
        let source = Source { lattice, before, channels: 0..lattice.channels, images, prologue };
        let (tiles, block) = tiles;
        with_sizes!(phase, [R, C, TR, TC, SIDE], {
            isa.run(Spread::<_, R, C, R, C, SIDE> {
                map: Input,
                source,
                tiles,
                block,
                planes,
                chunk,
                transformed,
            });
        });
    }
}
