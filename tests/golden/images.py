"""Writes with Pillow the image files that crates/data/src/decode.rs must read, and the pixels that Pillow reads from them.

    python tests/golden/images.py

writes tests/golden/images.safetensors: for every kind "<kind> file", the bytes, and "<kind> rgb", what
`Image.open(file).convert("RGB")` gives. Written with Pillow 13.0.0.
"""

import io
import pathlib

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

y, x = np.mgrid[0:22, 0:27]
rgb = np.stack([x * 9, y * 11, 255 - 4 * (x + y)], axis=2).astype(np.uint8)
alpha = ((x * y) % 256).astype(np.uint8)
colour = Image.fromarray(rgb)
gray = colour.convert("L")
with_alpha = Image.fromarray(np.dstack([rgb, alpha]))

FILES = {
    "jpeg gray": (gray, "JPEG", {"quality": 90}),
    "jpeg 444": (colour, "JPEG", {"quality": 90, "subsampling": "4:4:4"}),
    "jpeg progressive": (colour, "JPEG", {"quality": 90, "subsampling": "4:4:4", "progressive": True}),
    "png gray": (gray, "PNG", {}),
    "png bilevel": (gray.convert("1"), "PNG", {}),
    "png palette": (colour.quantize(32), "PNG", {}),
    "png gray alpha": (Image.fromarray(np.dstack([np.asarray(gray), alpha])), "PNG", {}),
    "png rgba": (with_alpha, "PNG", {}),
    "png interlaced": (colour, "PNG", {"interlace": 1}),
    "webp lossless": (with_alpha, "WEBP", {"lossless": True, "exact": True}),
    "webp lossy": (colour, "WEBP", {"quality": 95}),
}

tensors = {}
for name, (image, kind, options) in FILES.items():
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    tensors[f"{name} file"] = np.frombuffer(buffer.getvalue(), np.uint8).copy()
    tensors[f"{name} rgb"] = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")).copy()
save_file(tensors, pathlib.Path(__file__).with_suffix(".safetensors"))
