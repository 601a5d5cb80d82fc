//! BMP files, with the pixels of Pillow's `BmpImagePlugin`.
//!
//! The `image` crate's decoder gives others: it rounds 5 and 6 bits where Pillow rounds down, does without what a short palette
//! lacks, and fills what a run-length code leaves out in its own way. Where Pillow's reading is a convention of its own it is
//! followed here as well: an end of line at the beginning of a row skips nothing, an absolute run may go on in the next row and
//! ends at an even place of the file, and an image whose code ends before its last pixel is refused.
//!
//! Two differences: what Pillow refuses (2 bits a pixel, other masks than the usual ones) is read, and so is a palette of black
//! and white, or of the first grays, on 4 or 8 bits, which Pillow takes for 1 or 8 bits a pixel.

use super::{Image, check_dimensions, checked_image, whole_palette};

const FILE_HEADER: usize = 14;
const CORE_HEADER: usize = 12;

/// How pixels are stored.
enum Pixels {
    /// Indices of `bits` bits, 1 to 8.
    Indexed { palette: Box<[[u8; 3]; 256]>, coding: Coding },
    /// Little-endian words.
    Direct(Box<[Channel; 3]>),
}

enum Coding {
    Plain,
    /// RLE8.
    Bytes,
    /// RLE4.
    Nibbles,
}

struct Header {
    width: usize,
    height: usize,
    top_down: bool,
    bits: usize,
    pixels: Pixels,
    /// Where the pixels begin.
    offset: usize,
}

/// Decodes a file that begins like a BMP.
pub fn decode(bytes: &[u8], max_pixels: usize) -> Result<Image, String> {
    let header = Header::read(bytes, max_pixels)?;
    let Header { width, height, bits, .. } = header;
    let mut rgb = Vec::new();
    match &header.pixels {
        Pixels::Direct(channels) => {
            for row in header.rows(bytes)? {
                for pixel in row.chunks_exact(bits / 8) {
                    let word = pixel.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
                    rgb.extend(channels.each_ref().map(|channel| channel.value(word)));
                }
            }
        }
        Pixels::Indexed { palette, coding: Coding::Plain } => {
            let per_byte = 8 / bits;
            for row in header.rows(bytes)? {
                let index = |x: usize| row[x / per_byte] >> (8 - bits - x % per_byte * bits);
                rgb.extend((0..width).flat_map(|x| palette[usize::from(index(x) & (0xFF >> (8 - bits)))]));
            }
        }
        Pixels::Indexed { palette, coding } => {
            let indices = Runs { bytes, at: header.offset, width, len: width * height }.read(coding)?;
            let mut rows: Vec<_> = indices.chunks_exact(width).collect();
            if !header.top_down {
                rows.reverse();
            }
            rgb.extend(rows.into_iter().flatten().flat_map(|index| palette[usize::from(*index)]));
        }
    }
    checked_image(width, height, rgb)
}

impl Header {
    fn read(bytes: &[u8], max_pixels: usize) -> Result<Header, String> {
        let offset = u32_at(bytes, 10)? as usize;
        let len = u32_at(bytes, FILE_HEADER)? as usize;
        let is_core = len == CORE_HEADER;
        if !is_core && ![40, 52, 56, 64, 108, 124].contains(&len) {
            return Err(format!("corrupt BMP: it says that its header has {len} bytes, which none has"));
        }
        let (width, stored_height, bits, compression, stored_colours) = if is_core {
            let [width, height, bits] = [18, 20, 24].map(|at| u16_at(bytes, at));
            (u32::from(width?), i32::from(height?), bits?, 0, 0)
        } else {
            let height = u32_at(bytes, 22)?.cast_signed();
            (u32_at(bytes, 18)?, height, u16_at(bytes, 28)?, u32_at(bytes, 30)?, u32_at(bytes, 46)?)
        };
        let (width, height) = (width as usize, stored_height.unsigned_abs() as usize);
        check_dimensions(width, height, max_pixels)?;

        let bits = usize::from(bits);
        let end = FILE_HEADER + len;
        // The masks of a header of 40 bytes stand behind it.
        let end = if len == 40 && compression == 3 { end + 12 } else { end };
        let colours = if stored_colours == 0 { 1 << bits.min(8) } else { stored_colours as usize };
        let (palette_len, pixels) = match (bits, compression) {
            (1 | 2 | 4 | 8, 0..=2) if colours <= 1 << 16 => {
                let entry = if is_core { 3 } else { 4 };
                // More than a pixel can name are passed over.
                let stored = bytes.get(end..).ok_or_else(cut)?.chunks_exact(entry).take(colours.min(256));
                let palette: Vec<_> = stored.map(|bgr| [bgr[2], bgr[1], bgr[0]]).collect();
                let coding =
                    [Coding::Plain, Coding::Bytes, Coding::Nibbles].into_iter().nth(compression as usize);
                (
                    entry * colours,
                    Pixels::Indexed {
                        palette: Box::new(whole_palette(&palette)),
                        coding: coding.expect("one of three"),
                    },
                )
            }
            (16 | 24 | 32, 0 | 3) => (0, Pixels::Direct(Box::new(channels(bytes, bits, compression)?))),
            (_, 0..=3) => {
                return Err(format!(
                    "a BMP of {bits} bits a pixel in coding {compression}, which is not read"
                ));
            }
            _ => return Err(format!("a BMP in coding {compression} (JPEG, PNG or CMYK), which is not read")),
        };
        let offset = match offset {
            0 => end + palette_len,
            // Some writers forget the palette.
            offset if offset == FILE_HEADER + len => offset + palette_len,
            offset => offset,
        };
        Ok(Header { width, height, top_down: stored_height < 0, bits, pixels, offset })
    }

