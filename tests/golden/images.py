"""Writes image files that crates/data/src/decode must read, and the pixels that Pillow reads from them.

    python tests/golden/images.py

writes tests/golden/images.safetensors: for every kind "<kind> file", the bytes, and "<kind> rgb", what
`Image.open(file).convert("RGB")` gives. Written with Pillow 13.0.0 (libjpeg-turbo 3.2.0).

Pillow writes few kinds of BMP and GIF and only well-formed JPEGs. The others are put together here, byte by byte, and it
is again Pillow that says what their pixels are; one that Pillow does not open ends the script.
"""

import io
import pathlib
import struct

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

y, x = np.mgrid[0:22, 0:27]
rgb = np.stack([x * 9, y * 11, 255 - 4 * (x + y)], axis=2).astype(np.uint8)
alpha = ((x * y) % 256).astype(np.uint8)
colour = Image.fromarray(rgb)
gray = colour.convert("L")
with_alpha = Image.fromarray(np.dstack([rgb, alpha]))
HEIGHT, WIDTH = gray.size[::-1]


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image, **options):
    return saved(image, "JPEG", quality=90, **options)


files = {
    "jpeg gray": jpeg(gray),
    "jpeg 444": jpeg(colour, subsampling="4:4:4"),
    "jpeg progressive": jpeg(colour, subsampling="4:4:4", progressive=True),
    "png gray": saved(gray, "PNG"),
    "png bilevel": saved(gray.convert("1"), "PNG"),
    "png palette": saved(colour.quantize(32), "PNG"),
    "png gray alpha": saved(Image.fromarray(np.dstack([np.asarray(gray), alpha])), "PNG"),
    "png rgba": saved(with_alpha, "PNG"),
    "png interlaced": saved(colour, "PNG", interlace=1),
    "webp lossless": saved(with_alpha, "WEBP", lossless=True, exact=True),
    "webp lossy": saved(colour, "WEBP", quality=95),
}

# JPEG: headers that libjpeg reads though no encoder should write them.


def segment(marker, payload):
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def split(file):
    """The segments up to the first scan as (marker, payload), and all that follows."""
    segments, at = [], 2
    while not segments or segments[-1][0] != 0xDA:
        marker, length = struct.unpack(">xBH", file[at : at + 4])
        segments.append((marker, file[at + 4 : at + 2 + length]))
        at += 2 + length
    return segments, file[at:]


def joined(segments, rest):
    return b"\xff\xd8" + b"".join(segment(*each) for each in segments) + rest


def before(file, marker, inserted):
    """`inserted` before the first such marker."""
    at = file.index(bytes([0xFF, marker]))
    return file[:at] + inserted + file[at:]


def edited(file, marker, change):
    segments, rest = split(file)
    return joined([(m, change(payload) if m == marker else payload) for m, payload in segments], rest)


def without(file, marker):
    segments, rest = split(file)
    return joined([each for each in segments if each[0] != marker], rest)


def adobe(transform):
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def named(file, names):
    """Other identifiers of the three components."""

    def frame(payload):
        return payload[:6] + b"".join(bytes([n]) + payload[7 + 3 * i : 9 + 3 * i] for i, n in enumerate(names))

    def scan(payload):
        return payload[:1] + b"".join(bytes([n, payload[2 + 2 * i]]) for i, n in enumerate(names)) + payload[7:]

    return edited(edited(file, 0xC0, frame), 0xDA, scan)


def words(payload):
    """A quantization table of 16 bits."""
    return b"".join(
        bytes([payload[at] | 0x10]) + b"".join(struct.pack(">H", value) for value in payload[at + 1 : at + 65])
        for at in range(0, len(payload), 65)
    )


def scan_by_scan(planes, factors):
    """A baseline file whose components have a scan each; those in the middle name the second table, which is the first."""
    parts = [split(jpeg(Image.fromarray(plane))) for plane in planes]
    frame = struct.pack(">BHHB", 8, HEIGHT, WIDTH, len(planes)) + b"".join(
        bytes([i + 1, factor, i in (1, 2)]) for i, factor in enumerate(factors)
    )
    header = [(m, payload) for m, payload in parts[0][0] if m in (0xE0, 0xDB, 0xC4)]
    header += [(m, b"\1" + payload[1:]) for m, payload in header if m == 0xDB]
    scans = b"".join(segment(0xDA, bytes([1, i + 1, 0, 0, 63, 0])) + rest[:-2] for i, (_, rest) in enumerate(parts))
    return joined([*header, (0xC0, frame)], scans + b"\xff\xd9")


