//! Bilinear resizing with antialiasing, as PyTorch's `interpolate(mode="bilinear", antialias=True)` does it.
//!
//! Along each axis an output pixel is the mean of the input pixels under a triangle centred on it, which is as
//! wide as two output pixels when shrinking and two input pixels when growing. The two axes are independent;
//! rows are combined first, because that touches the many input pixels in the order they lie in memory.

use std::ops::Range;

use crate::Image;
use crate::augment::Planes;
use crate::wide;

/// Which input pixels, with which weights, make each output pixel along one axis.
#[derive(Debug, Default)]
pub(crate) struct Axis {
    /// First pixel of the window, in the image.
    offset: usize,
    /// Pixels of the window.
    len: usize,
    /// Per output pixel: its first input pixel, in the window.
    firsts: Vec<usize>,
    /// Input pixels of every output pixel: those that are under fewer have weights of zero.
    taps: usize,
    /// `[firsts.len(), taps]`.
    weights: Vec<f32>,
    /// Whether every output pixel is the input pixel of its number.
    is_identity: bool,
}

impl Axis {
    /// Plans the pixels `kept` of the `full` ones that a window of `len` pixels at `offset` is resized to.
    ///
    /// Numbers are rounded to f32 where PyTorch rounds them, so that weights agree to the last bit or two.
    pub fn plan(&mut self, offset: usize, len: usize, full: usize, kept: Range<usize>) {
        self.offset = offset;
        self.len = len;
        let scale = len as f32 / full as f32;
        let support = scale.max(1.0);
        let under = |output: usize| {
            let centre = (f64::from(scale) * (output as f64 + 0.5)) as f32;
            let first = (centre - support + 0.5).max(0.0) as usize;
            (centre, first..((centre + support + 0.5) as usize).min(len))
        };
        self.is_identity = scale == 1.0 && kept == (0..len);
        self.taps = kept.clone().map(|output| under(output).1.len()).max().unwrap_or(0);
        self.firsts.clear();
        self.weights.clear();
        for output in kept {
            let (centre, inputs) = under(output);
            // At the far edge the window moves back, so that it ends with the image.
            let first = inputs.start.min(len - self.taps);
            let start = self.weights.len();
            self.weights.resize(start + self.taps, 0.0);
            let weights = &mut self.weights[start..];
            for input in inputs {
                let distance = (f64::from(input as f32 - centre) + 0.5) / f64::from(support);
                weights[input - first] = (1.0 - distance.abs()).max(0.0) as f32;
            }
            let total: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= total);
            self.firsts.push(first);
        }
    }

    /// Mirrors the output.
    pub fn reverse(&mut self) {
        self.is_identity = false;
        self.firsts.reverse();
        // The taps of a pixel are reversed with it, and once more by themselves.
        self.weights.reverse();
        self.weights.chunks_exact_mut(self.taps).for_each(<[f32]>::reverse);
    }
}

/// Resizes a window of `image` into `out`, values in [0, 1].
///
/// - `row`: memory for a row of the window and one of the result
pub(crate) fn resize(image: &Image, [columns, rows]: [&Axis; 2], row: &mut Vec<f32>, out: &mut Planes) {
    let size = rows.firsts.len();
    assert_eq!(columns.firsts.len(), size, "views are square");
    out.size = size;
    out.values.resize(3 * size * size, 0.0);
    // Pixels are read and written as four values, of which the last belongs to the neighbour.
    row.resize(3 * columns.len + 1 + 3 * size + 1, 0.0);
    let (row, pixels) = row.split_at_mut(3 * columns.len + 1);
    wide::run(Resize { image, columns, rows, row, pixels, out });
}

struct Resize<'a> {
    image: &'a Image,
    columns: &'a Axis,
    rows: &'a Axis,
    row: &'a mut [f32],
    pixels: &'a mut [f32],
    out: &'a mut Planes,
}

impl wide::Pass for Resize<'_> {
    #[inline(always)]
    fn run(self) {
        let Resize { image, columns, rows, row, pixels, out } = self;
        let size = out.size;
        let row_values = 3 * columns.len;
        let copied = columns.is_identity && rows.is_identity;
        let [red, green, blue] = out.channels();
        let lines =
            red.chunks_exact_mut(size).zip(green.chunks_exact_mut(size)).zip(blue.chunks_exact_mut(size));
        let taps = rows.firsts.iter().zip(rows.weights.chunks_exact(rows.taps));
        for (y, ((first, weights), ((red, green), blue))) in taps.zip(lines).enumerate() {
            if copied {
                // x / 255 to the last bit, which a product of weights would not give.
                for (value, &byte) in pixels.iter_mut().zip(window(image, rows.offset + y, columns)) {
                    *value = f32::from(byte) / 255.0;
                }
            } else {
                combine_rows(image, columns, (rows.offset + first, weights), &mut row[..row_values]);
                match columns.taps {
                    // Every crop that is enlarged.
                    2 => combine_columns::<2>(columns, row, pixels),
                    3 => combine_columns::<3>(columns, row, pixels),
                    _ => combine_columns::<0>(columns, row, pixels),
                }
            }
            let (rgb, _) = pixels.as_chunks::<3>();
            for (((red, green), blue), rgb) in red.iter_mut().zip(green).zip(blue).zip(rgb) {
                [*red, *green, *blue] = *rgb;
            }
        }
    }
}

