//! The corrupt images that any rank has met, and when they are too many. All ranks know the same ones and, by them, end
//! together; a rank that meets too many alone is ended by its own loader before that, and the others lose a peer.

use collective::Communicator;
use data::{Replaced, tolerates};
use std::collections::BTreeSet;

use crate::gather;

/// The data sets of a run. A path means an image of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// The images to train on, which are also those that an evaluation compares with.
    Train = 0,
    /// The images of `eval.data`.
    Test = 1,
}

/// A corrupt image of one of the data sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// Where it is.
    pub set: Set,
    /// Which it is, and why.
    pub image: Replaced,
}

/// What this rank knows of corrupt images.
pub struct CorruptImages {
    /// Those that this rank has met and the others have not heard of.
    met: Vec<Corrupt>,
    /// Those that any rank has met, by path, of each [`Set`]. Kept on every rank, so that each is reported once.
    known: [BTreeSet<String>; 2],
    /// Images of each set.
    n_images: [usize; 2],
    max_share: f64,
}

impl CorruptImages {
    /// Knows none of `n_images` in each [`Set`], of which the share `max_share` may turn out corrupt ([`tolerates`]).
    pub fn new(n_images: [usize; 2], max_share: f64) -> CorruptImages {
        CorruptImages { met: Vec::new(), known: Default::default(), n_images, max_share }
    }

    /// Counts those that any rank has met, as of the last exchange.
    pub fn count(&self) -> usize {
        self.known.iter().map(BTreeSet::len).sum()
    }

    /// Notes training images that this rank has met for the first time.
    pub fn meet(&mut self, images: Vec<Replaced>) {
        self.met.extend(images.into_iter().map(|image| Corrupt { set: Set::Train, image }));
    }

    /// Notes images of which nobody remembers that they were met before: evaluations and refreshes try them again.
    pub fn meet_again(&mut self, set: Set, images: &[(String, String)]) {
        let known = &self.known[set as usize];
        let unknown = images.iter().filter(|(path, _)| !known.contains(path)).cloned();
        self.met.extend(unknown.map(|(path, reason)| Corrupt { set, image: Replaced { path, reason } }));
    }

    /// What this rank has met and not reported yet.
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
    ) -> Result<Vec<Corrupt>, collective::Error> {
        if lengths.iter().all(|&len| len == 0) {
            return Ok(Vec::new());
        }
        let all = gather::bytes_of(communicator, text.as_bytes(), lengths)?.concat();
        let mut images = decode(&String::from_utf8_lossy(&all));
        images.retain(|Corrupt { set, image }| self.known[*set as usize].insert(image.path.clone()));
        Ok(images)
    }

    /// Decides whether the run goes on; alike on every rank. Each set has its own share, as the loader counts.
    ///
    /// # Errors
    /// If more images of a set are corrupt than the run tolerates.
    pub fn check(&self) -> Result<(), data::Error> {
        let max_share = self.max_share;
        for (known, len) in self.known.iter().zip(self.n_images) {
            if !tolerates(known.len(), len, max_share) {
                let paths = known.iter().cloned().collect();
                return Err(data::Error::TooManyCorrupt { paths, len, max_share });
            }
        }
        Ok(())
    }
}

/// The images of all ranks, in rank order; collective.
///
/// # Errors
/// If a peer is lost.
pub fn of_all(
    communicator: &mut Communicator,
    own: &[(String, String)],
) -> Result<Vec<(String, String)>, collective::Error> {
    let image =
        |(path, reason): (String, String)| Corrupt { set: Set::Train, image: Replaced { path, reason } };
    let own: Vec<Corrupt> = own.iter().cloned().map(image).collect();
    let all = gather::texts(communicator, &encode(&own))?.concat();
    Ok(decode(&all).into_iter().map(|Corrupt { image, .. }| (image.path, image.reason)).collect())
}

