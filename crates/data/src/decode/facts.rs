//! What a file says of its image beside the pixels that are decoded, for `himpun data stats`.

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat};
use std::io::Cursor;

use super::{Kind, decode_whole, jpeg};

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The largest value of an image with 16 bits a channel, alpha left aside; none for one with 8.
    pub largest_of_16_bits: Option<u16>,
    /// Whether EXIF says that the image is to be turned or mirrored before it is shown.
    pub is_turned: bool,
}

/// Looks into a file that [`decode`](super::decode) reads. One with 16 bits a channel is decoded once more.
pub fn inspect(bytes: &[u8], max_pixels: usize) -> Facts {
    let format = match Kind::of(bytes) {
        Ok(Kind::Jpeg) => {
            let orientation = jpeg::exif(bytes).and_then(Orientation::from_exif_chunk);
            return Facts { is_turned: is_turned(orientation), largest_of_16_bits: None };
        }
        Ok(Kind::Png) => ImageFormat::Png,
        Ok(Kind::WebP) => ImageFormat::WebP,
        Ok(Kind::Bmp | Kind::Gif) | Err(_) => return Facts::default(),
    };
    let decoder = image::ImageReader::with_format(Cursor::new(bytes), format).into_decoder();
    let Ok(mut decoder) = decoder else { return Facts::default() };
    let is_turned = is_turned(decoder.orientation().ok());
    let has_16_bits = decoder.color_type().bytes_per_pixel() == 2 * decoder.color_type().channel_count();
    let largest = has_16_bits.then(|| decode_whole(bytes, format, max_pixels).ok()).flatten();
    Facts { largest_of_16_bits: largest.and_then(|pixels| largest_value(&pixels)), is_turned }
}

fn is_turned(orientation: Option<Orientation>) -> bool {
    orientation.is_some_and(|orientation| orientation != Orientation::NoTransforms)
}

fn largest_value(pixels: &DynamicImage) -> Option<u16> {
    match pixels {
        DynamicImage::ImageLuma16(gray) => gray.iter().max().copied(),
        DynamicImage::ImageLumaA16(gray) => gray.pixels().map(|pixel| pixel.0[0]).max(),
        DynamicImage::ImageRgb16(rgb) => rgb.iter().max().copied(),
        DynamicImage::ImageRgba16(rgba) => rgba.pixels().flat_map(|pixel| &pixel.0[..3]).max().copied(),
        _ => None,
    }
}
