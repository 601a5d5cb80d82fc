//! Images cut into tiles of 4 x 4 pixels, and a block of tiles moved into and out of the basis in which
//! Winograd's convolution is a product per point.

#![expect(unsafe_code, reason = "pixels are checked once per tile instead of once per vector")]

use std::ops::Range;

use super::conv::ConvShape;
use super::planes::{Planes, ReadPoints, WritePoints};
use super::prologue::{Input, Prologue, VectorPrologue};
use super::simd::{MAX_LANES, Simd, Task, add_lanes};
use super::transforms::{Map, Output, Sink, Tile, transform};

/// Tiles whose channel sums are added up in single precision.
const TILES_PER_SUM: usize = 4;

/// Images `[h, w, channels]` cut into tiles, those at the far edges cut off.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    h: usize,
    w: usize,
    pub(super) channels: usize,
}

/// An image and the first pixel of a tile in it.
#[derive(Clone, Copy)]
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

    /// Steps to the next tile.
    #[inline(always)]
    fn advance(&self, place: &mut Place) {
        place.x += 4;
        if place.x >= self.w {
            *place = Place { x: 0, y: place.y + 4, ..*place };
        }
        if place.y >= self.h {
            *place = Place { y: 0, image: place.image + 1, ..*place };
        }
    }

    /// The numbers of one image.
    #[inline(always)]
    fn image(&self, place: Place) -> Range<usize> {
        let len = self.h * self.w * self.channels;
        place.image * len..(place.image + 1) * len
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

/// Transforms a block of tiles of `N` x `N` pixels into planes.
pub(super) struct Spread<'a, F, const N: usize> {
    pub(super) map: F,
    pub(super) source: Source<'a>,
    pub(super) block: Range<usize>,
    pub(super) planes: Planes,
    pub(super) transformed: &'a mut [f32],
}

impl<F: Map<N, 6>, const N: usize> Task for Spread<'_, F, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { map, source, block, planes, transformed } = self;
        let Tiles { h, w, channels } = source.tiles;
        assert!(source.channels.end <= channels, "channels {:?} of {channels}", source.channels);
        let zeros = [[Vector([0.0; MAX_LANES]); N]; N];
        let (mut seen, mut seen_within) = (Seen::<N>(zeros), Within::<N>::ALL);
        let mut place = source.tiles.place(block.start);
        for slot in 0..block.len() {
            let image = &source.images[source.tiles.image(place)];
            let within = Within::<N>::new([place.y, place.x], source.before, [h, w]);
            // What lies before the image wraps around, and is not read.
            let first = (place.y * w + place.x).wrapping_sub(source.before * (w + 1));
            let first = image.as_ptr().wrapping_add(first.wrapping_mul(channels) + source.channels.start);
            let pixels = Pixels { first, row: w * channels, pixel: channels };
            if within != seen_within {
                (seen, seen_within) = (Seen(zeros), within);
            }
            for channel in (0..source.channels.len()).step_by(S::LANES) {
                let offset = planes.offset(slot, channel / S::LANES);
                let mut points = WritePoints::<6, false>::new::<S>(transformed, planes.plane, offset);
                let tile = pixels.from(channel);
                // Half of the rows at a time, because not all of them fit the registers.
                if source.prologue.is_none() && within == Within::ALL {
                    transform::<S, N, 6, 3, 0>(simd, map, &tile, &mut points);
                    transform::<S, N, 6, 3, 3>(simd, map, &tile, &mut points);
                } else {
                    let prologue = source.prologue.map(|p| p.vector(simd, source.channels.start + channel));
                    seen.look(simd, &tile, within, prologue);
                    transform::<S, N, 6, 3, 0>(simd, map, &seen, &mut points);
                    transform::<S, N, 6, 3, 3>(simd, map, &seen, &mut points);
                }
            }
            source.tiles.advance(&mut place);
        }
    }
}

/// The rows and columns of a tile that lie within the image.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Within<const N: usize> {
    rows: [usize; 2],
    columns: [usize; 2],
}

impl<const N: usize> Within<N> {
    const ALL: Self = Self { rows: [0, N], columns: [0, N] };

    /// Of the tile that begins `before` pixels above and left of a pixel of an image.
    #[inline(always)]
    fn new([y, x]: [usize; 2], before: usize, [h, w]: [usize; 2]) -> Self {
        let along = |at: usize, side: usize| [before.saturating_sub(at), N.min(side + before - at)];
        Self { rows: along(y, h), columns: along(x, w) }
    }
}

impl<'a> Source<'a> {
    /// All channels of the input of a convolution, with its border of one pixel.
    pub(super) fn input(tiles: Tiles, images: Input<'a, f32>) -> Self {
        let Input { x: images, prologue } = images;
        Self { tiles, before: 1, channels: 0..tiles.channels, images, prologue }
    }
}

/// One vector of channels of each pixel of a tile, as far as they lie within the image.
#[derive(Clone, Copy)]
struct Pixels {
    first: *const f32,
    /// Distance of two rows of the image.
    row: usize,
    /// Distance of two pixels.
    pixel: usize,
}

impl Pixels {
    /// The vectors that begin at a channel.
    #[inline(always)]
    fn from(self, channel: usize) -> Self {
        Self { first: self.first.wrapping_add(channel), ..self }
    }
}