/// Three lines an image: its set, its path and the reason, each without line breaks.
fn encode(images: &[Corrupt]) -> String {
    let line = |text: &str| text.replace(['\n', '\r'], " ");
    let lines = |Corrupt { set, image }: &Corrupt| {
        format!("{}\n{}\n{}\n", *set as usize, line(&image.path), line(&image.reason))
    };
    images.iter().map(lines).collect()
}

fn decode(text: &str) -> Vec<Corrupt> {
    let lines: Vec<&str> = text.lines().collect();
    let image = |lines: &[&str]| Corrupt {
        set: if lines[0] == "1" { Set::Test } else { Set::Train },
        image: Replaced { path: lines[1].to_owned(), reason: lines[2].to_owned() },
    };
    lines.chunks_exact(3).map(image).collect()
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
        let with_sets = |images: [Replaced; 3]| {
            let sets = [Set::Train, Set::Test, Set::Train].into_iter();
            sets.zip(images).map(|(set, image)| Corrupt { set, image }).collect::<Vec<_>>()
        };
        let images = with_sets([
            replaced("a/b.jpg", "truncated"),
            replaced("c\nd.png", "no\r\nmagic"),
            replaced("e", ""),
        ]);
        let expected = with_sets([
            replaced("a/b.jpg", "truncated"),
            replaced("c d.png", "no  magic"),
            replaced("e", ""),
        ]);
        assert_eq!(decode(&encode(&images)), expected);
        assert_eq!(decode(""), []);
    }

    /// Each of three ranks meets three of nine images, and one that the others meet as well: none alone has too many.
    #[test]
    fn ranks_count_together_and_end_together() {
        let ends = |n_each: usize, n_images: usize, max_share: f64| -> Vec<(usize, Option<String>)> {
            over_ranks(3, |communicator| {
                let mut corrupt = CorruptImages::new([n_images, 0], max_share);
                let own = communicator.rank() * n_each..(communicator.rank() + 1) * n_each;
                corrupt.meet(own.map(|i| replaced(&format!("{i}.png"), "cut")).collect());
                corrupt.meet_again(Set::Train, &[("0.png".to_owned(), "cut".to_owned())]);
                let text = corrupt.take();
                let mut lengths = vec![0u64; 3];
                communicator.all_gather(&[text.len() as u64], &mut lengths).unwrap();
                let new = corrupt.share(communicator, &text, &lengths).unwrap();
                assert_eq!(new.len(), corrupt.count());
                (corrupt.count(), corrupt.check().err().map(|error| error.to_string()))
            })
        };
        assert_eq!(ends(2, 64, 0.01), vec![(6, None); 3], "eight are tolerated");
        assert_eq!(ends(3, 900, 0.01), vec![(9, None); 3], "no more than the share");
        let message = "9 of 899 images cannot be read or decoded, more than 8 and more than the \
                       share of 0.01 that data.max_corrupt_share allows: 0.png, 1.png, 2.png, 3.png, 4.png, 5.png, 6.png, \
                       7.png, 8.png";
        assert_eq!(ends(3, 899, 0.01), vec![(9, Some(message.to_owned())); 3]);
        let none = "1 of 64 images cannot be read or decoded, and data.max_corrupt_share = 0 \
                    tolerates none: 0.png";
        assert_eq!(ends(0, 64, 0.0), vec![(1, Some(none.to_owned())); 3]);
    }

    #[test]
    fn a_path_is_of_one_data_set_and_each_set_has_its_share() {
        let mut communicator = Communicator::alone();
        let mut ends = |n_images: [usize; 2]| {
            let mut corrupt = CorruptImages::new(n_images, 0.01);
            let both: Vec<_> = (0..9).map(|i| (format!("a/{i}.png"), "cut".to_owned())).collect();
            corrupt.meet_again(Set::Train, &both);
            corrupt.meet_again(Set::Test, &both);
            let text = corrupt.take();
            let new = corrupt.share(&mut communicator, &text, &[text.len() as u64]).unwrap();
            assert_eq!((new.len(), corrupt.count()), (18, 18));
            corrupt.check().is_err()
        };
        assert!(!ends([900, 900]));
        assert!(ends([100_000, 899]), "however many the other set has");
    }
}
