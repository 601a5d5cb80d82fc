//! The corrupt images that any rank has met, and when they are too many: all ranks know the same ones and end together.

use collective::Communicator;
use data::{Replaced, tolerates};
use std::collections::BTreeSet;

use crate::Error;

/// What this rank knows of corrupt images.
pub struct CorruptImages {
    /// Those that this rank has met and the others have not heard of.
    met: Vec<Replaced>,
    /// Those that any rank has met, by path. Kept on every rank, so that each is reported once.
    known: BTreeSet<String>,
    /// Images to train on and to evaluate on.
    n_images: usize,
    max_share: f64,
}

impl CorruptImages {
    /// Knows none of `n_images`, of which the share `max_share` may turn out corrupt ([`tolerates`]).
    pub fn new(n_images: usize, max_share: f64) -> CorruptImages {
        CorruptImages { met: Vec::new(), known: BTreeSet::new(), n_images, max_share }
    }

    /// Counts those that any rank has met, as of the last exchange.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// Notes images that this rank has met for the first time.
    pub fn meet(&mut self, images: Vec<Replaced>) {
        self.met.extend(images);
    }

    /// Notes images of which nobody remembers that they were met before: evaluations and refreshes try them again.
    pub fn meet_again(&mut self, images: &[(String, String)]) {
        let unknown = images.iter().filter(|(path, _)| !self.known.contains(path)).cloned();
        self.met.extend(unknown.map(|(path, reason)| Replaced { path, reason }));
    }

    /// What this rank has to tell, once.
    pub fn take(&mut self) -> String {
        encode(&std::mem::take(&mut self.met))
    }

    /// Tells the ranks what each took; collective. Returns what none knew, the same on every rank.
    ///
    /// - `text`: what [`take`](Self::take) gave here; `lengths`: its length in bytes on each rank
    ///
    /// # Errors
    /// If a peer is lost.
    pub fn share(
        &mut self,
        communicator: &mut Communicator,
        text: &str,
        lengths: &[u64],
    ) -> Result<Vec<Replaced>, collective::Error> {
        if lengths.iter().all(|&len| len == 0) {
            return Ok(Vec::new());
        }
        let counts: Vec<usize> = lengths.iter().map(|&len| len as usize).collect();
        let mut all = vec![0u8; counts.iter().sum()];
        communicator.all_gather_counts(text.as_bytes(), &counts, &mut all)?;
        let mut images = decode(&String::from_utf8_lossy(&all));
        images.retain(|image| self.known.insert(image.path.clone()));
        Ok(images)
    }

    /// Decides whether the run goes on; alike on every rank.
    ///
    /// # Errors
    /// If more images are corrupt than the run tolerates.
    pub fn check(&self) -> Result<(), Error> {
        let CorruptImages { known, n_images, max_share, .. } = self;
        if tolerates(known.len(), *n_images, *max_share) {
            return Ok(());
        }
        Err(Error::Data(data::Error::TooManyCorrupt {
            paths: known.iter().cloned().collect(),
            len: *n_images,
            max_share: *max_share,
        }))
    }
}

/// Two lines an image: its path and the reason, each without line breaks.
fn encode(images: &[Replaced]) -> String {
    let line = |text: &str| text.replace(['\n', '\r'], " ");
    images.iter().map(|image| format!("{}\n{}\n", line(&image.path), line(&image.reason))).collect()
}

fn decode(text: &str) -> Vec<Replaced> {
    let lines: Vec<&str> = text.lines().collect();
    let image = |pair: &[&str]| Replaced { path: pair[0].to_owned(), reason: pair[1].to_owned() };
    lines.chunks_exact(2).map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::over_ranks;

    fn replaced(path: &str, reason: &str) -> Replaced {
        Replaced { path: path.to_owned(), reason: reason.to_owned() }
    }

    #[test]
    fn corrupt_images_travel_as_text() {
        let images =
            [replaced("a/b.jpg", "truncated"), replaced("c\nd.png", "no\r\nmagic"), replaced("e", "")];
        let expected =
            [replaced("a/b.jpg", "truncated"), replaced("c d.png", "no  magic"), replaced("e", "")];
        assert_eq!(decode(&encode(&images)), expected);
        assert_eq!(decode(""), []);
    }

    /// Each of three ranks meets three of nine images, and one that the others meet as well: none alone has too many.
    #[test]
    fn ranks_count_together_and_end_together() {
        let ends = |n_each: usize, n_images: usize, max_share: f64| -> Vec<(usize, Option<String>)> {
            over_ranks(3, |communicator| {
                let mut corrupt = CorruptImages::new(n_images, max_share);
                let own = communicator.rank() * n_each..(communicator.rank() + 1) * n_each;
                corrupt.meet(own.map(|i| replaced(&format!("{i}.png"), "cut")).collect());
                corrupt.meet_again(&[("0.png".to_owned(), "cut".to_owned())]);
                let text = corrupt.take();
                let mut lengths = vec![0u64; 3];
                communicator.all_gather(&[text.len() as u64], &mut lengths).unwrap();
                let new = corrupt.share(communicator, &text, &lengths).unwrap();
                assert_eq!(new.len(), corrupt.count());
                (corrupt.count(), corrupt.check().err().map(|error| proto::one_line(&error)))
            })
        };
        assert_eq!(ends(2, 64, 0.01), vec![(6, None); 3], "eight are tolerated");
        assert_eq!(ends(3, 900, 0.01), vec![(9, None); 3], "no more than the share");
        let message = "failed to read the data: 9 of 899 images cannot be read or decoded, more than 8 and more than the \
                       share of 0.01 that data.max_corrupt_share allows: 0.png, 1.png, 2.png, 3.png, 4.png, 5.png, 6.png, \
                       7.png, 8.png";
        assert_eq!(ends(3, 899, 0.01), vec![(9, Some(message.to_owned())); 3]);
        let none = "failed to read the data: 1 of 64 images cannot be read or decoded, and data.max_corrupt_share = 0 \
                    tolerates none: 0.png";
        assert_eq!(ends(0, 64, 0.0), vec![(1, Some(none.to_owned())); 3]);
    }
}
