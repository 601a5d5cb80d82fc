//! From a file's bytes to RGB pixels.
//!
//! The kind of a file is read from its first bytes, never from its name. What comes out is what PIL's
//! `Image.open(path).convert("RGB")` gives: gray replicated, palettes looked up, alpha dropped (not blended
//! with anything), 16 bits scaled to 8, the first frame of an animation. An EXIF orientation is not applied:
//! torchvision's `ImageFolder` does not either. JPEG decoders differ by a few units where chroma is upsampled.

use image::{ImageDecoder, ImageFormat};
use std::io::Cursor;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Images with more pixels than this are refused, unless another limit is set.
pub const MAX_PIXELS: usize = 100_000_000;

/// A decoded image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`, 8 bits each.
    pub rgb: Vec<u8>,
}

/// Decodes a JPEG, PNG or WebP file of at most `max_pixels` pixels.
///
/// # Errors
/// A sentence saying why the bytes are no image of these kinds, or an unreasonable one.
pub fn decode(bytes: &[u8], max_pixels: usize) -> Result<Image, String> {
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => decode_jpeg(bytes, max_pixels),
        [0x89, b'P', b'N', b'G', ..] => decode_other(bytes, ImageFormat::Png, max_pixels),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            decode_other(bytes, ImageFormat::WebP, max_pixels)
        }
        [] => Err("the file is empty".to_owned()),
        _ => Err("neither JPEG, PNG nor WebP (by its first bytes)".to_owned()),
    }
}

fn decode_jpeg(bytes: &[u8], max_pixels: usize) -> Result<Image, String> {
    // Strict: a scan that ends early is an error. Otherwise the missing part would be painted gray.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| format!("not a readable JPEG: {error}"))?;
    let info = decoder.info().expect("the headers are decoded");
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    check_dimensions(width, height, max_pixels)?;
    if !has_end_of_image(bytes) {
        return Err("truncated JPEG: its end marker is missing".to_owned());
    }
    let rgb = decoder.decode().map_err(|error| format!("corrupt JPEG: {error}"))?;
    checked_image(width, height, rgb)
}

/// Whether the end marker follows the first scan.
///
/// The decoder notices missing data only at the next row of blocks, so a cut in the last row would pass.
/// In entropy-coded data 0xFF is always stuffed, so the marker cannot appear there by accident; before the
/// first scan it can, inside a thumbnail, hence the walk over the header's segments.
pub(crate) fn has_end_of_image(bytes: &[u8]) -> bool {
    let mut rest = &bytes[2..];
    loop {
        match rest {
            [0xFF, 0xDA, scan @ ..] => return scan.windows(2).any(|pair| pair == [0xFF, 0xD9]),
            // Fill bytes before a marker.
            [0xFF, 0xFF, ..] => rest = &rest[1..],
            [0xFF, _, high, low, ..] => {
                let segment = 2 + usize::from(u16::from_be_bytes([*high, *low]));
                match rest.get(segment..) {
                    Some(tail) => rest = tail,
                    None => return false,
                }
            }
            // Stray bytes between segments; the decoder decides whether it minds.
            [_, tail @ ..] => rest = tail,
            [] => return false,
        }
    }
}

fn decode_other(bytes: &[u8], format: ImageFormat, max_pixels: usize) -> Result<Image, String> {
    let describe = |error: image::ImageError| error.to_string();
    let mut reader = image::ImageReader::with_format(Cursor::new(bytes), format);
    // 8 bytes a pixel (16-bit RGBA) and as much again for the decoder's own buffers.
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(16 * max_pixels as u64);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(describe)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_dimensions(width, height, max_pixels)?;
    let pixels = image::DynamicImage::from_decoder(decoder).map_err(describe)?;
    checked_image(width, height, pixels.into_rgb8().into_raw())
}

pub(crate) fn check_dimensions(width: usize, height: usize, max_pixels: usize) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(0) => Err(format!("an image of {width} x {height} pixels")),
        Some(pixels) if pixels <= max_pixels => Ok(()),
        _ => Err(format!("{width} x {height} pixels, more than the {max_pixels} that are accepted")),
    }
}

