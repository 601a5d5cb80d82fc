//! What a folder holds beside its images is counted and named, and what only looks like an image is one error each.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;

use super::*;
use crate::source::listing::Found;

fn named<'a>(names: &[&'a str]) -> Vec<(&'a str, Vec<u8>)> {
    names.iter().map(|name| (*name, png(&image(2, 2, 1)))).collect()
}

fn skipped(dataset: &Dataset) -> Vec<(&str, usize)> {
    dataset.skipped().iter().map(|(kind, n)| (kind.as_str(), *n)).collect()
}

#[test]
fn every_file_is_an_image_or_counted_by_its_ending() {
    let images = ["a/1.JPG", "a/2.jpe", "a/3.jfif", "a/4.bmp", "a/5.GIF", "a/6.jpeg", "a/7.PnG", "a/8.webp"];
    let others = [
        "a/1.tif",
        "a/2.TIF",
        "a/3.txt",
        "b/1.tif",
        "b/x/2.tif",
        "a/none",
        "a/.hidden.png",
        "c/.x",
        "d/1.heic",
        "d/2.cr2",
    ];
    let root = tempfile::tempdir().unwrap();
    let files = [named(&images), named(&others)].concat();
    write_files(&root.path().join("set"), &files);
    fs::create_dir(root.path().join("set/empty")).unwrap();
    let mut tar = tar::Builder::new(tar_of(&files));
    // Without the two blocks of zeros at its end.
    let len = tar.get_ref().len() - 1024;
    tar.get_mut().truncate(len);
    tar.append_dir("empty", root.path()).unwrap();
    write_files(root.path(), &[("set.tar", tar.into_inner().unwrap())]);
    for name in ["set", "set.tar"] {
        let dataset = open(&root.path().join(name), "");
        assert_eq!(paths(&dataset), images);
        assert_eq!(
            skipped(&dataset),
            [(".cr2", 1), (".heic", 1), (".tif", 4), (".txt", 1), ("hidden", 2), ("no ending", 1)]
        );
        assert_eq!(
            dataset.notes(),
            [
                "skipped 10 files that are no images: 4 .tif, 2 hidden, 1 .cr2, 1 .heic, 1 .txt, 1 without an ending",
                "no image in class b: only .tif files; class c: only 1 hidden; class d: only 1 .cr2, 1 .heic; class empty: it \
                 is empty",
            ]
        );
        assert_eq!(dataset.empty_classes(), ["b", "c", "d", "empty"]);
        assert_eq!(dataset.class_names(), ["a"]);
    }
}

/// A note stays readable whatever there is.
#[test]
fn many_endings_and_classes_are_counted_behind_the_first() {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &named(&["a/1.png"]));
    for i in 0..12 {
        let name = format!("c{i:02}/1.x{i:02}");
        write_files(root.path(), &[(&name, vec![])]);
    }
    let dataset = open(root.path(), "");
    let [skipped, empty] = dataset.notes() else { panic!("{:?}", dataset.notes()) };
    assert!(
        skipped.starts_with("skipped 12 files that are no images: 1 .x00, ")
            && skipped.ends_with("1 .x07, 4 others"),
        "{skipped}"
    );
    assert!(empty.ends_with("class c07: only .x07 files; and 4 more"), "{empty}");
    assert_eq!((dataset.skipped().len(), dataset.empty_classes().len()), (12, 12));
}

#[test]
fn images_outside_of_all_classes_are_told_to_be_why_there_are_none() {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &named(&["a/1.png", "b/1.png", "stray.png"]));
    let dataset = open(root.path(), "");
    assert_eq!((dataset.len(), dataset.has_labels()), (3, false));
    assert_eq!(
        dataset.notes(),
        ["there are no classes, because 1 image lies in no folder, stray.png the first"]
    );
    assert!(open(&root.path().join("a"), "").notes().is_empty());
}

