//! A global batch, and which rank gets which of its images.

use kernels::split;

use crate::Outcome;

/// The images of each rank, in that rank's order.
#[derive(Debug, Clone)]
pub struct Deal(Vec<Vec<usize>>);

impl Deal {
    /// In order, ranks differing by at most one image.
    pub fn even(images: usize, world_size: usize) -> Self {
        Self((0..world_size).map(|rank| split(images, world_size, rank).collect()).collect())
    }

    /// In order, so many to each rank.
    pub fn with_counts(counts: &[usize]) -> Self {
        let ends = counts.iter().scan(0, |end, count| {
            *end += count;
            Some((*end - count..*end).collect())
        });
        Self(ends.collect())
    }

    /// As many images to each rank, but others.
    pub fn shuffled(mut self, seed: u64) -> Self {
        let keys = noise(1000 + seed, self.images());
        let mut order: Vec<usize> = (0..self.images()).collect();
        order.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
        let mut order = order.into_iter();
        self.0.iter_mut().flatten().for_each(|image| *image = order.next().unwrap());
        self
    }

    pub fn world_size(&self) -> usize {
        self.0.len()
    }

    pub fn images(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Rows of every rank: two views of its images.
    pub fn rows(&self) -> Vec<usize> {
        self.0.iter().map(|images| 2 * images.len()).collect()
    }

    /// Where the rows of `rank` stand in the global batch, `[view][image]`.
    pub fn places(&self, rank: usize) -> Vec<usize> {
        let images = &self.0[rank];
        let second_views = images.iter().map(|image| self.images() + image);
        images.iter().copied().chain(second_views).collect()
    }

    /// The rows of `rank` out of those of the global batch.
    pub fn take(&self, rank: usize, global: &[f64], width: usize) -> Vec<f64> {
        let places = self.places(rank).into_iter();
        places.flat_map(|place| &global[place * width..(place + 1) * width]).copied().collect()
    }

    /// The inverse of `take`, for all ranks.
    pub fn put_together(&self, ranks: &[Vec<f64>]) -> Vec<f64> {
        let width = ranks[0].len() / self.rows()[0];
        let mut global = vec![f64::NAN; 2 * self.images() * width];
        for (rank, rows) in ranks.iter().enumerate() {
            for (place, row) in self.places(rank).into_iter().zip(rows.chunks_exact(width)) {
                global[place * width..(place + 1) * width].copy_from_slice(row);
            }
        }
        global
    }

    /// The outcome of all ranks from that of each, whose loss and parameter gradients are joined already.
    pub fn join(&self, ranks: Vec<Outcome>) -> Outcome {
        let Outcome { loss, d_parameters, .. } = ranks[0].clone();
        let (d_unit, d_embeddings): (Vec<_>, Vec<_>) =
            ranks.into_iter().map(|rank| (rank.d_unit, rank.d_embeddings)).unzip();
        Outcome {
            loss,
            d_unit: self.put_together(&d_unit),
            d_embeddings: self.put_together(&d_embeddings),
            d_parameters,
        }
    }
}

/// Numbers in [-1, 1) by SplitMix64.
pub fn noise(seed: u64, len: usize) -> Vec<f64> {
    let number = |index: u64| {
        let mut z = (seed << 32).wrapping_add(index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len as u64).map(number).collect()
}
