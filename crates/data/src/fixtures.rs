//! What the tests of several modules make files from.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use crate::Image;

/// A small image whose pixels depend on `seed` everywhere.
pub fn image(width: usize, height: usize, seed: usize) -> Image {
    let rgb = (0..width * height * 3).map(|i| ((i * (7 + seed) + 31 * seed) % 251) as u8).collect();
    Image { width, height, rgb }
}

/// The bytes of a PNG file of an image.
pub fn png(image: &Image) -> Vec<u8> {
    let pixels =
        image::RgbImage::from_raw(image.width as u32, image.height as u32, image.rgb.clone()).unwrap();
    encoded(pixels.into(), image::ImageFormat::Png)
}

/// The bytes of a file in one of the formats that can be written here.
pub fn encoded(pixels: image::DynamicImage, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    pixels.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// Writes files with their folders below `root`.
pub fn write_files(root: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Images in two classes, `n` in all; those in `corrupt` are no images.
pub fn write_dataset(root: &Path, n: usize, corrupt: &[usize]) {
    for index in 0..n {
        let bytes = if corrupt.contains(&index) { b"no image".to_vec() } else { png(&image(16, 16, index)) };
        write_files(root, &[(&format!("{}/{index:03}.png", if 2 * index < n { "a" } else { "b" }), bytes)]);
    }
}

/// A tar of the files below `folder`, beside it.
pub fn tar_of(folder: &Path) -> std::path::PathBuf {
    let path = folder.with_extension("tar");
    let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
    builder.append_dir_all("", folder).unwrap();
    builder.finish().unwrap();
    path
}
