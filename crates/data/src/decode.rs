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

/// Images with more pixels than this are refused before anything is allocated for them.
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

/// Decodes a JPEG, PNG or WebP file.
///
/// # Errors
/// A sentence saying why the bytes are no image of these kinds, or an unreasonable one.
pub fn decode(bytes: &[u8]) -> Result<Image, String> {
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => decode_jpeg(bytes),
        [0x89, b'P', b'N', b'G', ..] => decode_other(bytes, ImageFormat::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            decode_other(bytes, ImageFormat::WebP)
        }
        [] => Err("the file is empty".to_owned()),
        _ => Err("neither JPEG, PNG nor WebP (by its first bytes)".to_owned()),
    }
}

fn decode_jpeg(bytes: &[u8]) -> Result<Image, String> {
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
    check_dimensions(width, height)?;
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
fn has_end_of_image(bytes: &[u8]) -> bool {
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

fn decode_other(bytes: &[u8], format: ImageFormat) -> Result<Image, String> {
    let describe = |error: image::ImageError| error.to_string();
    let mut reader = image::ImageReader::with_format(Cursor::new(bytes), format);
    // 8 bytes a pixel (16-bit RGBA) and as much again for the decoder's own buffers.
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(16 * MAX_PIXELS as u64);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(describe)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_dimensions(width, height)?;
    let pixels = image::DynamicImage::from_decoder(decoder).map_err(describe)?;
    checked_image(width, height, pixels.into_rgb8().into_raw())
}

fn check_dimensions(width: usize, height: usize) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(0) => Err(format!("an image of {width} x {height} pixels")),
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(format!("{width} x {height} pixels, more than the {MAX_PIXELS} that are accepted")),
    }
}

fn checked_image(width: usize, height: usize, rgb: Vec<u8>) -> Result<Image, String> {
    if rgb.len() == width * height * 3 {
        Ok(Image { width, height, rgb })
    } else {
        Err(format!("{} bytes decoded where {width} x {height} RGB needs {}", rgb.len(), width * height * 3))
    }
}
