//! Bilinear resizing with antialiasing, as PyTorch's `interpolate(mode="bilinear", antialias=True)` does it.
//!
//! Along each axis an output pixel is the mean of the input pixels under a triangle centred on it, which is as
//! wide as two output pixels when shrinking and two input pixels when growing. The two axes are independent;
//! rows are combined first, because that touches the many input pixels in the order they lie in memory.

use std::ops::Range;

use crate::Image;
use crate::augment::Planes;

/// Which input pixels, with which weights, make each output pixel along one axis.
#[derive(Debug, Default)]
pub(crate) struct Axis {
    /// First pixel of the window, in the image.
    offset: usize,
    /// Pixels of the window.
    len: usize,
    /// Per output pixel: its first input pixel, in the image, and where its weights lie.
    taps: Vec<(usize, Range<usize>)>,
    weights: Vec<f32>,
}

impl Axis {
    /// Plans the pixels `kept` of the `full` ones that a window of `len` pixels at `offset` is resized to.
    ///
    /// Numbers are rounded to f32 where PyTorch rounds them, so that weights agree to the last bit or two.
    pub fn plan(&mut self, offset: usize, len: usize, full: usize, kept: Range<usize>) {
        (self.offset, self.len) = (offset, len);
        self.taps.clear();
        self.weights.clear();
        let scale = len as f32 / full as f32;
        let support = scale.max(1.0);
        for output in kept {
            let centre = (f64::from(scale) * (output as f64 + 0.5)) as f32;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(len);
            let start = self.weights.len();
            for input in first..end {
                let distance = (f64::from(input as f32 - centre) + 0.5) / f64::from(support);
                self.weights.push((1.0 - distance.abs()).max(0.0) as f32);
            }
            let total: f32 = self.weights[start..].iter().sum();
            self.weights[start..].iter_mut().for_each(|weight| *weight /= total);
            self.taps.push((offset + first, start..self.weights.len()));
        }
    }

    fn is_identity(&self) -> bool {
        self.len == self.taps.len() && self.taps.first().is_some_and(|(first, _)| *first == self.offset)
    }
}

/// Resizes a window of `image` into `out`, values in [0, 1].
///
/// - `row`: memory for one row of the window
pub(crate) fn resize(image: &Image, [columns, rows]: [&Axis; 2], row: &mut Vec<f32>, out: &mut Planes) {
    let size = rows.taps.len();
    assert_eq!(columns.taps.len(), size, "views are square");
    out.size = size;
    out.values.resize(3 * size * size, 0.0);
    let copied = columns.is_identity() && rows.is_identity();
    let [red, green, blue] = out.channels();
    let lines = red.chunks_exact_mut(size).zip(green.chunks_exact_mut(size)).zip(blue.chunks_exact_mut(size));
    for ((first, weights), ((red, green), blue)) in rows.taps.iter().zip(lines) {
        if copied {
            // x / 255 to the last bit, which a product of weights would not give.
            for (x, pixel) in window(image, *first, columns).chunks_exact(3).enumerate() {
                [red[x], green[x], blue[x]] =
                    std::array::from_fn(|channel| f32::from(pixel[channel]) / 255.0);
            }
            continue;
        }
        row.clear();
        row.resize(3 * columns.len, 0.0);
        for (y, weight) in rows.weights[weights.clone()].iter().enumerate() {
            let weight = weight / 255.0;
            for (sum, &value) in row.iter_mut().zip(window(image, first + y, columns)) {
                *sum += weight * f32::from(value);
            }
        }
        for (x, (first, weights)) in columns.taps.iter().enumerate() {
            let pixels = row[3 * (first - columns.offset)..].chunks_exact(3);
            let mut sum = [0.0; 3];
            for (weight, pixel) in columns.weights[weights.clone()].iter().zip(pixels) {
                for (sum, value) in sum.iter_mut().zip(pixel) {
                    *sum += weight * value;
                }
            }
            [red[x], green[x], blue[x]] = sum;
        }
    }
}

/// The bytes of one row of the image that lie under the columns' window.
fn window<'a>(image: &'a Image, y: usize, columns: &Axis) -> &'a [u8] {
    let start = 3 * (y * image.width + columns.offset);
    &image.rgb[start..start + 3 * columns.len]
}
