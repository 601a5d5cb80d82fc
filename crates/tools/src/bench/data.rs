//! `himpun bench data`: decoding and augmenting, as the loader's threads do it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use data::{Augmentation, Dataset, Image, Limits, Scratch, ViewKey};
use kernels::Pool;
use serde::Serialize;
use trainer::Error;
use trainer::plan::VIEWS;

use crate::bench::{Threads, Timing, copy_rate, time};

/// Images of a timed call: enough for the threads to share, few enough to be timed often.
const IMAGES: usize = 128;

/// What is measured.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// The data set, in the grammar of `data.source`.
    pub source: String,
    /// Side of the views, in pixels.
    pub size: usize,
    /// Name of the augmentation.
    pub augment: String,
    /// Those of the last part.
    pub threads: Threads,
    /// What the data set may take of the machine.
    pub limits: Limits,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct DataReport {
    /// Reading and decoding, on one thread.
    pub decode: DataPart,
    /// Both views of decoded images, on one thread.
    pub augment: DataPart,
    /// Decoding and both views, on one thread.
    pub total: DataPart,
    /// Decoding and both views, on all threads.
    pub all_threads: DataPart,
    /// Threads of `all_threads`.
    pub threads: usize,
    /// Images that were decoded, each time anew.
    pub images: usize,
    /// Their pixels, decoded, 3 bytes each.
    pub decoded_bytes: usize,
    /// The views of one image in f32.
    pub view_bytes: usize,
    /// What one thread copies from place to place in memory; 1e9 bytes a second.
    pub copy_gb_per_s: f64,
    /// What all threads copy together.
    pub all_threads_copy_gb_per_s: f64,
}

/// One part of the way of `images` images.
#[derive(Clone, Debug, Serialize)]
pub struct DataPart {
    /// Images a second, in the median.
    pub images_per_s: f64,
    /// Views a second: two of each image.
    pub views_per_s: f64,
    /// What comes out of a timed call: decoded bytes, or views in f32.
    pub bytes: usize,
    /// That in 1e6 bytes a second.
    pub megabytes_per_s: f64,
    /// That as a share of what the same threads copy.
    pub share_of_copy: f64,
    /// Median of the timed calls.
    pub ms: f64,
    /// The shortest timed call.
    pub ms_min: f64,
    /// The longest.
    pub ms_max: f64,
    /// Calls that were timed.
    pub samples: usize,
}

impl DataPart {
    /// - `copied`: bytes that the same threads copy in a second
    fn of(timing: Timing, images: usize, bytes: usize, copied: f64) -> DataPart {
        let ms = |duration: Duration| 1e3 * duration.as_secs_f64();
        let seconds = timing.median.as_secs_f64();
        DataPart {
            images_per_s: images as f64 / seconds,
            views_per_s: (VIEWS * images) as f64 / seconds,
            bytes,
            megabytes_per_s: bytes as f64 / 1e6 / seconds,
            share_of_copy: bytes as f64 / seconds / copied,
            ms: ms(timing.median),
            ms_min: ms(timing.min),
            ms_max: ms(timing.max),
            samples: timing.samples,
        }
    }
}

/// Times the first images of a data set that can be decoded.
///
/// # Errors
/// If the data cannot be opened or read, no image of it can be decoded, or no augmentation has this name.
pub fn bench_data(options: &DataOptions) -> Result<DataReport, Error> {
    let dataset = Dataset::open_within(&options.source, options.limits)?;
    let augmentation = Augmentation::preset(&options.augment, options.size)?;
    let augmentation = augmentation.normalised([0.5; 3], [0.25; 3]);
    let threads = options.threads.count;
    let (indices, decoded) = decodable(&dataset)?;
    let bench = Bench { dataset: &dataset, augmentation: &augmentation, indices: &indices };
    let (n, decoded_bytes) = (indices.len(), decoded.iter().map(|image| image.rgb.len()).sum());
    let view_bytes = VIEWS * augmentation.view_len() * size_of::<f32>();

    let mut maker = Maker::new(&augmentation);
    let decode = time(|| {
        indices
            .iter()
            .try_for_each(|&index| dataset.load_anew(index).map(|image| drop(std::hint::black_box(image))))
    });
    let augment = time(|| {
        for (&index, image) in indices.iter().zip(&decoded) {
            maker.make(image, index);
        }
        Ok::<(), data::Error>(())
    });
    let total = time(|| bench.decode_and_augment(1));
    let all_threads = time(|| bench.decode_and_augment(threads));
    // The last of all: a pool keeps its caller on a core, and all threads that this begins.
    let (copied, copied_by_all) =
        (copy_rate(&Pool::new(1, &[])), copy_rate(&Pool::new(options.threads.count, &options.threads.cores)));
    let part = |timing: Result<Timing, data::Error>, bytes, copied| {
        timing.map(|timing| DataPart::of(timing, n, bytes, copied)).map_err(Error::Data)
    };
    Ok(DataReport {
        decode: part(decode, decoded_bytes, copied)?,
        augment: part(augment, n * view_bytes, copied)?,
        total: part(total, n * view_bytes, copied)?,
        all_threads: part(all_threads, n * view_bytes, copied_by_all)?,
        threads,
        images: n,
        decoded_bytes,
        view_bytes,
        copy_gb_per_s: copied / 1e9,
        all_threads_copy_gb_per_s: copied_by_all / 1e9,
    })
}

