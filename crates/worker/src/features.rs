//! Backbone features of a data set, in its order: never augmented, running statistics.

use data::{Dataset, Preprocess};
use engine::kernels::Pool;
use engine::network::Network;
use std::ops::Range;

use crate::Error;

/// Features of the images that could be decoded.
pub struct Features {
    /// `[indices.len(), width]`, as the backbone gives them: not normalised.
    pub values: Vec<f32>,
    /// Which image each row is, ascending.
    pub indices: Vec<usize>,
    /// Images left out because they could not be decoded, with the reason.
    pub corrupt: Vec<(String, String)>,
}

/// Encodes `range` of `dataset` in passes of at most the network's planned rows.
///
/// # Errors
/// If not a single image of a non-empty range can be decoded.
pub fn encode(
    network: &mut Network<f32>,
    pool: &Pool,
    dataset: &Dataset,
    range: Range<usize>,
    preprocess: &Preprocess,
) -> Result<Features, Error> {
    let width = network.spec().feature_width();
    let mut features =
        Features { values: Vec::with_capacity(range.len() * width), indices: Vec::new(), corrupt: Vec::new() };
    let mut images = Images::new(network.max_rows(), preprocess.size);
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + network.max_rows());
        let n = images.fill(pool, dataset, start..end, preprocess, &mut features);
        features.values.extend_from_slice(network.forward_eval(&images.values[..n * images.image_len], n).features);
        start = end;
    }
    if features.indices.is_empty() && !range.is_empty() {
        return Err(Error::NothingDecoded { corrupt: features.corrupt });
    }
    Ok(features)
}

/// A pass's worth of preprocessed images.
pub(crate) struct Images {
    /// `[max_rows, size, size, 3]`.
    pub values: Vec<f32>,
    /// Length of one image.
    pub image_len: usize,
}

impl Images {
    pub fn new(max_rows: usize, size: usize) -> Images {
        let image_len = size * size * 3;
        Images { values: vec![0.0; max_rows * image_len], image_len }
    }

    /// Decodes `range` on all threads into the first rows and notes in `features` which images they are.
    /// Returns the number of rows.
    pub fn fill(
        &mut self,
        pool: &Pool,
        dataset: &Dataset,
        range: Range<usize>,
        preprocess: &Preprocess,
        features: &mut Features,
    ) -> usize {
        let image_len = self.image_len;
        let mut outcomes: Vec<Result<(), String>> = vec![Ok(()); range.len()];
        let per_thread = range.len().div_ceil(pool.threads()).max(1);
        let parts: Vec<_> = self
            .values
            .chunks_mut(per_thread * image_len)
            .zip(outcomes.chunks_mut(per_thread))
            .enumerate()
            .map(|(thread, (values, outcomes))| (range.start + thread * per_thread, values, outcomes))
            .collect();
        pool.for_each_part(parts, |_, (first, values, outcomes)| {
            let mut scratch = data::Scratch::default();
            for (i, (out, outcome)) in values.chunks_mut(image_len).zip(outcomes).enumerate() {
                match dataset.decode(first + i) {
                    Ok(image) => preprocess.view(&image, &mut scratch, out),
                    Err(error) => *outcome = Err(error.to_string()),
                }
            }
        });
        let mut n = 0;
        for (i, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(()) => {
                    self.values.copy_within(i * image_len..(i + 1) * image_len, n * image_len);
                    features.indices.push(range.start + i);
                    n += 1;
                }
                Err(reason) => features.corrupt.push((dataset.path(range.start + i), reason)),
            }
        }
        n
    }
}
