use std::io::Write;

use super::*;
use crate::fixtures::{encoded, image, png, write_files};

mod bounds;
mod left_out;
mod members;
mod splits;

#[track_caller]
fn open(path: &Path, split: &str) -> Dataset {
    Dataset::open(&format!("{}{split}", path.display())).unwrap()
}

fn paths(dataset: &Dataset) -> Vec<String> {
    (0..dataset.len()).map(|index| dataset.path_of(index)).collect()
}

/// Files in no particular order, among others that are no images.
fn example() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("train/b/2.PNG", png(&image(5, 4, 2))),
        ("train/b/10.png", png(&image(3, 3, 3))),
        ("train/a-b/1.png", png(&image(4, 6, 1))),
        ("train/a/x/1.png", png(&image(2, 2, 4))),
        ("train/a/notes.txt", b"not an image".to_vec()),
        ("train/a/._1.png", b"a resource fork".to_vec()),
        ("test/b/1.png", png(&image(7, 7, 5))),
        ("README.md", b"about".to_vec()),
    ]
}

#[track_caller]
fn check_example(train: &Dataset, test: &Dataset) {
    assert_eq!(paths(train), ["train/a-b/1.png", "train/a/x/1.png", "train/b/10.png", "train/b/2.PNG"]);
    assert_eq!(train.class_names(), ["a", "a-b", "b"]);
    assert_eq!(train.labels(), Some(vec![1, 0, 2, 2]));
    for (index, seed, size) in [(0, 1, (4, 6)), (1, 4, (2, 2)), (2, 3, (3, 3)), (3, 2, (5, 4))] {
        assert_eq!(*train.load(index).unwrap(), image(size.0, size.1, seed));
    }
    assert_eq!((paths(test), test.labels()), (vec!["test/b/1.png".to_owned()], Some(vec![0])));
}

fn tar_of(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("./{name}"), &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_folder_is_read_in_the_order_of_its_paths() {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &example());
    check_example(&open(root.path(), "#train"), &open(root.path(), "#test"));
    let unsaid = open(root.path(), "");
    check_example(&unsaid, &open(root.path(), "#test"));
    assert!(unsaid.notes()[0].contains("holds test and train: taking train"), "{:?}", unsaid.notes());
    let skipped = "skipped 2 files that are no images: 1 .txt, 1 hidden";
    assert_eq!(open(root.path(), "#train").notes(), [skipped]);
    assert_eq!(paths(&open(&root.path().join("train"), ""))[0], "a-b/1.png");
}

/// Folders within folders, and names that sort before and after a slash.
#[test]
fn files_are_in_the_order_of_their_whole_paths() {
    let names = ["a", "a!", "a0", "b"];
    let folders =
        names.iter().flat_map(|a| names.map(|b| format!("{a}/{b}"))).chain(names.map(str::to_owned));
    let (mut found, mut expected) = (listing::Found::new(), Vec::new());
    for folder in folders.chain([String::new()]) {
        for name in ["a.png", "a!.png", "a0.png", "0.png"] {
            found.push(Path::new(&folder), name.as_ref(), ());
            expected.push(Path::new(&folder).join(name));
        }
    }
    expected.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    let files = listing::arrange(Path::new("x"), found, Selection { split: None, as_version_0_1: false })
        .unwrap()
        .files;
    assert_eq!((0..files.len()).map(|index| files.path(index)).collect::<Vec<_>>(), expected);
}

#[test]
fn a_tar_is_read_like_the_folder_it_was_made_of() {
    let root = tempfile::tempdir().unwrap();
    let plain = tar_of(&example());
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    write_files(root.path(), &[("a.tar", plain.clone()), ("b.tar.gz", gzip(&plain)), ("c", zstd)]);
    for name in ["a.tar", "b.tar.gz", "c"] {
        let path = root.path().join(name);
        check_example(&open(&path, "#train"), &open(&path, "#test"));
        check_example(&open(&path, ""), &open(&path, "#test"));
        let message = Dataset::open(&format!("{}#valid", path.display())).err().unwrap().to_string();
        assert!(message.ends_with("has no valid: it has test, train"), "{message}");
    }
    let folder = root.path().join("folder");
    write_files(&folder, &example());
    let blocks = open(&folder, "#train").blocks();
    assert_eq!(open(&root.path().join("a.tar"), "#train").blocks(), blocks);
    assert_ne!(open(&folder, "#test").blocks(), blocks);
}

