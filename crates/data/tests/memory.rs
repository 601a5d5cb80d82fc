//! What the list of a data set takes of every worker's memory: little for a file in a folder or tar, a bit for an image
//! of a packed set.
//!
//! One test, alone in its process, since it measures what the process allocates.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

#[path = "../../objectives/tests/allocated/mod.rs"]
mod allocated;

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use allocated::peak_of;
use data::{Dataset, PackOptions, pack};

/// `n` images in ten classes, their names of 12 letters: as a folder, a tar and a packed set.
fn sources(root: &Path, n: usize) -> [PathBuf; 3] {
    let sources = ["folder", "set.tar", "packed"].map(|kind| root.join(format!("{kind}-{n}")));
    let [folder, tar, packed] = &sources;
    let mut png = Vec::new();
    image::RgbImage::new(1, 1).write_to(&mut Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
    let mut builder = tar::Builder::new(fs::File::create(tar).unwrap());
    for class in 0..10 {
        fs::create_dir_all(folder.join(format!("class-{class}"))).unwrap();
    }
    for index in 0..n {
        let name = format!("class-{}/{index:08}.png", index * 7 % 10);
        fs::write(folder.join(&name), &png).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(png.len() as u64);
        builder.append_data(&mut header, &name, &png[..]).unwrap();
    }
    builder.finish().unwrap();
    let options = PackOptions { shorter_side: 1, threads: 2 };
    pack(&open(folder), packed, &options, &mut |_| ()).unwrap();
    sources
}

fn open(path: &Path) -> Dataset {
    Dataset::open(path.to_str().unwrap()).unwrap()
}

#[test]
fn a_data_sets_list_is_small_and_that_of_a_packed_one_is_not_in_memory() {
    const FEW: usize = 4_096;
    const MANY: usize = 4 * FEW;
    let root = tempfile::tempdir().unwrap();
    let (few, many) = (sources(root.path(), FEW), sources(root.path(), MANY));
    let mut digests = Vec::new();
    // At the peak a list that grew has its old half beside it, or the names twice: of a file its name, 16 bytes and,
    // in a tar, 16 for its place. Of a packed set's images a bit each, and for each 1024 the digest that `blocks` returns.
    let of_packed = 1.0 / 8.0 + 32.0 / 1024.0;
    for (kind, bytes_per_image) in [1.5 * 28.0 + 12.0, 1.5 * 44.0 + 12.0, of_packed].into_iter().enumerate() {
        let [of_few, of_many] = [(&few[kind], FEW), (&many[kind], MANY)].map(|(path, n)| {
            let (peak, digest) = peak_of(|| {
                let set = open(path);
                assert_eq!((set.len(), set.class_names().len()), (n, 10));
                let seen: u32 = (0..n).map(|index| set.label_of(index)).sum();
                assert_eq!(seen as usize, (0..n).map(|index| index * 7 % 10).sum::<usize>());
                set.blocks()
            });
            digests.push(digest);
            peak
        });
        // 256: whatever does not depend on the images, such as a path that is a letter longer.
        let grown = of_many.saturating_sub(of_few + 256) as f64 / (MANY - FEW) as f64;
        println!("{}: {of_few} and {of_many} bytes, {grown:.2} an image", many[kind].display());
        assert!(grown <= bytes_per_image, "{grown:.1} bytes an image, at most {bytes_per_image}");
    }
    // It is the same set thrice.
    assert!(digests.chunks(2).all(|pair| pair == &digests[..2]) && digests[0] != digests[1]);
}
