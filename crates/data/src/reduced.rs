//! JPEG files decoded smaller than they are.
//!
//! A block of 8 x 8 pixels is stored as 64 frequencies. Its lowest 4 x 4, 2 x 2 or 1 x 1 give the block at a half, a
//! quarter or an eighth of the size, with less arithmetic and fewer pixels to handle; the frequencies themselves must
//! all be read, which is most of the work for small photographs. The pixels differ from those of a full decode that is
//! then resized: the README states by how much.

use std::sync::Arc;

use jpeg_decoder::{Decoder, PixelFormat};

use crate::decode::{check_dimensions, checked_image, has_end_of_image};
use crate::{Dataset, Error, Image};

/// How much of a JPEG file is decoded for training; evaluation always decodes all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decoding {
    /// Every pixel.
    #[default]
    Full,
    /// As few as the crops of both views allow.
    Scaled,
}

/// An image, and how much smaller it is than the file's.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Its pixels.
    pub image: Arc<Image>,
    /// Width and height of the whole image.
    pub dimensions: (usize, usize),
    /// Pixels of the whole image for each of these, along an axis.
    pub reduction: usize,
}

impl Decoded {
    /// All of an image.
    pub fn full(image: Arc<Image>) -> Decoded {
        let dimensions = (image.width, image.height);
        Decoded { image, dimensions, reduction: 1 }
    }
}

/// Loads an image as much smaller as `allowed` tells of its width and height, where its file allows that at all.
///
/// # Errors
/// As of [`Dataset::load`].
pub fn load_reduced(
    dataset: &Dataset,
    index: usize,
    allowed: impl Fn((usize, usize)) -> usize,
) -> Result<Decoded, Error> {
    let full = || dataset.load(index).map(Decoded::full);
    let Some(file) = dataset.file(index)? else { return full() };
    let Some(mut jpeg) = open(&file) else { return full() };
    match allowed(jpeg.dimensions) {
        1 => full(),
        reduction => {
            let image = jpeg.decode(reduction);
            let image = image.map_err(|reason| Error::Image { path: dataset.path_of(index), reason })?;
            Ok(Decoded { image: Arc::new(image), dimensions: jpeg.dimensions, reduction })
        }
    }
}

/// A JPEG file whose headers are read.
struct Jpeg<'a> {
    decoder: Decoder<&'a [u8]>,
    dimensions: (usize, usize),
    gray: bool,
}

/// Reads the headers. None if it is no JPEG file, or one that only the full decoder is to judge.
fn open(file: &[u8]) -> Option<Jpeg<'_>> {
    if !file.starts_with(&[0xFF, 0xD8, 0xFF]) || !has_end_of_image(file) {
        return None;
    }
    let mut decoder = Decoder::new(file);
    decoder.read_info().ok()?;
    let info = decoder.info()?;
    let gray = match info.pixel_format {
        PixelFormat::RGB24 => false,
        PixelFormat::L8 => true,
        _ => return None,
    };
    let dimensions = (usize::from(info.width), usize::from(info.height));
    check_dimensions(dimensions.0, dimensions.1, crate::MAX_PIXELS).ok()?;
    Some(Jpeg { decoder, dimensions, gray })
}

impl Jpeg<'_> {
    fn decode(&mut self, reduction: usize) -> Result<Image, String> {
        let corrupt = |error: jpeg_decoder::Error| format!("corrupt JPEG: {error}");
        let (width, height) = self.dimensions;
        let [width, height] = [width, height].map(|len| len.div_ceil(reduction));
        let (width, height) = self.decoder.scale(width as u16, height as u16).map_err(corrupt)?;
        let pixels = self.decoder.decode().map_err(corrupt)?;
        let rgb = if self.gray { pixels.iter().flat_map(|&gray| [gray; 3]).collect() } else { pixels };
        checked_image(usize::from(width), usize::from(height), rgb)
    }
}

#[cfg(test)]
mod tests;