/// Two links to one folder are read twice, as torchvision reads them; a link to a folder around it is not entered.
#[test]
fn loops_of_links_are_not_entered() {
    let root = tempfile::tempdir().unwrap();
    let set = root.path().join("outer/set");
    write_files(&set, &named(&["a/1.png", "b/1.png"]));
    for (target, link) in [
        ("../a", "a/self"),
        ("..", "a/up"),
        ("../..", "b/out"),
        ("a", "c"),
        ("a", "d"),
        ("b/2.png", "b/2.png"),
    ] {
        symlink(target, set.join(link)).unwrap();
    }
    let dataset = open(&set, "");
    assert_eq!(paths(&dataset), ["a/1.png", "b/1.png", "b/2.png", "c/1.png", "d/1.png"]);
    // Each of a, c and d has two of them.
    assert_eq!(skipped(&dataset), [("loop of links", 7)]);
    let note = &dataset.notes()[0];
    assert!(
        note.starts_with(
            "skipped 7 files that are no images: 7 links to folders that they lie in (among them "
        ),
        "{note}"
    );
    assert!(note.contains("b/out") && note.contains("c/self"), "{note}");
}

#[test]
fn what_only_looks_like_an_image_is_an_error_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &named(&["a/1.png", "b.png/1.png"]));
    let path = |name: &str| root.path().join(name);
    fs::write(path("a/2.png"), &png(&image(9, 9, 1))[..60]).unwrap();
    symlink("nothing", path("a/3.png")).unwrap();
    symlink("4.png", path("a/4.png")).unwrap();
    symlink("/dev/zero", path("a/5.png")).unwrap();
    for name in ["a/6.png", "a/pipe"] {
        nix::unistd::mkfifo(&path(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    fs::File::create(path("a/7.png")).unwrap().set_len((1 << 30) + 1).unwrap();
    fs::write(path("a/8.png"), []).unwrap();
    let dataset = open(root.path(), "");
    assert_eq!(
        paths(&dataset),
        [
            "a/1.png",
            "a/2.png",
            "a/3.png",
            "a/4.png",
            "a/5.png",
            "a/6.png",
            "a/7.png",
            "a/8.png",
            "b.png/1.png"
        ]
    );
    assert_eq!(skipped(&dataset), [("special file", 1)]);
    let reasons: Vec<Option<String>> = (0..9)
        .map(|index| match dataset.load(index) {
            Ok(_) => None,
            Err(Error::Image { path, reason }) => {
                assert_eq!(path, paths(&dataset)[index]);
                Some(reason)
            }
            Err(other) => panic!("{other}"),
        })
        .collect();
    let reasons: Vec<&str> = reasons.iter().map(|reason| reason.as_deref().unwrap_or("")).collect();
    assert!(!reasons[1].is_empty(), "it is cut");
    assert_eq!(
        [&reasons[..1], &reasons[2..]].concat(),
        [
            "",
            "a link to a file that is not there",
            "a loop of links",
            "a device, no regular file",
            "a pipe (FIFO), no regular file",
            "1073741825 bytes, more than the 1073741824 that an image may have",
            "the file is empty",
            "",
        ]
    );
}

/// The system's answers for a walk, folder by folder: what `fails` says, or what is there.
fn walk(root: &Path, mut fails: impl FnMut(&Path) -> Option<i32>) -> Result<Found<()>, Error> {
    files::walk_by(root, &mut |folder| match fails(folder) {
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Ok(Box::new(fs::read_dir(folder)?)),
    })
}

#[test]
fn a_folder_that_is_not_permitted_is_skipped_and_named_and_the_root_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &named(&["a/1.png", "b/1.png", "b/x/1.png"]));
    let eacces = nix::errno::Errno::EACCES as i32;
    let found = walk(root.path(), |folder| folder.ends_with("b").then_some(eacces)).unwrap();
    let arranged =
        listing::arrange(root.path(), found, Selection { split: None, as_version_0_1: false }).unwrap();
    assert_eq!((arranged.files.len(), &arranged.class_names[..]), (1, &["a".to_owned()][..]));
    assert_eq!(
        arranged.notices.notes,
        [
            "skipped 1 file that is no image: 1 folder that cannot be read (among them b)",
            "no image in class b: only 1 folder that cannot be read",
        ]
    );
    let error = walk(root.path(), |_| Some(eacces)).err().unwrap();
    assert!(matches!(&error, Error::Io { path, .. } if path == root.path()), "{error:?}");
}

