//! Where the windows of a convolution lie: the geometry of the forward pass and of the gradient with
//! respect to the input, both as sums over windows of framed images.

use std::ops::Range;

use super::division::blocks;
use super::frame::Frame;
use super::panels::{Panel, Panels};
use super::shape::ConvShape;
use super::simd::InstructionSet;
use super::strip::{Place, Target, Terms, strips};

/// Bytes of a panel that are used at a time, so that they stay in the near cache.
const PANEL_BYTES: usize = 128 << 10;

/// Bytes of pixels, read and written, that every panel visits before the next pixels are begun: they stay in the
/// second-level cache, and an output pixel's channels reach memory together.
const PIXEL_BYTES: usize = 192 << 10;

/// Pixels that every panel visits at once, at least: so many are worth reading the panel.
pub(super) const FEWEST_PIXELS: usize = 128;

/// Distances between the pixels that a pass visits.
#[derive(Clone, Copy, Debug)]
struct Steps {
    start: usize,
    image: usize,
    row: usize,
    pixel: usize,
}

/// A grid of pixels, each the product of a window of framed images and the packed weights.
///
/// The forward pass is one such sum. The gradient with respect to the input is `stride * stride` of
/// them: the input pixels of one remainder modulo the stride meet the same taps of the kernel, and
/// their windows on the output's gradient move by one pixel.
#[derive(Clone, Debug)]
pub(super) struct Window {
    height: usize,
    width: usize,
    /// Where each row of the window begins.
    runs: Vec<usize>,
    /// Numbers in a row of the window.
    run: usize,
    /// The tap of the kernel that each pixel of the window meets.
    pub(super) taps: Vec<usize>,
    source: Steps,
    target: Steps,
}

impl Window {
    /// The forward pass, over images framed by [`Frame::input`].
    pub(super) fn forward(shape: &ConvShape) -> Self {
        let frame = Frame::input(shape);
        let ConvShape { c_in, c_out, kernel, stride, .. } = *shape;
        let row = frame.row();
        Self {
            height: shape.out_h(),
            width: shape.out_w(),
            runs: (0..kernel).map(|y| y * row).collect(),
            run: kernel * c_in,
            taps: (0..kernel * kernel).collect(),
            source: Steps { start: 0, image: frame.len(), row: stride * row, pixel: stride * c_in },
            target: Steps { start: 0, image: shape.output_len(), row: shape.out_w() * c_out, pixel: c_out },
        }
    }

    /// The gradient with respect to the input: the frame of `dy`, and a window per remainder.
    pub(super) fn backward(shape: &ConvShape) -> (Frame, Vec<Self>) {
        let ConvShape { h, w, c_in, c_out, kernel, stride, .. } = *shape;
        let rows: Vec<Remainder> = (0..stride.min(h)).map(|phase| Remainder::new(shape, h, phase)).collect();
        let columns: Vec<Remainder> =
            (0..stride.min(w)).map(|phase| Remainder::new(shape, w, phase)).collect();
        let (top, height) = Remainder::frame(&rows, shape.out_h());
        let (left, width) = Remainder::frame(&columns, shape.out_w());
        let (h_out, w_out) = (shape.out_h(), shape.out_w());
        let frame =
            Frame { h: h_out, w: w_out, channels: c_out, plane_channels: c_out, top, left, height, width };
        let windows = rows.iter().flat_map(|y| columns.iter().map(move |x| (y, x))).map(|(y, x)| Self {
            height: y.count,
            width: x.count,
            runs: (0..if x.taps.is_empty() { 0 } else { y.taps.len() }).map(|i| i * frame.row()).collect(),
            run: x.taps.len() * c_out,
            taps: y.taps.iter().flat_map(|y| x.taps.iter().map(move |x| y * kernel + x)).collect(),
            source: Steps {
                start: y.begin(top) * frame.row() + x.begin(left) * c_out,
                image: frame.len(),
                row: frame.row(),
                pixel: c_out,
            },
            target: Steps {
                start: (y.phase * w + x.phase) * c_in,
                image: shape.input_len(),
                row: stride * w * c_in,
                pixel: stride * c_in,
            },
        });
        (frame, windows.collect())
    }

    /// Terms of each sum.
    pub(super) fn depth(&self) -> usize {
        self.runs.len() * self.run
    }

    /// Computes every pixel of the images in `output.c`; one without terms has none to compute.
    ///
    /// - `source`: as many framed images; `weights`: panels of [`Window::depth`] rows
    pub(super) fn sum(
        &self,
        isa: InstructionSet,
        source: &[f32],
        weights: Weights<'_>,
        output: &mut Output<'_>,
    ) {
        let rows = output.c.len() / self.target.image * self.height;
        let bytes = size_of::<f32>() * self.width * (self.source.pixel + self.target.pixel);
        let rows_at_once = (PIXEL_BYTES / bytes).max(FEWEST_PIXELS.div_ceil(self.width));
        for rows in blocks(0..rows, rows_at_once) {
            for panel in weights.panels.iter() {
                self.sum_panel(isa, source, (panel, weights.packed), output, rows.clone());
            }
        }
    }

