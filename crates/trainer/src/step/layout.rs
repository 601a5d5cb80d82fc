//! Which images each rank encodes, in which pass.

use std::ops::Range;

/// A global batch cut into chunks, and every chunk into ranks.
///
/// A chunk is what goes through a network in one pass. Its boundaries are fixed in global positions, and every rank
/// encodes its part of every chunk: statistics of a batch norm over all ranks do not depend on how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Global positions of every rank, chunk by chunk.
    ranks: Vec<Vec<Range<usize>>>,
}

impl Layout {
    /// Cuts `global_batch` images into chunks of `chunk`, the last of which may be smaller; 0: one of all images.
    ///
    /// # Panics
    /// If there are no images or no ranks.
    pub fn new(global_batch: usize, chunk: usize, world_size: usize) -> Layout {
        assert!(global_batch > 0 && world_size > 0, "{global_batch} images on {world_size} ranks");
        let of_rank = |rank| data::chunk_ranges(global_batch, chunk, rank, world_size);
        Layout { ranks: (0..world_size).map(of_rank).collect() }
    }

    /// Passes that a batch takes.
    pub fn n_chunks(&self) -> usize {
        self.ranks[0].len()
    }

    /// Images of a chunk, of every rank.
    pub fn images_of(&self, chunk: usize) -> Vec<usize> {
        self.ranks.iter().map(|chunks| chunks[chunk].len()).collect()
    }

    /// Images of a step, of every rank.
    pub fn images(&self) -> Vec<usize> {
        self.ranks.iter().map(|chunks| chunks.iter().map(Range::len).sum()).collect()
    }

    /// The fewest images that a rank has in a chunk.
    pub fn min_images(&self) -> usize {
        self.ranks.iter().flatten().map(Range::len).min().unwrap_or(0)
    }

    /// The most images that `rank` has in a chunk.
    pub fn max_images(&self, rank: usize) -> usize {
        self.ranks[rank].iter().map(Range::len).max().unwrap_or(0)
    }

    /// Where each chunk lies in the batch of `rank`.
    pub fn own(&self, rank: usize) -> Vec<Range<usize>> {
        let mut end = 0;
        let place = |chunk: &Range<usize>| {
            end += chunk.len();
            end - chunk.len()..end
        };
        self.ranks[rank].iter().map(place).collect()
    }

    /// Global position of each image of `rank`.
    pub fn positions(&self, rank: usize) -> Vec<usize> {
        self.ranks[rank].iter().cloned().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_batch_is_one_chunk() {
        let layout = Layout::new(7, 0, 3);
        assert_eq!((layout.n_chunks(), layout.images()), (1, vec![3, 2, 2]));
        assert_eq!(layout.positions(1), [3, 4]);
        assert_eq!(layout.own(1).first(), Some(&(0..2)));
    }

    #[test]
    fn every_rank_has_its_part_of_every_chunk() {
        let layout = Layout::new(11, 4, 2);
        assert_eq!((layout.n_chunks(), layout.images()), (3, vec![6, 5]));
        assert_eq!(layout.positions(0), [0, 1, 4, 5, 8, 9]);
        assert_eq!(layout.positions(1), [2, 3, 6, 7, 10]);
        assert_eq!(layout.own(1), [0..2, 2..4, 4..5]);
        assert_eq!((layout.images_of(2), layout.max_images(1), layout.min_images()), (vec![2, 1], 2, 1));
        assert_eq!(Layout::new(9, 4, 2).min_images(), 0);
    }
}
