//! Images cut into tiles of 4 x 4 pixels, and a block of tiles moved into and out of the basis in which
//! Winograd's convolution is a product per point.

#![expect(unsafe_code, reason = "pixels are checked once per tile instead of once per vector")]

use std::ops::Range;

use super::conv::ConvShape;
use super::planes::{Planes, ReadPoints, WritePoints};
use super::prologue::{Prologue, VectorPrologue};
use super::simd::{MAX_LANES, Simd, Task, add_lanes};
use super::transforms::{Map, Output, Sink, Tile, transform};

/// Tiles whose channel sums are added up in single precision.
const TILES_PER_SUM: usize = 4;

/// The outputs of an image, cut into tiles, those at the far edges cut off.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    h: usize,
    w: usize,
}

/// An image and the first pixel of a tile in it.
#[derive(Clone, Copy)]
struct Place {
    image: usize,
    y: usize,
    x: usize,
}

impl Tiles {
    pub(super) fn new(shape: &ConvShape) -> Self {
        Self { h: shape.out_h(), w: shape.out_w() }
    }

    pub(super) fn per_image(&self) -> usize {
        self.h.div_ceil(4) * self.w.div_ceil(4)
    }

    /// Where some tiles lie in images of `image` numbers, to within a row of tiles.
    pub(super) fn numbers(&self, tiles: &Range<usize>, image: usize) -> Range<usize> {
        let per_image = self.per_image();
        tiles.start * image / per_image..tiles.end * image / per_image
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
}

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
    fn image(&self, place: Place) -> Range<usize> {
        place.image * self.image..(place.image + 1) * self.image
    }
}

/// Pixels to transform.
#[derive(Clone)]
pub(super) struct Source<'a> {
    pub(super) lattice: Lattice,
    /// Pixels that the map reads above and left of a tile.
    pub(super) before: [usize; 2],
    /// The channels to transform.
    pub(super) channels: Range<usize>,
    pub(super) images: &'a [f32],
    /// What is done to each pixel of an image on the way.
    pub(super) prologue: Option<Prologue<'a, f32>>,
}

/// Transforms a block of tiles of `R` x `C` pixels into `M` x `N` of `SIDE` x `SIDE` planes.
pub(super) struct Spread<
    'a,
    F,
    const R: usize,
    const C: usize,
    const M: usize,
    const N: usize,
    const SIDE: usize,
> {
    pub(super) map: F,
    pub(super) source: Source<'a>,
    pub(super) tiles: Tiles,
    pub(super) block: Range<usize>,
    pub(super) planes: Planes,
    /// The vector of channels in the planes that gets the first of the source's.
    pub(super) chunk: usize,
    pub(super) transformed: &'a mut [f32],
}

impl<F, const R: usize, const C: usize, const M: usize, const N: usize, const SIDE: usize> Task
    for Spread<'_, F, R, C, M, N, SIDE>
where
    F: Map<R, M> + Map<C, N>,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { map, source, tiles, block, planes, chunk, transformed } = self;
        let Lattice { h, w, channels, first, row, pixel, .. } = source.lattice;
        assert!(source.channels.end <= channels, "channels {:?} of {channels}", source.channels);
        let zeros = [[Vector([0.0; MAX_LANES]); C]; R];
        let (mut seen, mut seen_within) = (Seen::<R, C>(zeros), Within::all::<R, C>());
        let mut place = tiles.place(block.start);
        for slot in 0..block.len() {
            let image = &source.images[source.lattice.image(place)];
            let within = Within::new::<R, C>([place.y, place.x], source.before, [h, w]);
            // What lies before the image wraps around, and is not read.
            let start = (place.y * row + place.x * pixel + first)
                .wrapping_sub(source.before[0] * row + source.before[1] * pixel);
            let start = image.as_ptr().wrapping_add(start.wrapping_add(source.channels.start));
            let pixels = Pixels { first: start, row, pixel };
            if within != seen_within {
                (seen, seen_within) = (Seen(zeros), within);
            }
            for channel in (0..source.channels.len()).step_by(S::LANES) {
                let offset = planes.offset(slot, chunk + channel / S::LANES);
                let mut points =
                    WritePoints::<SIDE, false>::new::<S>(transformed, planes.plane, offset, [M, N]);
                let tile = pixels.from(channel);
                // Half of the rows at a time, because not all of them fit the registers.
                if source.prologue.is_none() && within == Within::all::<R, C>() {
                    transform::<S, R, C, M, N, 3, 0>(simd, map, &tile, &mut points);
                    transform::<S, R, C, M, N, 3, 3>(simd, map, &tile, &mut points);
                } else {
                    let prologue = source.prologue.map(|p| p.vector(simd, source.channels.start + channel));
                    seen.look(simd, &tile, within, prologue);
                    transform::<S, R, C, M, N, 3, 0>(simd, map, &seen, &mut points);
                    transform::<S, R, C, M, N, 3, 3>(simd, map, &seen, &mut points);
                }
            }
            tiles.advance(&mut place);
        }
    }
}

/// The rows and columns of a tile that lie within the image.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Within {
    rows: [usize; 2],
    columns: [usize; 2],
}

