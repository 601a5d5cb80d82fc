//! Where pixels lie that are transformed.

use std::ops::Range;

/// Where pixels of images lie, all of them or those of a phase.
#[derive(Clone, Copy)]
pub(super) struct Lattice {
    /// Rows and columns of such pixels.
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) channels: usize,
    /// Where the first one begins.
    pub(super) first: usize,
    /// Distance of two rows.
    pub(super) row: usize,
    /// Distance of two pixels in a row.
    pub(super) pixel: usize,
    /// Numbers in an image.
    pub(super) image: usize,
}

impl Lattice {
    /// The numbers of one image.
    #[inline(always)]
    pub(super) fn image(&self, image: usize) -> Range<usize> {
        image * self.image..(image + 1) * self.image
    }
}