impl Tile for Pixels {
    #[inline(always)]
    fn read<S: Simd>(&self, simd: S, row: usize, column: usize) -> S::Vector {
        // SAFETY: `Spread` has checked the channels, and reads pixels within the image only.
        unsafe { simd.load(self.first.wrapping_add(row * self.row + column * self.pixel)) }
    }
}

/// One vector of channels of each pixel as the convolution sees it: zeros outside the image, the others behind the
/// prologue. Worth keeping, because a transform reads it twice.
struct Seen<const N: usize>([[Vector; N]; N]);

/// A vector of any instruction set.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector([f32; MAX_LANES]);

impl<const N: usize> Seen<N> {
    /// Looks at what lies within the image; zeros stay where they are.
    #[inline(always)]
    fn look<S: Simd>(
        &mut self,
        simd: S,
        tile: &Pixels,
        within: Within<N>,
        prologue: Option<VectorPrologue<S>>,
    ) {
        let Within { rows, columns } = within;
        for row in rows[0]..rows[1] {
            for column in columns[0]..columns[1] {
                let x = tile.read(simd, row, column);
                let x = prologue.map_or(x, |prologue| prologue.see(simd, x));
                simd.write(&mut self.0[row][column].0, x);
            }
        }
    }
}

impl<const N: usize> Tile for Seen<N> {
    #[inline(always)]
    fn read<S: Simd>(&self, simd: S, row: usize, column: usize) -> S::Vector {
        simd.read(&self.0[row][column].0)
    }
}

/// Transforms the planes of a block of tiles into outputs.
pub(super) struct Collect<'a> {
    pub(super) tiles: Tiles,
    pub(super) block: Range<usize>,
    /// The channels to write.
    pub(super) channels: Range<usize>,
    pub(super) planes: Planes,
    pub(super) products: &'a [f32],
    pub(super) images: &'a mut [f32],
    /// Adds to the images instead of replacing them.
    pub(super) accumulate: bool,
    /// Sum and sum of squares of each of the channels, to be added to.
    pub(super) sums: Option<[&'a mut [f64]; 2]>,
}

impl Task for Collect<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.accumulate { self.collect::<S, true>(simd) } else { self.collect::<S, false>(simd) }
    }
}

impl Collect<'_> {
    #[inline(always)]
    fn collect<S: Simd, const ACCUMULATE: bool>(mut self, simd: S) {
        let Tiles { h, w, channels } = self.tiles;
        assert!(self.channels.end <= channels, "channels {:?} of {channels}", self.channels);
        for channel in (0..self.channels.len()).step_by(S::LANES) {
            let mut place = self.tiles.place(self.block.start);
            for first in (0..self.block.len()).step_by(TILES_PER_SUM) {
                let (mut sum, mut squares) = (simd.splat(0.0), simd.splat(0.0));
                for slot in first..(first + TILES_PER_SUM).min(self.block.len()) {
                    let offset = self.planes.offset(slot, channel / S::LANES);
                    let products = ReadPoints::<6>::new::<S>(self.products, self.planes.plane, offset);
                    let image = &mut self.images[self.tiles.image(place)];
                    let mut sink = Pixel::<S, ACCUMULATE> {
                        tile: image[(place.y * w + place.x) * channels + self.channels.start + channel..]
                            .as_mut_ptr(),
                        row: w * channels,
                        pixel: channels,
                        rows: 4,
                        columns: 4,
                        sum,
                        squares,
                    };
                    if place.y + 4 <= h && place.x + 4 <= w {
                        transform::<S, 6, 4, 4, 0>(simd, Output, &products, &mut sink);
                    } else {
                        (sink.rows, sink.columns) = (h - place.y, w - place.x);
                        transform::<S, 6, 4, 4, 0>(simd, Output, &products, &mut sink);
                    }
                    (sum, squares) = (sink.sum, sink.squares);
                    self.tiles.advance(&mut place);
                }
                if let Some([sums, all_squares]) = &mut self.sums {
                    add_lanes(simd, sum, &mut sums[channel..]);
                    add_lanes(simd, squares, &mut all_squares[channel..]);
                }
            }
        }
    }
}

/// One vector of channels of the pixels of a tile.
struct Pixel<S: Simd, const ACCUMULATE: bool> {
    /// In the first pixel, which lies within the image.
    tile: *mut f32,
    /// Distance of two rows of the image.
    row: usize,
    /// Distance of two pixels.
    pixel: usize,
    /// Rows and columns that lie within the image.
    rows: usize,
    columns: usize,
    /// Of what was written.
    sum: S::Vector,
    squares: S::Vector,
}

impl<S: Simd, const ACCUMULATE: bool> Sink<S> for Pixel<S, ACCUMULATE> {
    #[inline(always)]
    fn write(&mut self, simd: S, row: usize, column: usize, mut vector: S::Vector) {
        if row >= self.rows || column >= self.columns {
            return;
        }
        let to = self.tile.wrapping_add(row * self.row + column * self.pixel);
        if ACCUMULATE {
            // SAFETY: as below.
            vector = simd.add(unsafe { simd.load(to) }, vector);
        }
        // SAFETY: `Collect` has checked the image, its channels and how much of the tile lies within it.
        unsafe { simd.store(to, vector) };
        self.sum = simd.add(self.sum, vector);
        self.squares = simd.mul_add(vector, vector, self.squares);
    }
}