pub(crate) fn checked_image(width: usize, height: usize, rgb: Vec<u8>) -> Result<Image, String> {
    if rgb.len() == width * height * 3 {
        Ok(Image { width, height, rgb })
    } else {
        Err(format!("{} bytes decoded where {width} x {height} RGB needs {}", rgb.len(), width * height * 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{encoded, image, png};

    fn rgb(image: &Image) -> image::RgbImage {
        image::RgbImage::from_raw(image.width as u32, image.height as u32, image.rgb.clone()).unwrap()
    }

    /// Written by Pillow 13.0.0 with tests/golden/images.py, which also stores what Pillow decodes them to.
    const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/images.safetensors");

    #[test]
    fn files_decode_to_what_pillow_reads() {
        let golden = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
        #[track_caller]
        fn check(golden: &safetensors::SafeTensors<'_>, name: &str, tolerance: u8) {
            let file = golden.tensor(&format!("{name} file")).unwrap();
            let expected = golden.tensor(&format!("{name} rgb")).unwrap();
            let image = decode(file.data(), MAX_PIXELS).unwrap();
            assert_eq!([image.height, image.width, 3], expected.shape());
            let worst = image.rgb.iter().zip(expected.data()).map(|(a, e)| a.abs_diff(*e)).max();
            assert!(worst <= Some(tolerance), "{name}: off by {worst:?}");
        }
        for name in [
            "png gray",
            "png palette",
            "png rgba",
            "png gray alpha",
            "png bilevel",
            "png interlaced",
            "webp lossless",
        ] {
            check(&golden, name, 0);
        }
        // Decoders round the inverse transform differently by a unit, and colour conversion by another two.
        check(&golden, "jpeg gray", 1);
        check(&golden, "jpeg 444", 3);
        check(&golden, "jpeg progressive", 3);
        check(&golden, "webp lossy", 3);
    }

    #[test]
    fn sixteen_bits_are_scaled_to_eight() {
        let pixels =
            image::ImageBuffer::from_fn(3, 1, |x, _| image::Rgb([[0u16, 257, 65535][x as usize]; 3]));
        let bytes = encoded(pixels.into(), ImageFormat::Png);
        assert_eq!(decode(&bytes, MAX_PIXELS).unwrap().rgb, [0, 0, 0, 1, 1, 1, 255, 255, 255]);
    }

    #[test]
    fn lossless_files_keep_every_pixel() {
        let original = image(9, 5, 3);
        assert_eq!(decode(&png(&original), MAX_PIXELS).unwrap(), original);
        assert_eq!(decode(&encoded(rgb(&original).into(), ImageFormat::WebP), MAX_PIXELS).unwrap(), original);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
        let golden = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
        for name in ["jpeg 444", "png palette", "webp lossless"] {
            let tensor = golden.tensor(&format!("{name} file")).unwrap();
            let file = tensor.data();
            // The last bytes of a PNG are its end marker, which decoders do not wait for; a WebP may be padded.
            let spared = if name.starts_with("jpeg") { 1 } else { 16 };
            for len in 0..file.len() - spared {
                assert!(decode(&file[..len], MAX_PIXELS).is_err(), "{name} cut to {len} of {}", file.len());
            }
        }
    }

    #[test]
    fn damaged_files_never_panic() {
        let golden = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
        for name in ["jpeg 444", "jpeg progressive", "png palette", "webp lossy"] {
            let mut file = golden.tensor(&format!("{name} file")).unwrap().data().to_vec();
            for place in (0..file.len()).step_by(3) {
                file[place] ^= 0x5A;
                if let Ok(image) = decode(&file, MAX_PIXELS) {
                    assert_eq!(image.rgb.len(), 3 * image.width * image.height);
                }
                file[place] ^= 0x5A;
            }
        }
    }

    #[test]
    fn absurd_dimensions_are_refused_before_anything_is_allocated() {
        let mut file = png(&image(2, 2, 1));
        // Width and height in the header chunk, and the chunk's checksum.
        file[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let mut crc = flate2::Crc::new();
        crc.update(&file[12..29]);
        file[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let reason = decode(&file, MAX_PIXELS).unwrap_err();
        assert!(reason.contains("65536 x 65536"), "{reason}");
    }
}