impl Within {
    /// A whole tile of `R` x `C` pixels.
    #[inline(always)]
    fn all<const R: usize, const C: usize>() -> Self {
        Self { rows: [0, R], columns: [0, C] }
    }

    /// Of the tile that begins `before` pixels above and left of a pixel of an image.
    #[inline(always)]
    fn new<const R: usize, const C: usize>(
        [y, x]: [usize; 2],
        before: [usize; 2],
        [h, w]: [usize; 2],
    ) -> Self {
        let along = |at: usize, before: usize, side: usize, tile: usize| {
            [before.saturating_sub(at), tile.min((side + before).saturating_sub(at))]
        };
        Self { rows: along(y, before[0], h, R), columns: along(x, before[1], w, C) }
    }
}

/// One vector of channels of each pixel of a tile, as far as they lie within the image.
#[derive(Clone, Copy)]
struct Pixels {
    first: *const f32,
    /// Distance of two rows.
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
struct Seen<const R: usize, const C: usize>([[Vector; C]; R]);

/// A vector of any instruction set.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector([f32; MAX_LANES]);

impl<const R: usize, const C: usize> Seen<R, C> {
    /// Looks at what lies within the image; zeros stay where they are.
    #[inline(always)]
    fn look<S: Simd>(&mut self, simd: S, tile: &Pixels, within: Within, prologue: Option<VectorPrologue<S>>) {
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

impl<const R: usize, const C: usize> Tile for Seen<R, C> {
    #[inline(always)]
    fn read<S: Simd>(&self, simd: S, row: usize, column: usize) -> S::Vector {
        simd.read(&self.0[row][column].0)
    }
}

/// Transforms `R` x `C` of `SIDE` x `SIDE` planes of a block of tiles into outputs.
pub(super) struct Collect<'a, const R: usize, const C: usize, const SIDE: usize> {
    pub(super) tiles: Tiles,
    pub(super) lattice: Lattice,
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

impl<const R: usize, const C: usize, const SIDE: usize> Task for Collect<'_, R, C, SIDE>
where
    Output: Map<R, 4> + Map<C, 4>,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (self.accumulate, self.sums.is_some()) {
            (false, false) => self.collect::<S, false, false>(simd),
            (false, true) => self.collect::<S, false, true>(simd),
            (true, false) => self.collect::<S, true, false>(simd),
            (true, true) => self.collect::<S, true, true>(simd),
        }
    }
}

impl<const R: usize, const C: usize, const SIDE: usize> Collect<'_, R, C, SIDE>
where
    Output: Map<R, 4> + Map<C, 4>,
{
    #[inline(always)]
    fn collect<S: Simd, const ACCUMULATE: bool, const SUMS: bool>(mut self, simd: S) {
        let Lattice { h, w, channels, first: start, row, pixel, .. } = self.lattice;
        assert!(self.channels.end <= channels, "channels {:?} of {channels}", self.channels);
        for channel in (0..self.channels.len()).step_by(S::LANES) {
            let mut place = self.tiles.place(self.block.start);
            for first in (0..self.block.len()).step_by(TILES_PER_SUM) {
                let (mut sum, mut squares) = (simd.splat(0.0), simd.splat(0.0));
                for slot in first..(first + TILES_PER_SUM).min(self.block.len()) {
                    let offset = self.planes.offset(slot, channel / S::LANES);
                    let products =
                        ReadPoints::<SIDE>::new::<S>(self.products, self.planes.plane, offset, [R, C]);
                    let image = &mut self.images[self.lattice.image(place)];
                    let to = place.y * row + place.x * pixel + start + self.channels.start + channel;
                    let mut sink = Pixel::<S, ACCUMULATE, SUMS> {
                        tile: image.as_mut_ptr().wrapping_add(to),
                        row,
                        pixel,
                        rows: 4,
                        columns: 4,
                        sum,
                        squares,
                    };
                    if place.y + 4 <= h && place.x + 4 <= w {
                        transform::<S, R, C, 4, 4, 4, 0>(simd, Output, &products, &mut sink);
                    } else {
                        // A tile that is cut off may lie between the pixels of a phase altogether.
                        (sink.rows, sink.columns) = (h.saturating_sub(place.y), w.saturating_sub(place.x));
                        transform::<S, R, C, 4, 4, 4, 0>(simd, Output, &products, &mut sink);
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
struct Pixel<S: Simd, const ACCUMULATE: bool, const SUMS: bool> {
    /// In the first pixel.
    tile: *mut f32,
    /// Distance of two rows of the image.
    row: usize,
    /// Distance of two pixels.
    pixel: usize,
    /// Rows and columns that lie within the image.
    rows: usize,
    columns: usize,
    /// Of what was written, if anybody wants `SUMS`.
    sum: S::Vector,
    squares: S::Vector,
}

impl<S: Simd, const ACCUMULATE: bool, const SUMS: bool> Sink<S> for Pixel<S, ACCUMULATE, SUMS> {
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
        if SUMS {
            self.sum = simd.add(self.sum, vector);
            self.squares = simd.mul_add(vector, vector, self.squares);
        }
    }
}