#[test]
fn a_damaged_tar_is_named() {
    let root = tempfile::tempdir().unwrap();
    let plain = tar_of(&example());
    let whole = gzip(&plain);
    write_files(
        root.path(),
        &[
            ("cut.tar", plain[..700].to_vec()),
            ("cut.tar.gz", whole[..whole.len() / 2].to_vec()),
            ("text", b"hello".to_vec()),
        ],
    );
    for name in ["cut.tar", "cut.tar.gz", "text"] {
        let path = root.path().join(name);
        let error = Dataset::open(path.to_str().unwrap()).err().unwrap();
        assert!(matches!(&error, Error::Malformed { path: named, .. } if *named == path), "{error:?}");
    }
}

#[test]
fn flat_folders_wrappers_and_single_classes() {
    let one = || png(&image(2, 2, 1));
    #[track_caller]
    fn check(files: &[&str], split: &str, paths_expected: &[&str], classes: &[&str]) {
        let root = tempfile::tempdir().unwrap();
        write_files(root.path(), &files.iter().map(|&name| (name, png(&image(2, 2, 1)))).collect::<Vec<_>>());
        let dataset = open(root.path(), split);
        assert_eq!(paths(&dataset), paths_expected);
        assert_eq!(dataset.class_names(), classes);
        assert_eq!(dataset.labels().is_some(), !classes.is_empty());
    }
    check(&["b.png", "a.jpg", "c.webp"], "", &["a.jpg", "b.png", "c.webp"], &[]);
    check(&["cat/1.png", "2.png"], "", &["2.png", "cat/1.png"], &[]);
    check(&["cat/1.png", "cat/2.png"], "", &["cat/1.png", "cat/2.png"], &["cat"]);
    check(&["set/cat/1.png", "set/dog/1.png"], "", &["set/cat/1.png", "set/dog/1.png"], &["cat", "dog"]);
    check(&["set/val/cat/1.png", "set/train/cat/1.png"], "#val", &["set/val/cat/1.png"], &["cat"]);
    check(&["set/val/cat/1.png", "set/train/dog/1.png"], "", &["set/train/dog/1.png"], &["dog"]);
    // A class that happens to be called train.
    check(&["train/1.png", "boat/1.png"], "", &["boat/1.png", "train/1.png"], &["boat", "train"]);

    // A path with a # in it is a path first.
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &[("a#b/1.png", one())]);
    assert_eq!(open(&root.path().join("a#b"), "").len(), 1);
}

#[test]
fn what_is_no_data_set_says_what_it_is() {
    #[track_caller]
    fn check(source: &str, expected: &str) {
        let message = Dataset::open(source).err().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &[("notes.txt", b"x".to_vec()), (".hidden.png", b"x".to_vec())]);
    let path = root.path().to_str().unwrap();
    check(path, "holds no images (skipped 2 files that are no images: 1 .txt, 1 hidden)");
    check(&format!("{path}/nothing"), "no data at");
    check(&format!("{path}/nothing#train"), "no data at");
    check("builtin#valid", "builtin has no valid: it has train and test");
}

fn idx(dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
    let header = dimensions.iter().flat_map(|d| d.to_be_bytes());
    [0, 0, 8, dimensions.len() as u8].into_iter().chain(header).chain(bytes.iter().copied()).collect()
}

#[test]
fn idx_files_are_read_plain_and_compressed() {
    let root = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..24).collect();
    write_files(
        root.path(),
        &[
            ("train-images-idx3-ubyte.gz", gzip(&idx(&[2, 3, 4], &pixels))),
            ("train-labels-idx1-ubyte.gz", gzip(&idx(&[2], &[7, 2]))),
            ("t10k-images-idx3-ubyte", idx(&[1, 3, 4], &pixels[12..])),
            ("t10k-labels-idx1-ubyte", idx(&[1], &[3])),
            ("lone-images-idx3-ubyte", idx(&[3, 2, 4], &pixels)),
            ("bad-images-idx3-ubyte", idx(&[3, 3, 4], &pixels)),
        ],
    );
    let train = open(root.path(), "");
    assert_eq!((train.len(), train.labels(), train.class_names().len()), (2, Some(vec![7, 2]), 8));
    let expected: Vec<u8> = (12..24).flat_map(|gray| [gray; 3]).collect();
    assert_eq!(*train.load(1).unwrap(), Image { width: 4, height: 3, rgb: expected.clone() });
    assert!(train.notes()[0].contains("#test are the others"));
    assert_eq!(train.path_of(1), "train-images-idx3-ubyte.gz#1");
    let test = open(root.path(), "#test");
    assert_eq!((test.len(), test.labels()), (1, Some(vec![3])));
    assert_eq!(test.load(0).unwrap().rgb, expected);
    let lone = open(&root.path().join("lone-images-idx3-ubyte"), "");
    assert_eq!((lone.len(), lone.labels()), (3, None));
    let message =
        Dataset::open(root.path().join("bad-images-idx3-ubyte").to_str().unwrap()).err().unwrap().to_string();
    assert!(message.contains("24 bytes of data where the shape [3, 3, 4]"), "{message}");
}

