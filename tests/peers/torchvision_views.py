"""SimCLR views in torchvision on one thread: 32 px from pixels in memory, 224 px with blur from JPEG files.

pip install torch torchvision, then: python torchvision_views.py --photos imagenette-val.tar

Prints one JSON line per pipeline: name, size, views_per_s, images_per_s. Each figure is the median of the rounds;
the rounds of all pipelines take turns, so that a change of the machine's speed meets all of them. Every pipeline is
what himpun's presets simclr-cifar (32 px) and simclr-imagenet (224 px) do, and ends in normalised f32.
"""

import argparse
import io
import json
import random
import statistics
import tarfile
import time

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image, ImageFilter
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

MEAN = STD = (0.5, 0.5, 0.5)


class PillowBlur:
    """MoCo's: the standard deviation of SimCLR's blur, by Pillow's approximation with boxes."""

    def __call__(self, image):
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def recipe(t, size, blur, end):
    """The operations of a view, of the module `t` (v1 or v2)."""
    strengths = (0.4, 0.4, 0.4, 0.1) if size == 32 else (0.8, 0.8, 0.8, 0.2)
    ops = [
        t.RandomResizedCrop(size),
        t.RandomHorizontalFlip(),
        t.RandomApply([t.ColorJitter(*strengths)], p=0.8),
        t.RandomGrayscale(0.2),
    ]
    if blur is not None:
        ops.append(t.RandomApply([blur], p=0.5))
    return t.Compose(ops + end)


def v1(size, blur=None):
    return recipe(T, size, blur, [T.ToTensor(), T.Normalize(MEAN, STD)])


def of_pil(size, blur=None):
    return recipe(v2, size, blur, [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def of_bytes(size, blur=None):
    return recipe(v2, size, blur, [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def of_floats(size, blur=None):
    pipeline = recipe(v2, size, blur, [v2.Normalize(MEAN, STD)])
    to_float = v2.ToDtype(torch.float32, scale=True)
    return lambda image: pipeline(to_float(image))


def photos(path, n):
    with tarfile.open(path) as tar:
        members = sorted((m for m in tar if m.name.lower().endswith((".jpg", ".jpeg"))), key=lambda m: m.name)
        return [tar.extractfile(m).read() for m in members[:: max(1, len(members) // n)][:n]]


def pil(file):
    return Image.open(io.BytesIO(file)).convert("RGB")


def planes(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def from_file(decode, view):
    def both(file):
        image = decode(file)
        return view(image), view(image)

    return both


def pipelines(size, files):
    """Name to (function of an item, items)."""
    if size == 32:
        small = [pil(file).resize((32, 32), Image.BILINEAR) for file in files]
        tensors = [planes(image) for image in small]
        same = lambda image: image
        return {
            "v1, PIL": (from_file(same, v1(32)), small),
            "v2, PIL": (from_file(same, of_pil(32)), small),
            "v2, uint8 tensor": (from_file(same, of_bytes(32)), tensors),
            "v2, float tensor": (from_file(same, of_floats(32)), tensors),
        }
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    decode = lambda file: decode_jpeg(file, mode=torch_rgb())
    tv1, tv2 = T.GaussianBlur(23, (0.1, 2.0)), v2.GaussianBlur(23, (0.1, 2.0))
    to_pil = lambda file: T.functional.to_pil_image(decode(file))
    return {
        "PIL decode, v1, GaussianBlur(23)": (from_file(pil, v1(224, tv1)), files),
        "PIL decode, v1, PIL blur": (from_file(pil, v1(224, PillowBlur())), files),
        "PIL decode, v2 uint8 tensor, GaussianBlur(23)": (
            from_file(lambda file: planes(pil(file)), of_bytes(224, tv2)),
            files,
        ),
        "torchvision.io, v2 uint8 tensor, GaussianBlur(23)": (from_file(decode, of_bytes(224, tv2)), tensors),
        "torchvision.io, v2 float tensor, GaussianBlur(23)": (from_file(decode, of_floats(224, tv2)), tensors),
        "torchvision.io, to PIL, v1, PIL blur": (from_file(to_pil, v1(224, PillowBlur())), tensors),
        "PIL decode alone": (pil_load, files),
        "torchvision.io decode alone": (decode, tensors),
    }


def pil_load(file):
    pil(file).load()


def torch_rgb():
    from torchvision.io import ImageReadMode

    return ImageReadMode.RGB


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="a tar of JPEG files")
    parser.add_argument("--size", type=int, choices=(32, 224), action="append", help="both, unless given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="length of a pipeline's round")
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    files = photos(arguments.photos, arguments.images)
    for size in arguments.size or (32, 224):
        runs = pipelines(size, files)
        rates = {name: [] for name in runs}
        for round_ in range(-1, arguments.rounds):
            for name, (function, items) in runs.items():
                begun, n = time.perf_counter(), 0
                while time.perf_counter() - begun < arguments.seconds:
                    function(items[n % len(items)])
                    n += 1
                if round_ >= 0:
                    rates[name].append(n / (time.perf_counter() - begun))
        for name, rates in rates.items():
            images_per_s = statistics.median(rates)
            views = 0 if name.endswith("alone") else 2
            line = {"name": name, "size": size, "views_per_s": views * images_per_s, "images_per_s": images_per_s}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
