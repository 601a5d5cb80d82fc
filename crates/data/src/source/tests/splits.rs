//! Which folders are splits, and which of them is taken.

use super::*;

/// Opens a folder with one image in each of `folders` (`train/cat`), or a tar of it, whose behaviour is the same.
fn opened(folders: &[&str], split: &str) -> Result<(Vec<String>, Dataset), String> {
    let names: Vec<String> = folders.iter().map(|folder| format!("{folder}/1.png")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), png(&image(2, 2, 1)))).collect();
    let root = tempfile::tempdir().unwrap();
    write_files(&root.path().join("set"), &files);
    write_files(root.path(), &[("set.tar", tar_of(&files))]);
    let outcomes = ["set", "set.tar"].map(|name| {
        let outcome = Dataset::open(&format!("{}{split}", root.path().join(name).display()));
        let plain = |text: String| text.replace(root.path().join(name).to_str().unwrap(), "SET");
        match outcome {
            Ok(dataset) => Ok((dataset.notes().iter().map(|note| plain(note.clone())).collect(), dataset)),
            Err(error) => Err(plain(error.to_string())),
        }
    });
    let [folder, tar] = outcomes;
    let described = |outcome: &Result<(Vec<String>, Dataset), String>| match outcome {
        Ok((notes, dataset)) => (notes.clone(), paths(dataset), dataset.class_names().to_vec()),
        Err(message) => (vec![message.clone()], vec![], vec![]),
    };
    assert_eq!(described(&folder), described(&tar), "folder and tar differ");
    folder
}

#[track_caller]
fn check(folders: &[&str], split: &str, expected: &[&str], classes: &[&str], note: &str) {
    let (notes, dataset) = opened(folders, split).unwrap();
    let expected: Vec<String> = expected.iter().map(|folder| format!("{folder}/1.png")).collect();
    assert_eq!(
        (paths(&dataset), dataset.class_names()),
        (expected, &classes.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>()[..])
    );
    assert_eq!(notes.join("|"), note);
}

#[test]
fn the_split_to_train_on_is_taken_whatever_it_is_called() {
    let pairs = [
        ("train", "validation", "SET holds train and validation: taking train; SET#validation is the other"),
        ("train", "valid", "SET holds train and valid: taking train; SET#valid is the other"),
        ("Train", "Test", "SET holds Test and Train: taking Train; SET#Test is the other"),
        ("training", "testing", "SET holds testing and training: taking training; SET#testing is the other"),
        ("TRAIN", "Dev", "SET holds Dev and TRAIN: taking TRAIN; SET#Dev is the other"),
        ("train", "val", "SET holds train and val: taking train; SET#val is the other"),
    ];
    for (train, other, note) in pairs {
        let folders = [format!("{train}/cat"), format!("{train}/dog"), format!("{other}/cat")];
        let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
        check(&folders, "", &folders[..2], &["cat", "dog"], note);
    }
    check(
        &["train/cat", "val/cat", "test/dog"],
        "",
        &["train/cat"],
        &["cat"],
        "SET holds test, train and val: taking train; SET#test and SET#val are the others",
    );
    // Passed through, as today; and images without classes.
    check(
        &["set/train/a", "set/test/a"],
        "",
        &["set/train/a"],
        &["a"],
        "SET holds test and train: taking train; SET#test is the other",
    );
    check(
        &["train", "test"],
        "",
        &["train"],
        &[],
        "SET holds test and train: taking train; SET#test is the other",
    );
}

#[test]
fn beside_another_folder_a_split_stays_a_class() {
    check(
        &["train", "bus"],
        "",
        &["bus", "train"],
        &["bus", "train"],
        "SET holds train beside bus: all are taken as classes; SET#train would take one split",
    );
    check(
        &["train/a", "test/a", "unlabeled"],
        "",
        &["test/a", "train/a", "unlabeled"],
        &["test", "train", "unlabeled"],
        "SET holds test and train beside unlabeled: all are taken as classes; SET#test would take one split",
    );
    check(&["train/a", "bus"], "#TRAIN", &["train/a"], &["a"], "");
    check(&["trained", "tests"], "", &["tests", "trained"], &["tests", "trained"], "");
}

#[test]
fn a_split_is_found_exactly_or_by_case_or_by_meaning() {
    check(&["train/a", "validation/b"], "#Val", &["validation/b"], &["b"], "");
    check(&["train/a", "Testing/b"], "#test", &["Testing/b"], &["b"], "");
    check(&["set/Train/a", "set/test/b"], "#training", &["set/Train/a"], &["a"], "");
    // The exact one wins over the others, and the one that differs in case over that of the same meaning.
    check(&["val/a", "valid/b", "Val/c"], "#val", &["val/a"], &["a"], "");
    check(&["Valid/a", "validation/b"], "#valid", &["Valid/a"], &["a"], "");
    check(&["cat/a", "dog/b"], "#Dog", &["dog/b"], &["b"], "");
    check(&["cat/a/x", "dog/b"], "#cat/a", &["cat/a/x"], &["x"], "");
}

#[test]
fn what_could_be_several_is_refused_with_their_names() {
    #[track_caller]
    fn refused(folders: &[&str], split: &str, expected: &str) {
        assert_eq!(opened(folders, split).err().as_deref(), Some(expected));
    }
    refused(
        &["valid/a", "validation/a", "train/a"],
        "#val",
        "SET holds valid and validation, and #val could be any of them: name one, as SET#valid",
    );
    refused(
        &["TEST/a", "Test/a"],
        "#test",
        "SET holds TEST and Test, and #test could be any of them: name one, as SET#TEST",
    );
    refused(
        &["val/a", "test/a"],
        "",
        "SET holds test and val, and none of them is the split to train on (rename them if they are classes): name one, \
         as SET#test",
    );
    refused(
        &["train/a", "training/a", "val/a"],
        "",
        "SET holds train, training and val, and several of them could be the split to train on: name one, as SET#train",
    );
    refused(&["train/a", "test/a"], "#dev", "SET has no dev: it has test, train");
}

