use std::sync::Arc;

use tempfile::TempDir;

use super::index::{HEADER_LEN, Writer};
use super::*;
use crate::fixtures::{image, png, write_dataset, write_files};
use crate::{Augmentation, Dataset, Loader, LoaderOptions};

fn open(path: &Path) -> Result<Dataset, Error> {
    Dataset::open(path.to_str().unwrap())
}

fn packed(root: &Path, shorter_side: usize) -> (Dataset, PathBuf, Packed) {
    let folder = open(&root.join("images")).unwrap();
    let out = root.join("set.anything");
    let mut done = Vec::new();
    let report =
        pack(&folder, &out, &PackOptions { shorter_side, threads: 2 }, &mut |n| done.push(n)).unwrap();
    assert_eq!(done.last(), Some(&folder.len()));
    (folder, out, report)
}

fn entry(file: &[u8], image: usize) -> Entry {
    index::read(file).unwrap().0.entry(file, image).unwrap()
}

/// A folder of 40 images in two classes, of which one is none.
fn folder() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    write_dataset(&root.path().join("images"), 40, &[7]);
    root
}

#[test]
fn a_packed_set_is_the_set_that_was_packed() {
    let root = folder();
    let (folder, out, report) = packed(root.path(), 256);
    let set = open(&out).unwrap();
    assert_eq!((set.len(), set.labels(), set.class_names()), (40, folder.labels(), folder.class_names()));
    assert_eq!(set.blocks(), folder.blocks());
    for index in 0..40 {
        match (set.load(index), folder.load(index)) {
            (Ok(of_pack), Ok(of_folder)) => assert_eq!(of_pack, of_folder),
            (Err(Error::Image { path, reason }), Err(Error::Image { reason: expected, .. })) => {
                assert!(
                    index == 7 && path.starts_with("a/007.png in ") && reason == expected,
                    "{path}: {reason}"
                );
            }
            other => panic!("{index}: {other:?}"),
        }
    }
    assert_eq!((report.len, report.shrunk, report.corrupt.len()), (40, 0, 1));
    assert_eq!(report.file_bytes, std::fs::metadata(&out).unwrap().len());
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 2, "no partial file stays");
    let split = Dataset::open(&format!("{}#test", out.display()));
    assert!(matches!(split, Err(Error::NoSuchSplit { .. })));
}

#[test]
fn training_on_a_packed_set_sees_the_same_views() {
    let root = folder();
    let (folder, out, _) = packed(root.path(), 16);
    let batches = |set: Dataset| {
        let augmentation = Augmentation::preset("simclr-imagenet", 24).unwrap();
        let options = LoaderOptions {
            seed: 3,
            global_batch: 16,
            rank: 0,
            world_size: 1,
            start_step: 0,
            origin: crate::EpochOrigin::default(),
            threads: 2,
            prefetch: 2,
            max_corrupt_share: 0.5,
            parts: crate::Parts::VIEWS,
            labels: false,
            chunk: 0,
        };
        let mut loader = Loader::new(Arc::new(set), augmentation, options).unwrap();
        (0..5).map(|_| loader.next_batch().unwrap()).map(|b| (b.indices, b.images)).collect::<Vec<_>>()
    };
    assert!(batches(open(&out).unwrap()) == batches(folder));
}

#[test]
fn large_images_are_shrunk_to_the_shorter_side() {
    let root = tempfile::tempdir().unwrap();
    let plain = Image { width: 90, height: 30, rgb: [200, 100, 7].repeat(2700) };
    let files =
        [("tall.png", png(&image(21, 50, 1))), ("wide.png", png(&plain)), ("x.png", png(&image(9, 30, 2)))];
    write_files(&root.path().join("images"), &files);
    let (folder, out, report) = packed(root.path(), 10);
    let set = open(&out).unwrap();
    let sizes: Vec<_> = (0..3).map(|i| set.load(i).unwrap()).map(|i| (i.width, i.height)).collect();
    assert_eq!((sizes, report.shrunk), (vec![(10, 24), (30, 10), (9, 30)], 2));
    assert!(set.load(1).unwrap().rgb.chunks_exact(3).all(|rgb| rgb == [200, 100, 7]));
    assert_eq!(set.load(2).unwrap(), folder.load(2).unwrap());
}

