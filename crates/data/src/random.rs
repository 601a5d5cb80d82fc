//! Where every random number of this room comes from: a counter-based generator.
//!
//! Philox4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a
//! 64-bit key and a 128-bit counter to 128 random bits. The key is the run's seed and the counter says what
//! the numbers are for, so that any number can be had without drawing those before it:
//!
//! | word | content |
//! | --- | --- |
//! | 0 | number of the block within its stream, four draws of 32 bits each |
//! | 1 | bits 0-7 [`Purpose`], bits 8-15 view, bits 16-31 the index's bits 32-47 |
//! | 2 | the index's bits 0-31 |
//! | 3 | epoch |

/// What a stream of numbers is for. The discriminants are part of what a seed means: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Box of a random resized crop.
    Crop = 1,
    /// Whether to flip.
    Flip = 2,
    /// Whether to jitter colours, in which order and by how much.
    Jitter = 3,
    /// Whether to drop colour.
    Grayscale = 4,
    /// Whether to blur, and by how much.
    Blur = 5,
    /// Whether to solarise.
    Solarize = 6,
    /// Box of a jigsaw's crop.
    JigsawCrop = 7,
    /// Where in its cell a patch is taken.
    JigsawPlace = 8,
    /// Order of the patches.
    JigsawOrder = 9,
    /// Whether to apply VISSL's photometric operation, and by how much.
    Photometric = 10,
    /// Order of the images in an epoch.
    Order = 16,
    /// Which image stands in for a corrupt one.
    Replacement = 17,
    /// Which images' content identifies a data set.
    Fingerprint = 18,
    /// Pixels of the built-in data set.
    Builtin = 32,
}

/// A stream of random numbers, fully determined by what it is for.
#[derive(Clone, Debug)]
pub struct Draws {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Draws {
    /// Opens the stream of one purpose for one view of one image in one epoch.
    ///
    /// # Panics
    /// If `index` needs more than 48 bits or `epoch` more than 32: streams would collide.
    pub fn new(seed: u64, epoch: u64, index: u64, view: u8, purpose: Purpose) -> Draws {
        assert!(index < 1 << 48 && epoch < 1 << 32, "index {index} or epoch {epoch} beyond the counter");
        let [index_low, index_high] = halves(index);
        let labels = u32::from(purpose as u8) | u32::from(view) << 8 | index_high << 16;
        Draws { key: halves(seed), counter: [0, labels, index_low, halves(epoch)[0]], block: [0; 4], used: 4 }
    }

    /// Draws 32 random bits.
    pub fn bits32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox4x32(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// Draws a number from [0, 1), a multiple of 2^-53.
    pub fn unit(&mut self) -> f64 {
        let high = u64::from(self.bits32() >> 5);
        let low = u64::from(self.bits32() >> 6);
        (high << 26 | low) as f64 * (-53f64).exp2()
    }

    /// Draws a number from [`low`, `high`).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Draws a whole number from [0, `n`). The bias of the multiplication is below `n / 2^64`.
    pub fn below(&mut self, n: u64) -> u64 {
        let bits = u64::from(self.bits32()) << 32 | u64::from(self.bits32());
        ((u128::from(bits) * u128::from(n)) >> 64) as u64
    }

    /// Says yes with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }
}

/// Computes one block of Philox4x32-10.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [low0, high0] = halves(0xD251_1F53 * u64::from(counter[0]));
        let [low1, high1] = halves(0xCD9E_8D57 * u64::from(counter[2]));
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// The low and the high 32 bits.
fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with Random123 (its file kat_vectors, lines "philox4x32 10").
    #[test]
    fn philox_known_answers() {
        #[track_caller]
        fn check(counter: [u32; 4], key: [u32; 2], expected: [u32; 4]) {
            assert_eq!(philox4x32(counter, key), expected);
        }
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn streams_are_laid_out_as_documented() {
        let mut draws = Draws::new(0x0123_4567_89ab_cdef, 9, 0x0fed_7654_3210, 1, Purpose::Jitter);
        let counter = |block| [block, 3 | 1 << 8 | 0x0fed << 16, 0x7654_3210, 9];
        let key = [0x89ab_cdef, 0x0123_4567];
        let expected: Vec<u32> = (0..2).flat_map(|block| philox4x32(counter(block), key)).collect();
        assert_eq!((0..8).map(|_| draws.bits32()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn uniform_numbers_have_the_right_moments() {
        let mut draws = Draws::new(1, 2, 3, 0, Purpose::Crop);
        let sample: Vec<f64> = (0..100_000).map(|_| draws.uniform(-1.0, 3.0)).collect();
        let mean = sample.iter().sum::<f64>() / 1e5;
        let variance = sample.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        // Standard errors: 4 / sqrt(12 * 1e5) = 0.0037 and about 0.0038.
        assert!((mean - 1.0).abs() < 0.015, "mean {mean}");
        assert!((variance - 16.0 / 12.0).abs() < 0.015, "variance {variance}");
        assert!(sample.iter().all(|x| (-1.0..3.0).contains(x)));
    }

    #[test]
    fn whole_numbers_are_uniform_and_bounded() {
        let mut draws = Draws::new(1, 2, 3, 0, Purpose::Order);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[draws.below(7) as usize] += 1;
        }
        let chi_squared: f64 = counts.iter().map(|&c| (f64::from(c) - 1e4).powi(2) / 1e4).sum();
        // 6 degrees of freedom: 22.5 is exceeded once in a thousand seeds.
        assert!(chi_squared < 22.5, "{counts:?}");
        assert_eq!(draws.below(1), 0);
    }
}
