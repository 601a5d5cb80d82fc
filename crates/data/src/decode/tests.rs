use safetensors::SafeTensors;

use super::*;
use crate::fixtures::{encoded, image, png};

/// Written by Pillow 13.0.0 with tests/golden/images.py, which also stores what Pillow decodes them to.
const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/images.safetensors");

/// Every kind of file: its name, its bytes, and what Pillow reads, `[height, width, 3]`.
fn golden() -> Vec<(String, Vec<u8>, Image)> {
    let tensors = SafeTensors::deserialize(GOLDEN).unwrap();
    let mut names: Vec<_> =
        tensors.names().into_iter().filter_map(|name| name.strip_suffix(" file")).collect();
    names.sort_unstable();
    let of = |name: &str| {
        let file = tensors.tensor(&format!("{name} file")).unwrap().data().to_vec();
        let rgb = tensors.tensor(&format!("{name} rgb")).unwrap();
        let [height, width, 3] = *rgb.shape() else { panic!("{name}: {:?}", rgb.shape()) };
        (name.to_owned(), file, Image { width, height, rgb: rgb.data().to_vec() })
    };
    names.into_iter().map(of).collect()
}

fn file(name: &str) -> Vec<u8> {
    golden().into_iter().find(|(known, ..)| known == name).unwrap().1
}

fn rgb(image: &Image) -> image::RgbImage {
    image::RgbImage::from_raw(image.width as u32, image.height as u32, image.rgb.clone()).unwrap()
}

/// Where a marker first stands in a file.
fn place(file: &[u8], marker: u8) -> usize {
    file.windows(2).position(|pair| pair == [0xFF, marker]).unwrap()
}

#[test]
fn files_decode_to_what_pillow_reads() {
    let mut kinds = std::collections::BTreeMap::new();
    for (name, file, expected) in golden() {
        let tolerance = match name.as_str() {
            // Decoders round the inverse transform differently by a unit, and colour conversion by another two.
            name if name.starts_with("jpeg gray") => 1,
            name if name.starts_with("jpeg") || name == "webp lossy" => 3,
            _ => 0,
        };
        let image = decode(&file, MAX_PIXELS).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        assert_eq!((image.width, image.height), (expected.width, expected.height), "{name}");
        let worst = image.rgb.iter().zip(&expected.rgb).map(|(a, e)| a.abs_diff(*e)).max();
        assert!(worst <= Some(tolerance), "{name}: off by {worst:?}");
        *kinds.entry(name.split(' ').next().unwrap().to_owned()).or_insert(0) += 1;
    }
    let counts: Vec<_> = kinds.iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
    assert_eq!(counts, [("bmp", 55), ("gif", 27), ("jpeg", 49), ("png", 6), ("webp", 2)]);
}

/// PIL clips gray ones instead, so that the reference is the formula.
#[test]
fn sixteen_bits_are_scaled_to_eight() {
    let expected = |value: u32| (f64::from(value) * 255.0 / 65535.0).round() as u8;
    let all = |x: u32, y: u32| (256 * y + x) as u16;
    let gray = image::ImageBuffer::from_fn(256, 256, |x, y| image::Luma([all(x, y)]));
    let colours = image::ImageBuffer::from_fn(256, 256, |x, y| image::Rgba([all(x, y), all(y, x), 7, 9]));
    let gray = decode(&encoded(gray.into(), ImageFormat::Png), MAX_PIXELS).unwrap();
    let colours = decode(&encoded(colours.into(), ImageFormat::Png), MAX_PIXELS).unwrap();
    for value in 0..=65535 {
        let (gray, colours) = (&gray.rgb[3 * value..][..3], &colours.rgb[3 * value..][..3]);
        assert_eq!(gray, [expected(value as u32); 3], "{value}");
        let turned = value % 256 * 256 + value / 256;
        assert_eq!(colours, [expected(value as u32), expected(turned as u32), 0], "{value}");
    }
}

