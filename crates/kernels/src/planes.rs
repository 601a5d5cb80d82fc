//! How transformed tiles lie in memory.

#![expect(unsafe_code, reason = "the points of a tile are checked together")]

use std::marker::PhantomData;

use super::simd::Simd;

/// Numbers between two planes, lest all of them fall into one set of the cache.
pub(super) const GAP: usize = 16;

/// Planes `[points, tiles / group, chunks, group, lanes]` of tiles of `chunks * lanes` channels.
///
/// The tiles of a group lie side by side, one vector of channels after the other, so that whatever
/// reads a group reads one piece of memory, at distances known when it was compiled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planes {
    points: usize,
    group: usize,
    /// Vectors of channels.
    pub(super) chunks: usize,
    lanes: usize,
    /// Distance of two planes.
    pub(super) plane: usize,
}

impl Planes {
    /// As many planes as there are points, of at least `tiles` tiles.
    pub(super) fn new(points: usize, tiles: usize, group: usize, channels: usize, lanes: usize) -> Self {
        let plane = tiles.next_multiple_of(group) * channels + GAP;
        Self { points, group, chunks: channels / lanes, lanes, plane }
    }

    /// Numbers in all planes.
    pub(super) fn len(&self) -> usize {
        self.points * self.plane
    }

    /// Tiles that there is room for.
    pub(super) fn tiles(&self) -> usize {
        (self.plane - GAP) / (self.chunks * self.lanes)
    }

    /// Distance of two vectors of channels of a tile.
    #[inline(always)]
    pub(super) fn chunk_step(&self) -> usize {
        self.group * self.lanes
    }

    /// Where a vector of channels of a tile lies in each plane.
    #[inline(always)]
    pub(super) fn offset(&self, tile: usize, chunk: usize) -> usize {
        let (group, tile) = (tile / self.group, tile % self.group);
        ((group * self.chunks + chunk) * self.group + tile) * self.lanes
    }
}

/// Where the vectors of a tile are read.
///
/// A trait and no closure, because only a method can be told to be inlined: called, it would not be
/// compiled for the instruction set.
pub(super) trait Tile<S: Simd> {
    fn read(&self, simd: S, row: usize, column: usize) -> S::Vector;
}

/// Where the vectors of a transformed tile are written.
pub(super) trait Sink<S: Simd> {
    fn write(&mut self, simd: S, row: usize, column: usize, vector: S::Vector);
}

/// One vector of each of some rows and columns of `SIDE` x `SIDE` planes, to be read.
pub(super) struct ReadPoints<'a, const SIDE: usize> {
    first: *const f32,
    plane: usize,
    planes: PhantomData<&'a [f32]>,
}

impl<'a, const SIDE: usize> ReadPoints<'a, SIDE> {
    /// The vectors at `offset`.
    #[inline(always)]
    pub(super) fn new<S: Simd>(
        numbers: &'a [f32],
        plane: usize,
        offset: usize,
        [rows, columns]: [usize; 2],
    ) -> Self {
        let last = SIDE * (rows - 1) + columns - 1;
        assert!(offset + last * plane + S::LANES <= numbers.len(), "{offset} leaves its plane");
        Self { first: numbers.as_ptr().wrapping_add(offset), plane, planes: PhantomData }
    }
}

impl<S: Simd, const SIDE: usize> Tile<S> for ReadPoints<'_, SIDE> {
    #[inline(always)]
    fn read(&self, simd: S, row: usize, column: usize) -> S::Vector {
        debug_assert!(row < SIDE && column < SIDE);
        // SAFETY: `new` has checked the last of the vectors.
        unsafe { simd.load(self.first.wrapping_add((SIDE * row + column) * self.plane)) }
    }
}

/// One vector of each of some rows and columns of `SIDE` x `SIDE` planes, to be written or, if `ADD`, added to.
pub(super) struct WritePoints<'a, const SIDE: usize, const ADD: bool> {
    first: *mut f32,
    plane: usize,
    planes: PhantomData<&'a mut [f32]>,
}

impl<'a, const SIDE: usize, const ADD: bool> WritePoints<'a, SIDE, ADD> {
    /// The vectors at `offset`.
    #[inline(always)]
    pub(super) fn new<S: Simd>(
        numbers: &'a mut [f32],
        plane: usize,
        offset: usize,
        [rows, columns]: [usize; 2],
    ) -> Self {
        let last = SIDE * (rows - 1) + columns - 1;
        assert!(offset + last * plane + S::LANES <= numbers.len(), "{offset} leaves its plane");
        Self { first: numbers.as_mut_ptr().wrapping_add(offset), plane, planes: PhantomData }
    }
}

impl<S: Simd, const SIDE: usize, const ADD: bool> Sink<S> for WritePoints<'_, SIDE, ADD> {
    #[inline(always)]
    fn write(&mut self, simd: S, row: usize, column: usize, mut vector: S::Vector) {
        debug_assert!(row < SIDE && column < SIDE);
        let to = self.first.wrapping_add((SIDE * row + column) * self.plane);
        if ADD {
            // SAFETY: as below.
            vector = simd.add(unsafe { simd.load(to) }, vector);
        }
        // SAFETY: `new` has checked the last of the vectors, and borrows them all.
        unsafe { simd.store(to, vector) };
    }
}
