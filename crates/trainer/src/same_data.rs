//! Whether all ranks see the same images.
//!
//! Digests travel first. Where they differ, the digests of blocks show in which 1,024 images, and their names which one.

use collective::Communicator;
use data::{BLOCK, Dataset, Digest, Fingerprint, Kind};
use std::ops::Range;

use crate::images::Images;
use crate::{Error, gather};

/// Compares this rank's data sets with those of all others; collective.
///
/// - `node`: names this rank's node
/// - `sources`: what the configuration calls the training images and the test images
///
/// # Errors
/// [`Error::OtherData`], on every rank, naming the first rank that differs from rank 0 and the first image on which it does.
pub fn compare(
    communicator: &mut Communicator,
    node: &str,
    sources: [&str; 2],
    images: &Images,
) -> Result<(), Error> {
    let Images { train, fingerprint, test, .. } = images;
    let sets = [
        ("the training images", Some((&**train, fingerprint))),
        ("the test images", test.as_ref().map(|(test, of)| (&**test, of))),
    ];
    for ((what, set), source) in sets.into_iter().zip(sources) {
        // Whether there is a second one, the configuration says, which all ranks share.
        let Some((dataset, fingerprint)) = set else { continue };
        let digests = all_digests(communicator, &fingerprint.digest())?;
        let Some(rank) =
            digests.chunks(size_of::<Digest>()).position(|digest| *digest != digests[..size_of::<Digest>()])
        else {
            continue;
        };
        let nodes = gather::texts(communicator, node)?;
        let difference = difference(communicator, rank, dataset, fingerprint)?;
        let [node_of_0, node] = [0, rank].map(|rank| nodes[rank].clone());
        return Err(Error::OtherData {
            what: format!("{what} ({source})"),
            rank,
            node,
            node_of_0,
            difference,
        });
    }
    Ok(())
}

/// The first image on which `rank` differs from rank 0; collective.
fn difference(
    communicator: &mut Communicator,
    rank: usize,
    dataset: &Dataset,
    fingerprint: &Fingerprint,
) -> Result<String, Error> {
    let mut both = |own: &[u8]| -> Result<[Vec<u8>; 2], Error> {
        let values = gather::bytes(communicator, own)?;
        Ok([0, rank].map(|rank| values[rank].clone()))
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    // Nothing of two kinds can be compared but the names.
    let [on_0, on_rank] = both(kind_name(fingerprint.kind).as_bytes())?.map(text);
    if on_0 != on_rank {
        return Ok(format!("they are {on_rank} on rank {rank} and {on_0} on rank 0"));
    }
    // A packed set identifies itself by one digest: here its names are wanted.
    let blocks = dataset.blocks();
    let blocks = both(blocks.as_flattened())?;
    let [ours, theirs] = blocks.each_ref().map(|blocks| blocks.as_chunks::<{ size_of::<Digest>() }>().0);
    let common = ours.len().min(theirs.len());
    let block = (0..common)
        .find(|&block| ours[block] != theirs[block])
        .or((ours.len() != theirs.len()).then_some(common));
    let range = block
        .map_or(0..0, |block| (block * BLOCK).min(dataset.len())..((block + 1) * BLOCK).min(dataset.len()));
    let first = range.start;
    let lines = both(lines(dataset, range).as_bytes())?.map(text);
    if block.is_some() {
        return Ok(first_line(first, &lines, rank));
    }
    let [on_0, on_rank] = both(fingerprint.class_names.join(", ").as_bytes())?.map(text);
    if on_0 != on_rank {
        return Ok(format!("the classes are {on_rank} on rank {rank} and {on_0} on rank 0"));
    }
    let [ours, theirs] = both(contents(fingerprint).as_bytes())?.map(text);
    let differing = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs);
    let position = differing.and_then(|(ours, _)| ours.split(' ').next()?.parse::<usize>().ok());
    Ok(match position.filter(|position| *position < dataset.len()) {
        Some(position) => {
            format!("{} has another content, or cannot be read on one of them", dataset.path_of(position))
        }
        None => "they have the same names and other pixels".to_owned(),
    })
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Files => "one file an image",
        Kind::Pixels => "an IDX or CIFAR file",
        Kind::Packed => "a packed set",
        Kind::Builtin => "the built-in images",
    }
}

/// A line for each image: its name and class, and whether it is gone from the list that the run follows.
fn lines(dataset: &Dataset, range: Range<usize>) -> String {
    let line = |index: usize| {
        let class = match dataset.has_labels() {
            true => format!(" of class {}", dataset.class_names()[dataset.label_of(index) as usize]),
            false => String::new(),
        };
        let gone = if dataset.is_gone(index) { " (gone)" } else { "" };
        format!("{}{class}{gone}\n", dataset.path_of(index).replace('\n', " "))
    };
    range.map(line).collect()
}

