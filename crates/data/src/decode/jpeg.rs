//! JPEG files, with the headers that libjpeg and Pillow read.
//!
//! The decoder takes a scan only as the standard has it, and that stays so: a damaged scan is an error. Headers it refuses,
//! or understands in another way, where libjpeg reads on; those are put right before it sees them (see [`tidy`]). Its pixels
//! differ from libjpeg's by a few units where the inverse transform is rounded and chroma is upsampled.
//!
//! A file whose end marker is missing is refused as cut, by Pillow too. One that was cut within a scan and then closed with
//! an end marker is accepted, as Pillow accepts it: nothing in it says that there should be more. What stands in the missing
//! part is then not defined, and not what Pillow puts there.

use std::borrow::Cow;
use std::ops::Range;

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::{Image, check_dimensions, checked_image};

const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;
const DHT: u8 = 0xC4;
const DAC: u8 = 0xCC;
const DNL: u8 = 0xDC;
const APP0: u8 = 0xE0;
const APP1: u8 = 0xE1;
const APP14: u8 = 0xEE;
const COM: u8 = 0xFE;
/// Restart markers and TEM, which stand alone.
const LONE: [Range<u8>; 2] = [0xD0..0xD8, 0x01..0x02];

/// More segments than any file has that was not made to exhaust memory: each takes some bytes in a list.
const MAX_SEGMENTS: usize = 1 << 16;

/// Decodes a file that begins like a JPEG.
pub fn decode(bytes: &[u8], max_pixels: usize) -> Result<Image, String> {
    let bytes = tidy(bytes)?;
    // Strict: damage in a scan is an error. Otherwise the rest of the image would be painted gray.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&*bytes), options);
    decoder.decode_headers().map_err(|error| reason(&error))?;
    let info = decoder.info().expect("the headers are decoded");
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    check_dimensions(width, height, max_pixels)?;
    let rgb = decoder.decode().map_err(|error| reason(&error))?;
    checked_image(width, height, rgb)
}

/// The EXIF block of a file, if it has one.
pub fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let segments = segments(bytes).ok()?;
    segments.iter().filter(|s| s.marker == APP1).find_map(|s| s.payload(bytes).strip_prefix(b"Exif\0\0"))
}

/// The decoder's own words are for its authors.
fn reason(error: &DecodeErrors) -> String {
    let what = match error {
        DecodeErrors::HuffmanDecode(_) => "a Huffman table or a code of a scan is wrong",
        DecodeErrors::DqtError(_) => "a quantization table is wrong or missing",
        DecodeErrors::SosError(_) => "the header of a scan is wrong",
        DecodeErrors::SofError(_) => "the header of its frame is wrong",
        DecodeErrors::MCUError(_) => "a block of a scan is wrong",
        DecodeErrors::ZeroError => "it has no rows or no columns",
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => "its data ends early",
        DecodeErrors::Unsupported(_) => "it is coded in a way that is not read",
        _ => "a header or a scan is not as the format has it",
    };
    format!("corrupt JPEG: {what}")
}

/// A marker and what belongs to it: its parameters, and behind the header of a scan the scan's data.
struct Segment {
    marker: u8,
    span: Range<usize>,
    /// Its parameters, without their length.
    payload: Range<usize>,
}

impl Segment {
    fn payload<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.payload.clone()]
    }

    fn is_frame(&self) -> bool {
        matches!(self.marker, 0xC0..=0xCF) && ![DHT, 0xC8, DAC].contains(&self.marker)
    }
}

/// Lists what libjpeg reads, up to the end marker. Bytes that are in no segment it passes over: stray ones, fill bytes, and
/// markers that mean nothing where they stand.
fn segments(bytes: &[u8]) -> Result<Vec<Segment>, String> {
    const CUT: &str = "truncated JPEG: its end marker is missing";
    let (mut found, mut at) = (Vec::new(), 2);
    loop {
        let (start, marker) = next_marker(bytes, at).ok_or(CUT)?;
        at = start + 2;
        if marker == EOI {
            found.push(Segment { marker, span: start..at, payload: at..at });
            return Ok(found);
        }
        if marker == SOI {
            return Err("corrupt JPEG: a second start marker in its header".to_owned());
        }
        if LONE.iter().any(|lone| lone.contains(&marker)) {
            continue;
        }
        let len = bytes.get(at..at + 2).ok_or(CUT)?;
        // A length below its own two bytes: libjpeg reads on behind it.
        let end = at + usize::from(u16::from_be_bytes([len[0], len[1]])).max(2);
        if end > bytes.len() {
            return Err(CUT.to_owned());
        }
        if found.len() == MAX_SEGMENTS {
            return Err(format!("corrupt JPEG: it has more than {MAX_SEGMENTS} segments"));
        }
        let payload = at + 2..end;
        at = if marker == SOS { scan_end(bytes, end) } else { end };
        found.push(Segment { marker, span: start..at, payload });
    }
}

