//! What is shown in the place of an image that cannot be read or decoded.
//!
//! The image is found out when its turn comes, not by reading the set beforehand. Its replacement is a function
//! of (seed, epoch, index), so that every world size, every restart and `himpun data views` show the same one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::random::{Draws, Purpose};
use crate::{Dataset, Error, Image};

/// How many replacements are drawn before the images are tried one after the other.
const DRAWS: usize = 32;

/// So many corrupt images end no run, whatever share of the data set they are: some files of a small set may be bad.
pub const TOLERATED: usize = 8;

/// Tells whether a run goes on with `n` corrupt images of `len`: at most eight, or at most the share `max_share`,
/// which by being 0 tolerates none.
pub fn tolerates(n: usize, len: usize, max_share: f64) -> bool {
    n as f64 <= max_share * len as f64 || (n <= TOLERATED && max_share > 0.0)
}

/// The corrupt images met so far in one process.
#[derive(Debug)]
pub struct KnownCorrupt {
    /// The share of the data set that may turn out corrupt: see [`tolerates`].
    max_share: f64,
    paths: Mutex<BTreeMap<usize, String>>,
}

/// A corrupt image, when it is first met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The image, relative to its source.
    pub path: String,
    /// Why it cannot be read or decoded.
    pub reason: String,
}

/// The image that is shown for an index.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its own index: another one than asked for if that is corrupt.
    pub index: usize,
    /// Its pixels.
    pub image: Arc<Image>,
}

impl KnownCorrupt {
    /// Knows none yet. How many go with a share of `max_share`, [`tolerates`] says.
    pub fn new(max_share: f64) -> KnownCorrupt {
        KnownCorrupt { max_share, paths: Mutex::default() }
    }

    /// Counts them.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, String>> {
        // Nothing that panics is done under the lock.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads an image unless it is known to be corrupt; adds it to the known ones if it turns out to be.
    fn load(
        &self,
        dataset: &Dataset,
        index: usize,
        met: &mut Vec<Replaced>,
    ) -> Result<Option<Arc<Image>>, Error> {
        if self.lock().contains_key(&index) {
            return Ok(None);
        }
        match dataset.load(index) {
            Ok(image) => Ok(Some(image)),
            Err(Error::Image { path, reason }) => {
                let mut known = self.lock();
                // Another thread may have met it meanwhile; it is reported once.
                if known.insert(index, path.clone()).is_none() {
                    met.push(Replaced { path, reason });
                }
                if !tolerates(known.len(), dataset.len(), self.max_share) {
                    let paths = known.values().cloned().collect();
                    return Err(Error::TooManyCorrupt {
                        paths,
                        len: dataset.len(),
                        max_share: self.max_share,
                    });
                }
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }
}

/// Loads the image `index`, or, if it is corrupt, the first that decodes of those drawn by (seed, epoch, index).
///
/// - `met`: receives the corrupt images that were not known before
///
/// # Errors
/// [`Error::TooManyCorrupt`], [`Error::NothingDecodes`], or what is no fault of an image.
pub fn decode_or_replace(
    dataset: &Dataset,
    known: &KnownCorrupt,
    (seed, epoch, index): (u64, u64, usize),
    met: &mut Vec<Replaced>,
) -> Result<Shown, Error> {
    let mut draws = Draws::new(seed, epoch, index as u64, 0, Purpose::Replacement);
    let mut candidate = index;
    for attempt in 0..DRAWS + dataset.len() {
        if let Some(image) = known.load(dataset, candidate, met)? {
            return Ok(Shown { index: candidate, image });
        }
        candidate = if attempt < DRAWS {
            draws.below(dataset.len() as u64) as usize
        } else {
            (candidate + 1) % dataset.len()
        };
    }
    Err(Error::NothingDecodes { len: dataset.len() })
}