#[test]
fn lossless_files_keep_every_pixel() {
    let original = image(9, 5, 3);
    assert_eq!(decode(&png(&original), MAX_PIXELS).unwrap(), original);
    assert_eq!(decode(&encoded(rgb(&original).into(), ImageFormat::WebP), MAX_PIXELS).unwrap(), original);
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for name in
        ["jpeg 444", "jpeg progressive", "png palette", "webp lossless", "bmp 24", "bmp rle8", "bmp 4", "gif"]
    {
        let file = file(name);
        // What is not waited for: the end marker of a PNG, what a WebP or the last row of a BMP is filled up with, and in a
        // GIF the code that ends the first frame, behind its last pixel.
        let spared = match &name[..3] {
            "jpe" => 1,
            "bmp" if name == "bmp 24" => 3,
            "bmp" => 4,
            "gif" => 4,
            _ => 16,
        };
        for len in 0..file.len() - spared {
            let outcome = decode(&file[..len], MAX_PIXELS);
            assert!(outcome.is_err(), "{name} cut to {len} of {}", file.len());
        }
    }
}

/// Pillow takes it, too: nothing says that more should follow.
#[test]
fn a_jpeg_that_was_cut_is_refused_and_one_that_was_closed_is_not() {
    let file = file("jpeg 444");
    let cut = &file[..file.len() * 9 / 10];
    assert!(place(cut, 0xDA) < cut.len() - 20, "in the scan");
    assert_eq!(decode(cut, MAX_PIXELS).unwrap_err(), "truncated JPEG: its end marker is missing");
    let whole = decode(&file, MAX_PIXELS).unwrap();
    let closed = decode(&[cut, &[0xFF, 0xD9]].concat(), MAX_PIXELS).unwrap();
    assert_eq!((closed.width, closed.height), (whole.width, whole.height));
    let eight_rows = 8 * 3 * whole.width;
    assert_eq!(closed.rgb[..eight_rows], whole.rgb[..eight_rows], "what is there is decoded");
    // The markers of a table between two scans are no end.
    let progressive = file_with_end_in_a_later_header();
    assert_eq!(decode(&progressive, MAX_PIXELS).unwrap_err(), "truncated JPEG: its end marker is missing");
}

fn file_with_end_in_a_later_header() -> Vec<u8> {
    let file = file("jpeg comment between scans");
    let comment = file.windows(4).position(|bytes| bytes == [0xFF, 0xD9, b' ', 0xFF]).unwrap();
    file[..comment + 20].to_vec()
}

#[test]
fn what_of_jpeg_is_not_read_is_said() {
    #[track_caller]
    fn check(marker: u8, precision: u8, expected: &str) {
        let mut file = file("jpeg 444");
        let frame = place(&file, 0xC0);
        (file[frame + 1], file[frame + 4]) = (marker, precision);
        let reason = decode(&file, MAX_PIXELS).unwrap_err();
        assert!(
            reason.starts_with(&format!("a JPEG that {expected}, which is not read: write it anew")),
            "{reason}"
        );
    }
    check(0xC9, 8, "is coded arithmetically");
    check(0xCA, 8, "is coded arithmetically");
    check(0xC3, 8, "is coded without loss");
    check(0xC6, 8, "is hierarchical");
    check(0xC1, 12, "has more than 8 bits a channel");
    let mut sampled = file("jpeg 444");
    let frame = place(&sampled, 0xC0);
    sampled[frame + 11] = 0x31;
    assert!(decode(&sampled, MAX_PIXELS).unwrap_err().contains("sampled three to one"));
    let mut by_scans = file("jpeg scan by scan");
    let frame = place(&by_scans, 0xC0);
    by_scans[frame + 11] = 0x22;
    assert!(decode(&by_scans, MAX_PIXELS).unwrap_err().contains("a scan for each channel"));
}

