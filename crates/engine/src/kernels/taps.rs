//! Where the taps of a kernel lie: the geometry of the gradient with respect to the weights.

use std::ops::Range;

use super::conv::ConvShape;
use super::frame::Frame;
use super::panels::Panel;
use super::simd::InstructionSet;
use super::strip::{Rows, Target, Terms, strip};
use super::window::{Output, PANEL_BYTES};

/// The rows of a weight gradient, `[kh, kw, c_in]`, and the runs of pixels they are summed over.
#[derive(Clone, Debug)]
pub(super) struct Taps {
    /// Rows of the gradient.
    pub(super) depth: usize,
    /// Rows of the gradient that lie side by side in the first window.
    run: usize,
    /// Distance of two such runs.
    row: usize,
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
            depth: kernel * run,
            run,
            row: frame.row(),
            runs: (0..images)
                .flat_map(|image| {
                    (0..shape.out_h()).map(move |y| image * frame.len() + y * stride * frame.row())
                })
                .collect(),
            len: shape.out_w(),
            step: stride * c_in,
        }
    }

    /// Sums over all windows of a block, into `output.c [depth, panel.width]`.
    ///
    /// - `source`: framed images; `dy`: the panel of the output's gradient, one row per window
    pub(super) fn sum(
        &self,
        isa: InstructionSet,
        source: &[f32],
        dy: &[f32],
        panel: Panel,
        output: Output<'_>,
    ) {
        let line = self.len * panel.width;
        let lines = dy.len() / line;
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
            for first in (0..self.depth).step_by(isa.rows()) {
                let mut rows = Rows::default();
                for row in first..(first + isa.rows()).min(self.depth) {
                    rows.push(row / self.run * self.row + row % self.run, row * panel.width);
                }
                strip(isa, &terms, &rows, &mut target);
            }
            target.accumulate = true;
            done = part.end;
        }
    }
}
