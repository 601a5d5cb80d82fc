//! Images surrounded by the zeros that their windows reach.

use std::ops::Range;

use super::prologue::{Apply, Input, Prologue};
use super::shape::ConvShape;
use super::simd::InstructionSet;

/// Channels of a plane: a cache line of them.
const PLANE_CHANNELS: usize = 16;

/// Images `[h, w, channels]` in a frame of zeros, so that no window needs an edge case: `[planes, height, width,
/// plane_channels]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) channels: usize,
    /// A framed image is cut into planes of so many channels; what the last one has more is never read.
    pub(super) plane_channels: usize,
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
        let ConvShape { h, w, c_in: channels, pad, .. } = *shape;
        let (height, width) = (h + 2 * pad, w + 2 * pad);
        Self { h, w, channels, plane_channels: channels, top: pad, left: pad, height, width }
    }

    /// The same in planes of [`PLANE_CHANNELS`] channels, if it has more of them: pixel after pixel of a few channels is then
    /// one stream, where pixels hundreds of bytes apart would all fall into the same few sets of the nearest cache. Where
    /// every pixel is a window the images stay as they are: one tap reads a number once for all panels, too little to be
    /// worth the copy.
    pub(super) fn input_planes(shape: &ConvShape) -> Self {
        let plane_channels = if shape.is_every_pixel() { shape.c_in } else { shape.c_in.min(PLANE_CHANNELS) };
        Self { plane_channels, ..Self::input(shape) }
    }

    /// Elements of a framed image.
    pub(super) fn len(&self) -> usize {
        self.channels.div_ceil(self.plane_channels) * self.plane()
    }

    /// Elements of a plane of a framed image.
    pub(super) fn plane(&self) -> usize {
        self.row() * self.height
    }

    /// Elements of a row of a plane.
    pub(super) fn row(&self) -> usize {
        self.width * self.plane_channels
    }

    /// The images themselves if the frame is one plane and empty and nothing is done to them, else a framed copy in
    /// `buffer`.
    pub(super) fn place<'a>(
        &self,
        isa: InstructionSet,
        images: Input<'a, f32>,
        buffer: &'a mut [f32],
    ) -> &'a [f32] {
        let Input { x: images, prologue } = images;
        let is_one_plane = self.plane_channels == self.channels;
        if is_one_plane && self.height == self.h && self.width == self.w && prologue.is_none() {
            return images;
        }
        let image_len = self.h * self.w * self.channels;
        for (image, framed) in images.chunks_exact(image_len).zip(buffer.chunks_exact_mut(self.len())) {
            for (first, plane) in
                (0..).step_by(self.plane_channels).zip(framed.chunks_exact_mut(self.plane()))
            {
                let channels = first..self.channels.min(first + self.plane_channels);
                self.place_plane(isa, (image, prologue), channels, plane);
            }
        }
        buffer
    }

    fn place_plane(
        &self,
        isa: InstructionSet,
        (image, prologue): (&[f32], Option<Prologue<'_, f32>>),
        channels: Range<usize>,
        plane: &mut [f32],
    ) {
        let line = self.w * self.channels;
        let (left, inner) = (self.left * self.plane_channels, self.w * self.plane_channels);
        let (top, bottom) = (self.top * self.row(), (self.top + self.h) * self.row());
        plane[..top].fill(0.0);
        plane[bottom..].fill(0.0);
        for (source, row) in image.chunks_exact(line).zip(plane[top..bottom].chunks_exact_mut(self.row())) {
            row[..left].fill(0.0);
            row[left + inner..].fill(0.0);
            let row = &mut row[left..left + inner];
            match prologue {
                None if channels.len() == self.channels => row.copy_from_slice(source),
                prologue => isa.run(Apply {
                    prologue,
                    channels: channels.clone(),
                    x: source,
                    x_step: self.channels,
                    y: row,
                    y_step: self.plane_channels,
                }),
            }
        }
    }
}
