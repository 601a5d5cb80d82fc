"""Computes with torchvision what crates/data/src/augment/tests.rs expects of the augmentations.

    python tests/golden/augment.py

writes tests/golden/augment.safetensors: the input images, and for every case the resulting view. The name of a tensor is
the case itself: the steps applied to an image, separated by " | ", with every parameter given. Both sides read it.

Written with torch 2.15.0 and torchvision 0.29.2, on the CPU, in float32.
"""

import pathlib

import torch
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as F

CASES = """
crop small 0 0 32 32 32
crop small 0 0 32 32 32 flip
crop small 3 5 20 17 32
crop small 11 2 9 10 32 flip
crop small 30 30 1 2 32
crop small 0 0 32 32 28
crop small 4 1 27 31 24
crop large 0 0 71 53 32
crop large 10 8 31 40 32 flip
crop large 40 3 30 50 48
crop large 5 5 17 20 64
preprocess small 32
preprocess small 28
preprocess small 48
preprocess large 32
preprocess large 53
preprocess tall 32
preprocess tall 40
crop small 0 0 32 32 32 | brightness 0.35
crop small 0 0 32 32 32 | brightness 1.62
crop small 0 0 32 32 32 | contrast 0.2
crop small 0 0 32 32 32 | contrast 1.75
crop small 0 0 32 32 32 | saturation 0.0
crop small 0 0 32 32 32 | saturation 0.45
crop small 0 0 32 32 32 | saturation 1.8
crop small 0 0 32 32 32 | hue -0.5
crop small 0 0 32 32 32 | hue -0.13
crop small 0 0 32 32 32 | hue 0.0
crop small 0 0 32 32 32 | hue 0.04
crop small 0 0 32 32 32 | hue 0.2
crop small 0 0 32 32 32 | hue 0.5
crop small 0 0 32 32 32 | grayscale
crop small 0 0 32 32 32 | solarize
crop small 0 0 32 32 32 | solarize 0.0
crop small 0 0 32 32 32 | solarize 0.3
crop small 0 0 32 32 32 | posterize 4
crop small 0 0 32 32 32 | posterize 7
crop small 0 0 32 32 32 | posterize 8
crop small 0 0 32 32 32 | sharpness 0.1
crop small 0 0 32 32 32 | sharpness 1.0
crop small 0 0 32 32 32 | sharpness 1.9
crop large 10 8 31 40 48 | sharpness 0.7
crop small 0 0 32 32 32 | autocontrast
crop small 0 0 32 32 32 | posterize 4 | autocontrast
crop small 9 4 3 3 3 | autocontrast
crop small 9 4 2 2 2 | sharpness 0.5
crop small 0 0 32 32 32 | photometric 4 1.7 0.4
crop small 0 0 32 32 32 | photometric 6 0.4 0.7 | grayscale
crop small 0 0 32 32 32 | blur 3 0.1
crop small 0 0 32 32 32 | blur 3 0.7
crop small 0 0 32 32 32 | blur 7 2.0
crop small 0 0 32 32 32 | blur 23 1.3
crop small 0 0 32 32 32 | brightness 1.5 | contrast 0.6 | saturation 1.7 | hue 0.11
crop small 0 0 32 32 32 | hue -0.18 | saturation 0.4 | contrast 1.6 | brightness 0.7
crop small 0 0 32 32 32 | contrast 1.4 | hue 0.3 | brightness 1.3 | saturation 1.2
crop small 0 0 32 32 32 | saturation 1.6 | brightness 0.5 | hue -0.4 | contrast 0.3
crop large 10 8 31 40 32 flip | brightness 1.2 | contrast 0.8 | saturation 1.3 | hue 0.05 | grayscale
crop large 2 20 60 30 32 | hue 0.15 | contrast 1.3 | saturation 0.7 | brightness 0.9 | blur 3 1.1
crop large 22 0 49 53 64 flip | saturation 0.6 | hue -0.2 | contrast 1.5 | brightness 1.4 | blur 7 0.6 | solarize
crop tall 1 20 28 30 32 | grayscale | contrast 1.3 | brightness 0.8 | hue 0.2 | saturation 0.9 | normalize
preprocess large 32 | normalize
crop large 7 3 60 48 33 | patch 13 1 8
crop small 2 0 28 31 33 | patch 22 24 8 flip | hue 0.15 | contrast 1.3 | saturation 0.7 | brightness 0.9
crop tall 1 9 27 50 255 | patch 21 181 64 flip | grayscale
"""


def photo(height, width, seed):
    """A smooth colourful image with noise, and flat patches where the hue is undefined or a channel is at its limit."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0]
    image = (smooth * 1.3 - 0.15 + 0.05 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)
    image = (image * 255).round().to(torch.uint8)
    patches = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    for i, colour in enumerate(patches):
        image[:, 4 : 8, 4 * i : 4 * i + 3] = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)
    return image


def preprocess(image, size):
    if image.shape[-2:] == (size, size):
        return image
    image = F.resize(image, [size], interpolation=F.InterpolationMode.BILINEAR, antialias=True)
    return F.center_crop(image, [size, size])


def apply(image, step):
    name, *arguments = step.split()
    match name:
        case "brightness":
            return F.adjust_brightness(image, float(arguments[0]))
        case "contrast":
            return F.adjust_contrast(image, float(arguments[0]))
        case "saturation":
            return F.adjust_saturation(image, float(arguments[0]))
        case "hue":
            return F.adjust_hue(image, float(arguments[0]))
        case "grayscale":
            return F.rgb_to_grayscale(image, num_output_channels=3)
        case "solarize":
            return F.solarize(image, float(arguments[0]) if arguments else 0.5)
        case "posterize":
            return F.posterize(image, int(arguments[0]))
        case "sharpness":
            return F.adjust_sharpness(image, float(arguments[0]))
        case "autocontrast":
            return F.autocontrast(image)
        case "photometric":
            # The order of VISSL's ImgPilRandomPhotometric.
            image = F.adjust_sharpness(F.posterize(image, int(arguments[0])), float(arguments[1]))
            return F.autocontrast(F.solarize(image, float(arguments[2])))
        case "blur":
            return F.gaussian_blur(image, [int(arguments[0])] * 2, [float(arguments[1])] * 2)
        case "patch":
            left, top, size = map(int, arguments[:3])
            image = F.crop(image, top, left, size, size)
            return F.horizontal_flip(image) if arguments[3:] == ["flip"] else image
        case "normalize":
            return F.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    raise ValueError(step)


def run(case, images):
    first, *steps = case.split(" | ")
    name, source, *arguments = first.split()
    image = F.to_dtype(images[source], torch.float32, scale=True)
    if name == "crop":
        left, top, width, height, size = map(int, arguments[:5])
        image = F.resized_crop(image, top, left, height, width, [size, size], F.InterpolationMode.BILINEAR, True)
        if arguments[5:] == ["flip"]:
            image = F.horizontal_flip(image)
    else:
        image = preprocess(image, int(arguments[0]))
    for step in steps:
        image = apply(image, step)
    return image


images = {"small": photo(32, 32, 1), "large": photo(53, 71, 2), "tall": photo(67, 30, 3)}
tensors = {f"image {name}": image.permute(1, 2, 0).contiguous() for name, image in images.items()}
for case in CASES.strip().splitlines():
    tensors[case] = run(case, images).contiguous()
save_file(tensors, pathlib.Path(__file__).with_suffix(".safetensors"))