/// Reads what Pillow refuses, by the same rules.
#[test]
fn bmp_goes_a_little_farther_than_pillow() {
    let of_four = file("bmp 4 short palette");
    let header = 14 + 40 + 4 * 5;
    let (rows, stride) = (22, 16);
    // The same indices in 2 bits, where there are four of them.
    let mut four = of_four.clone();
    let mut two = of_four[..header].to_vec();
    two[28] = 2;
    two[46] = 4;
    four[46] = 4;
    for row in 0..rows {
        let nibbles = &mut four[header + row * stride..][..stride];
        nibbles.iter_mut().for_each(|byte| *byte &= 0x33);
        let packed = nibbles.chunks(2).map(|b| b[0] >> 4 << 6 | (b[0] & 3) << 4 | b[1] >> 4 << 2 | b[1] & 3);
        two.extend(packed);
    }
    assert_eq!(decode(&two, MAX_PIXELS).unwrap(), decode(&four, MAX_PIXELS).unwrap());

    let (mut wide, plain) = (file("bmp 32 bgrx"), file("bmp 32 bgrx"));
    for (place, mask) in [(54, 0x3FF0_0000u32), (58, 0x000F_FC00), (62, 0x3FF)] {
        wide[place..place + 4].copy_from_slice(&mask.to_le_bytes());
    }
    let word = u32::from_le_bytes(plain[66 + 21 * 27 * 4..][..4].try_into().unwrap());
    let scaled = |shift: u32| (f64::from(word >> shift & 0x3FF) * 255.0 / 1023.0).floor() as u8;
    assert_eq!(decode(&wide, MAX_PIXELS).unwrap().rgb[..3], [scaled(20), scaled(10), scaled(0)]);
    wide[54..58].copy_from_slice(&0x5000_0000u32.to_le_bytes());
    let reason = decode(&wide, MAX_PIXELS).unwrap_err();
    assert_eq!(reason, "a BMP with a mask of 0x50000000 for a channel, which is not read");
}

/// A reason is a sentence of ours, whatever is wrong with the file; and nothing panics.
#[test]
fn reasons_are_sentences_and_damage_never_panics() {
    #[track_caller]
    fn check(name: &str, file: &[u8]) {
        match decode(file, 100_000) {
            Ok(image) => assert_eq!(image.rgb.len(), 3 * image.width * image.height, "{name}"),
            Err(reason) => {
                let foreign = ["{", "}", "\"", "Some(", "None", "Error", "Format", "strict", "\n", "`", "::"];
                let found = foreign.iter().find(|text| reason.contains(**text));
                assert!(!reason.is_empty() && found.is_none(), "{name}: {reason}");
                assert!(reason.is_ascii() && reason.len() < 150, "{name}: {reason}");
            }
        }
        inspect(file, 100_000);
    }
    for (name, mut file, _) in golden() {
        // A few hundred places of every file, other ones in each.
        let step = 1 + file.len() / 150;
        for place in (name.len() % step..file.len()).step_by(step) {
            check(&name, &file[..place]);
            for flipped in [0x5A, 0x80, 0xFF] {
                file[place] ^= flipped;
                check(&name, &file);
                file[place] ^= flipped;
            }
        }
        // Headers in full.
        for place in 0..file.len().min(80) {
            for value in [0, 1, 0xFF] {
                let stored = std::mem::replace(&mut file[place], value);
                check(&name, &file);
                file[place] = stored;
            }
        }
    }
    check("nothing", &[]);
    check("a word", b"no image");
}

#[test]
fn the_limit_of_pixels_holds_for_every_kind_and_names_its_key() {
    for (name, file, expected) in golden() {
        let pixels = expected.width * expected.height;
        assert!(decode(&file, pixels).is_ok(), "{name}");
        let reason = decode(&file, pixels - 1).unwrap_err();
        let dimensions = format!("{} x {} pixels", expected.width, expected.height);
        assert_eq!(
            reason,
            format!("{dimensions}, more than the {} of data.max_pixels", pixels - 1),
            "{name}"
        );
        assert!(decode(&file, usize::MAX).is_ok(), "{name}: nothing overflows");
    }
}

