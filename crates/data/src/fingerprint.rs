//! What identifies a data set, whatever path it lies at.
//!
//! Names, order and classes are digested 1,024 images at a time, so that two hosts that disagree find the first image on
//! which they do by comparing short lists. The content of 256 images, drawn by the run's seed, is digested as well: an
//! image that was replaced under its old name is found with the probability that it is among them, and reading all of a
//! data set would take as long as an epoch. A packed set carries the digest of all of its pixels.

use crate::{Dataset, Error, Sampler};

/// Images whose names, order and classes share one digest.
pub const BLOCK: usize = 1024;

/// Images whose content is digested.
const SAMPLES: usize = 256;

/// BLAKE3.
pub type Digest = [u8; 32];

/// How a data set holds its images: what a list of it can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One file an image, in a folder or a tar.
    Files = 0,
    /// All images in one file: IDX, CIFAR.
    Pixels = 1,
    /// A packed set.
    Packed = 2,
    /// Rendered by this program.
    Builtin = 3,
}

/// Identifies a data set. Equal on every host that sees the same images in the same order under the same names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// How the images are held. A folder and a tar of it have one fingerprint; a packed set has another.
    pub kind: Kind,
    /// Images.
    pub len: usize,
    /// Names of the classes, by label.
    pub class_names: Vec<String>,
    /// Digest of names, order and classes, one per [`BLOCK`] images; of a packed set its own digest alone.
    pub blocks: Vec<Digest>,
    /// Positions, ascending, and digests of the content of images drawn by the seed. No digest: the image cannot be had.
    pub samples: Vec<(usize, Option<[u8; 16]>)>,
}

impl Fingerprint {
    /// The digest of all of it.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[self.kind as u8]).update(&(self.len as u64).to_le_bytes());
        for name in &self.class_names {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        }
        hasher.update(self.blocks.as_flattened());
        for (position, content) in &self.samples {
            hasher.update(&(*position as u64).to_le_bytes());
            hasher.update(
                &content.map_or([0; 17], |content| {
                    std::array::from_fn(|i| if i == 0 { 1 } else { content[i - 1] })
                }),
            );
        }
        *hasher.finalize().as_bytes()
    }
}

impl Dataset {
    /// Reads what identifies the set: every name, and the content of the images that `seed` draws, as many bytes as a
    /// batch of 256 has.
    ///
    /// # Errors
    /// If a file cannot be read for a reason that is the machine's. An image that is missing or not permitted has no
    /// digest.
    pub fn fingerprint(&self, seed: u64) -> Result<Fingerprint, Error> {
        let kind = self.kind();
        let (blocks, samples) = match self.own_digest() {
            Some(digest) => (vec![digest], Vec::new()),
            None => (self.blocks(), self.samples(seed)?),
        };
        Ok(Fingerprint { kind, len: self.len(), class_names: self.class_names().to_vec(), blocks, samples })
    }

    /// Digests of names, order and classes, one per [`BLOCK`] images.
    pub fn blocks(&self) -> Vec<Digest> {
        (0..self.len().div_ceil(BLOCK)).map(|block| self.block_digest(block)).collect()
    }

    fn block_digest(&self, block: usize) -> Digest {
        let mut bytes = Vec::new();
        for index in block * BLOCK..self.len().min((block + 1) * BLOCK) {
            self.name(index, &mut bytes);
            // No name contains a zero byte.
            bytes.extend_from_slice(&[0, u8::from(self.is_gone(index))]);
            if self.has_labels() {
                bytes.extend_from_slice(&self.label_of(index).to_le_bytes());
            }
        }
        *blake3::hash(&bytes).as_bytes()
    }

    fn samples(&self, seed: u64) -> Result<Vec<Sample>, Error> {
        let sampler = Sampler::new(seed, self.len());
        let mut positions = sampler.sample(SAMPLES);
        positions.sort_unstable();
        let digest = |position| match self.content(position) {
            Ok(content) => Ok((position, Some(first_half(&blake3::hash(&content))))),
            Err(Error::Image { .. }) => Ok((position, None)),
            Err(other) => Err(other),
        };
        positions.into_iter().map(digest).collect()
    }
}

/// A position, and half of the digest of what is there, if it can be had.
type Sample = (usize, Option<[u8; 16]>);

/// Against damage and mistakes, not against forgery.
fn first_half(hash: &blake3::Hash) -> [u8; 16] {
    *hash.as_bytes().first_chunk().expect("16 of 32 bytes")
}

#[cfg(test)]
mod tests;
