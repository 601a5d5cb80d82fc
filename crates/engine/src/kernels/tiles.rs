//! Images cut into tiles of 4 x 4 pixels, and a block of tiles moved into and out of the basis in which
//! Winograd's convolution is a product per point.

use std::ops::Range;

use super::conv::ConvShape;
use super::prologue::{Input, Plain, Prologue, Reading};
use super::simd::{Simd, Task, add_lanes};
use super::transforms::{Map, Output, Planes, Tile, map_columns, map_row};

/// Images `[h, w, channels]` cut into tiles, those at the far edges cut off.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    h: usize,
    w: usize,
    pub(super) channels: usize,
}

/// An image and the first pixel of a tile in it.
struct Place {
    image: usize,
    y: usize,
    x: usize,
}

impl Tiles {
    /// The images of a convolution whose input and output have the same sides.
    pub(super) fn new(shape: &ConvShape, channels: usize) -> Self {
        Self { h: shape.h, w: shape.w, channels }
    }

    pub(super) fn per_image(&self) -> usize {
        self.h.div_ceil(4) * self.w.div_ceil(4)
    }

    /// Tiles of some images.
    pub(super) fn count(&self, images: &[f32]) -> usize {
        images.len() / (self.h * self.w * self.channels) * self.per_image()
    }

    #[inline(always)]
    fn place(&self, tile: usize) -> Place {
        let (image, tile) = (tile / self.per_image(), tile % self.per_image());
        let across = self.w.div_ceil(4);
        Place { image, y: tile / across * 4, x: tile % across * 4 }
    }
}

/// Pixels to transform.
#[derive(Clone)]
pub(super) struct Source<'a> {
    pub(super) tiles: Tiles,
    /// Pixels that the map reads above and left of a tile.
    pub(super) before: usize,
    /// The channels to transform.
    pub(super) channels: Range<usize>,
    pub(super) images: &'a [f32],
    /// What is done to each pixel of an image on the way.
    pub(super) prologue: Option<Prologue<'a, f32>>,
}

/// Transforms a block of tiles of `N` x `N` pixels into `planes [POINTS, tiles, channels]`.
pub(super) struct Spread<'a, F, const N: usize> {
    pub(super) map: F,
    pub(super) source: Source<'a>,
    pub(super) block: Range<usize>,
    pub(super) planes: &'a mut [f32],
    /// Distance of two planes.
    pub(super) plane: usize,
}

impl<F: Map<N, 6>, const N: usize> Task for Spread<'_, F, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.source.prologue {
            None => self.spread(simd, Plain),
            Some(prologue) => self.spread(simd, prologue),
        }
    }
}

impl<F: Map<N, 6>, const N: usize> Spread<'_, F, N> {
    #[inline(always)]
    fn spread<S: Simd>(self, simd: S, reading: impl Reading) {
        let width = self.source.channels.len();
        let mut pixels = [[&[][..]; N]; N];
        let mut columns = [[simd.splat(0.0); 6]; N];
        for (slot, tile) in self.block.enumerate() {
            self.source.find(tile, &mut pixels);
            for channel in (0..width).step_by(S::LANES) {
                map_columns(simd, self.map, &Pixels { pixels: &pixels, channel, reading }, &mut columns);
                let offset = slot * width + channel;
                for row in 0..6 {
                    let line = map_row(simd, self.map, &columns, row);
                    for (column, vector) in line.into_iter().enumerate() {
                        simd.write(&mut self.planes[(6 * row + column) * self.plane + offset..], vector);
                    }
                }
            }
        }
    }
}

impl<'a> Source<'a> {
    /// All channels of the input of a convolution, with its border of one pixel.
    pub(super) fn input(tiles: Tiles, images: Input<'a, f32>) -> Self {
        let Input { x: images, prologue } = images;
        Self { tiles, before: 1, channels: 0..tiles.channels, images, prologue }
    }

    /// Finds the pixels that the map reads for a tile, nothing for those outside the image.
    #[inline(always)]
    fn find<const N: usize>(&self, tile: usize, pixels: &mut [[&'a [f32]; N]; N]) {
        let Tiles { h, w, channels } = self.tiles;
        let Place { image, y, x } = self.tiles.place(tile);
        for (row, pixels) in pixels.iter_mut().enumerate() {
            // What lies before the image wraps around to a very large number.
            let y = (y + row).wrapping_sub(self.before);
            let line = (image * h).wrapping_add(y).wrapping_mul(w);
            for (column, pixel) in pixels.iter_mut().enumerate() {
                let x = (x + column).wrapping_sub(self.before);
                *pixel = if y < h && x < w {
                    &self.images[(line + x) * channels..][self.channels.clone()]
                } else {
                    &[]
                };
            }
        }
    }
}

/// One vector of channels of each pixel.
struct Pixels<'a, R, const N: usize> {
    pixels: &'a [[&'a [f32]; N]; N],
    channel: usize,
    reading: R,
}

impl<R: Reading, const N: usize> Tile for Pixels<'_, R, N> {
    #[inline(always)]
    fn read<S: Simd>(&self, simd: S, row: usize, column: usize) -> S::Vector {
        match self.pixels[row][column].get(self.channel..self.channel + S::LANES) {
            Some(pixel) => self.reading.read(simd, self.channel, simd.read(pixel)),
            None => simd.splat(0.0),
        }
    }
}

/// Transforms `planes [POINTS, tiles, channels]` into a block of tiles of outputs.
pub(super) struct Collect<'a> {
    pub(super) tiles: Tiles,
    pub(super) block: Range<usize>,
    /// The channels to write.
    pub(super) channels: Range<usize>,
    pub(super) planes: &'a [f32],
    /// Distance of two planes.
    pub(super) plane: usize,
    pub(super) images: &'a mut [f32],
    /// Adds to the images instead of replacing them.
    pub(super) accumulate: bool,
    /// Sum and sum of squares of each of the channels, to be added to.
    pub(super) sums: Option<[&'a mut [f64]; 2]>,
}

impl Task for Collect<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Tiles { h, w, channels } = self.tiles;
        let width = self.channels.len();
        let mut columns = [[simd.splat(0.0); 4]; 6];
        for (slot, tile) in self.block.clone().enumerate() {
            let place = self.tiles.place(tile);
            let first = (place.image * h + place.y) * w + place.x;
            for channel in (0..width).step_by(S::LANES) {
                let offset = slot * width + channel;
                let products = Planes { planes: self.planes, plane: self.plane, offset, side: 6 };
                map_columns(simd, Output, &products, &mut columns);
                let (mut sum, mut squares) = (simd.splat(0.0), simd.splat(0.0));
                for row in 0..4.min(h - place.y) {
                    let line = map_row(simd, Output, &columns, row);
                    for (column, vector) in line.into_iter().enumerate() {
                        if place.x + column < w {
                            let pixel = (first + row * w + column) * channels;
                            let pixel = &mut self.images[pixel + self.channels.start + channel..];
                            let vector =
                                if self.accumulate { simd.add(simd.read(pixel), vector) } else { vector };
                            simd.write(pixel, vector);
                            sum = simd.add(sum, vector);
                            squares = simd.mul_add(vector, vector, squares);
                        }
                    }
                }
                if let Some([sums, all_squares]) = &mut self.sums {
                    add_lanes(simd, sum, &mut sums[channel..]);
                    add_lanes(simd, squares, &mut all_squares[channel..]);
                }
            }
        }
    }
}
