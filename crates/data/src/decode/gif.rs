//! GIF files: the first frame on its canvas, with the pixels of Pillow's `GifImagePlugin`.
//!
//! The canvas is the logical screen, enlarged where the frame goes beyond it. Around the frame lies its transparent colour where
//! it has one, else colour 0: the background that the file names is not looked at. Colours are those of the frame's palette, of
//! the file's where it has none, and grays where there is neither.

use std::borrow::Cow;
use std::num::NonZeroU64;

use gif::{DecodeOptions, DecodingError, Frame, MemoryLimit};

use super::{Image, check_dimensions, checked_image, is_ramp, whole_palette};

/// What profiles and the like may take.
const METADATA_BYTES: NonZeroU64 = NonZeroU64::new(1 << 26).expect("more than 0");

/// Decodes a file that begins like a GIF.
pub fn decode(bytes: &[u8], max_pixels: usize) -> Result<Image, String> {
    let bytes = with_palette(bytes)?;
    let mut options = DecodeOptions::new();
    options.allow_unknown_blocks(true);
    // Of what stands beside the pixels, which have a limit of their own.
    options.set_memory_limit(MemoryLimit::Bytes(METADATA_BYTES));
    let mut decoder = options.read_info(&*bytes).map_err(|error| reason(&error))?;
    let screen = [decoder.width(), decoder.height()].map(usize::from);
    let palette_of_all = decoder.global_palette().unwrap_or_default().to_vec();
    let frame =
        decoder.next_frame_info().map_err(|error| reason(&error))?.ok_or("corrupt GIF: it has no frame")?;
    let Frame { left, top, width, height, transparent, .. } = *frame;
    let own = frame.palette.as_deref().unwrap_or_default().as_chunks().0;
    // Pillow takes grays for no palette, so that the one of the file comes back.
    let stored = if is_ramp(own) { palette_of_all.as_chunks().0 } else { own };
    let palette = whole_palette(stored);
    let [left, top, width, height] = [left, top, width, height].map(usize::from);
    let canvas = [screen[0].max(left + width), screen[1].max(top + height)];
    check_dimensions(canvas[0], canvas[1], max_pixels)?;
    check_dimensions(width, height, max_pixels)?;

    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(|error| reason(&error))?;
    let mut rgb = palette[usize::from(transparent.unwrap_or(0))].repeat(canvas[0] * canvas[1]);
    for (y, row) in indices.chunks_exact(width).enumerate() {
        let start = 3 * ((top + y) * canvas[0] + left);
        for (pixel, index) in rgb[start..].as_chunks_mut::<3>().0.iter_mut().zip(row) {
            *pixel = palette[usize::from(*index)];
        }
    }
    checked_image(canvas[0], canvas[1], rgb)
}

/// The file with a palette of grays where it has none for all frames: the decoder takes no frame without.
fn with_palette(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    const SCREEN: usize = 13;
    let (screen, rest) = bytes.split_at_checked(SCREEN).ok_or_else(cut)?;
    if screen[10] & 0x80 != 0 {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut with = screen.to_vec();
    with[10] |= 0x87;
    with.extend((0..=255).flat_map(|gray| [gray; 3]));
    with.extend_from_slice(rest);
    Ok(Cow::Owned(with))
}

fn cut() -> String {
    "truncated GIF: its data ends early".to_owned()
}

/// The decoder's own words are for its authors.
fn reason(error: &DecodingError) -> String {
    match error {
        DecodingError::UnexpectedEof | DecodingError::Io(_) => cut(),
        DecodingError::MemoryLimit | DecodingError::OutOfMemory => {
            "a GIF that needs more memory than its pixels may take".to_owned()
        }
        _ => "corrupt GIF: a block or the code of its first frame is not as the format has it".to_owned(),
    }
}
