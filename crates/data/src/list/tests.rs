use super::*;
use crate::fixtures::{image, png, tar_of, write_dataset, write_files};
use std::fs;
use std::path::Path;

const SEED: u64 = 7;

fn open(path: &Path) -> Dataset {
    Dataset::open(path.to_str().unwrap()).unwrap()
}

/// The list of the set at `path`, as it comes back from a disk.
fn list(path: &Path) -> ImageList {
    let dataset = open(path);
    let fingerprint = dataset.fingerprint(SEED).unwrap();
    ImageList::decode(&ImageList::of(&dataset, fingerprint).encode()).unwrap()
}

/// The set at `path` in the order of `list`, how it differs, and the first image that is another.
fn follow(path: &Path, list: &ImageList) -> (Dataset, Differences, Option<String>) {
    let mut dataset = open(path);
    let differences = dataset.follow(list).unwrap();
    let changed = dataset.first_changed(&list.fingerprint, &dataset.fingerprint(SEED).unwrap());
    (dataset, differences, changed)
}

fn paths(dataset: &Dataset) -> Vec<String> {
    (0..dataset.len()).map(|index| dataset.path_of(index)).collect()
}

#[test]
fn the_same_set_follows_without_a_difference() {
    let root = tempfile::tempdir().unwrap();
    write_dataset(root.path().join("set").as_path(), 6, &[]);
    let list = list(&root.path().join("set"));
    for path in [root.path().join("set"), tar_of(&root.path().join("set"))] {
        let (dataset, differences, changed) = follow(&path, &list);
        assert_eq!((differences, changed), (Differences::default(), None));
        assert_eq!(dataset.fingerprint(SEED).unwrap(), list.fingerprint);
    }
}

#[test]
fn images_keep_their_positions_when_others_come_and_go() {
    let root = tempfile::tempdir().unwrap();
    let set = root.path().join("set");
    write_dataset(&set, 6, &[]);
    let list = list(&set);
    let before = open(&set);
    fs::rename(set.join("a/001.png"), set.join("b/zzz.png")).unwrap();
    write_files(&set, &[("a/000a.png", png(&image(4, 4, 50))), ("A/first.png", png(&image(4, 4, 51)))]);
    for path in [set.clone(), tar_of(&set)] {
        let (dataset, differences, changed) = follow(&path, &list);
        assert_eq!(differences.gone, Found { n: 1, first: "a/001.png".to_owned() });
        assert_eq!(differences.new, Found { n: 3, first: "A/first.png".to_owned() });
        assert_eq!((differences.changed, changed), (None, None));
        assert_eq!(paths(&dataset), paths(&before));
        assert_eq!(dataset.class_names(), ["a", "b"]);
        assert_eq!(dataset.labels(), before.labels());
        for index in [0, 2, 3, 4, 5] {
            assert_eq!(dataset.load(index).unwrap(), before.load(index).unwrap(), "image {index}");
        }
        let error = dataset.load(1).unwrap_err();
        assert!(matches!(&error, Error::Image { path, .. } if path == "a/001.png"), "{error}");
        // The first ranks that see it so agree with each other, and not with one that has the image.
        assert_ne!(dataset.blocks(), before.blocks());
    }
}

#[test]
fn a_class_that_is_gone_or_files_outside_of_classes_do_not_change_the_labels() {
    let root = tempfile::tempdir().unwrap();
    let set = root.path().join("set");
    write_dataset(&set, 6, &[]);
    let (list, before) = (list(&set), open(&set));
    write_files(&set, &[("stray.png", png(&image(4, 4, 50)))]);
    assert!(!open(&set).has_labels());
    let (dataset, differences, _) = follow(&set, &list);
    assert_eq!((dataset.labels(), differences.new.n), (before.labels(), 1));
    fs::remove_dir_all(set.join("a")).unwrap();
    let (dataset, differences, _) = follow(&set, &list);
    assert_eq!((dataset.labels(), dataset.class_names()), (before.labels(), before.class_names()));
    assert_eq!(differences.gone.n, 3);
}

#[test]
fn another_image_under_the_same_name_is_named() {
    let root = tempfile::tempdir().unwrap();
    let set = root.path().join("set");
    write_dataset(&set, 6, &[]);
    let list = list(&set);
    fs::write(set.join("b/004.png"), png(&image(16, 16, 99))).unwrap();
    fs::remove_file(set.join("a/000.png")).unwrap();
    let (_, differences, changed) = follow(&set, &list);
    assert_eq!((differences.gone.n, changed.as_deref()), (1, Some("b/004.png")));
    // What cannot be read is not taken for another image.
    fs::remove_file(set.join("b/004.png")).unwrap();
    assert_eq!(follow(&set, &list).2, None);
}

#[test]
fn another_set_is_none_of_the_lists() {
    let root = tempfile::tempdir().unwrap();
    let [set, other] = ["set", "other"].map(|name| root.path().join(name));
    write_dataset(&set, 6, &[]);
    write_files(&other, &[("x/1.png", png(&image(4, 4, 1))), ("y/2.png", png(&image(4, 4, 2)))]);
    let changed = |path: &str, list: &ImageList| {
        let mut dataset = Dataset::open(path).unwrap();
        dataset.follow(list).unwrap().changed.unwrap()
    };
    assert_eq!(changed(other.to_str().unwrap(), &list(&set)), "none of the images of the list is there");
    assert_eq!(changed("builtin", &list(&set)), "the built-in images where the list is of image files");
    assert_eq!(changed("builtin#test", &list(Path::new("builtin"))), "1000 images where the list has 6000");
}