/// Adds up the rows under one output row, pixels interleaved.
#[inline(always)]
fn combine_rows(image: &Image, columns: &Axis, (first, weights): (usize, &[f32]), row: &mut [f32]) {
    // Two rows at once: of an enlarged crop these are all.
    for (pair, weights) in weights.chunks(2).enumerate() {
        let above = window(image, first + 2 * pair, columns);
        let (above_weight, below_weight) = (weights[0] / 255.0, weights.get(1).unwrap_or(&0.0) / 255.0);
        let below = if weights.len() == 2 { window(image, first + 2 * pair + 1, columns) } else { above };
        let pairs = row.iter_mut().zip(above.iter().zip(below));
        if pair == 0 {
            pairs.for_each(|(sum, (&above, &below))| {
                *sum = above_weight * f32::from(above) + below_weight * f32::from(below);
            });
        } else {
            pairs.for_each(|(sum, (&above, &below))| {
                *sum += above_weight * f32::from(above) + below_weight * f32::from(below);
            });
        }
    }
}

/// Adds up the columns under each pixel of a row, pixels interleaved. `TAPS` of 0 is any number of them.
#[inline(always)]
fn combine_columns<const TAPS: usize>(columns: &Axis, row: &[f32], pixels: &mut [f32]) {
    let taps = if TAPS == 0 { columns.taps } else { TAPS };
    let planned = columns.firsts.iter().zip(columns.weights.chunks_exact(taps));
    for (x, (first, weights)) in planned.enumerate() {
        let row = &row[3 * first..][..3 * taps + 1];
        let mut sum = [0.0; 4];
        for (tap, weight) in weights.iter().enumerate() {
            for (sum, value) in sum.iter_mut().zip(&row[3 * tap..][..4]) {
                *sum += weight * value;
            }
        }
        // The fourth is overwritten by the next pixel.
        pixels[3 * x..][..4].copy_from_slice(&sum);
    }
}

/// The bytes of one row of the image that lie under the columns' window.
#[inline(always)]
fn window<'a>(image: &'a Image, y: usize, columns: &Axis) -> &'a [u8] {
    let start = 3 * (y * image.width + columns.offset);
    &image.rgb[start..start + 3 * columns.len]
}

/// Shrinks whole images; memory that is kept from image to image.
#[derive(Debug, Default)]
pub(crate) struct Shrink {
    axes: [Axis; 2],
    row: Vec<f32>,
}

impl Shrink {
    /// Makes the shorter side `side` pixels long, the longer one in proportion (rounded), 8 bits a channel. None if
    /// it is no longer than that already.
    pub fn shorten(&mut self, image: &Image, side: usize) -> Option<Image> {
        let shorter = image.width.min(image.height);
        if shorter <= side {
            return None;
        }
        let [width, height] = [image.width, image.height].map(|len| (side * len + shorter / 2) / shorter);
        let [columns, rows] = &mut self.axes;
        columns.plan(0, image.width, width, 0..width);
        rows.plan(0, image.height, height, 0..height);
        self.row.resize(3 * image.width + 1 + 3 * width + 1, 0.0);
        let (row, pixels) = self.row.split_at_mut(3 * image.width + 1);
        let mut rgb = vec![0; 3 * width * height];
        wide::run(ShrinkPass { image, columns, rows, row, pixels, rgb: &mut rgb });
        Some(Image { width, height, rgb })
    }
}

struct ShrinkPass<'a> {
    image: &'a Image,
    columns: &'a Axis,
    rows: &'a Axis,
    row: &'a mut [f32],
    pixels: &'a mut [f32],
    rgb: &'a mut [u8],
}

impl wide::Pass for ShrinkPass<'_> {
    #[inline(always)]
    fn run(self) {
        let ShrinkPass { image, columns, rows, row, pixels, rgb } = self;
        let taps = rows.firsts.iter().zip(rows.weights.chunks_exact(rows.taps));
        for ((first, weights), line) in taps.zip(rgb.chunks_exact_mut(3 * columns.firsts.len())) {
            combine_rows(image, columns, (*first, weights), &mut row[..3 * columns.len]);
            combine_columns::<0>(columns, row, pixels);
            for (byte, value) in line.iter_mut().zip(&*pixels) {
                *byte = (value * 255.0 + 0.5) as u8;
            }
        }
    }
}
