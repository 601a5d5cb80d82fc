//! Images cut into tiles of 4 x 4 pixels, and a block of tiles moved into and out of the basis in which
//! Winograd's convolution is a product per point.

#![expect(unsafe_code, reason = "pixels are checked once per tile instead of once per vector")]

use std::ops::Range;

use super::lattice::Lattice;
use super::planes::{Planes, ReadPoints, Sink, Tile, WritePoints};
use super::prologue::Prologue;
use super::shape::ConvShape;
use super::simd::{Simd, Task, add_lanes};
use super::transforms::{Map, Output, transform};

/// Tiles side by side that are transformed together, so that a column of pixels that two of them see is transformed
/// once. Their columns stay in the nearest cache.
const SIDE_BY_SIDE: usize = 4;

/// Columns that they see, of which the last one sees six at most.
const COLUMNS: usize = 4 * (SIDE_BY_SIDE - 1) + 6;

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

    /// Cuts a block into tiles side by side: where the first of them lies, and their slots in the block.
    #[inline(always)]
    fn side_by_side(self, block: Range<usize>) -> impl Iterator<Item = (Place, Range<usize>)> {
        let across = self.w.div_ceil(4);
        let mut first = block.start;
        std::iter::from_fn(move || {
            let place = self.place(first);
            let count = SIDE_BY_SIDE.min(across - place.x / 4).min(block.end - first);
            let slots = first - block.start..first - block.start + count;
            first += count;
            (count > 0).then_some((place, slots))
        })
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
        let Source { lattice, channels, .. } = &self.source;
        assert!(channels.end <= lattice.channels, "channels {channels:?} of {}", lattice.channels);
        assert!(channels.len().is_multiple_of(S::LANES), "channels {channels:?} are no vectors");
        // Tiles that share no columns gain nothing by keeping them, and pay for writing them down.
        if C == 4 && self.source.prologue.is_none() {
            self.tile_by_tile(simd);
        } else {
            self.side_by_side(simd);
        }
    }
}

impl<F, const R: usize, const C: usize, const M: usize, const N: usize, const SIDE: usize>
    Spread<'_, F, R, C, M, N, SIDE>
