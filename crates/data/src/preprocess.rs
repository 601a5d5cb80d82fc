//! Images as evaluation sees them: never augmented.

use crate::Image;
use crate::augment::{Scratch, resize};

/// Makes an image `size` x `size`: the shorter side is resized to `size` (bilinear, antialiased) and the middle
/// is kept, as torchvision's `Resize` and `CenterCrop`; then `(x / 255 - mean) / std`. An image that has the
/// size already is not resampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    /// Rows and columns of the result.
    pub size: usize,
    /// Subtracted from each channel; zeros leave it.
    pub mean: [f32; 3],
    /// What the difference is divided by; ones leave it.
    pub std: [f32; 3],
}

impl Preprocess {
    /// Prepares one image.
    ///
    /// - `out`: `[size, size, 3]`, overwritten
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn apply(&self, image: &Image, scratch: &mut Scratch, out: &mut [f32]) {
        self.place(image, scratch);
        scratch.planes.write_normalised(self.mean, self.std, out);
    }

    /// Puts the resized middle into `scratch.planes`.
    pub(crate) fn place(&self, image: &Image, scratch: &mut Scratch) {
        let shorter = image.width.min(image.height);
        let Scratch { planes, axes: [columns, rows], row, .. } = scratch;
        for (axis, len) in [(&mut *columns, image.width), (&mut *rows, image.height)] {
            // The longer side keeps the proportion, rounded down.
            let full = self.size * len / shorter;
            let start = ((full - self.size) as f64 / 2.0).round_ties_even() as usize;
            axis.plan(0, len, full, start..start + self.size);
        }
        resize(image, [columns, rows], row, planes);
    }
}