/// Some images spread over the set, without the corrupt ones, and where they stand.
fn decodable(dataset: &Dataset) -> Result<(Vec<usize>, Vec<Image>), Error> {
    let n = dataset.len().min(IMAGES);
    let (mut indices, mut images, mut corrupt) = (Vec::new(), Vec::new(), Vec::new());
    for place in 0..n {
        let index = place * dataset.len() / n;
        match dataset.load_anew(index) {
            Ok(image) => {
                indices.push(index);
                images.push(image);
            }
            Err(data::Error::Image { path, reason }) => corrupt.push((path, reason)),
            Err(error) => return Err(Error::Data(error)),
        }
    }
    if images.is_empty() { Err(Error::NothingDecoded { corrupt }) } else { Ok((indices, images)) }
}

/// What threads share.
struct Bench<'a> {
    dataset: &'a Dataset,
    augmentation: &'a Augmentation,
    indices: &'a [usize],
}

impl Bench<'_> {
    fn decode_and_augment(&self, threads: usize) -> Result<(), data::Error> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut maker = Maker::new(self.augmentation);
            while let Some(&index) = self.indices.get(next.fetch_add(1, Ordering::Relaxed)) {
                maker.make(&self.dataset.load_anew(index)?, index);
            }
            Ok(())
        };
        if threads == 1 {
            return work();
        }
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            started.into_iter().try_for_each(|thread| thread.join().expect("views are made without a panic"))
        })
    }
}

/// Makes the views of one image after the other in the same memory.
struct Maker<'a> {
    augmentation: &'a Augmentation,
    scratch: Scratch,
    out: Vec<f32>,
}

impl<'a> Maker<'a> {
    fn new(augmentation: &'a Augmentation) -> Maker<'a> {
        Maker { augmentation, scratch: Scratch::default(), out: vec![0.0; augmentation.view_len()] }
    }

    fn make(&mut self, image: &Image, index: usize) {
        for view in 0..VIEWS as u8 {
            let key = ViewKey { seed: 0, epoch: 0, index, view };
            self.augmentation.render(image, key, &mut self.scratch, &mut self.out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(source: &str, augment: &str) -> DataOptions {
        DataOptions {
            source: source.to_owned(),
            size: 16,
            augment: augment.to_owned(),
            threads: Threads::new(Some(2), &[]),
            limits: Limits::default(),
        }
    }

    #[test]
    fn figures_follow_from_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records.bin");
        std::fs::write(&path, [3; 8 * 3073]).unwrap();
        let report = bench_data(&options(path.to_str().unwrap(), "simclr-cifar")).unwrap();
        assert_eq!((report.images, report.decoded_bytes), (8, 8 * 3072));
        assert_eq!((report.view_bytes, report.threads), (2 * 16 * 16 * 3 * 4, 2));
        for part in [&report.decode, &report.augment, &report.total, &report.all_threads] {
            assert!((part.images_per_s * part.ms / 8e3 - 1.0).abs() < 1e-9, "{report:?}");
            assert!((part.views_per_s / part.images_per_s - 2.0).abs() < 1e-9, "{report:?}");
            let bytes_per_s = part.bytes as f64 / part.ms * 1e3;
            assert!((part.megabytes_per_s * 1e6 / bytes_per_s - 1.0).abs() < 1e-9, "{report:?}");
            assert!(part.share_of_copy > 0.0 && part.share_of_copy < 1.0, "{report:?}");
            assert!(part.ms_min <= part.ms && part.ms <= part.ms_max && part.samples >= 5, "{report:?}");
        }
        let per_image = report.total.megabytes_per_s * 1e6 / report.total.images_per_s;
        assert!((per_image / report.view_bytes as f64 - 1.0).abs() < 1e-9, "{report:?}");
    }

    #[test]
    fn what_is_not_there_is_refused() {
        assert_eq!(bench_data(&options("/no/such", "none")).unwrap_err().exit_code(), 2);
        assert_eq!(bench_data(&options("builtin", "nothing")).unwrap_err().exit_code(), 2);
    }
}