#[test]
fn a_folder_that_the_machine_does_not_give_is_listed_again_and_then_ends_the_opening() {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &named(&["a/1.png", "b/1.png"]));
    let eio = nix::errno::Errno::EIO as i32;
    // Twice the listing of a folder breaks off behind its first image.
    let mut left = 2;
    let found = files::walk_by(root.path(), &mut |folder| {
        left -= i32::from(folder.ends_with("b"));
        let breaks_off = folder.ends_with("b") && left >= 0;
        let fault = breaks_off.then(|| Err(io::Error::from_raw_os_error(eio)));
        Ok(Box::new(fs::read_dir(folder)?.chain(fault)))
    });
    let mut n = 0;
    found.unwrap().visit(|_, ()| n += 1);
    assert_eq!(n, 2, "once each");
    let error = walk(root.path(), |folder| folder.ends_with("b").then_some(eio)).err().unwrap();
    let Error::Machine { path, attempts: 4, source } = &error else { panic!("{error:?}") };
    assert_eq!((path.as_path(), source.raw_os_error()), (root.path().join("b").as_path(), Some(eio)));
}

/// Names are bytes: two of them that differ are two images with two names, in a tar and a folder alike.
#[test]
fn names_that_are_no_text_stay_apart() {
    let root = tempfile::tempdir().unwrap();
    let name = |byte| std::ffi::OsString::from_vec(vec![b'x', byte, b'.', b'p', b'n', b'g']);
    let mut tar = tar::Builder::new(Vec::new());
    for (seed, byte) in [(1, 0xFE), (2, 0xFF)] {
        let folder = root.path().join("set").join(std::ffi::OsString::from_vec(vec![byte]));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name(byte)), png(&image(3, 3, seed))).unwrap();
    }
    tar.append_dir_all("", root.path().join("set")).unwrap();
    write_files(root.path(), &[("set.tar", tar.into_inner().unwrap())]);
    for source in ["set", "set.tar"] {
        let dataset = open(&root.path().join(source), "");
        assert_eq!(paths(&dataset), ["\\xfe/x\\xfe.png", "\\xff/x\\xff.png"]);
        assert_eq!(dataset.class_names(), ["\\xfe", "\\xff"]);
        assert_eq!(*dataset.load(1).unwrap(), image(3, 3, 2));
    }
}

#[test]
fn files_beside_those_of_a_set_of_its_own_and_missing_ones_are_told() {
    let root = tempfile::tempdir().unwrap();
    let record = || cifar_record(&[3], 5).0;
    write_files(
        root.path(),
        &[
            ("ten/data_batch_1.bin", record()),
            ("ten/data_batch_4.bin", record()),
            ("ten/extra.png", png(&image(2, 2, 1))),
            ("ten/more/1.png", png(&image(2, 2, 1))),
            ("ten/batches.meta.txt", "a b c d e f g h i j".replace(' ', "\n").into_bytes()),
            ("test/test_batch.bin", record()),
            ("digits/train-images-idx3-ubyte", idx(&[1, 2, 2], &[0; 4])),
            ("digits/1.jpg", vec![]),
        ],
    );
    let notes = |name: &str| -> Vec<String> {
        let path = root.path().join(name);
        open(&path, "").notes().iter().map(|note| note.replace(path.to_str().unwrap(), "SET")).collect()
    };
    assert_eq!(
        notes("ten"),
        [
            "2 of the 5 files are there: data_batch_2.bin, data_batch_3.bin, data_batch_5.bin are missing",
            "skipped 2 files: 1 .png, 1 folder, beside the CIFAR files",
        ]
    );
    assert_eq!(skipped(&open(&root.path().join("ten"), "")), [(".png", 1), ("folder", 1)]);
    assert_eq!(notes("test"), ["SET holds test images only: taking test"]);
    assert_eq!(
        notes("digits"),
        [
            "no classes: train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz is not beside train-images-idx3-ubyte",
            "skipped 1 file: 1 .jpg, beside the IDX files",
        ]
    );
}
