//! What is held whole in memory is bounded, and packing is the way out.

use super::*;
use crate::{PackOptions, pack};

/// A source of each kind that is held whole, and how many bytes of it.
fn sources(root: &Path) -> Vec<(PathBuf, u64)> {
    let files: Vec<(&str, Vec<u8>)> =
        vec![("a/1.png", png(&image(4, 4, 1))), ("b/2.png", png(&image(4, 4, 2)))];
    let content: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let tar = tar_of(&files);
    write_files(
        root,
        &[
            ("set.tar.gz", gzip(&tar)),
            ("set.tar.zst", zstd::encode_all(&tar[..], 1).unwrap()),
            ("idx/train-images-idx3-ubyte.gz", gzip(&idx(&[3, 2, 4], &[7; 24]))),
            ("plain/train-images-idx3-ubyte", idx(&[3, 2, 4], &[7; 24])),
            ("cifar/data_batch_1.bin", cifar_record(&[1], 3).0),
            ("cifar/data_batch_2.bin", cifar_record(&[2], 5).0),
        ],
    );
    let of = |name: &str, bytes: usize| (root.join(name), bytes as u64);
    vec![
        of("set.tar.gz", content),
        of("set.tar.zst", content),
        of("idx", 24),
        of("plain", 24),
        of("cifar", 2 * 3072),
    ]
}

fn limits(memory_bytes: u64) -> Limits {
    Limits { memory_bytes, ..Limits::default() }
}

#[test]
fn what_does_not_fit_into_memory_is_refused_with_the_way_out() {
    let root = tempfile::tempdir().unwrap();
    for (path, bytes) in sources(root.path()) {
        let source = path.to_str().unwrap();
        let whole = Dataset::open_within(source, limits(bytes)).unwrap();
        assert_eq!(whole.held_bytes(), bytes, "{source}");
        let error = Dataset::open_within(source, limits(bytes - 1)).err().unwrap();
        assert!(
            matches!(&error, Error::TooLargeForMemory { path: named, available, .. }
            if *named == path && *available == bytes - 1),
            "{error}"
        );
        let message = error.to_string();
        assert!(
            message.contains("`himpun data pack --data ")
                && message.contains(&format!("{} bytes are", bytes - 1)),
            "{message}"
        );
    }
}

#[test]
fn a_set_that_does_not_fit_into_memory_can_be_packed() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    fs::create_dir(&out).unwrap();
    for (path, bytes) in sources(root.path()) {
        let source = path.to_str().unwrap();
        let whole = Dataset::open_within(source, limits(bytes)).unwrap();
        let spilled = Dataset::open_spilling(source, limits(bytes - 1), &out).unwrap();
        assert_eq!(spilled.held_bytes(), 0, "{source}");
        let options = PackOptions { shorter_side: 64, threads: 2 };
        pack(&spilled, &out.join("set"), &options, &mut |_| ()).unwrap();
        let packed = open(&out.join("set"), "");
        assert_eq!((paths(&packed), packed.labels()), (paths(&whole), whole.labels()), "{source}");
        for index in 0..whole.len() {
            assert_eq!(packed.load(index).unwrap(), whole.load(index).unwrap(), "{source}");
        }
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "a temporary file was left");
    }
}

/// What a header promises is believed neither before memory is reserved nor after more has come.
#[test]
fn an_idx_file_takes_no_more_than_its_header_says() {
    let root = tempfile::tempdir().unwrap();
    #[track_caller]
    fn check(path: &Path, bytes: Vec<u8>, expected: &str) {
        fs::write(path, bytes).unwrap();
        let message = Dataset::open_within(path.to_str().unwrap(), limits(1000)).err().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let path = root.path().join("x-images-idx3-ubyte.gz");
    // A megabyte of zeros behind a header of four bytes of pixels.
    check(
        &path,
        gzip(&idx(&[1, 2, 2], &vec![0; 1 << 20])),
        "more than 4 bytes of data where the shape [1, 2, 2]",
    );
    check(
        &path,
        gzip(&idx(&[u32::MAX, 9, 9], &[0; 9])),
        "takes 347892350895 bytes of memory, and 1000 bytes",
    );
    check(&path, gzip(&idx(&[u32::MAX; 3], &[0; 9])), "no memory holds a shape of");
    check(&path, gzip(&idx(&[2, 2, 2], &[0; 7])), "7 bytes of data where the shape [2, 2, 2]");
    check(&path, idx(&[u32::MAX, 9, 9], &[0; 9]), "9 bytes of data where the shape");
    let cut = gzip(&idx(&[10, 9, 9], &(0..810).map(|i| (i % 251) as u8).collect::<Vec<_>>()));
    check(&path, cut[..cut.len() - 9].to_vec(), "cannot be decompressed");
}

#[test]
fn the_way_out_names_the_split_that_was_asked_for() {
    let root = tempfile::tempdir().unwrap();
    sources(root.path());
    let source = format!("{}#train", root.path().join("idx").display());
    let message = Dataset::open_within(&source, limits(1)).err().unwrap().to_string();
    assert!(message.contains(&format!("`himpun data pack --data {source} --out FILE`")), "{message}");
}

#[test]
fn the_images_of_an_idx_file_have_no_more_pixels_than_allowed() {
    let root = tempfile::tempdir().unwrap();
    sources(root.path());
    let source = root.path().join("idx").display().to_string();
    let within = |max_pixels| Dataset::open_within(&source, Limits { max_pixels, ..Limits::default() });
    assert_eq!(within(8).unwrap().len(), 3);
    assert_eq!(
        within(7).err().unwrap().to_string(),
        format!(
            "{source}: the images in train-images-idx3-ubyte.gz have 4 x 2 pixels, more than the 7 of data.max_pixels"
        )
    );
}
