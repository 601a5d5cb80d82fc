use super::*;
use crate::fixtures::{image, png, tar_of, write_dataset, write_files};
use std::fs;
use std::path::Path;

fn open(path: &Path) -> Dataset {
    Dataset::open(path.to_str().unwrap()).unwrap()
}

fn digest(path: &Path) -> Digest {
    open(path).fingerprint(7).unwrap().digest()
}

#[test]
fn a_set_is_the_same_wherever_it_lies() {
    let root = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "deep/er/b"].map(|name| root.path().join(name));
    write_dataset(&a, 6, &[]);
    write_dataset(&b, 6, &[]);
    assert_eq!(digest(&a), digest(&b));
    assert_eq!(digest(&a), digest(&tar_of(&a)));
    // Wrapped by another folder, chosen as a split, or named directly.
    let split = root.path().join("set");
    write_dataset(&split.join("train"), 6, &[]);
    write_dataset(&split.join("test"), 4, &[]);
    assert_eq!(digest(&split), digest(&a));
    assert_eq!(digest(&split.join("train")), digest(&a));
}

#[test]
fn what_identifies_a_set_shows() {
    let root = tempfile::tempdir().unwrap();
    let original = root.path().join("original");
    write_dataset(&original, 6, &[]);
    let changed = |name: &str, change: fn(&Path)| {
        let copy = root.path().join(name);
        write_dataset(&copy, 6, &[]);
        change(&copy);
        (open(&copy).fingerprint(7).unwrap(), open(&original).fingerprint(7).unwrap())
    };
    let (renamed, before) = changed("renamed", |root| {
        fs::rename(root.join("a/000.png"), root.join("a/zzz.png")).unwrap();
    });
    assert_ne!(renamed.blocks, before.blocks);
    let (class, before) = changed("class", |root| fs::rename(root.join("a"), root.join("c")).unwrap());
    assert_ne!((class.class_names, class.blocks), (before.class_names, before.blocks));
    let (replaced, before) =
        changed("replaced", |root| fs::write(root.join("b/004.png"), png(&image(16, 16, 99))).unwrap());
    assert_eq!(replaced.blocks, before.blocks);
    let differing: Vec<usize> = (0..6).filter(|&i| replaced.samples[i] != before.samples[i]).collect();
    assert_eq!(differing, [4]);
    assert_ne!(replaced.digest(), before.digest());
    let (fewer, before) = changed("fewer", |root| fs::remove_file(root.join("b/005.png")).unwrap());
    assert_ne!(fewer.digest(), before.digest());
    let (more, before) = changed("more", |root| write_files(root, &[("b/9.png", png(&image(8, 8, 9)))]));
    assert_ne!(more.digest(), before.digest());
}

#[test]
fn the_seed_draws_256_different_images_of_a_large_set() {
    let builtin = Dataset::open("builtin").unwrap();
    let drawn = |seed| -> Vec<usize> {
        builtin.fingerprint(seed).unwrap().samples.iter().map(|(position, _)| *position).collect()
    };
    let first = drawn(1);
    assert_eq!(first.len(), 256);
    assert!(first.is_sorted_by(|a, b| a < b), "ascending, each once");
    assert!(first[0] < 500 && first[255] > 5_500, "from all of the set: {first:?}");
    assert_eq!(first, drawn(1));
    assert_ne!(first, drawn(2));
}

/// The digest of a block covers its images and no others.
#[test]
fn one_image_changes_one_block() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, odd: usize| {
        let folder = root.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..2 * BLOCK + 1 {
            let suffix = if i == odd { "x" } else { "" };
            fs::write(folder.join(format!("{i:05}{suffix}.png")), "").unwrap();
        }
        open(&folder).blocks()
    };
    let (before, after) = (write("before", usize::MAX), write("after", BLOCK + 3));
    assert_eq!(before.len(), 3);
    let differing: Vec<usize> = (0..3).filter(|&block| before[block] != after[block]).collect();
    assert_eq!(differing, [1]);
}

#[test]
fn a_packed_set_has_its_own_digest() {
    let root = tempfile::tempdir().unwrap();
    let [folder, pack, other] = ["folder", "pack", "other"].map(|name| root.path().join(name));
    write_dataset(&folder, 5, &[]);
    let options = crate::PackOptions { shorter_side: 64, threads: 1 };
    crate::pack(&open(&folder), &pack, &options, &mut |_| ()).unwrap();
    fs::write(folder.join("b/004.png"), png(&image(16, 16, 77))).unwrap();
    crate::pack(&open(&folder), &other, &options, &mut |_| ()).unwrap();
    let [of_pack, of_other] = [&pack, &other].map(|path| open(path).fingerprint(7).unwrap());
    assert_eq!((of_pack.blocks.len(), of_pack.samples.len()), (1, 0));
    assert_ne!(of_pack.digest(), of_other.digest(), "other pixels under the same names");
    assert_eq!(open(&pack).blocks(), open(&other).blocks());
}

#[test]
fn an_image_that_cannot_be_had_has_no_digest() {
    let root = tempfile::tempdir().unwrap();
    write_dataset(root.path(), 4, &[]);
    let dataset = open(root.path());
    fs::remove_file(root.path().join("a/001.png")).unwrap();
    let samples = dataset.fingerprint(7).unwrap().samples;
    let known: Vec<bool> = samples.iter().map(|(_, content)| content.is_some()).collect();
    assert_eq!(known, [true, false, true, true]);
}