#[test]
fn absurd_dimensions_are_refused_before_anything_is_allocated() {
    #[track_caller]
    fn check(file: &[u8], dimensions: &str) {
        let reason = decode(file, MAX_PIXELS).unwrap_err();
        assert!(reason.starts_with(&format!("{dimensions} pixels, more than")), "{reason}");
    }
    let mut file_of_png = png(&image(2, 2, 1));
    // Width and height in the header chunk, and the chunk's checksum.
    file_of_png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&file_of_png[12..29]);
    file_of_png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    check(&file_of_png, "65536 x 65536");
    let mut jpeg = file("jpeg 444");
    let frame = place(&jpeg, 0xC0);
    jpeg[frame + 5..frame + 9].fill(0xFF);
    check(&jpeg, "65535 x 65535");
    let mut screen = file("gif");
    screen[6..10].fill(0xFF);
    check(&screen, "65535 x 65535");
    // A frame far out on a small screen.
    let mut offset = file("gif offset");
    let descriptor = offset.iter().rposition(|byte| *byte == b',').unwrap_or(0).min(13 + 48);
    assert_eq!(offset[descriptor], b',');
    offset[descriptor + 1..descriptor + 5].fill(0xFF);
    check(&offset, "65546 x 65544");
    for (height, text) in [([0xFF, 0xFF, 0xFF, 0x7F], "2147483647"), ([0, 0, 0, 0x80], "2147483648")] {
        for name in ["bmp 24", "bmp 8 palette", "bmp rle8", "bmp 32"] {
            let mut bmp = file(name);
            bmp[18..22].fill(0xFF);
            bmp[22..26].copy_from_slice(&height);
            check(&bmp, &format!("4294967295 x {text}"));
        }
    }
}

/// A JPEG with an EXIF block that holds an orientation.
fn turned_jpeg(orientation: u8) -> Vec<u8> {
    let exif =
        [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", &[orientation][..], b"\0\0\0\0\0\0"]
            .concat();
    let plain = file("jpeg 444");
    let len = (exif.len() as u16 + 2).to_be_bytes();
    [&plain[..2], &[0xFF, 0xE1], &len, &exif, &plain[2..]].concat()
}

#[test]
fn what_a_file_says_beside_its_pixels_is_found() {
    let facts = |file: &[u8]| inspect(file, MAX_PIXELS);
    for orientation in 1..=8 {
        let found = facts(&turned_jpeg(orientation));
        assert_eq!(found, Facts { largest_of_16_bits: None, is_turned: orientation != 1 }, "{orientation}");
    }
    assert_eq!(
        decode(&turned_jpeg(6), MAX_PIXELS),
        decode(&file("jpeg 444"), MAX_PIXELS),
        "and is not applied"
    );
    for (name, file, _) in golden() {
        assert_eq!(facts(&file), Facts::default(), "{name}");
    }
    let largest = |pixels: image::DynamicImage| facts(&encoded(pixels, ImageFormat::Png)).largest_of_16_bits;
    let values = |x: u32| [0u16, 4095, 300][x as usize];
    assert_eq!(
        largest(image::ImageBuffer::from_fn(3, 1, |x, _| image::Luma([values(x)])).into()),
        Some(4095)
    );
    assert_eq!(
        largest(image::ImageBuffer::from_fn(3, 1, |x, _| image::LumaA([values(x), 65535])).into()),
        Some(4095)
    );
    assert_eq!(
        largest(image::ImageBuffer::from_fn(3, 1, |x, _| image::Rgb([0, values(x), 1])).into()),
        Some(4095)
    );
    let rgba = image::ImageBuffer::from_fn(3, 1, |x, _| image::Rgba([1, 2, 5 * values(x), 65535]));
    assert_eq!(largest(rgba.into()), Some(5 * 4095));
}