/// Where the next marker begins at or behind `at`, and which it is.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(usize, u8)> {
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xFF)?;
        match bytes.get(at + 1)? {
            0xFF => at += 1,
            0 => at += 2,
            marker => return Some((at, *marker)),
        }
    }
}

/// Where the data of a scan ends that begins at `at`: within it 0xFF is stuffed, but for restart markers.
fn scan_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some((start, marker)) = next_marker(bytes, at) {
        if !LONE[0].contains(&marker) {
            return start;
        }
        at = start + 2;
    }
    bytes.len()
}

/// Puts the headers as the decoder needs them to see in the file what libjpeg sees; copies only where they are not so.
///
/// - Bytes between segments, before the first scan and between scans, are left out, with segments that libjpeg passes over
///   and the decoder refuses.
/// - The colours follow from JFIF and Adobe's segment as in libjpeg (`default_decompress_parms`): see [`Colour`].
/// - The sampling factors of a single component mean nothing, and become 1.
/// - Where there is no Huffman table, a marker of Motion-JPEG asks for the standard's tables.
///
/// # Errors
/// What of the format is not read, or that the file is cut.
fn tidy(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let segments = segments(bytes)?;
    let first_scan = segments.iter().position(|s| s.marker == SOS);
    let header = &segments[..first_scan.ok_or("corrupt JPEG: it has no scan")?];
    let frame = header.iter().find(|s| s.is_frame()).ok_or("corrupt JPEG: its scan has no frame")?;
    check_frame(frame.marker, frame.payload(bytes))?;
    check_first_scan(&segments[header.len()], frame, bytes)?;
    let colour = Colour::of(header, frame, bytes);

    let has_tables = header.iter().any(|s| s.marker == DHT);
    let stays = |s: &Segment| !is_passed_over(s, bytes) && (colour.is_clear() || !is_adobe(s, bytes));
    let mut patches = colour.patches(&segments, frame, bytes);
    if let [_, _, _, _, _, 1, _, sampling, _] = frame.payload(bytes)
        && *sampling != 0x11
    {
        patches.push((frame.payload.end - 2, 0x11));
    }
    let gapless = segments.windows(2).all(|pair| pair[0].span.end == pair[1].span.start);
    if has_tables
        && gapless
        && segments[0].span.start == 2
        && segments.iter().all(stays)
        && patches.is_empty()
        && colour.is_clear()
    {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut patched = Cow::Borrowed(bytes);
    for (place, value) in patches {
        patched.to_mut()[place] = value;
    }
    let mut tidied = Vec::with_capacity(bytes.len() + 32);
    tidied.extend_from_slice(&[0xFF, SOI]);
    if !has_tables {
        tidied.extend_from_slice(b"\xFF\xE0\0\x07AVI1\0");
    }
    if let (false, Some(transform)) = (colour.is_clear(), colour.transform) {
        tidied.extend_from_slice(b"\xFF\xEE\0\x0EAdobe\0\x64\0\0\0\0");
        tidied.push(transform);
    }
    for segment in segments.iter().filter(|s| stays(s)) {
        tidied.extend_from_slice(&patched[segment.span.clone()]);
    }
    Ok(Cow::Owned(tidied))
}

/// Refuses what the format allows and the decoder does not read.
fn check_frame(marker: u8, payload: &[u8]) -> Result<(), String> {
    let what = match (marker, payload) {
        (0xC9 | 0xCA | 0xCB | 0xCD..=0xCF, _) => "is coded arithmetically",
        (0xC3, _) => "is coded without loss",
        (0xC5..=0xC7, _) => "is hierarchical",
        (_, [precision, ..]) if *precision != 8 => "has more than 8 bits a channel",
        (_, [_, _, _, _, _, n, components @ ..])
            if *n > 1 && components.chunks(3).any(|c| c.len() > 1 && (c[1] >> 4 == 3 || c[1] & 15 == 3)) =>
        {
            "has a channel sampled three to one"
        }
        _ => return Ok(()),
    };
    Err(unread(what))
}

/// Refuses a sequential file that has a scan for each component where these have several rows of blocks: the decoder puts them
/// in wrong places.
fn check_first_scan(scan: &Segment, frame: &Segment, bytes: &[u8]) -> Result<(), String> {
    const PROGRESSIVE: u8 = 0xC2;
    let names = component_names(frame.payload(bytes));
    let n = scan.payload(bytes).first().map_or(0, |n| usize::from(*n));
    let has_rows = frame.payload(bytes).iter().skip(7).step_by(3).any(|factors| factors & 15 > 1);
    if frame.marker != PROGRESSIVE && n < names.len() && has_rows {
        return Err(unread("has a scan for each channel, of which one is sampled in rows"));
    }
    Ok(())
}

fn unread(what: &str) -> String {
    format!("a JPEG that {what}, which is not read: write it anew, as PNG or as an 8-bit baseline JPEG")
}

/// Whether libjpeg takes nothing from a segment at which the decoder stops.
fn is_passed_over(segment: &Segment, bytes: &[u8]) -> bool {
    match segment.marker {
        DNL | DAC => true,
        // A length of 0 or 1.
        APP0..=0xEF | COM if bytes[segment.span.start + 2..][..2] < [0, 2][..] => true,
        APP1 => segment.payload(bytes).starts_with(b"http://ns.adobe.com/xmp/extension/\0"),
        _ => false,
    }
}

fn is_adobe(segment: &Segment, bytes: &[u8]) -> bool {
    segment.marker == APP14 && segment.payload.len() >= 12 && segment.payload(bytes).starts_with(b"Adobe")
}

/// What says which colours the components are.
struct Colour {
    /// Of Adobe's segment: 0 (RGB or CMYK), 1 (YCbCr) or 2 (YCCK), as libjpeg takes it; none: no such segment is to be seen.
    transform: Option<u8>,
    /// What stands in the file.
    stored: Option<u8>,
    /// Components whose names are R, G and B, which libjpeg takes for a word on colours only where nothing else says one.
    misnamed: bool,
}

impl Colour {
    fn of(header: &[Segment], frame: &Segment, bytes: &[u8]) -> Colour {
        let jfif = header
            .iter()
            .any(|s| s.marker == APP0 && s.payload.len() >= 14 && s.payload(bytes).starts_with(b"JFIF\0"));
        let adobe = header.iter().rfind(|s| is_adobe(s, bytes));
        let stored = adobe.map(|s| s.payload(bytes)[11]);
        let names = component_names(frame.payload(bytes));
        let transform = match (names.len(), stored) {
            (1, _) => None,
            (3, _) if jfif => None,
            (3, Some(transform)) => Some(transform.min(1)),
            (4, Some(transform)) => Some(if transform == 0 { 0 } else { 2 }),
            _ => stored,
        };
        let misnamed = names == b"RGB" && (jfif || transform == Some(1));
        Colour { transform, stored, misnamed }
    }

    /// Whether the decoder sees the same in the file as it is.
    fn is_clear(&self) -> bool {
        self.transform == self.stored
    }

    /// The names of misnamed components replaced by JFIF's, in the frame and in the scans.
    fn patches(&self, segments: &[Segment], frame: &Segment, bytes: &[u8]) -> Vec<(usize, u8)> {
        if !self.misnamed {
            return Vec::new();
        }
        let number = |name: u8| b"RGB".iter().position(|known| *known == name).map(|place| place as u8 + 1);
        let mut patches: Vec<_> = (0..3).map(|i| (frame.payload.start + 6 + 3 * i, i as u8 + 1)).collect();
        for scan in segments.iter().filter(|s| s.marker == SOS) {
            let n = scan.payload(bytes).first().map_or(0, |n| usize::from(*n));
            let places = (0..n).map(|i| scan.payload.start + 1 + 2 * i).filter(|at| *at < scan.payload.end);
            patches.extend(places.filter_map(|at| Some((at, number(bytes[at])?))));
        }
        patches
    }
}

/// The names of the components in a frame's header.
fn component_names(frame: &[u8]) -> Vec<u8> {
    frame.get(6..).unwrap_or_default().chunks_exact(3).map(|component| component[0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by Pillow with tests/golden/images.py.
    const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/images.safetensors");

    fn file(name: &str) -> Vec<u8> {
        let golden = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
        golden.tensor(&format!("{name} file")).unwrap().data().to_vec()
    }

    #[test]
    fn only_a_header_that_needs_it_is_copied() {
        for name in
            ["444", "420", "progressive", "gray", "thumbnail", "restart", "cmyk", "rgb", "bytes behind"]
        {
            let file = file(&format!("jpeg {name}"));
            assert!(matches!(tidy(&file).unwrap(), Cow::Borrowed(_)), "{name}");
        }
        for name in ["two", "five", "many", "stuffed"] {
            let tidied = tidy(&file(&format!("jpeg stray {name}"))).unwrap().into_owned();
            assert_eq!(tidied, file("jpeg 444"), "{name}: what is left is the file without them");
        }
    }

    #[test]
    fn a_thumbnail_is_not_touched() {
        for name in ["jpeg thumbnail", "jpeg thumbnail and stray"] {
            let file = file(name);
            let thumbnail = exif(&file).unwrap().to_vec();
            assert!(thumbnail.starts_with(&[0xFF, SOI]), "{name}");
            assert_eq!(exif(&tidy(&file).unwrap()), Some(&thumbnail[..]), "{name}");
        }
    }

    #[test]
    fn a_file_of_nothing_but_segments_is_refused() {
        let of = |n: usize| [vec![0xFF, SOI], [0xFF, COM, 0, 2].repeat(n), vec![0xFF, EOI]].concat();
        assert_eq!(segments(&of(MAX_SEGMENTS)).unwrap().len(), MAX_SEGMENTS + 1);
        let error = decode(&of(MAX_SEGMENTS + 1), 100).unwrap_err();
        assert_eq!(error, "corrupt JPEG: it has more than 65536 segments");
    }
}