fn first_line(first: usize, [ours, theirs]: &[String; 2], rank: usize) -> String {
    let (mut ours, mut theirs) = (ours.lines(), theirs.lines());
    for position in first.. {
        let (on_0, on_rank) = (ours.next(), theirs.next());
        if on_0.is_none() && on_rank.is_none() {
            break;
        }
        if on_0 != on_rank {
            let name = |line: Option<&str>| line.unwrap_or("missing: there are fewer").to_owned();
            return format!(
                "image {position} is {} on rank {rank} and {} on rank 0",
                name(on_rank),
                name(on_0)
            );
        }
    }
    // Names that differ only in bytes that no text has.
    format!("the names of the images from {first} on")
}

fn contents(fingerprint: &Fingerprint) -> String {
    fingerprint.samples.iter().map(|(position, content)| format!("{position} {content:?}\n")).collect()
}

fn all_digests(communicator: &mut Communicator, own: &Digest) -> Result<Vec<u8>, Error> {
    let mut all = vec![0; own.len() * communicator.world_size()];
    communicator.all_gather(own, &mut all)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, over_ranks};
    use crate::plan::limits;
    use config::RunConfig;
    use std::path::{Path, PathBuf};

    const CLASSES: [(&str, [u8; 3]); 2] = [("a", [150, 20, 20]), ("b", [20, 150, 20])];

    /// What two ranks with these folders say of each other.
    fn compared(folders: &[PathBuf; 2], with_test: bool) -> [Result<(), String>; 2] {
        let outcomes = over_ranks(2, |communicator| {
            let rank = communicator.rank();
            let mut config = RunConfig::default();
            let source = |path: &Path| path.to_str().unwrap().to_owned();
            // With test images, those differ.
            config.data.source = source(if with_test { &folders[0] } else { &folders[rank] });
            config.eval.data = with_test.then(|| source(&folders[rank]));
            let images = Images::open(&config, limits(&config), None).unwrap();
            let node = ["node-a", "node-b"][rank];
            compare(communicator, node, ["/images", "/test"], &images).map_err(|error| {
                assert_eq!(error.exit_code(), 2);
                error.to_string()
            })
        });
        outcomes.try_into().unwrap()
    }

    #[track_caller]
    fn check(change: impl FnOnce(&Path), expected: &str) {
        let root = tempfile::tempdir().unwrap();
        let folders = ["0", "1"].map(|name| root.path().join(name));
        folders.iter().for_each(|folder| fixtures::images(folder, &CLASSES, 3));
        assert_eq!(compared(&folders, false), [Ok(()), Ok(())]);
        change(&folders[1]);
        let said =
            |what: &str| format!("{what} differ between rank 1 (node-b) and rank 0 (node-a): {expected}");
        assert_eq!(compared(&folders, false), [0, 1].map(|_| Err(said("the training images (/images)"))));
        assert_eq!(compared(&folders, true), [0, 1].map(|_| Err(said("the test images (/test)"))));
    }

    #[test]
    fn the_first_image_that_differs_is_named_with_rank_and_node() {
        let rename = |from: &'static str, to: &'static str| {
            move |root: &Path| std::fs::rename(root.join(from), root.join(to)).unwrap()
        };
        check(
            rename("a/001.png", "a/001x.png"),
            "image 1 is a/001x.png of class a on rank 1 and a/001.png of class a on rank 0",
        );
        check(
            rename("b", "c"),
            "image 3 is c/000.png of class c on rank 1 and b/000.png of class b on rank 0",
        );
        check(
            |root| std::fs::remove_file(root.join("b/002.png")).unwrap(),
            "image 5 is missing: there are fewer on rank 1 and b/002.png of class b on rank 0",
        );
        check(
            |root| {
                std::fs::copy(root.join("a/000.png"), root.join("b/001.png")).unwrap();
            },
            "b/001.png has another content, or cannot be read on one of them",
        );
    }

    #[test]
    fn other_kinds_and_classes_are_said_to_differ() {
        check(
            |root| {
                let packed = root.with_extension("pack");
                let dataset = Dataset::open(root.to_str().unwrap()).unwrap();
                let options = data::PackOptions { shorter_side: 512, threads: 1 };
                data::pack(&dataset, &packed, &options, &mut |_| {}).unwrap();
                std::fs::remove_dir_all(root).unwrap();
                std::fs::rename(packed, root).unwrap();
            },
            "they are a packed set on rank 1 and one file an image on rank 0",
        );
    }

    #[test]
    fn an_image_far_back_is_found_in_its_block() {
        let root = tempfile::tempdir().unwrap();
        let folders = ["0", "1"].map(|name| root.path().join(name));
        for (folder, odd) in folders.iter().zip(["", "x"]) {
            std::fs::create_dir(folder).unwrap();
            for i in 0..BLOCK + 40 {
                let suffix = if i == BLOCK + 17 { odd } else { "" };
                std::fs::write(folder.join(format!("{i:05}{suffix}.png")), "").unwrap();
            }
        }
        let [of_0, of_1] = compared(&folders, false);
        assert_eq!(of_0, of_1);
        let message = of_0.unwrap_err();
        assert!(message.ends_with("image 1041 is 01041x.png on rank 1 and 01041.png on rank 0"), "{message}");
    }
}
