//! Images surrounded by the zeros that their windows reach.

use super::conv::ConvShape;
use super::prologue::{Apply, Input};
use super::simd::InstructionSet;

/// Images `[h, w, channels]` in a frame of zeros, so that no window needs an edge case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) channels: usize,
    /// Zeros above and left of the image.
    pub(super) top: usize,
    pub(super) left: usize,
    /// Sides of the frame.
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

    /// The images themselves if the frame is empty and nothing is done to them, else a framed copy in `buffer`.
    pub(super) fn place<'a>(
        &self,
        isa: InstructionSet,
        images: Input<'a, f32>,
        buffer: &'a mut [f32],
    ) -> &'a [f32] {
        let Input { x: images, prologue } = images;
        if self.height == self.h && self.width == self.w && prologue.is_none() {
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
                match prologue {
                    None => row[left..left + line].copy_from_slice(source),
                    Some(prologue) => {
                        isa.run(Apply { prologue, x: source, y: &mut row[left..left + line] });
                    }
                }
                row[left + line..].fill(0.0);
            }
        }
        buffer
    }
}
