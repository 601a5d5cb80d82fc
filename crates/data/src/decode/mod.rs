//! From a file's bytes to RGB pixels.
//!
//! The kind of a file is read from its first bytes, never from its name. What comes out is what PIL's
//! `Image.open(path).convert("RGB")` gives: gray replicated, palettes looked up, alpha dropped (not blended
//! with anything), the first frame of an animation. An EXIF orientation is not applied: torchvision's `ImageFolder`
//! does not either.
//!
//! PIL is not followed for PNGs with 16 bits a channel: a value `v` becomes `round(v * 255 / 65535)`. PIL drops the lower 8
//! bits of colours, which is the same but for a unit, and takes every gray value above 255 for 255. What else differs, `jpeg`
//! and `bmp` say.

mod bmp;
mod facts;
mod gif;
mod jpeg;

use image::{ImageDecoder, ImageError, ImageFormat};
use std::io::Cursor;

pub(crate) use facts::{Facts, inspect};

/// Images with more pixels than this are refused, unless another limit is set. From here on Pillow refuses one as a
/// decompression bomb.
pub const MAX_PIXELS: usize = 178_956_970;

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

/// What a file is by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Jpeg,
    Png,
    WebP,
    Bmp,
    Gif,
}

impl Kind {
    fn of(bytes: &[u8]) -> Result<Kind, String> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Ok(Kind::Jpeg),
            [0x89, b'P', b'N', b'G', ..] => Ok(Kind::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Kind::WebP),
            [b'B', b'M', ..] => Ok(Kind::Bmp),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Kind::Gif),
            [] => Err("the file is empty".to_owned()),
            _ => Err("neither JPEG, PNG, WebP, BMP nor GIF (by its first bytes)".to_owned()),
        }
    }
}

/// Decodes a JPEG, PNG, WebP, BMP or GIF file of at most `max_pixels` pixels; of more, nothing is allocated.
///
/// # Errors
/// A sentence saying why the bytes are no image of these kinds, or an unreasonable one.
pub fn decode(bytes: &[u8], max_pixels: usize) -> Result<Image, String> {
    match Kind::of(bytes)? {
        Kind::Jpeg => jpeg::decode(bytes, max_pixels),
        Kind::Png => decode_other(bytes, ImageFormat::Png, max_pixels),
        Kind::WebP => decode_other(bytes, ImageFormat::WebP, max_pixels),
        Kind::Bmp => bmp::decode(bytes, max_pixels),
        Kind::Gif => gif::decode(bytes, max_pixels),
    }
}

fn decode_other(bytes: &[u8], format: ImageFormat, max_pixels: usize) -> Result<Image, String> {
    let pixels = decode_whole(bytes, format, max_pixels)?;
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    checked_image(width, height, pixels.into_rgb8().into_raw())
}

/// Decodes with all bits and channels that the file has.
fn decode_whole(bytes: &[u8], format: ImageFormat, max_pixels: usize) -> Result<image::DynamicImage, String> {
    let describe = |error: ImageError| reason(format, &error);
    let mut reader = image::ImageReader::with_format(Cursor::new(bytes), format);
    // 8 bytes a pixel (16-bit RGBA) and as much again for the decoder's own buffers.
    let mut limits = image::Limits::default();
    limits.max_alloc = Some((max_pixels as u64).saturating_mul(16));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(describe)?;
    let (width, height) = decoder.dimensions();
    check_dimensions(width as usize, height as usize, max_pixels)?;
    image::DynamicImage::from_decoder(decoder).map_err(describe)
}

/// The decoder's own words are for its authors.
fn reason(format: ImageFormat, error: &ImageError) -> String {
    let name = if format == ImageFormat::Png { "PNG" } else { "WebP" };
    match error {
        ImageError::IoError(_) => format!("truncated {name}: its data ends early"),
        ImageError::Limits(_) => format!("a {name} that needs more memory than its pixels may take"),
        ImageError::Unsupported(_) => format!("a {name} of a kind that is not read"),
        _ => format!("corrupt {name}: a part of it is not as the format has it"),
    }
}

/// All 256 colours of a palette that a file has some of, as Pillow has them: behind its end it is black, but where it has no
/// others than the grays from 0 on, they go on.
fn whole_palette(stored: &[[u8; 3]]) -> [[u8; 3]; 256] {
    let gray = |i: usize| [i as u8; 3];
    let is_gray = is_ramp(stored);
    let behind = |i| if is_gray { gray(i) } else { [0; 3] };
    std::array::from_fn(|i| stored.get(i).copied().unwrap_or_else(|| behind(i)))
}

/// Whether a palette, empty ones included, consists of the grays from 0 on.
fn is_ramp(palette: &[[u8; 3]]) -> bool {
    palette.iter().enumerate().all(|(i, colour)| *colour == [i as u8; 3])
}

pub(crate) fn check_dimensions(width: usize, height: usize, max_pixels: usize) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(0) => Err(format!("an image of {width} x {height} pixels")),
        Some(pixels) if pixels <= max_pixels => Ok(()),
        _ => Err(format!("{width} x {height} pixels, more than the {max_pixels} of data.max_pixels")),
    }
}

fn checked_image(width: usize, height: usize, rgb: Vec<u8>) -> Result<Image, String> {
    if rgb.len() == width * height * 3 {
        Ok(Image { width, height, rgb })
    } else {
        Err(format!("{} bytes decoded where {width} x {height} RGB needs {}", rgb.len(), width * height * 3))
    }
}

#[cfg(test)]
mod tests;