#[test]
fn halves_of_other_formats_are_found_by_meaning_too() {
    assert_eq!(Dataset::open("builtin#Testing").unwrap().len(), Dataset::open("builtin#test").unwrap().len());
    let root = tempfile::tempdir().unwrap();
    write_files(
        root.path(),
        &[("test_batch.bin", cifar_record(&[1], 2).0), ("data_batch_1.bin", cifar_record(&[3], 2).0)],
    );
    assert_eq!(open(root.path(), "#TEST").labels(), Some(vec![1]));
    assert_eq!(open(root.path(), "#training").labels(), Some(vec![3]));
}

/// A run of version 0.1 goes on with the images that it had, without the endings and splits that came later.
#[test]
fn version_0_1_is_listed_as_it_listed() {
    let names = |files: &[&str], as_version_0_1: bool| {
        let root = tempfile::tempdir().unwrap();
        let content = || png(&image(2, 2, 1));
        write_files(root.path(), &files.iter().map(|name| (*name, content())).collect::<Vec<_>>());
        let (source, limits) = (root.path().to_str().unwrap(), Limits::default());
        let set = match as_version_0_1 {
            true => Dataset::open_as_version_0_1(source, limits).unwrap(),
            false => Dataset::open_within(source, limits).unwrap(),
        };
        (0..set.len()).map(|index| set.path_of(index)).collect::<Vec<_>>()
    };
    let endings = ["a/1.gif", "a/2.JPG", "b/3.png", "b/4.bmp", "b/5.webp"];
    assert_eq!(names(&endings, true), ["a/2.JPG", "b/3.png", "b/5.webp"]);
    assert_eq!(names(&endings, false), endings);
    let later = ["training/a/1.png", "testing/a/2.png"];
    assert_eq!(names(&later, true), ["testing/a/2.png", "training/a/1.png"]);
    assert_eq!(names(&later, false), ["training/a/1.png"]);
    let beside = ["train/a/1.png", "test/a/2.png", "unlabeled/a/3.png"];
    assert_eq!(names(&beside, true), ["train/a/1.png"]);
    assert_eq!(names(&beside, false), ["test/a/2.png", "train/a/1.png", "unlabeled/a/3.png"]);
}

/// Opens a folder, and a tar, with these files.
fn described(names: &[&str], split: &str) -> Result<(Vec<String>, String), String> {
    let root = tempfile::tempdir().unwrap();
    let files: Vec<_> = names.iter().map(|name| (*name, png(&image(2, 2, 1)))).collect();
    write_files(&root.path().join("set"), &files);
    write_files(root.path(), &[("set.tar", tar_of(&files))]);
    let [folder, tar] = ["set", "set.tar"].map(|name| {
        let path = root.path().join(name);
        let plain = |text: String| text.replace(path.to_str().unwrap(), "SET");
        match Dataset::open(&format!("{}{split}", path.display())) {
            Ok(dataset) => Ok((paths(&dataset), plain(dataset.notes().join("|")))),
            Err(error) => Err(plain(error.to_string())),
        }
    });
    assert_eq!(folder, tar, "folder and tar differ");
    folder
}

/// Otherwise a run would train on what it is to be judged by.
#[test]
fn a_split_to_train_on_without_an_image_is_refused() {
    let only_tif = "this split has no image that can be read (only .tif files)";
    for (names, folder, other) in [
        (&["train/a/1.tif", "val/a/1.png"][..], "train", "val"),
        (&["train/1.tif", "val/1.png", "test/1.png", "docs/1.txt"], "train", "test"),
        (&["set/Training/a/1.tif", "set/val/a/1.png"], "set/Training", "val"),
    ] {
        let expected = format!("SET/{folder}: {only_tif}; SET#{other} has images");
        assert_eq!(described(names, ""), Err(expected));
    }
    assert_eq!(
        described(&["train/a/1.tif", "training/a/1.png"], "#train"),
        Err(format!("SET/train: {only_tif}"))
    );
    let (images, note) = described(&["train/1.png", "val/1.tif"], "").unwrap();
    assert_eq!(images, ["train/1.png"]);
    assert_eq!(note, "SET holds train and val: taking train; SET#val is the other");
    assert_eq!(described(&["train/a/1.tif", "val/a/1.png"], "#val").unwrap().0, ["val/a/1.png"]);
    assert_eq!(described(&["a/1.png", "b/1.png"], "#/"), Err("SET has no /: it has a, b".to_owned()));
    let (images, _) = described(&["train/1.tif", "bus/1.png"], "").unwrap();
    assert_eq!(images, ["bus/1.png"], "a class may lack images");
}

#[test]
fn images_beside_splits_are_left_out() {
    let (images, note) = described(&["train/a/1.png", "val/a/1.png", "overview.png"], "").unwrap();
    assert_eq!(images, ["train/a/1.png"]);
    assert_eq!(
        note,
        "SET holds train and val: taking train; SET#val is the other; images that lie in no folder are left out"
    );
    let (images, note) = described(&["train/a/1.png", "overview.png"], "").unwrap();
    assert_eq!(images, ["train/a/1.png"]);
    assert_eq!(note, "SET holds train: taking train; images that lie in no folder are left out");
    let (images, _) = described(&["val/1.png", "overview.png"], "").unwrap();
    assert_eq!(images, ["overview.png", "val/1.png"], "nothing says that there is a split to train on");
}