fn cifar_record(labels: &[u8], seed: u8) -> (Vec<u8>, Image) {
    let planes: Vec<u8> = (0..3072u32).map(|i| (i as u8).wrapping_mul(seed)).collect();
    let rgb = (0..1024).flat_map(|i| [planes[i], planes[1024 + i], planes[2048 + i]]).collect();
    ([labels, &planes].concat(), Image { width: 32, height: 32, rgb })
}

#[test]
fn cifar_files_are_read() {
    let root = tempfile::tempdir().unwrap();
    let (first, _) = cifar_record(&[3], 5);
    let (second, expected) = cifar_record(&[9], 7);
    let names = "airplane automobile bird cat deer dog frog horse ship truck".replace(' ', "\n") + "\n\n";
    write_files(
        root.path(),
        &[
            ("ten/data_batch_1.bin", first.clone()),
            ("ten/data_batch_2.bin", [second, first.clone()].concat()),
            ("ten/test_batch.bin", first),
            ("ten/batches.meta.txt", names.into_bytes()),
            ("hundred/train.bin", cifar_record(&[19, 42], 3).0),
            ("cut/data_batch_1.bin", vec![0; 3000]),
        ],
    );
    let ten = open(&root.path().join("ten"), "#train");
    assert_eq!((ten.len(), ten.labels()), (3, Some(vec![3, 9, 3])));
    assert_eq!((ten.class_names()[3].as_str(), ten.path_of(1)), ("cat", "data_batch_2.bin#0".to_owned()));
    assert_eq!(*ten.load(1).unwrap(), expected);
    assert_eq!(open(&root.path().join("ten"), "#test").len(), 1);
    assert_eq!(open(&root.path().join("ten/data_batch_2.bin"), "").labels(), Some(vec![9, 3]));
    let hundred = open(&root.path().join("hundred"), "");
    assert_eq!((hundred.labels(), hundred.class_names().len()), (Some(vec![42]), 100));
    let message = Dataset::open(root.path().join("cut").to_str().unwrap()).err().unwrap().to_string();
    assert!(message.contains("3000 bytes are no number of records of 3073"), "{message}");
}

#[test]
fn figures_are_exact_and_independent_of_threads() {
    let root = tempfile::tempdir().unwrap();
    let flat = |width, height, rgb: [u8; 3]| png(&Image { width, height, rgb: rgb.repeat(width * height) });
    write_files(
        root.path(),
        &[
            ("a/1.png", flat(2, 1, [255, 0, 51])),
            ("a/2.png", flat(1, 4, [0, 0, 51])),
            ("b/3.png", b"no image".to_vec()),
        ],
    );
    let stats = |threads| crate::stats(&open(root.path(), ""), threads).unwrap();
    let found = stats(1);
    assert_eq!(found, stats(3));
    let close = |actual: [f64; 3], expected: [f64; 3]| {
        assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-12), "{actual:?}");
    };
    // Two pixels of six are red.
    close(found.mean, [1.0 / 3.0, 0.0, 0.2]);
    assert!((found.std[0] - 2f64.sqrt() / 3.0).abs() < 1e-12 && found.std[2] < 1e-7, "{:?}", found.std);
    assert_eq!((found.len, found.widths, found.heights), (3, [1, 2], [1, 4]));
    assert_eq!(found.class_counts, [2, 1]);
    assert_eq!(found.corrupt.iter().map(|r| r.path.as_str()).collect::<Vec<_>>(), ["b/3.png"]);
}

