//! What is in a data set.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::decode::Facts;
use crate::replace::Replaced;
use crate::{Dataset, Error};

/// Figures over every image that decodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Images, corrupt ones included.
    pub len: usize,
    /// Mean of red, green and blue over all pixels, in [0, 1].
    pub mean: [f64; 3],
    /// Standard deviation of red, green and blue over all pixels, in [0, 1].
    pub std: [f64; 3],
    /// Smallest and largest width in pixels.
    pub widths: [usize; 2],
    /// Smallest and largest height in pixels.
    pub heights: [usize; 2],
    /// Images of each class, by label; empty without labels.
    pub class_counts: Vec<usize>,
    /// The images that cannot be decoded, in order.
    pub corrupt: Vec<Replaced>,
    /// Images whose file has 16 bits a channel; they are trained on scaled to 8.
    pub sixteen_bit: usize,
    /// Those of them whose values, alpha left aside, all stay below 4,096, as of a camera's 12 bits: scaled to 8, they are
    /// nearly black.
    pub twelve_in_sixteen_bit: usize,
    /// Images whose EXIF orientation is another than 1. They are trained on as they are stored, as by torchvision.
    pub turned: usize,
}

/// Whole numbers, so that the sum does not depend on who added what when.
#[derive(Default)]
struct Sums {
    pixels: u64,
    values: [u64; 3],
    squares: [u64; 3],
    /// Smallest and largest; none before the first image.
    sizes: Option<[[usize; 2]; 2]>,
    corrupt: Vec<(usize, Replaced)>,
    sixteen_bit: usize,
    twelve_in_sixteen_bit: usize,
    turned: usize,
}

/// Decodes every image on `threads` threads.
///
/// # Errors
/// If a file cannot be read, or no image at all can be decoded.
pub fn stats(dataset: &Dataset, threads: usize) -> Result<Stats, Error> {
    let next = AtomicUsize::new(0);
    let parts: Vec<Result<Sums, Error>> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(|| add_up(dataset, &next))).collect();
        started.into_iter().map(|thread| thread.join().expect("adding up does not panic")).collect()
    });
    let mut sums = Sums::default();
    for part in parts {
        sums.merge(part?);
    }
    let Some([widths, heights]) = sums.sizes else {
        return Err(Error::NothingDecodes { len: dataset.len() });
    };
    let scaled = |sum: u64, unit: f64| sum as f64 / sums.pixels as f64 / unit;
    let mean = sums.values.map(|sum| scaled(sum, 255.0));
    let std =
        std::array::from_fn(|c| (scaled(sums.squares[c], 255.0 * 255.0) - mean[c] * mean[c]).max(0.0).sqrt());
    let mut class_counts = vec![0; dataset.class_names().len()];
    for label in dataset.labels().unwrap_or_default() {
        class_counts[label as usize] += 1;
    }
    sums.corrupt.sort_unstable_by_key(|(index, _)| *index);
    let corrupt = sums.corrupt.into_iter().map(|(_, replaced)| replaced).collect();
    let Sums { sixteen_bit, twelve_in_sixteen_bit, turned, .. } = sums;
    Ok(Stats {
        len: dataset.len(),
        mean,
        std,
        widths,
        heights,
        class_counts,
        corrupt,
        sixteen_bit,
        twelve_in_sixteen_bit,
        turned,
    })
}

fn add_up(dataset: &Dataset, next: &AtomicUsize) -> Result<Sums, Error> {
    let mut sums = Sums::default();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= dataset.len() {
            return Ok(sums);
        }
        let (image, facts) = match dataset.inspect(index) {
            Ok(found) => found,
            Err(Error::Image { path, reason }) => {
                sums.corrupt.push((index, Replaced { path, reason }));
                continue;
            }
            Err(other) => return Err(other),
        };
        let Facts { largest_of_16_bits, is_turned } = facts;
        let mut part = Sums {
            pixels: (image.width * image.height) as u64,
            sixteen_bit: usize::from(largest_of_16_bits.is_some()),
            twelve_in_sixteen_bit: usize::from(largest_of_16_bits.is_some_and(|largest| largest < 1 << 12)),
            turned: usize::from(is_turned),
            ..Sums::default()
        };
        for pixel in image.rgb.chunks_exact(3) {
            for (channel, &value) in pixel.iter().enumerate() {
                part.values[channel] += u64::from(value);
                part.squares[channel] += u64::from(value) * u64::from(value);
            }
        }
        part.sizes = Some([[image.width; 2], [image.height; 2]]);
        sums.merge(part);
    }
}

impl Sums {
    fn merge(&mut self, other: Sums) {
        self.pixels += other.pixels;
        for channel in 0..3 {
            self.values[channel] += other.values[channel];
            self.squares[channel] += other.squares[channel];
        }
        self.sizes = match (self.sizes, other.sizes) {
            (Some(mine), Some(theirs)) => Some(std::array::from_fn(|axis| {
                [mine[axis][0].min(theirs[axis][0]), mine[axis][1].max(theirs[axis][1])]
            })),
            (mine, theirs) => mine.or(theirs),
        };
        self.corrupt.extend(other.corrupt);
        self.sixteen_bit += other.sixteen_bit;
        self.twelve_in_sixteen_bit += other.twelve_in_sixteen_bit;
        self.turned += other.turned;
    }
}
