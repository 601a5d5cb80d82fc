//! The members of a tar: each is an image, as extraction would leave it, or counted by its kind.

use tar::{EntryType, Header};

use super::*;

/// A tar that is put together member by member.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    /// A file whose name is written as it is, however odd.
    fn file(self, name: &str, bytes: &[u8]) -> Tar {
        self.member(name, EntryType::Regular, "", bytes)
    }

    fn link(self, name: &str, kind: EntryType, target: &str) -> Tar {
        self.member(name, kind, target, &[])
    }

    fn member(mut self, name: &str, kind: EntryType, target: &str, bytes: &[u8]) -> Tar {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.0.append(&header, bytes).unwrap();
        self
    }

    fn write(self, path: &Path) {
        fs::write(path, self.0.into_inner().unwrap()).unwrap();
    }

    /// Opens it, plain and compressed, which must be the same.
    fn open(self) -> Dataset {
        let bytes = self.0.into_inner().unwrap();
        open_both(&bytes)
    }
}

fn open_both(bytes: &[u8]) -> Dataset {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &[("a.tar", bytes.to_vec()), ("a.tar.gz", gzip(bytes))]);
    let [plain, compressed] = ["a.tar", "a.tar.gz"].map(|name| open(&root.path().join(name), ""));
    assert_eq!(
        (paths(&plain), plain.notes(), plain.skipped()),
        (paths(&compressed), compressed.notes(), compressed.skipped())
    );
    for index in 0..plain.len() {
        assert_eq!(plain.load(index).unwrap(), compressed.load(index).unwrap(), "{}", plain.path_of(index));
    }
    plain
}

fn picture(seed: usize) -> Vec<u8> {
    png(&image(3, 2, seed))
}

