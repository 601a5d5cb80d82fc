//! Backbone features of a data set, in its order, with running statistics; augmented only for the linear probe.

use collective::Communicator;
use data::{Augmentation, Dataset, Image, Preprocess, Scratch, ViewKey};
use engine::network::Network;
use kernels::Cpu;
use std::ops::Range;

use crate::Error;

/// This rank's network, and its way to the other ranks.
pub struct Encoder<'a> {
    /// The network to evaluate, the same on every rank.
    pub network: &'a mut Network<f32>,
    /// The group that evaluates together: carries features and counts.
    pub control: &'a mut Communicator,
    /// Carries the sums of batch norm.
    pub activations: &'a mut Communicator,
    /// Threads of this rank.
    pub cpu: &'a Cpu,
}

/// Features of the images that could be decoded.
#[derive(Debug, Default)]
pub struct Features {
    /// `[indices.len(), f]`, as the backbone gives them: not normalised.
    pub values: Vec<f32>,
    /// Which image each row is, ascending.
    pub indices: Vec<usize>,
    /// Images left out because they could not be decoded: path and reason.
    pub corrupt: Vec<(String, String)>,
}

/// How an image is made for the encoder.
#[derive(Clone, Copy)]
pub enum Look<'a> {
    /// Its centre crop.
    Plain(&'a Preprocess),
    /// The first view of an augmentation, as this seed has it in this epoch.
    Augmented {
        /// What is drawn.
        augmentation: &'a Augmentation,
        /// Of the draws.
        seed: u64,
        /// Data pass.
        epoch: u64,
    },
}

impl Look<'_> {
    /// Side of the images.
    fn size(&self) -> usize {
        match self {
            Look::Plain(preprocess) => preprocess.size,
            Look::Augmented { augmentation, .. } => augmentation.size,
        }
    }

    fn apply(&self, (image, index): (&Image, usize), scratch: &mut Scratch, out: &mut [f32]) {
        match *self {
            Look::Plain(preprocess) => preprocess.apply(image, scratch, out),
            Look::Augmented { augmentation, seed, epoch } => {
                augmentation.render(image, ViewKey { seed, epoch, index, view: 0 }, scratch, out);
            }
        }
    }
}

/// Encodes `range` of `dataset` in passes of at most the network's planned rows.
///
/// # Errors
/// If a file cannot be read, or not a single image of a non-empty range can be decoded.
pub fn encode(
    network: &mut Network<f32>,
    cpu: &Cpu,
    dataset: &Dataset,
    range: Range<usize>,
    look: Look<'_>,
) -> Result<Features, Error> {
    let mut features = Features::default();
    let mut images = Images::new(cpu, dataset, look, network.max_rows());
    let is_empty = range.is_empty();
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + network.max_rows());
        let n = images.fill(start..end, &mut features)?;
        if n > 0 {
            features.values.extend_from_slice(network.forward_eval(images.rows(n), n).features);
        }
        start = end;
    }
    if features.indices.is_empty() && !is_empty {
        return Err(Error::NothingDecoded { corrupt: features.corrupt });
    }
    Ok(features)
}

/// The pixels of every image of `dataset` in the place of features, `[n, size * size * 3]`.
///
/// # Errors
/// If a file cannot be read, or not a single image can be decoded.
pub fn pixels(cpu: &Cpu, dataset: &Dataset, preprocess: &Preprocess) -> Result<Features, Error> {
    let mut pixels = Features::default();
    let mut images = Images::new(cpu, dataset, Look::Plain(preprocess), dataset.len());
    let n = images.fill(0..dataset.len(), &mut pixels)?;
    if n == 0 {
        return Err(Error::NothingDecoded { corrupt: pixels.corrupt });
    }
    let len = images.rows(n).len();
    pixels.values = images.values;
    pixels.values.truncate(len);
    Ok(pixels)
}

/// Room for one pass's images, preprocessed on all threads.
pub(crate) struct Images<'a> {
    cpu: &'a Cpu,
    dataset: &'a Dataset,
    look: Look<'a>,
    /// `[max_rows, size, size, 3]`.
    values: Vec<f32>,
    scratch: Vec<Scratch>,
}

impl<'a> Images<'a> {
    pub(crate) fn new(cpu: &'a Cpu, dataset: &'a Dataset, look: Look<'a>, max_rows: usize) -> Images<'a> {
        let values = vec![0.0; max_rows * look.size() * look.size() * 3];
        let scratch = (0..cpu.threads()).map(|_| Scratch::default()).collect();
        Images { cpu, dataset, look, values, scratch }
    }

    /// The first `n` rows.
    pub(crate) fn rows(&self, n: usize) -> &[f32] {
        &self.values[..n * self.image_len()]
    }

    /// Decodes `range` into the first rows, skipping corrupt images, and notes in `features` which they are.
    /// Returns the number of rows.
    ///
    /// # Errors
    /// If a file cannot be read at all.
    pub(crate) fn fill(&mut self, range: Range<usize>, features: &mut Features) -> Result<usize, Error> {
        self.fill_with(&range.collect::<Vec<_>>(), features)
    }

    /// As [`Images::fill`], with images anywhere in the data set.
    pub(crate) fn fill_with(&mut self, wanted: &[usize], features: &mut Features) -> Result<usize, Error> {
        let image_len = self.image_len();
        let outcomes = self.decode(wanted);
        let mut n = 0;
        for (i, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(()) => {
                    self.values.copy_within(i * image_len..(i + 1) * image_len, n * image_len);
                    features.indices.push(wanted[i]);
                    n += 1;
                }
                Err(data::Error::Image { path, reason }) => features.corrupt.push((path, reason)),
                Err(error) => return Err(Error::Data(error)),
            }
        }
        Ok(n)
    }

    /// Decodes image `wanted[i]` into row `i`.
    fn decode(&mut self, wanted: &[usize]) -> Vec<Result<(), data::Error>> {
        let image_len = self.image_len();
        let mut outcomes: Vec<Result<(), data::Error>> = wanted.iter().map(|_| Ok(())).collect();
        let per_thread = wanted.len().div_ceil(self.cpu.threads()).max(1);
        let parts = self
            .values
            .chunks_mut(per_thread * image_len)
            .zip(outcomes.chunks_mut(per_thread))
            .zip(wanted.chunks(per_thread))
            .zip(&mut self.scratch)
            .collect();
        let Images { dataset, look, .. } = self;
        self.cpu.pool.for_each_part(parts, |_, (((rows, outcomes), wanted), scratch)| {
            for ((out, outcome), &index) in rows.chunks_mut(image_len).zip(outcomes).zip(wanted) {
                *outcome = dataset.load(index).map(|image| look.apply((&image, index), scratch, out));
            }
        });
        outcomes
    }

    fn image_len(&self) -> usize {
        self.look.size() * self.look.size() * 3
    }
}