where
    F: Map<R, M> + Map<C, N>,
{
    /// Each tile by itself, without a prologue.
    #[inline(always)]
    fn tile_by_tile<S: Simd>(self, simd: S) {
        let Self { map, source, tiles, block, planes, chunk, transformed } = self;
        let Source { lattice, before: [above, left], channels, images, .. } = source;
        for (slot, tile) in block.enumerate() {
            let place = tiles.place(tile);
            let image = &images[lattice.image(place.image)];
            let rows = within(place.y, above, lattice.h, R);
            let columns = within(place.x, left, lattice.w, C);
            for channel in channels.clone().step_by(S::LANES) {
                let offset = planes.offset(slot, chunk + (channel - channels.start) / S::LANES);
                let mut points =
                    WritePoints::<SIDE, false>::new::<S>(transformed, planes.plane, offset, [M, N]);
                let pixels = Pixels::new(image, &lattice, place, [above, left], channel);
                // Half of the rows at a time, because not all of them fit the registers.
                if rows.len() == R && columns.len() == C {
                    transform::<S, R, C, M, N, 3, 0>(simd, map, &pixels, &mut points);
                    transform::<S, R, C, M, N, 3, 3>(simd, map, &pixels, &mut points);
                } else {
                    let tile = Cut { pixels, rows: rows.clone(), columns: columns.clone() };
                    transform::<S, R, C, M, N, 3, 0>(simd, map, &tile, &mut points);
                    transform::<S, R, C, M, N, 3, 3>(simd, map, &tile, &mut points);
                }
            }
        }
    }

    /// Maps the columns of tiles side by side, and then their rows.
    #[inline(always)]
    fn side_by_side<S: Simd>(mut self, simd: S) {
        let mut columns = [[simd.splat(0.0); M]; COLUMNS];
        for (place, slots) in self.tiles.side_by_side(self.block.clone()) {
            let columns = &mut columns[..4 * (slots.len() - 1) + C];
            let offsets = offsets(self.planes, slots.clone(), self.chunk);
            for channel in (0..self.source.channels.len()).step_by(S::LANES) {
                self.down(simd, place, channel, columns);
                self.across(simd, &offsets[..slots.len()], channel / S::LANES, columns);
            }
        }
    }

    /// Maps each column of what the tiles at a place see.
    #[inline(always)]
    fn down<S: Simd>(&self, simd: S, place: Place, channel: usize, columns: &mut [[S::Vector; M]]) {
        let Source { lattice, before, channels, images, prologue } = &self.source;
        let channel = channels.start + channel;
        let prologue = prologue.map(|prologue| prologue.vector(simd, channel));
        let rows = within(place.y, before[0], lattice.h, R);
        let seen = within(place.x, before[1], lattice.w, columns.len());
        columns[..seen.start].fill([simd.splat(0.0); M]);
        columns[seen.end..].fill([simd.splat(0.0); M]);
        let image = &images[lattice.image(place.image)];
        let pixels = Pixels::new(image, lattice, place, *before, channel);
        for (column, mapped) in seen.clone().zip(&mut columns[seen]) {
            let mut line = [simd.splat(0.0); R];
            for (row, vector) in line.iter_mut().enumerate() {
                if rows.contains(&row) {
                    let x = pixels.read(simd, row, column);
                    *vector = prologue.map_or(x, |prologue| prologue.see(simd, x));
                }
            }
            *mapped = self.map.map(simd, line);
        }
    }

    /// Maps each line of the tiles, and writes its points.
    #[inline(always)]
    fn across<S: Simd>(&mut self, simd: S, offsets: &[usize], chunk: usize, columns: &[[S::Vector; M]]) {
        let Self { planes, transformed, .. } = self;
        for row in 0..M {
            let from = chunk * planes.chunk_step() + SIDE * row * planes.plane;
            for (tile, offset) in offsets.iter().enumerate() {
                let columns: &[_; C] = columns[4 * tile..].first_chunk().expect("a tile's columns");
                let mut line = [simd.splat(0.0); C];
                for at in 0..C {
                    line[at] = columns[at][row];
                }
                let mut points =
                    WritePoints::<SIDE, false>::new::<S>(transformed, planes.plane, from + offset, [1, N]);
                let mapped: [S::Vector; N] = self.map.map(simd, line);
                for (column, &vector) in mapped.iter().enumerate() {
                    points.write(simd, 0, column, vector);
                }
            }
        }
    }
}

/// One vector of channels of each pixel of a tile, of which only those within the image may be read.
#[derive(Clone, Copy)]
struct Pixels {
    first: *const f32,
    /// Distance of two rows.
    row: usize,
    /// Distance of two pixels.
    pixel: usize,
}

impl Pixels {
    /// The vectors from `channel` on of the pixels from so many `before` a place on.
    #[inline(always)]
    fn new(image: &[f32], lattice: &Lattice, place: Place, before: [usize; 2], channel: usize) -> Self {
        let &Lattice { first, row, pixel, .. } = lattice;
        let start = place.y * row + place.x * pixel + first + channel;
        // What lies before the image wraps around.
        let start = start.wrapping_sub(before[0] * row + before[1] * pixel);
        Self { first: image.as_ptr().wrapping_add(start), row, pixel }
    }
}

impl<S: Simd> Tile<S> for Pixels {
    #[inline(always)]
    fn read(&self, simd: S, row: usize, column: usize) -> S::Vector {
        // SAFETY: `Spread` has checked the channels, and reads pixels within the image only.
        unsafe { simd.load(self.first.wrapping_add(row * self.row + column * self.pixel)) }
    }
}