plain, gray_file, scans = files["jpeg 444"], files["jpeg gray"], files["jpeg progressive"]
bare = without(plain, 0xE0)
cmyk = jpeg(Image.fromarray(np.dstack([rgb, 255 - alpha]), "CMYK"))
second_tables = scans.index(b"\xff\xc4", scans.index(b"\xff\xda"))
second_scan = scans.index(b"\xff\xda", second_tables)
ycc = np.asarray(colour.convert("YCbCr"))
half = np.asarray(colour.convert("YCbCr").resize(((WIDTH + 1) // 2, HEIGHT)))
files |= {
    "jpeg stray two": before(plain, 0xC4, b"\x12\x34"),
    "jpeg stray five": before(plain, 0xDA, b"\x12\x34\x56\x78\x9a"),
    "jpeg stray many": before(before(plain, 0xDB, b"\0" * 50), 0xC0, b"\x42" * 300),
    "jpeg stray stuffed": before(plain, 0xC4, b"\xff\x00\xff\x00"),
    "jpeg fill": before(plain, 0xC4, b"\xff" * 9),
    "jpeg stray between scans": scans[:second_scan] + b"\1\2\3\4\5" + scans[second_scan:],
    "jpeg fill between scans": scans[:second_scan] + b"\xff\xff\xff" + scans[second_scan:],
    "jpeg stray before its end": plain[:-2] + b"\0\0\0\xff\xff" + plain[-2:],
    "jpeg restart in header": before(plain, 0xC4, b"\xff\xd0"),
    "jpeg comment between scans": scans[:second_scan] + segment(0xFE, b"\xff\xd9 \xff\xda") + scans[second_scan:],
    "jpeg lines and conditioning": before(plain, 0xC4, segment(0xDC, b"\0\x16") + segment(0xCC, b"\0\x10")),
    "jpeg odd comments": before(plain, 0xC4, segment(0xFE, b"abc") + segment(0xFE, b"") + segment(0xE5, b"x")),
    "jpeg length zero": before(plain, 0xC4, b"\xff\xfe\0\0"),
    "jpeg length one": before(plain, 0xC4, b"\xff\xe1\0\1"),
    "jpeg short extended xmp": before(plain, 0xC4, segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0abc")),
    "jpeg thumbnail": before(plain, 0xDB, segment(0xE1, b"Exif\0\0" + before(gray_file, 0xC4, b"\1\2\3\4"))),
    "jpeg thumbnail and stray": before(before(plain, 0xC0, b"\1\2\3\4"), 0xDB, segment(0xE1, b"Exif\0\0" + gray_file)),
    "jpeg bytes behind": plain + b"behind \xff\xd8\xff\xe0 it",
    "jpeg 16-bit tables": edited(plain, 0xDB, words),
    "jpeg rgb": jpeg(colour, keep_rgb=True),
    "jpeg rgb by names": named(bare, b"RGB"),
    "jpeg named rgb with jfif": named(plain, b"RGB"),
    "jpeg named rgb with adobe": before(named(bare, b"RGB"), 0xDB, adobe(1)),
    "jpeg other names": named(bare, b"\5\7\11"),
    "jpeg adobe 0": before(bare, 0xDB, adobe(0)),
    "jpeg adobe 0 with jfif": before(plain, 0xDB, adobe(0)),
    "jpeg adobe 3": before(bare, 0xDB, adobe(3)),
    "jpeg gray adobe": before(gray_file, 0xDA, adobe(1)),
    "jpeg cmyk": cmyk,
    "jpeg cmyk bare": without(cmyk, 0xEE),
    "jpeg ycck": before(without(cmyk, 0xEE), 0xDB, adobe(2)),
    "jpeg ycck by adobe 1": before(without(cmyk, 0xEE), 0xC4, adobe(1)),
    "jpeg restart": jpeg(colour, subsampling="4:4:4", restart_marker_blocks=2),
    "jpeg 420": jpeg(colour, subsampling="4:2:0"),
    "jpeg scan by scan": scan_by_scan(np.moveaxis(ycc, 2, 0), [0x11] * 3),
    "jpeg scan by scan 422": scan_by_scan([ycc[..., 0], half[..., 1], half[..., 2]], [0x21, 0x11, 0x11]),
    "jpeg cmyk scan by scan": scan_by_scan([*np.moveaxis(ycc, 2, 0), alpha], [0x11] * 4),
    "jpeg cmyk sampled scan by scan": scan_by_scan(
        [ycc[..., 0], half[..., 1], half[..., 2], alpha], [0x21, 0x11, 0x11, 0x21]
    ),
    "jpeg standard tables": without(jpeg(colour, subsampling="4:4:4"), 0xC4),
}
for factors in (0x12, 0x21, 0x22, 0x31, 0x13, 0x33, 0x44):
    files[f"jpeg gray sampled {factors:02x}"] = edited(gray_file, 0xC0, lambda p: p[:7] + bytes([factors]) + p[8:])

# BMP


def bmp(bits, rows, *, palette=b"", coding=0, header=40, colours=None, masks=b"", top_down=False, offset=None, size=None):
    """`rows`: the pixels as they are stored."""
    width, height = size or (WIDTH, HEIGHT)
    if header == 12:
        fields = struct.pack("<HHHH", width, height, 1, bits)
    else:
        colours = len(palette) // 4 if colours is None else colours
        lines = -height if top_down else height
        fields = struct.pack("<iiHHIIiiII", width, lines, 1, bits, coding, len(rows), 2835, 2835, colours, 0)
    behind = masks if header == 40 else b""
    if header > 40:
        fields += masks
        fields += bytes(header - 4 - len(fields))
    start = 14 + header + len(behind) + len(palette)
    file_header = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start if offset is None else offset)
    return file_header + struct.pack("<I", header) + fields + behind + palette + rows


def stored(lines, top_down=False):
    """Rows in the order of the file, filled up to multiples of 4 bytes."""
    lines = [bytes(line) + bytes(-len(line) % 4) for line in lines]
    return b"".join(lines if top_down else lines[::-1])


def packed(indices, bits):
    """Indices of less than 8 bits, the first in the highest ones."""
    line = np.zeros((len(indices) * bits + 7) // 8, np.uint8)
    for place, index in enumerate(indices):
        line[place * bits // 8] |= index << (8 - bits - place * bits % 8)
    return line.tobytes()


def entries(n, padding=b"\0"):
    return b"".join(bytes([(i * 37) % 256, (i * 91 + 5) % 256, (255 - i * 13) % 256]) + padding for i in range(n))


def direct(values, kind, **options):
    return bmp(8 * np.dtype(kind).itemsize, stored([line.tobytes() for line in values.astype(kind)]), **options)


def masks(*values):
    return struct.pack(f"<{len(values)}I", *values)


def indexed(n, bits):
    return stored([packed(line, bits) for line in (x * 5 + y * 3) % n])


wide = [channel.astype(np.uint32) for channel in np.moveaxis(rgb, 2, 0)]
noise = (x * 2477 + y * 1913 + x * y * 61).astype(np.uint32)
r, g, b = wide
level = np.tile(np.arange(64, dtype=np.uint32), (2, 1))
files |= {
    "bmp 24": saved(colour, "BMP"),
    "bmp 24 top down": bmp(24, stored(rgb[..., ::-1].reshape(HEIGHT, -1), True), top_down=True),
    "bmp 24 core header": bmp(24, stored(rgb[..., ::-1].reshape(HEIGHT, -1)), header=12),
    "bmp 24 masks": bmp(24, stored(rgb[..., ::-1].reshape(HEIGHT, -1)), coding=3, masks=masks(0xFF0000, 0xFF00, 0xFF)),
    "bmp 24 no fill at the end": bmp(24, stored(rgb[..., ::-1].reshape(HEIGHT, -1))[:-3]),
    "bmp 8 gray": saved(gray, "BMP"),
    "bmp 8 palette": bmp(8, indexed(256, 8), palette=entries(256)),
    "bmp 8 short palette": bmp(8, indexed(200, 8), palette=entries(77)),
    "bmp 8 core header": bmp(8, indexed(256, 8), palette=entries(256, b""), header=12),
    "bmp 8 palette forgotten": bmp(8, indexed(256, 8), palette=entries(256), offset=14 + 40),
    "bmp 8 no offset": bmp(8, indexed(256, 8), palette=entries(256), colours=0, offset=0),
    "bmp 8 farther": bmp(8, b"\1\2\3\4\5\6" + indexed(256, 8), palette=entries(256), offset=14 + 40 + 1024 + 6),
    "bmp 8 v4": bmp(8, indexed(256, 8), palette=entries(256), header=108),
    "bmp 8 v5 top down": bmp(8, indexed(256, 8), palette=entries(256), header=124, top_down=True),
    "bmp 8 os2 v2": bmp(8, indexed(256, 8), palette=entries(256), header=64),
    "bmp 4": bmp(4, indexed(16, 4), palette=entries(16)),
    "bmp 4 short palette": bmp(4, indexed(16, 4), palette=entries(5)),
    "bmp 4 core header": bmp(4, indexed(16, 4), palette=entries(16, b""), header=12),
    "bmp 4 top down": bmp(4, indexed(16, 4), palette=entries(16), top_down=True),
    "bmp 1": bmp(1, indexed(2, 1), palette=entries(2)),
    "bmp 1 white is 0": bmp(1, indexed(2, 1), palette=b"\xff\xff\xff\0\0\0\0\0"),
    "bmp 1 saved": saved(gray.convert("1"), "BMP"),
    "bmp 1 core header": bmp(1, indexed(2, 1), palette=entries(2, b""), header=12),
    "bmp 16": direct(level % 32 << 10 | level // 2 << 5 | 31 - level % 32, "<u2", size=(64, 2)),
    "bmp 16 555": direct(noise, "<u2", coding=3, masks=masks(0x7C00, 0x3E0, 0x1F)),
    "bmp 16 565": direct(
        level % 32 << 11 | level << 5 | 31 - level % 32,
        "<u2",
        coding=3,
        masks=masks(0xF800, 0x7E0, 0x1F),
        size=(64, 2),
    ),
    "bmp 16 565 v4": direct(noise, "<u2", coding=3, masks=masks(0xF800, 0x7E0, 0x1F, 0), header=108),
    "bmp 16 1555 v3": direct(noise, "<u2", coding=3, masks=masks(0x7C00, 0x3E0, 0x1F, 0x8000), header=56),
    "bmp 32": direct(r << 16 | g << 8 | b | noise << 24, "<u4"),
    "bmp 32 saved": saved(with_alpha, "BMP"),
    "bmp 32 bgrx": direct(r << 16 | g << 8 | b | noise << 24, "<u4", coding=3, masks=masks(0xFF0000, 0xFF00, 0xFF)),
    "bmp 32 xbgr": direct(r << 24 | g << 16 | b << 8, "<u4", coding=3, masks=masks(0xFF000000, 0xFF0000, 0xFF00)),
    "bmp 32 bgxr": direct(r << 24 | g << 8 | b, "<u4", coding=3, masks=masks(0xFF000000, 0xFF00, 0xFF)),
    "bmp 32 bgra v4": direct(
        r << 16 | g << 8 | b | noise << 24, "<u4", coding=3, masks=masks(0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=108
    ),
    "bmp 32 rgba v5": direct(
        b << 16 | g << 8 | r | noise << 24, "<u4", coding=3, masks=masks(0xFF, 0xFF00, 0xFF0000, 0xFF000000), header=124
    ),
    "bmp 32 abgr v3": direct(
        r << 24 | g << 16 | b << 8 | alpha, "<u4", coding=3, masks=masks(0xFF000000, 0xFF0000, 0xFF00, 0xFF), header=56
    ),
    "bmp 32 v2": direct(r << 16 | g << 8 | b, "<u4", coding=3, masks=masks(0xFF0000, 0xFF00, 0xFF), header=52),
    "bmp 32 no masks": direct(r << 16 | g << 8 | b | noise << 24, "<u4", coding=3, masks=masks(0, 0, 0, 0), header=56),
}

LINE, BITMAP = b"\0\0", b"\0\1"


def run(n, pixel):
    return bytes([n, pixel])


def as_they_are(*pixels):
    return bytes([0, len(pixels), *pixels]) + bytes(len(pixels) % 2)


def nibbles(*pixels):
    data = packed(pixels, 4)
    return bytes([0, len(pixels)]) + data + bytes(len(data) % 2)


def delta(right, up):
    return bytes([0, 2, right, up])


plain_rows = b"".join(run(9, i) + as_they_are(*range(i, i + 7)) + run(11, 2 * i) + LINE for i in range(HEIGHT))
rle8 = {
    "": plain_rows + BITMAP,
    " without its end": plain_rows,
    " short rows": b"".join(run(1 + i, 7 + i) + LINE for i in range(HEIGHT)) + BITMAP,
    " delta": run(5, 9) + delta(3, 2) + run(4, 8) + delta(0, 3) + run(7, 6) + LINE + delta(255, 255),
    " delta in a row": b"".join(run(3, 9) + delta(5, 0) + run(19, i) + LINE for i in range(HEIGHT)),
    " too long a run": b"".join(run(20, i) + run(200, i + 1) + LINE for i in range(HEIGHT)) + BITMAP,
    " a run over the edge": run(20, 3) + as_they_are(*range(100, 120)) + LINE + plain_rows,
    " empty rows": run(27, 1) + LINE + LINE + LINE + plain_rows,
    " bytes behind": plain_rows + BITMAP + b"behind",
}
for name, code in rle8.items():
    files[f"bmp rle8{name}"] = bmp(8, code, palette=entries(256), coding=1)
four_rows = b"".join(run(9, 16 * (i % 16) + 5) + nibbles(*[(i + j) % 16 for j in range(7)]) + run(11, i) + LINE for i in range(HEIGHT))
rle4 = {
    "": four_rows + BITMAP,
    " odd runs": b"".join(
        nibbles(*[(i + j) % 16 for j in range(5)]) + nibbles(1, 2, 3) + run(3, 0x5A) + run(16, 0xC3) + LINE
        for i in range(HEIGHT)
    ),
    " delta": run(5, 0x9A) + delta(3, 2) + run(4, 0x81) + LINE + delta(0, 255),
    " short rows": b"".join(run(1 + i, 0x27) + LINE for i in range(HEIGHT)) + BITMAP,
}
for name, code in rle4.items():
    files[f"bmp rle4{name}"] = bmp(4, code, palette=entries(16), coding=2)
files |= {
    "bmp rle8 top down": bmp(8, plain_rows, palette=entries(256), coding=1, top_down=True),
    "bmp rle8 at an odd place": bmp(
        8,
        b"\0" + (run(27, 1) + LINE) * (HEIGHT - 1) + as_they_are(*range(26)) + b"\0" + run(1, 5),
        palette=entries(256),
        coding=1,
        offset=14 + 40 + 1024 + 1,
    ),
    "bmp rle8 short palette": bmp(8, plain_rows, palette=entries(20), coding=1),
    "bmp rle8 grays": bmp(8, plain_rows, palette=b"".join(bytes([i, i, i, 0]) for i in range(256)), coding=1),
}

# GIF


def lzw(indices, bits):
    """Codes without compression: a clear code so often that their length never grows."""
    size, clear = bits + 1, 1 << bits
    codes = []
    for place, index in enumerate(indices):
        if place % (clear - 2 or 1) == 0:
            codes.append(clear)
        codes.append(int(index))
    codes.append(clear + 1)
    number = sum(code << (size * place) for place, code in enumerate(codes))
    data = number.to_bytes((size * len(codes) + 7) // 8, "little")
    blocks = [data[at : at + 255] for at in range(0, len(data), 255)]
    return bytes([bits]) + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def frame(indices, bits, *, at=(0, 0), local=b"", interlaced=False, transparent=None, disposal=0):
    height, width = indices.shape
    if interlaced:
        order = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4), *range(1, height, 2)]
        indices = indices[order]
    flags = interlaced << 6 | (0x80 | (len(local) // 3).bit_length() - 2 if local else 0)
    control = bytes([disposal << 2 | (transparent is not None), 0, 0, transparent or 0])
    extension = b"" if transparent is None and not disposal else b"!\xf9\4" + control + b"\0"
    return extension + struct.pack("<cHHHHB", b",", *at, width, height, flags) + local + lzw(indices.ravel(), bits)


def gif(*frames, palette=b"", screen=(WIDTH, HEIGHT), background=0, version=b"89a", before=b""):
    flags = 0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0
    head = b"GIF" + version + struct.pack("<HHBBB", *screen, flags, background, 0)
    return head + palette + before + b"".join(frames) + b";"


colours_of_gif = entries(16, b"")
grays = bytes(i for level in range(16) for i in (level, level, level))
picture = (x * 5 + y * 3) % 16
small = picture[:9, :11]
two_frames = [colour.quantize(16), colour.transpose(Image.Transpose.FLIP_LEFT_RIGHT).quantize(16)]
files |= {
    "gif": saved(colour.quantize(64), "GIF"),
    "gif gray": saved(gray, "GIF"),
    "gif bilevel": saved(gray.convert("1"), "GIF"),
    "gif rgba": saved(with_alpha, "GIF"),
    "gif animated": saved(two_frames[0], "GIF", save_all=True, append_images=two_frames[1:]),
    "gif 256 colours": saved(Image.fromarray((x * 9 + y * 11).astype(np.uint8)), "GIF"),
    "gif interlaced": gif(frame(picture, 4, interlaced=True), palette=colours_of_gif),
    "gif 87a": gif(frame(picture, 4), palette=colours_of_gif, version=b"87a"),
    "gif interlaced small": gif(frame(picture[:3, :5], 4, interlaced=True), palette=colours_of_gif, screen=(5, 3)),
    "gif offset": gif(frame(small, 4, at=(6, 4)), palette=colours_of_gif),
    "gif offset background": gif(frame(small, 4, at=(6, 4)), palette=colours_of_gif, background=7),
    "gif offset transparent": gif(frame(small, 4, at=(6, 4), transparent=9), palette=colours_of_gif, background=3),
    "gif transparent": gif(frame(picture, 4, transparent=5), palette=colours_of_gif),
    "gif local palette": gif(frame(small, 4, at=(6, 4), local=entries(16, b"")[::-1]), palette=colours_of_gif),
    "gif local palette only": gif(frame(small, 4, at=(6, 4), local=colours_of_gif, transparent=2)),
    "gif local grays": gif(frame(small, 4, at=(6, 4), local=grays), palette=colours_of_gif),
    "gif no palette": gif(frame(small, 4, at=(6, 4))),
    "gif no palette transparent": gif(frame(small, 4, at=(6, 4), transparent=12)),
    "gif short palette": gif(frame(picture, 4), palette=entries(4, b"")),
    "gif short local palette": gif(frame(picture, 4, local=entries(2, b"")), palette=colours_of_gif),
    "gif transparent beyond palette": gif(frame(small, 4, at=(6, 4), transparent=200), palette=colours_of_gif),
    "gif beyond its screen": gif(frame(picture, 4, at=(3, 2)), palette=colours_of_gif, screen=(8, 5)),
    "gif no screen": gif(frame(picture, 4), palette=colours_of_gif, screen=(0, 0)),
    "gif disposals": gif(
        frame(small, 4, at=(6, 4), disposal=2), frame(small, 4, disposal=3), palette=colours_of_gif, background=7
    ),
    "gif blocks before": gif(
        frame(picture, 4), palette=colours_of_gif, before=b"!\xfe\3abc\0" + b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0" + b"!\x77\1a\0"
    ),
    "gif without its end": gif(frame(picture, 4), palette=colours_of_gif)[:-1],
    "gif bytes behind": gif(frame(picture, 4), palette=colours_of_gif) + b"behind",
}

tensors = {}
for name, file in files.items():
    tensors[f"{name} file"] = np.frombuffer(file, np.uint8).copy()
    try:
        tensors[f"{name} rgb"] = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).copy()
    except Exception as error:
        raise SystemExit(f"{name}: {error!r}")
save_file(tensors, pathlib.Path(__file__).with_suffix(".safetensors"))