#[track_caller]
fn check_images(dataset: &Dataset, expected: &[(&str, usize)]) {
    assert_eq!(paths(dataset), expected.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (index, (name, seed)) in expected.iter().enumerate() {
        assert_eq!(*dataset.load(index).unwrap(), image(3, 2, *seed), "{name}");
    }
}

#[track_caller]
fn check_skipped(dataset: &Dataset, expected: &[(&str, usize)]) {
    let skipped: Vec<_> = dataset.skipped().iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
    assert_eq!(skipped, expected);
}

#[test]
fn links_are_the_images_that_they_lead_to() {
    use EntryType::{Link, Symlink};
    let dataset = Tar::new()
        .link("b/early.png", Symlink, "../a/1.png")
        .file("a/1.png", &picture(1))
        .link("b/hard.png", Link, "./a/1.png")
        // What comes later under the name replaces it for symbolic links, and for hard ones not.
        .file("a/1.png", &picture(2))
        .link("b/late.png", Link, "a/1.png")
        .link("b/chain.png", Symlink, "hard.png")
        .link("b/outside.png", Symlink, "../../1.png")
        .link("b/absolute.png", Symlink, "/a/1.png")
        .link("b/dangling.png", Symlink, "nothing.png")
        .link("b/loop.png", Symlink, "loop.png")
        .link("b/before.png", Link, "b/2.png")
        .file("b/2.png", &picture(3))
        .link("folder", Symlink, "a")
        .link("c/only.png", Symlink, "nothing.png")
        .open();
    check_images(
        &dataset,
        &[
            ("a/1.png", 2),
            ("b/2.png", 3),
            ("b/chain.png", 1),
            ("b/early.png", 2),
            ("b/hard.png", 1),
            ("b/late.png", 2),
        ],
    );
    check_skipped(&dataset, &[("link to no image", 7), ("replaced by a later member", 1)]);
    assert_eq!(
        dataset.notes(),
        [
            "skipped 8 files that are no images: 7 links to no image in the archive, 1 name that comes again later",
            "no image in class c: only 1 link to no image in the archive",
        ]
    );
    assert_eq!(
        (dataset.class_names(), dataset.empty_classes()),
        (&["a".into(), "b".into()][..], &["c".into()][..])
    );
}

#[test]
fn names_are_what_extraction_makes_of_them() {
    let dataset = Tar::new()
        .file("/abs/1.png", &picture(1))
        .file("./abs//2.png", &picture(2))
        .file("../up/1.png", &picture(3))
        .file("abs/../x/1.png", &picture(4))
        .file("abs/1.png", &picture(5))
        .file("abs/.hidden/1.png", &picture(6))
        .open();
    check_images(&dataset, &[("abs/1.png", 5), ("abs/2.png", 2)]);
    assert_eq!(dataset.class_names(), ["abs"]);
    check_skipped(&dataset, &[("hidden", 1), ("name with ..", 2), ("replaced by a later member", 1)]);
}

#[test]
fn devices_and_files_with_holes_are_counted_by_kind() {
    use EntryType::{Block, Char, Continuous, Fifo};
    let mut tar = Tar::new()
        .file("a/1.png", &picture(1))
        .member("a/2.png", Continuous, "", &picture(2))
        .link("a/3.png", Fifo, "")
        .link("a/4.png", Char, "")
        .link("a/5.png", Block, "");
    tar.0.append_pax_extensions([("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.name", b"a/6.png")]).unwrap();
    tar = tar.file("a/GNUSparseFile.0/6.png", &picture(6));
    // One block of data at the start of a file of the same length.
    let bytes = picture(7);
    let mut header = Header::new_gnu();
    header.set_path("a/7.png").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(bytes.len() as u64);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.realsize.copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
    gnu.sparse[0].offset.copy_from_slice(b"00000000000\0");
    gnu.sparse[0].numbytes.copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
    header.set_cksum();
    tar.0.append(&header, &bytes[..]).unwrap();
    let dataset = tar.open();
    check_images(&dataset, &[("a/1.png", 1), ("a/2.png", 2)]);
    check_skipped(&dataset, &[("sparse file", 2), ("special file", 3)]);
}

/// Names that do not fit a header stand in members of their own, of two kinds.
#[test]
fn long_names_are_read() {
    let long = format!("{}/{}.png", "a".repeat(90), "b".repeat(120));
    let mut tar = Tar::new();
    let mut header = Header::new_gnu();
    header.set_size(picture(1).len() as u64);
    tar.0.append_data(&mut header, &long, &picture(1)[..]).unwrap();
    let pax = format!("p{long}");
    tar.0.append_pax_extensions([("path", pax.as_bytes())]).unwrap();
    let dataset = tar.file("short", &picture(2)).open();
    check_images(&dataset, &[(&long, 1), (&pax, 2)]);
}

#[test]
fn an_archive_behind_the_end_of_another_is_told() {
    let one = Tar::new().file("a/1.png", &picture(1)).0.into_inner().unwrap();
    let two = Tar::new().file("a/2.png", &picture(2)).0.into_inner().unwrap();
    assert!(open_both(&one).notes().is_empty());
    let padded = [&one[..], &[0; 8192]].concat();
    assert!(open_both(&padded).notes().is_empty());
    let dataset = open_both(&[one, two].concat());
    assert_eq!(dataset.len(), 1);
    let [note] = dataset.notes() else { panic!("{:?}", dataset.notes()) };
    assert!(
        note.ends_with(
            "bytes follow the end of the archive and are not read: put archives together with tar -A"
        ),
        "{note}"
    );
}

#[test]
fn an_archive_that_is_cut_while_it_is_open_is_an_error_of_the_images_behind() {
    let root = tempfile::tempdir().unwrap();
    let bytes = Tar::new().file("a/1.png", &picture(1)).file("a/2.png", &picture(2)).0.into_inner().unwrap();
    write_files(root.path(), &[("a.tar", bytes)]);
    let dataset = open(&root.path().join("a.tar"), "");
    fs::File::options().write(true).open(root.path().join("a.tar")).unwrap().set_len(1024).unwrap();
    assert_eq!(*dataset.load(0).unwrap(), image(3, 2, 1));
    let error = dataset.load(1).unwrap_err();
    assert_eq!(error.to_string(), "a/2.png: the archive is shorter than when it was opened");
}

/// Cut between two members, an archive looks like a shorter one.
#[test]
fn an_archive_without_its_end_is_told() {
    let bytes = Tar::new().file("a/1.png", &picture(1)).file("a/2.png", &picture(2)).0.into_inner().unwrap();
    let len_of_one = Tar::new().file("a/1.png", &picture(1)).0.into_inner().unwrap().len() - 1024;
    let dataset = open_both(&bytes[..len_of_one]);
    check_images(&dataset, &[("a/1.png", 1)]);
    assert_eq!(
        dataset.notes(),
        ["the archive has no blocks of zeros at its end: it may have been cut, and images be missing"]
    );
    assert!(open_both(&bytes[..bytes.len() - 512]).notes().is_empty(), "one block is an end");
}

/// Names of members of their own are read whole, so that their length is bounded. That of images is not.
#[test]
fn headers_take_no_more_than_a_mebibyte() {
    let root = tempfile::tempdir().unwrap();
    let opened = |bytes: &[u8]| {
        write_files(root.path(), &[("a.tar", bytes.to_vec()), ("a.tar.gz", gzip(bytes))]);
        ["a.tar", "a.tar.gz"].map(|name| {
            let path = root.path().join(name);
            let outcome = Dataset::open(path.to_str().unwrap()).map(|dataset| dataset.len());
            outcome.map_err(|error| error.to_string())
        })
    };
    let large = vec![7; 3 << 20];
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let tar = Tar::new().member("long", kind, "", &large).file("a/1.png", &picture(1));
        for outcome in opened(&tar.0.into_inner().unwrap()) {
            let error = outcome.unwrap_err();
            assert!(
                error.ends_with("corrupt archive: the headers of a member take more than 1048576 bytes"),
                "{error}"
            );
        }
    }
    let tar = Tar::new().file("a/1.txt", &large).file("a/2.png", &large).file("a/3.png", &picture(1));
    assert_eq!(opened(&tar.0.into_inner().unwrap()), [Ok(2), Ok(2)]);
}

/// A run of version 0.1 goes on with the members that it had: no links, and hidden ones too.
#[test]
fn members_are_those_of_version_0_1_for_a_run_of_it() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.tar");
    let image = png(&image(2, 2, 1));
    let tar = Tar::new().file("./a/1.png", &image).file("a/.2.png", &image).file("a/3.gif", &image);
    tar.link("a/4.png", EntryType::Symlink, "1.png").link("a/5.png", EntryType::Link, "a/1.png").write(&path);
    let source = path.to_str().unwrap();
    let before = Dataset::open_as_version_0_1(source, Limits::default()).unwrap();
    assert_eq!(paths(&before), ["a/.2.png", "a/1.png"]);
    assert_eq!(paths(&Dataset::open(source).unwrap()), ["a/1.png", "a/3.gif", "a/4.png", "a/5.png"]);
}
