//! Where the taps of a kernel lie: the geometry of the gradient with respect to the weights.

use super::division::blocks;
use super::frame::Frame;
use super::panels::Panels;
use super::shape::ConvShape;
use super::simd::InstructionSet;
use super::strip::{Place, Target, Terms, strips};

/// Bytes of framed images that every panel visits before the next pixels are begun: a part of a second-level cache.
const SOURCE_BYTES: usize = 256 << 10;

/// Windows that every panel visits at once: the gradient is read and written once for so many, and their part of the
/// output's gradient stays in the second-level cache.
const FEWEST_PIXELS: usize = 256;
const MOST_PIXELS: usize = 1024;

/// The rows of a weight gradient, `[kh, kw, c_in]`, and the runs of pixels they are summed over.
#[derive(Clone, Debug)]
pub(super) struct Taps {
    /// Of each row of the gradient, plane by plane of the frame: where it is read in the first window, and its number.
    rows: Vec<(usize, usize)>,
    /// Where each row of windows begins, over the images of a block. Empty where every pixel is a window: then it does not
    /// matter where a row or an image ends, and long runs take less time.
    runs: Vec<usize>,
    /// Windows in a row; one where it does not matter.
    len: usize,
    /// Distance of two windows.
    step: usize,
    /// Rows of windows that every panel visits before the next are begun.
    lines_at_once: usize,
}

impl Taps {
    /// The gradient of `shape` over blocks of up to `images` images framed by [`Frame::input_planes`].
    pub(super) fn new(shape: &ConvShape, images: usize) -> Self {
        let frame = Frame::input_planes(shape);
        let ConvShape { c_in, kernel, stride, .. } = *shape;
        let (lines, len) = if shape.is_every_pixel() { (0, 1) } else { (shape.out_h(), shape.out_w()) };
        let line = stride * frame.row();
        let floats = stride * stride * c_in;
        let pixels = (SOURCE_BYTES / size_of::<f32>() / floats).clamp(FEWEST_PIXELS, MOST_PIXELS);
        let plane = frame.plane_channels;
        let mut rows = Vec::with_capacity(kernel * kernel * c_in);
        for first in (0..c_in).step_by(plane) {
            for tap in 0..kernel * kernel {
                let window = (tap / kernel) * frame.row() + tap % kernel * plane;
                let channels = first..c_in.min(first + plane);
                rows.extend(channels.map(|channel| {
                    let read = first / plane * frame.plane() + window + channel % plane;
                    (read, tap * c_in + channel)
                }));
            }
        }
        Self {
            rows,
            runs: (0..images).flat_map(|n| (0..lines).map(move |y| n * frame.len() + y * line)).collect(),
            len,
            step: stride * plane,
            lines_at_once: (pixels / len).max(1),
        }
    }

    /// Rows of the gradient.
    pub(super) fn depth(&self) -> usize {
        self.rows.len()
    }

    /// Sums over all windows of a block, into `d_weights`, panels of `[depth, panel.width]`.
    ///
    /// - `source`: framed images; `dy`: panels of the output's gradient, one row per window
    pub(super) fn sum(
        &self,
        isa: InstructionSet,
        source: &[f32],
        (panels, dy): (Panels, &[f32]),
        d_weights: &mut [f32],
        accumulate: bool,
    ) {
        let windows = dy.len() / panels.stored();
        for lines in blocks(0..windows / self.len, self.lines_at_once) {
            for panel in panels.iter() {
                let dy = &dy[panel.range(windows)];
                let line = self.len * panel.width;
                let all = [lines.start * self.step];
                let (runs, len) = match &self.runs[..] {
                    [] => (&all[..], lines.len()),
                    runs => (&runs[lines.clone()], self.len),
                };
                let terms = Terms {
                    a: source,
                    runs,
                    len,
                    step: self.step,
                    b: &dy[lines.start * line..lines.end * line],
                    width: panel.width,
                };
                let mut target = Target {
                    c: &mut d_weights[panel.range(self.depth())],
                    columns: panel.width,
                    accumulate: accumulate || lines.start > 0,
                    sums: None,
                };
                let rows = self.rows.iter().map(|&(a, row)| Place { a, c: row * panel.width });
                strips(isa, &terms, rows, &mut target);
            }
        }
    }
}
