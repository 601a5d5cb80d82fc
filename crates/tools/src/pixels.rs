//! kNN on raw pixels: what features have to beat to be worth their training.

use collective::Communicator;
use data::{Dataset, Limits, Preprocess};
use kernels::{Cpu, KernelPath};
use std::thread;
use trainer::evaluation::ClassNumbers;
use trainer::features::{self, Features};
use trainer::knn::{self, Bank, Queries};
use trainer::{Error, caveats};

use crate::embed;

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct PixelReport {
    /// Share of the queries whose class was predicted, in [0, 1].
    pub top1: f64,
    /// Images that were classified.
    pub n_queries: usize,
    /// Images that they were compared with.
    pub n_bank: usize,
    /// Neighbours that voted: see [`knn::neighbours`].
    pub k: usize,
    /// What the user should know: which half of the data was taken, which images were left out.
    pub warnings: Vec<String>,
}

/// Classifies the images of `test` by those of `data`, or each of `data` by the others.
///
/// The protocol of [`embed::evaluate_knn`] with pixels in the place of features: the centre crop of `size` pixels,
/// `x / 255`, flattened. All images are held in memory, 12 bytes a pixel.
///
/// - `k`: neighbours that vote; 0: by rule, see [`knn::neighbours`]
///
/// # Errors
/// If the images cannot be read, or have no labels.
pub fn evaluate_knn(
    data: &str,
    test: Option<&str>,
    (size, k): (usize, usize),
    limits: Limits,
) -> Result<PixelReport, Error> {
    let mut warnings = Vec::new();
    let bank = embed::open(data, limits, &mut warnings)?;
    if !bank.has_labels() {
        return Err(Error::NoLabels);
    }
    let test = match test {
        None => None,
        Some(test) => {
            let test = embed::open(test, limits, &mut warnings)?;
            let numbers = ClassNumbers::of(&test, &bank)?;
            warnings.extend(caveats::of_test(&test, &bank));
            Some((test, numbers))
        }
    };

    let threads = thread::available_parallelism().map_or(1, usize::from);
    let cpu = Cpu::new(threads, KernelPath::detect());
    let preprocess = Preprocess { size, mean: [0.0; 3], std: [1.0; 3] };
    let width = size * size * 3;
    let mut unit_rows = |dataset: &Dataset| -> Result<Features, Error> {
        let mut rows = features::pixels(&cpu, dataset, &preprocess)?;
        knn::normalize_rows(&mut rows.values, width);
        warnings.extend(embed::left_out(&rows.corrupt));
        Ok(rows)
    };
    let rows = unit_rows(&bank)?;
    let labels: Vec<u32> = rows.indices.iter().map(|&i| bank.label_of(i)).collect();
    let queries = match test {
        None => None,
        Some((test, numbers)) => {
            let rows = unit_rows(&test)?;
            let expected: Vec<u32> = rows.indices.iter().map(|&i| numbers.label_of(&test, i)).collect();
            Some((rows, expected))
        }
    };
    let (of_test, expected) = match &queries {
        None => (Queries::Bank, &labels),
        Some((rows, expected)) => (Queries::Others(&rows.values), expected),
    };
    let classes = bank.class_names().len();
    let mut alone = Communicator::alone();
    let images_per_class = knn::images_per_class(&mut alone, &labels, classes)?;
    let k = knn::neighbours(k, &images_per_class);
    warnings.extend(caveats::of_bank(&images_per_class, k, queries.is_none()));
    let bank = Bank { features: &rows.values, labels: &labels, width, classes, k };
    let predictions = knn::classify(&cpu, &mut alone, bank, of_test)?;
    Ok(PixelReport {
        top1: knn::n_correct(&predictions, expected) as f64 / expected.len() as f64,
        n_queries: expected.len(),
        n_bank: labels.len(),
        k,
        warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const SIZE: u32 = 4;

    /// Writes an image of one colour; cosines between such images are those between their colours.
    fn image(root: &Path, name: &str, color: [u8; 3]) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(SIZE, SIZE, image::Rgb(color)).save(path).unwrap();
    }

    #[test]
    fn colours_are_told_apart_by_their_angle() {
        let dir = tempfile::tempdir().unwrap();
        let (bank, test) = (dir.path().join("bank"), dir.path().join("test"));
        image(&bank, "red/0.png", [200, 10, 0]);
        image(&bank, "green/0.png", [0, 250, 10]);
        image(&bank, "green/1.png", [10, 220, 0]);
        // Dark or bright, the angle decides; and one of the three bears the wrong name.
        image(&test, "red/0.png", [20, 2, 0]);
        image(&test, "green/0.png", [0, 90, 3]);
        image(&test, "green/1.png", [180, 20, 10]);
        let report = |test: Option<&Path>| {
            let test = test.map(|path| path.to_str().unwrap());
            evaluate_knn(bank.to_str().unwrap(), test, (SIZE as usize, 0), Limits::default())
        };
        let tested = report(Some(&test)).unwrap();
        assert_eq!((tested.top1, tested.n_queries, tested.n_bank, tested.k), (2.0 / 3.0, 3, 3, 1));
        assert_eq!(tested.warnings, [""; 0]);
        // Left out of the bank, the only red image is among the green ones.
        let left_out = report(None).unwrap();
        assert_eq!((left_out.top1, left_out.n_queries, left_out.n_bank), (2.0 / 3.0, 3, 3));
        assert_eq!(left_out.warnings, ["one class has a single image, which no other image can classify"]);
        let itself = report(Some(&bank)).unwrap();
        assert_eq!((itself.top1, itself.warnings.len()), (1.0, 1));
        assert!(
            itself.warnings[0].contains("every image finds itself; leave the test images out"),
            "{itself:?}"
        );
    }

    /// Two classes of 32 images of noise, of which nothing can be known: chance is 50 %. Where all of the bank votes,
    /// an image's own class has 31 votes and the other 32.
    #[test]
    fn noise_is_classified_by_chance() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            100 + (state >> 59) as u8
        };
        for i in 0..64 {
            let path = dir.path().join(format!("{}/{i:02}.png", ["a", "b"][i % 2]));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::from_fn(SIZE, SIZE, |_, _| image::Rgb([byte(), byte(), byte()]))
                .save(path)
                .unwrap();
        }
        let source = dir.path().to_str().unwrap();
        let evaluate = |k| evaluate_knn(source, None, (SIZE as usize, k), Limits::default()).unwrap();
        let by_rule = evaluate(0);
        assert_eq!((by_rule.k, by_rule.n_queries), (16, 64));
        assert!((0.3..=0.7).contains(&by_rule.top1), "{by_rule:?}");
        assert_eq!(by_rule.warnings, [""; 0]);
        let by_all = evaluate(200);
        assert_eq!((by_all.k, by_all.top1), (200, 0.0));
        assert_eq!(by_all.warnings, ["k = 200 is more than the 64 images compared with: all of them vote"]);
    }

    #[test]
    fn corrupt_images_are_left_out_and_unlabelled_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        image(dir.path(), "a/0.png", [200, 10, 0]);
        image(dir.path(), "a/1.png", [100, 10, 0]);
        std::fs::write(dir.path().join("a/2.png"), b"no image").unwrap();
        image(dir.path(), "b/0.png", [0, 10, 100]);
        image(dir.path(), "b/1.png", [0, 10, 200]);
        let evaluate = |path: &Path| evaluate_knn(path.to_str().unwrap(), None, (8, 0), Limits::default());
        let report = evaluate(dir.path()).unwrap();
        assert_eq!((report.top1, report.n_queries), (1.0, 4));
        assert_eq!(report.warnings.len(), 1);
        assert!(report.warnings[0].starts_with("a/2.png is left out: "), "{:?}", report.warnings);
        assert_eq!(evaluate(&dir.path().join("a")).unwrap_err().exit_code(), 2);
        let limits = Limits { max_pixels: (SIZE * SIZE) as usize - 1, ..Limits::default() };
        let error = evaluate_knn(dir.path().to_str().unwrap(), None, (8, 0), limits).unwrap_err();
        assert!(matches!(error, Error::NothingDecoded { .. }), "{error}");
    }
}