/// Images that are no files of their own: the labels of an IDX file and the pixels of a packed set.
#[test]
fn sets_in_one_file_are_compared_whole() {
    let root = tempfile::tempdir().unwrap();
    let idx = |name: &str, labels: &[u8]| {
        let folder = root.path().join(name);
        let header = |dimensions: &[u32]| {
            let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
            dimensions.iter().for_each(|n| bytes.extend_from_slice(&n.to_be_bytes()));
            bytes
        };
        let n = labels.len() as u32;
        let images = [header(&[n, 2, 2]), vec![5; 4 * labels.len()]].concat();
        write_files(
            &folder,
            &[
                ("train-images-idx3-ubyte", images),
                ("train-labels-idx1-ubyte", [header(&[n]), labels.to_vec()].concat()),
            ],
        );
        folder
    };
    let before = list(&idx("before", &[0, 1, 1, 0]));
    assert_eq!(follow(&idx("same", &[0, 1, 1, 0]), &before).2, None);
    let (_, differences, changed) = follow(&idx("other", &[0, 1, 0, 0]), &before);
    assert_eq!(differences, Differences::default());
    let changed = changed.unwrap();
    assert!(changed.starts_with("one of the 1024 images from train-images-idx3-ubyte#0 on"), "{changed}");

    let [folder, pack] = ["folder", "pack"].map(|name| root.path().join(name));
    let options = crate::PackOptions { shorter_side: 64, threads: 1 };
    write_dataset(&folder, 5, &[]);
    crate::pack(&open(&folder), &pack, &options, &mut |_| ()).unwrap();
    let before = list(&pack);
    assert_eq!(follow(&pack, &before).2, None);
    fs::write(folder.join("b/004.png"), png(&image(16, 16, 77))).unwrap();
    crate::pack(&open(&folder), &pack, &options, &mut |_| ()).unwrap();
    assert_eq!(follow(&pack, &before).2.as_deref(), Some("the packed set, whose digest is another"));
}

#[test]
fn names_take_a_few_bytes_each() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..4096 {
        let folder = root.path().join(format!("class-{:02}", i % 8));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("photo-{:08}.jpg", i * 7919 % 4096)), "").unwrap();
    }
    let list = list(root.path());
    assert!(list.encode().len() < 4 * 4096 + 8192, "{} bytes", list.encode().len());
}

#[test]
fn a_damaged_list_is_an_error_and_never_a_panic() {
    let root = tempfile::tempdir().unwrap();
    write_dataset(root.path(), 6, &[]);
    let bytes = list(root.path()).encode();
    let read = |bytes: &[u8]| {
        ImageList::decode(bytes)
            .and_then(|list| open(root.path()).follow(&list))
            .map_err(|error| error.to_string())
    };
    for len in 0..bytes.len() {
        let error = read(&bytes[..len]).unwrap_err();
        assert!(error.starts_with("the list of the run's images is damaged: "), "cut to {len}: {error}");
    }
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x41;
        // Some bits make another list, of which a digest beside it tells; none may panic or allocate without bound.
        read(&damaged).ok();
    }
    let claims = |edit: fn(&mut ImageList)| {
        let mut hostile = list(root.path());
        edit(&mut hostile);
        read(&hostile.encode()).unwrap_err()
    };
    assert!(claims(|list| list.fingerprint.len = usize::MAX).contains("cannot be decompressed"));
    assert!(claims(|list| list.fingerprint.class_names.truncate(1)).contains("is of class 1 of 1"));
    let unordered = |names: &[&str]| {
        let mut bytes = Vec::new();
        for name in names {
            put_varint(&mut bytes, 0);
            put_varint(&mut bytes, name.len());
            bytes.extend_from_slice(name.as_bytes());
            put_varint(&mut bytes, 0);
        }
        let mut hostile = list(root.path());
        hostile.fingerprint.len = names.len();
        hostile.names = zstd::encode_all(&bytes[..], 0).unwrap();
        open(root.path()).follow(&hostile).unwrap_err().to_string()
    };
    assert!(unordered(&["b/1.png", "a/2.png"]).ends_with("its names are not in order"));
    assert!(unordered(&["a/1.png", "a/1.png"]).ends_with("its names are not in order"));
    let long = |len: usize| {
        let mut bytes = Vec::new();
        for (shared, rest) in [(0, MAX_NAME), (MAX_NAME, len)] {
            put_varint(&mut bytes, shared);
            put_varint(&mut bytes, rest);
            bytes.resize(bytes.len() + rest, b'a');
            put_varint(&mut bytes, 0);
        }
        let mut hostile = list(root.path());
        hostile.fingerprint.len = 2;
        hostile.names = zstd::encode_all(&bytes[..], 0).unwrap();
        open(root.path()).follow(&hostile).unwrap_err().to_string()
    };
    assert!(long(1).ends_with("a name has 65537 bytes"), "names that grow from one to the next");
}