/// A tile that the image ends in: what lies outside is zero.
struct Cut {
    pixels: Pixels,
    /// Within the image.
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<S: Simd> Tile<S> for Cut {
    #[inline(always)]
    fn read(&self, simd: S, row: usize, column: usize) -> S::Vector {
        if self.rows.contains(&row) && self.columns.contains(&column) {
            self.pixels.read(simd, row, column)
        } else {
            simd.splat(0.0)
        }
    }
}

/// Where the first vector of channels of some tiles lies in each plane.
#[inline(always)]
fn offsets(planes: Planes, slots: Range<usize>, chunk: usize) -> [usize; SIDE_BY_SIDE] {
    let mut offsets = [0; SIDE_BY_SIDE];
    for (offset, slot) in offsets.iter_mut().zip(slots) {
        *offset = planes.offset(slot, chunk);
    }
    offsets
}

/// Which of `len` pixels, the first of them `before` the one at `at`, lie among the `side` of an image.
#[inline(always)]
fn within(at: usize, before: usize, side: usize, len: usize) -> Range<usize> {
    let start = before.saturating_sub(at).min(len);
    start..(side + before).saturating_sub(at).clamp(start, len)
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
        let Lattice { channels, .. } = self.lattice;
        assert!(self.channels.end <= channels, "channels {:?} of {channels}", self.channels);
        assert!(self.channels.len().is_multiple_of(S::LANES), "channels {:?} are no vectors", self.channels);
        let mut columns = [[simd.splat(0.0); R]; 4 * SIDE_BY_SIDE];
        for (place, slots) in self.tiles.side_by_side(self.block.clone()) {
            let columns = &mut columns[..4 * slots.len()];
            let offsets = offsets(self.planes, slots.clone(), 0);
            let offsets = &offsets[..slots.len()];
            for channel in (0..self.channels.len()).step_by(S::LANES) {
                self.across(simd, offsets, channel / S::LANES, columns);
                let [sum, squares] = self.down::<S, ACCUMULATE, SUMS>(simd, place, channel, columns);
                if let Some([sums, all_squares]) = &mut self.sums {
                    add_lanes(simd, sum, &mut sums[channel..]);
                    add_lanes(simd, squares, &mut all_squares[channel..]);
                }
            }
        }
    }

    /// Maps each line of points.
    #[inline(always)]
    fn across<S: Simd>(&self, simd: S, offsets: &[usize], chunk: usize, columns: &mut [[S::Vector; R]]) {
        let Self { planes, products, .. } = self;
        for row in 0..R {
            let from = chunk * planes.chunk_step() + SIDE * row * planes.plane;
            for (offset, columns) in offsets.iter().zip(columns.chunks_exact_mut(4)) {
                let points = ReadPoints::<SIDE>::new::<S>(products, planes.plane, from + offset, [1, C]);
                let mut line = [simd.splat(0.0); C];
                for (column, vector) in line.iter_mut().enumerate() {
                    *vector = points.read(simd, 0, column);
                }
                let mapped: [S::Vector; 4] = Output.map(simd, line);
                for (column, &vector) in columns.iter_mut().zip(&mapped) {
                    column[row] = vector;
                }
            }
        }
    }

    /// Maps each column and writes its pixels; returns their sum and the sum of their squares, if anybody wants them.
    #[inline(always)]
    fn down<S: Simd, const ACCUMULATE: bool, const SUMS: bool>(
        &mut self,
        simd: S,
        place: Place,
        channel: usize,
        columns: &[[S::Vector; R]],
    ) -> [S::Vector; 2] {
        let Lattice { h, w, first, row, pixel, .. } = self.lattice;
        let image = &mut self.images[self.lattice.image(place.image)];
        let start = place.y * row + place.x * pixel + first + self.channels.start + channel;
        // One for each row, so that none waits for the one before.
        let (mut sums, mut squares) = ([simd.splat(0.0); 4], [simd.splat(0.0); 4]);
        // A tile that is cut off may lie between the pixels of a phase altogether.
        let (rows, seen) = (h.saturating_sub(place.y), w.saturating_sub(place.x));
        for (column, &line) in columns.iter().take(seen).enumerate() {
            let pixels = image.as_mut_ptr().wrapping_add(start + column * pixel);
            let mapped: [S::Vector; 4] = Output.map(simd, line);
            for (at, mut vector) in mapped.into_iter().enumerate() {
                if at < rows {
                    let to = pixels.wrapping_add(at * row);
                    if ACCUMULATE {
                        // SAFETY: as below.
                        vector = simd.add(unsafe { simd.load(to) }, vector);
                    }
                    // SAFETY: the channels were checked, and row and column lie within the image.
                    unsafe { simd.store(to, vector) };
                    if SUMS {
                        sums[at] = simd.add(sums[at], vector);
                        squares[at] = simd.mul_add(vector, vector, squares[at]);
                    }
                }
            }
        }
        [total(simd, sums), total(simd, squares)]
    }
}

#[inline(always)]
fn total<S: Simd>(simd: S, [a, b, c, d]: [S::Vector; 4]) -> S::Vector {
    simd.add(simd.add(a, b), simd.add(c, d))
}