#[test]
fn a_damaged_image_is_one_error_that_names_it() {
    let root = folder();
    let (_, out, _) = packed(root.path(), 256);
    let mut bytes = std::fs::read(&out).unwrap();
    let start = entry(&bytes, 30).range().start;
    bytes[start + 100] ^= 1;
    std::fs::write(&out, &bytes).unwrap();
    let set = open(&out).unwrap();
    let error = set.load(30).unwrap_err().to_string();
    assert!(error.contains("b/030.png in ") && error.contains("set.anything: its bytes"), "{error}");
    assert!(set.load(29).is_ok() && set.load(31).is_ok());
}

#[test]
fn a_file_that_is_cut_or_changed_in_header_or_index_is_refused() {
    let root = folder();
    let (_, out, _) = packed(root.path(), 256);
    let bytes = std::fs::read(&out).unwrap();
    let images_end = entry(&bytes, 39).range().end;
    for place in (8..HEADER_LEN).chain((images_end.next_multiple_of(64)..bytes.len()).step_by(7)) {
        for flip in [1, 0x80] {
            let mut bytes = bytes.clone();
            bytes[place] ^= flip;
            assert!(index::read(&bytes).is_err(), "byte {place} changed by {flip}");
        }
    }
    for len in (0..HEADER_LEN).chain([images_end, bytes.len() - 1]) {
        assert!(index::read(&bytes[..len]).is_err(), "cut to {len}");
    }
    std::fs::write(&out, &bytes[..bytes.len() - 1]).unwrap();
    let error = open(&out).err().unwrap().to_string();
    assert!(error.contains("set.anything: damaged packed set: it has"), "{error}");
}

/// Numbers that lie, in an index whose checksum is right.
#[test]
fn no_number_of_an_index_is_believed() {
    #[track_caller]
    fn check(expected: &str, spoil: impl Fn(&mut Entry)) {
        let checksum = checksum(&[0; 12]);
        let mut entry = Entry { offset: 128, width: 2, height: 2, label: 0, checksum };
        spoil(&mut entry);
        let mut writer = Writer::new(&["c".to_owned()]);
        writer.push(&entry, "a");
        let (header, index) = writer.finish(192);
        let file = [&header[..], &[0; 192 - HEADER_LEN], &index.concat()].concat();
        let outcome = index::read(&file).map(|(index, _)| index.len());
        assert!(outcome.as_ref().err().is_some_and(|reason| reason.contains(expected)), "{outcome:?}");
    }
    check("2 x 2 pixels of a", |entry| entry.offset = u64::MAX - 3);
    check("2 x 2 pixels of a", |entry| entry.offset = 181);
    check("2 x 2 pixels of a", |entry| entry.offset = 0);
    check("4294967295 x 4294967295", |entry| (entry.width, entry.height) = (u32::MAX, u32::MAX));
    check("2 x 0 pixels", |entry| entry.height = 0);
    check("class 1 of 1", |entry| entry.label = 1);
}

/// As above: what an index of two images says of its size and its paths.
#[test]
fn no_place_in_an_index_is_believed() {
    type Spoil = fn(&mut [u8; HEADER_LEN], &mut [Vec<u8>; 3]);
    fn refused(spoil: Spoil) -> Option<String> {
        let mut writer = Writer::new(&[]);
        for path in ["first", "second"] {
            let checksum = checksum(b"x");
            writer.push(&Entry { offset: 72, width: 0, height: 1, label: 0, checksum }, path);
        }
        let (mut header, mut parts) = writer.finish(73);
        spoil(&mut header, &mut parts);
        let index = parts.concat();
        let digest = *blake3::Hasher::new().update(&header[..40]).update(&index).finalize().as_bytes();
        header[40..].copy_from_slice(&digest);
        index::read(&[&header[..], b"x", &index].concat()).err()
    }
    #[track_caller]
    fn check(expected: &str, spoil: Spoil) {
        let reason = refused(spoil);
        assert!(reason.as_ref().is_some_and(|reason| reason.contains(expected)), "{reason:?}");
    }
    assert_eq!(refused(|_, _| ()), None);
    // More images than the index has room for, before anything is reserved for them.
    check("do not fit", |header, _| header[32..40].copy_from_slice(&u64::MAX.to_le_bytes()));
    check("do not fit", |header, _| header[32..40].copy_from_slice(&3u64.to_le_bytes()));
    // Where a path ends: behind the others, after the next, short of the last byte, within a letter.
    check("a path is not in its index", |_, parts| parts[1][36..44].fill(0xFF));
    check("a path is not in its index", |_, parts| parts[1][36] = 12);
    check("1 bytes follow its index", |_, parts| parts[1][80] = 10);
    check("no UTF-8", |_, parts| parts[2][4] = 0xC3);
}
