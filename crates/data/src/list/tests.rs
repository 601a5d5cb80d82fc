use super::*;
use crate::Limits;
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
    let (dataset, differences) = in_order(path, list).unwrap();
    let changed = dataset.first_changed(&list.fingerprint, &dataset.fingerprint(SEED).unwrap());
    (dataset, differences, changed)
}

fn in_order(path: &Path, list: &ImageList) -> Result<(Dataset, Differences), Error> {
    Dataset::open_in_order(path.to_str().unwrap(), Limits::default(), list)
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
        assert_eq!(differences.gone, Counted { n: 1, first: "a/001.png".to_owned() });
        assert_eq!(differences.new, Counted { n: 3, first: "A/first.png".to_owned() });
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

/// What comes or goes beside the images of a list changes which folder they would be named from.
#[test]
fn the_images_of_a_list_are_found_below_the_folder_that_they_were_below() {
    #[track_caller]
    fn check(before: &[&str], come: &[&str], go: &[&str], [n_gone, n_new]: [usize; 2]) {
        let root = tempfile::tempdir().unwrap();
        let set = root.path().join("set");
        let files = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name, png(&image(4, 4, name.len()))))
                .map(|(n, b)| (n.to_owned(), b))
                .collect::<Vec<_>>()
        };
        let write = |names: &[&str]| {
            files(names).iter().for_each(|(n, b)| write_files(&set, &[(n.as_str(), b.clone())]))
        };
        write(before);
        let (list, paths_before, classes) =
            (list(&set), paths(&open(&set)), open(&set).class_names().to_vec());
        write(come);
        go.iter().for_each(|name| fs::remove_file(set.join(name)).unwrap());
        for path in [set.clone(), tar_of(&set)] {
            let (dataset, differences, changed) = follow(&path, &list);
            assert_eq!((differences.gone.n, differences.new.n, changed), (n_gone, n_new, None));
            assert_eq!(dataset.class_names(), classes);
            for (index, before) in
                paths_before.iter().enumerate().filter(|(index, _)| !dataset.is_gone(*index))
            {
                assert_eq!(&dataset.path_of(index), before);
            }
        }
    }
    let wrapped = ["pets/cat/1.png", "pets/cat/2.png", "pets/dog/1.png"];
    check(&wrapped, &["stray.png"], &[], [0, 0]);
    check(&wrapped, &["more/cat/1.png"], &["pets/dog/1.png"], [1, 0]);
    check(&wrapped, &["pets/stray.png"], &[], [0, 1]);
    let splits = ["train/a/1.png", "train/b/1.png", "val/a/1.png"];
    check(&splits, &["unlabeled/1.png"], &[], [0, 0]);
    check(&splits, &["training/a/1.png"], &[], [0, 0]);
    check(&splits, &[], &["val/a/1.png"], [0, 0]);
    check(&["train/a/1.png", "train/b/1.png"], &["val/a/1.png", "test/a/1.png"], &[], [0, 0]);
    // One class in a class.
    check(&["a/x/1.png", "b/1.png", "b/2.png"], &[], &["b/1.png", "b/2.png"], [2, 0]);
}

/// The folder that the list has need not be one of the set that is named now.
#[test]
fn a_list_is_followed_from_another_folder_of_the_set() {
    let root = tempfile::tempdir().unwrap();
    let names = ["pets/train/cat/1.png", "pets/train/dog/1.png", "pets/val/cat/1.png", "pets/val/dog/9.png"];
    write_files(root.path(), &names.map(|name| (name, png(&image(4, 4, name.len())))));
    let at = |path: &str| root.path().join(path);
    let train = list(root.path());
    for same in ["", "pets", "pets/train", "pets#train", "#pets/train"] {
        let path = format!("{}{same}", root.path().join("").display());
        let path = path.replace("/#", "#");
        assert_eq!(in_order(Path::new(&path), &train).unwrap().1, Differences::default(), "{path}");
    }
    let from_within = list(&at("pets/train"));
    for same in ["", "pets", "pets/train"] {
        assert_eq!(follow(&at(same), &from_within).1, Differences::default(), "{same}");
    }
    // A split that is asked for is the one that is taken.
    let (_, differences) = in_order(&at("pets#val"), &train).unwrap();
    assert_eq!((differences.gone.n, differences.new.n), (1, 1));
    assert!(in_order(&at("pets#dev"), &train).is_err());
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
    let changed = |path: &str, list: &ImageList| in_order(Path::new(path), list).unwrap().1.changed.unwrap();
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
            .and_then(|list| in_order(root.path(), &list))
            .map(|_| ())
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
        in_order(root.path(), &hostile).err().unwrap().to_string()
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