/// A PNG whose EXIF orientation is 6.
fn turned_png() -> Vec<u8> {
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    image::ImageEncoder::set_exif_metadata(&mut encoder, exif.to_vec()).unwrap();
    image::ImageEncoder::write_image(encoder, &[7; 12], 2, 2, image::ExtendedColorType::Rgb8).unwrap();
    bytes
}

#[test]
fn stats_say_what_files_hold_beside_8_bit_pixels() {
    let root = tempfile::tempdir().unwrap();
    let gray = |values: [u16; 3]| {
        let pixels = image::ImageBuffer::from_fn(3, 1, |x, _| image::Luma([values[x as usize]]));
        encoded(pixels.into(), image::ImageFormat::Png)
    };
    write_files(root.path(), &[("a.png", gray([0, 4095, 17])), ("b.png", png(&image(2, 2, 1)))]);
    let stats = |threads| crate::stats(&open(root.path(), ""), threads).unwrap();
    let found = stats(2);
    assert_eq!((found.sixteen_bit, found.twelve_in_sixteen_bit, found.turned), (1, 1, 0));
    // An image of all 16 bits, and one that a camera held upright.
    write_files(root.path(), &[("c.png", gray([0, 4096, 17])), ("d.png", turned_png())]);
    let found = stats(3);
    assert_eq!((found.sixteen_bit, found.twelve_in_sixteen_bit, found.turned), (2, 1, 1));
}

#[test]
fn an_image_beyond_the_limit_of_pixels_is_a_corrupt_one_unless_it_is_packed() {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &[("a.png", png(&image(5, 3, 1))), ("b.png", png(&image(4, 3, 2)))]);
    let source = root.path().to_str().unwrap();
    let limits = Limits { max_pixels: 14, ..Limits::default() };
    let dataset = Dataset::open_within(source, limits).unwrap();
    let error = dataset.load(0).unwrap_err();
    assert_eq!(error.to_string(), "a.png: 5 x 3 pixels, more than the 14 of data.max_pixels");
    assert_eq!(dataset.load(1).unwrap().width, 4);
    assert_eq!(crate::stats(&dataset, 1).unwrap().corrupt.len(), 1);
    let out = root.path().join("set.pack");
    let options = crate::PackOptions { shorter_side: 64, threads: 1 };
    let packed = crate::pack(&Dataset::open(source).unwrap(), &out, &options, &mut |_| ()).unwrap();
    assert_eq!(packed.corrupt, []);
    let within = Dataset::open_within(out.to_str().unwrap(), limits).unwrap();
    assert_eq!(within.load(0).unwrap().width, 5);
}

/// What makes the built-in set a test of learning: neighbours in pixels are not neighbours in class.
#[test]
fn builtin_classes_are_balanced_and_not_told_by_raw_pixels() {
    let (train, test) = (Dataset::open("builtin").unwrap(), Dataset::open("builtin#test").unwrap());
    assert_eq!((train.len(), test.len()), (6_000, 1_000));
    assert_eq!(crate::stats(&test, 2).unwrap().class_counts, [100; 10]);
    assert_eq!(train.path_of(13), "train/dots/0013");
    assert_ne!(train.load(0).unwrap(), test.load(0).unwrap());
    let unit = |dataset: &Dataset, index: usize| {
        let image = dataset.load(index).unwrap();
        let norm = image.rgb.iter().map(|&v| f32::from(v).powi(2)).sum::<f32>().sqrt();
        image.rgb.iter().map(|&value| f32::from(value) / norm).collect::<Vec<f32>>()
    };
    let bank: Vec<Vec<f32>> = (0..3_000).map(|index| unit(&train, index)).collect();
    let labels = train.labels().unwrap();
    let hits = (0..300)
        .filter(|&index| {
            let query = unit(&test, index);
            let mut near: Vec<(f32, u32)> = bank
                .iter()
                .zip(&labels)
                .map(|(row, &label)| (row.iter().zip(&query).map(|(a, b)| a * b).sum(), label))
                .collect();
            near.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
            let mut votes = [0.0; 10];
            near[..200].iter().for_each(|(cosine, label)| votes[*label as usize] += (cosine / 0.07).exp());
            let winner = (0..10).max_by(|&a, &b| votes[a].total_cmp(&votes[b])).unwrap();
            winner as u32 == test.label_of(index)
        })
        .count();
    // Chance is 30; a set that is easy in pixels would come near 300.
    assert!(hits < 150, "{hits} of 300 by raw pixels");
}