    /// The rows from the top, each without what fills it up to a multiple of 4 bytes.
    fn rows<'a>(&self, bytes: &'a [u8]) -> Result<impl Iterator<Item = &'a [u8]>, String> {
        let (height, top_down) = (self.height, self.top_down);
        let row = (self.width * self.bits).div_ceil(8);
        let stride = row.next_multiple_of(4);
        let pixels = bytes.get(self.offset..).ok_or_else(cut)?;
        // The last one need not be filled up.
        if pixels.len() < stride.saturating_mul(height - 1).saturating_add(row) {
            return Err(cut());
        }
        let place = move |y: usize| stride * if top_down { y } else { height - 1 - y };
        Ok((0..height).map(move |y| &pixels[place(y)..][..row]))
    }
}

/// What a channel is made of the bits under its mask.
struct Channel {
    mask: u32,
    /// By the value of these bits: scaled to 8, rounded down.
    values: Vec<u8>,
}

impl Channel {
    fn new(mask: u32) -> Result<Channel, String> {
        let largest = mask >> mask.trailing_zeros().min(31);
        if mask == 0 || largest > 0xFFFF || largest & (largest + 1) != 0 {
            return Err(format!("a BMP with a mask of {mask:#010x} for a channel, which is not read"));
        }
        Ok(Channel { mask, values: (0..=largest).map(|value| (value * 255 / largest) as u8).collect() })
    }

    fn value(&self, word: u32) -> u8 {
        self.values[((word & self.mask) >> self.mask.trailing_zeros()) as usize]
    }
}

/// Red, green and blue of words of `bits` bits. Alpha is not looked at.
fn channels(bytes: &[u8], bits: usize, compression: u32) -> Result<[Channel; 3], String> {
    let masks = match compression {
        // Behind 40 bytes, or where longer headers have them: the same place.
        3 => [u32_at(bytes, 54)?, u32_at(bytes, 58)?, u32_at(bytes, 62)?],
        _ => [0; 3],
    };
    let [red, green, blue] = match (masks, bits) {
        ([0, 0, 0], 16) => [0x7C00, 0x3E0, 0x1F],
        ([0, 0, 0], _) => [0xFF_0000, 0xFF00, 0xFF],
        (masks, _) => masks,
    };
    Ok([Channel::new(red)?, Channel::new(green)?, Channel::new(blue)?])
}

/// A run-length code.
struct Runs<'a> {
    bytes: &'a [u8],
    at: usize,
    width: usize,
    /// Pixels of the image.
    len: usize,
}

impl Runs<'_> {
    /// Reads the indices of all pixels, in the order of the file.
    fn read(mut self, coding: &Coding) -> Result<Vec<u8>, String> {
        let (mut indices, mut x) = (Vec::new(), 0);
        while indices.len() < self.len {
            match self.take()? {
                [0, 0] => {
                    indices.resize(indices.len().next_multiple_of(self.width), 0);
                    x = 0;
                }
                [0, 1] => break,
                [0, 2] => {
                    let [right, up] = self.take()?.map(usize::from);
                    indices.resize((indices.len() + right + up * self.width).min(self.len), 0);
                    x = indices.len() % self.width;
                }
                [0, n] => {
                    self.copy(usize::from(n).min(self.len - indices.len()), coding, &mut indices)?;
                    x += usize::from(n);
                }
                [n, pixel] => {
                    let n = usize::from(n).min(self.width.saturating_sub(x));
                    let pair = match coding {
                        Coding::Nibbles => [pixel >> 4, pixel & 15],
                        Coding::Plain | Coding::Bytes => [pixel; 2],
                    };
                    indices.extend(pair.iter().cycle().take(n));
                    x += n;
                }
            }
        }
        if indices.len() < self.len {
            return Err(format!("corrupt BMP: its code ends after {} of {} pixels", indices.len(), self.len));
        }
        indices.truncate(self.len);
        Ok(indices)
    }

    fn take(&mut self) -> Result<[u8; 2], String> {
        let pair = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk()).ok_or_else(cut)?;
        self.at += 2;
        Ok(*pair)
    }

    /// Reads `n` pixels as they are, and what fills them up to an even place.
    fn copy(&mut self, n: usize, coding: &Coding, indices: &mut Vec<u8>) -> Result<(), String> {
        let len = if matches!(coding, Coding::Nibbles) { n.div_ceil(2) } else { n };
        let run = self.bytes.get(self.at..self.at + len).ok_or_else(cut)?;
        match coding {
            Coding::Nibbles => indices.extend(run.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(n)),
            Coding::Plain | Coding::Bytes => indices.extend_from_slice(run),
        }
        self.at = (self.at + len).next_multiple_of(2);
        Ok(())
    }
}

fn cut() -> String {
    "truncated BMP: its data ends early".to_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|two| u16::from_le_bytes(*two)).ok_or_else(cut)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|four| u32::from_le_bytes(*four)).ok_or_else(cut)
}
