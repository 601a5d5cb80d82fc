//! Where the windows of a convolution lie: the geometry of the forward pass and of the gradient with
//! respect to the input, both as sums over windows of framed images.

use std::ops::Range;

use super::conv::ConvShape;
use super::panels::{Panel, Panels};
use super::simd::InstructionSet;
use super::strip::{Rows, Target, Terms, strip};

/// Bytes of a panel that are used at a time, so that they stay in the near cache.
const PANEL_BYTES: usize = 128 << 10;

/// Images `[h, w, channels]` in a frame of zeros, so that no window needs an edge case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    h: usize,
    w: usize,
    channels: usize,
    top: usize,
    left: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Frame {
    /// The input of `shape` with its padding.
    pub(super) fn input(shape: &ConvShape) -> Self {
        let ConvShape { h, w, c_in, pad, .. } = *shape;
        Self { h, w, channels: c_in, top: pad, left: pad, height: h + 2 * pad, width: w + 2 * pad }
    }

    /// Elements of a framed image.
    pub(super) fn len(&self) -> usize {
        self.row() * self.height
    }

    /// Elements of a row of a framed image.
    pub(super) fn row(&self) -> usize {
        self.width * self.channels
    }

    /// The images themselves if the frame is empty, else a framed copy in `buffer`.
    pub(super) fn place<'a>(&self, images: &'a [f32], buffer: &'a mut [f32]) -> &'a [f32] {
        if self.height == self.h && self.width == self.w {
            return images;
        }
        let line = self.w * self.channels;
        let left = self.left * self.channels;
        let (top, bottom) = (self.top * self.row(), (self.top + self.h) * self.row());
        let image_len = self.h * line;
        for (image, framed) in images.chunks_exact(image_len).zip(buffer.chunks_exact_mut(self.len())) {
            framed[..top].fill(0.0);
            framed[bottom..].fill(0.0);
            for (source, row) in
                image.chunks_exact(line).zip(framed[top..bottom].chunks_exact_mut(self.row()))
            {
                row[..left].fill(0.0);
                row[left..left + line].copy_from_slice(source);
                row[left + line..].fill(0.0);
            }
        }
        buffer
    }
}

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
        let frame = Frame { h: shape.out_h(), w: shape.out_w(), channels: c_out, top, left, height, width };
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

    /// Computes every pixel of the first `images` images of a block.
    ///
    /// - `source`: framed images; `weights`: panels of [`Window::depth`] rows; `target.columns` is ignored
    pub(super) fn sum(
        &self,
        isa: InstructionSet,
        images: usize,
        source: &[f32],
        weights: &[f32],
        panels: Panels,
        output: &mut Output<'_>,
    ) {
        for panel in panels.iter() {
            let weights = &weights[panel.range(self.depth())];
            let runs_at_once = (PANEL_BYTES / size_of::<f32>() / (panel.width * self.run).max(1)).max(1);
            // A window without taps still has its zeros to write.
            let parts = self.runs.len().div_ceil(runs_at_once).max(1);
            for part in 0..parts {
                let runs = part * runs_at_once..((part + 1) * runs_at_once).min(self.runs.len());
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
                    accumulate: output.accumulate || part > 0,
                    sums: match &mut output.sums {
                        Some([sum, squares]) if part + 1 == parts => {
                            Some([&mut sum[columns.clone()], &mut squares[columns]])
                        }
                        _ => None,
                    },
                };
                self.for_each_strip(isa.rows(), images, panel, |rows| strip(isa, &terms, rows, &mut target));
            }
        }
    }

    fn for_each_strip(&self, strip_rows: usize, images: usize, panel: Panel, mut f: impl FnMut(&Rows)) {
        let mut rows = Rows::default();
        for image in 0..images {
            for y in 0..self.height {
                let mut a = self.source.start + image * self.source.image + y * self.source.row;
                let mut c = self.target.start + image * self.target.image + y * self.target.row + panel.first;
                for _ in 0..self.width {
                    rows.push(a, c);
                    if rows.count == strip_rows {
                        f(&rows);
                        rows.count = 0;
                    }
                    a += self.source.pixel;
                    c += self.target.pixel;
                }
            }
        }
        if rows.count > 0 {
            f(&rows);
        }
    }
}

/// Where [`Window::sum`] writes.
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

/// The rows of a weight gradient, `[kh, kw, c_in]`, and the runs of pixels they are summed over.
#[derive(Clone, Debug)]
pub(super) struct Taps {
    /// Where each row finds its number in the first window.
    offsets: Vec<usize>,
    /// Where each row of windows begins, over the images of a block.
    runs: Vec<usize>,
    /// Windows in a row.
    len: usize,
    /// Distance of two windows.
    step: usize,
}

impl Taps {
    /// The gradient of `shape` over blocks of up to `images` images framed by [`Frame::input`].
    pub(super) fn new(shape: &ConvShape, images: usize) -> Self {
        let frame = Frame::input(shape);
        let ConvShape { c_in, kernel, stride, .. } = *shape;
        let run = kernel * c_in;
        Self {
            offsets: (0..kernel).flat_map(|y| (0..run).map(move |i| y * frame.row() + i)).collect(),
            runs: (0..images)
                .flat_map(|image| {
                    (0..shape.out_h()).map(move |y| image * frame.len() + y * stride * frame.row())
                })
                .collect(),
            len: shape.out_w(),
            step: stride * c_in,
        }
    }

    /// Rows of the gradient.
    pub(super) fn depth(&self) -> usize {
        self.offsets.len()
    }

    /// Sums over the rows of windows in `range`, into `d_weights [depth, panel.width]`.
    ///
    /// - `source`: framed images; `dy`: the panel of the output's gradient, one row per window
    pub(super) fn sum(
        &self,
        isa: InstructionSet,
        lines: usize,
        source: &[f32],
        dy: &[f32],
        panel: Panel,
        output: Output<'_>,
    ) {
        let line = self.len * panel.width;
        let lines_at_once = (PANEL_BYTES / size_of::<f32>() / line).max(1);
        let mut target =
            Target { c: output.c, columns: panel.width, accumulate: output.accumulate, sums: None };
        let mut done = 0;
        while done < lines {
            let part: Range<usize> = done..(done + lines_at_once).min(lines);
            let terms = Terms {
                a: source,
                runs: &self.runs[part.clone()],
                len: self.len,
                step: self.step,
                b: &dy[part.start * line..part.end * line],
                width: panel.width,
            };
            for (group, offsets) in self.offsets.chunks(isa.rows()).enumerate() {
                let mut rows = Rows { count: offsets.len(), ..Rows::default() };
                rows.a_offsets[..offsets.len()].copy_from_slice(offsets);
                for (row, c) in rows.c_offsets.iter_mut().enumerate() {
                    *c = (group * isa.rows() + row) * panel.width;
                }
                strip(isa, &terms, &rows, &mut target);
            }
            target.accumulate = true;
            done = part.end;
        }
    }
}
