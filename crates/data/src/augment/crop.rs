//! Where a random resized crop is taken.

use crate::random::Draws;

/// A crop of random area and aspect ratio, as torchvision's `RandomResizedCrop` draws it.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomCrop {
    /// Smallest and largest share of the image's area.
    pub area: [f64; 2],
    /// Smallest and largest width over height; its logarithm is uniform.
    pub aspect: [f64; 2],
}

/// A window of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// Windows that do not fit are drawn again this often; then the largest centred one is taken.
const ATTEMPTS: usize = 10;

impl RandomCrop {
    /// Draws a window of an image of `width` x `height` pixels.
    pub fn draw(&self, width: usize, height: usize, draws: &mut Draws) -> CropBox {
        let area = (width * height) as f64;
        let [narrow, wide] = self.aspect;
        for _ in 0..ATTEMPTS {
            let target = area * draws.uniform(self.area[0], self.area[1]);
            let aspect = draws.uniform(narrow.ln(), wide.ln()).exp();
            let crop_width = (target * aspect).sqrt().round_ties_even() as usize;
            let crop_height = (target / aspect).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                return CropBox {
                    top: draws.below((height - crop_height) as u64 + 1) as usize,
                    left: draws.below((width - crop_width) as u64 + 1) as usize,
                    width: crop_width,
                    height: crop_height,
                };
            }
        }
        self.central(width, height)
    }

    /// The largest centred window whose aspect ratio is allowed.
    fn central(&self, width: usize, height: usize) -> CropBox {
        let aspect = width as f64 / height as f64;
        let [narrow, wide] = self.aspect;
        let (mut crop_width, mut crop_height) = (width, height);
        if aspect < narrow {
            crop_height = ((width as f64 / narrow).round_ties_even() as usize).clamp(1, height);
        } else if aspect > wide {
            crop_width = ((height as f64 * wide).round_ties_even() as usize).clamp(1, width);
        }
        CropBox {
            left: (width - crop_width) / 2,
            top: (height - crop_height) / 2,
            width: crop_width,
            height: crop_height,
        }
    }
}