    /// The rows of pixels `rows`, counted over all images, and one panel.
    fn sum_panel(
        &self,
        isa: InstructionSet,
        source: &[f32],
        (panel, packed): (Panel, &[f32]),
        output: &mut Output<'_>,
        rows: Range<usize>,
    ) {
        let weights = &packed[panel.range(self.depth())];
        let runs_at_once = (PANEL_BYTES / size_of::<f32>() / (panel.width * self.run)).max(1);
        for runs in blocks(0..self.runs.len(), runs_at_once) {
            let terms = Terms {
                a: source,
                runs: &self.runs[runs.clone()],
                len: self.run,
                step: 1,
                b: &weights[runs.start * self.run * panel.width..runs.end * self.run * panel.width],
                width: panel.width,
            };
            let columns = panel.first..panel.first + panel.columns;
            let mut target = Target {
                c: output.c,
                columns: panel.columns,
                accumulate: output.accumulate || runs.start > 0,
                sums: match &mut output.sums {
                    Some([sum, squares]) if runs.end == self.runs.len() => {
                        Some([&mut sum[columns.clone()], &mut squares[columns]])
                    }
                    _ => None,
                },
            };
            strips(isa, &terms, Pixels::new(self, rows.clone(), panel.first), &mut target);
        }
    }
}

/// The pixels of some rows, counted over all images.
struct Pixels<'a> {
    window: &'a Window,
    /// Where the image and the row begin, and the next pixel is.
    image: Place,
    row: Place,
    next: Place,
    /// The row within its image.
    y: usize,
    /// Pixels left in the row, and in all rows.
    in_row: usize,
    left: usize,
}

impl<'a> Pixels<'a> {
    /// - `column`: first column of the panel
    fn new(window: &'a Window, rows: Range<usize>, column: usize) -> Self {
        let Window { height, width, source, target, .. } = window;
        let (n, y) = (rows.start / height, rows.start % height);
        let image = Place { a: source.start + n * source.image, c: target.start + n * target.image + column };
        let row = Place { a: image.a + y * source.row, c: image.c + y * target.row };
        Self { window, image, row, next: row, y, in_row: *width, left: rows.len() * width }
    }
}

impl Iterator for Pixels<'_> {
    type Item = Place;

    #[inline(always)]
    fn next(&mut self) -> Option<Place> {
        let Window { height, width, source, target, .. } = self.window;
        if self.left == 0 {
            return None;
        }
        let pixel = self.next;
        self.left -= 1;
        self.in_row -= 1;
        self.next = Place { a: pixel.a + source.pixel, c: pixel.c + target.pixel };
        if self.in_row == 0 {
            self.in_row = *width;
            self.y += 1;
            self.row = Place { a: self.row.a + source.row, c: self.row.c + target.row };
            if self.y == *height {
                self.y = 0;
                self.image = Place { a: self.image.a + source.image, c: self.image.c + target.image };
                self.row = self.image;
            }
            self.next = self.row;
        }
        Some(pixel)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Pixels<'_> {}

/// Packed weights.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub(super) panels: Panels,
    pub(super) packed: &'a [f32],
}

/// Where sums are written.
pub(super) struct Output<'a> {
    pub(super) c: &'a mut [f32],
    pub(super) accumulate: bool,
    /// Sum and sum of squares of each channel, to be added to.
    pub(super) sums: Option<[&'a mut [f64]; 2]>,
}

/// The input rows (or columns) with one remainder modulo the stride, and the taps they meet.
///
/// Input row `i` meets tap `k` at output row `(i + pad - k) / stride` where that is whole. With
/// `k0 = (i + pad) % stride` the taps are `k0 + j * stride`, and the output rows `first - j`.
#[derive(Debug)]
struct Remainder {
    phase: usize,
    /// Input rows with this remainder.
    count: usize,
    /// The taps, in the order of the output rows they lie on.
    taps: Vec<usize>,
    /// The output row on which tap `k0` meets the first input row.
    first: usize,
}

impl Remainder {
    fn new(shape: &ConvShape, side: usize, phase: usize) -> Self {
        let ConvShape { kernel, stride, pad, .. } = *shape;
        let nearest = (phase + pad) % stride;
        let mut taps: Vec<usize> = (nearest..kernel).step_by(stride).collect();
        taps.reverse();
        Self { phase, count: (side - phase).div_ceil(stride), taps, first: (phase + pad - nearest) / stride }
    }

    /// Zeros before the output's `side` rows, and the height of the frame, that all windows need.
    fn frame(remainders: &[Self], side: usize) -> (usize, usize) {
        let meeting = || remainders.iter().filter(|remainder| !remainder.taps.is_empty());
        let before = meeting().map(|r| (r.taps.len() - 1).saturating_sub(r.first)).max().unwrap_or(0);
        let end = meeting().map(|r| r.first + r.count).max().unwrap_or(0);
        (before, before + side.max(end))
    }

    /// Row of the frame on which the first window begins.
    fn begin(&self, before: usize) -> usize {
        if self.taps.is_empty() { 0 } else { before + self.first + 1 - self.taps.len() }
    }
}
