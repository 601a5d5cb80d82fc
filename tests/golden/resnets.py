"""Writes with torchvision what tests/export.rs expects of exported ResNets.

    python tests/golden/resnets.py

writes tests/golden/resnets.safetensors: images, and of ResNet-18 and ResNet-50 the names, types and shapes of torchvision's
state dict without its classifier (as JSON), and the features that it gives of the images in evaluation mode. Weights and
running statistics are drawn by `noise` of their names, so that no file has to hold them.

Written with torch 2.15.0 and torchvision 0.29.2: features computed in float64 from weights rounded to float32.
"""

import json
import pathlib

import torch
import torchvision
from engine import noise
from safetensors.torch import save_file

# Kept in step with tests/export.rs.
ARCHS, SIZE, IMAGES = ("resnet18", "resnet50"), 32, 8
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]


def drawn(name, value):
    """Scales at which activations keep their size from layer to layer."""
    if value.dtype == torch.int64:
        return torch.full_like(value, 3)
    numbers = noise(name, value.shape)
    if value.dim() > 1:
        return (6.0 / value[0].numel()) ** 0.5 * numbers
    return {"weight": 1.0 + 0.5 * numbers, "running_var": 1.0 + 0.5 * numbers}.get(name.rsplit(".")[-1], 0.2 * numbers)


def main():
    generator = torch.Generator().manual_seed(20261129)
    images = torch.randint(0, 256, (IMAGES, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    pixels = (images.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    golden = {"images": images}
    for arch in ARCHS:
        net = torchvision.models.get_model(arch, weights=None)
        net.fc = torch.nn.Identity()
        state = net.state_dict()
        net.load_state_dict({name: drawn(name, value).to(value.dtype) for name, value in state.items()})
        with torch.no_grad():
            features = net.double().eval()(pixels.permute(0, 3, 1, 2))
        print(arch, "largest feature", float(features.abs().max()))
        form = [[name, str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in state.items()]
        golden[f"{arch}.form"] = torch.tensor(list(json.dumps(form).encode()), dtype=torch.uint8)
        golden[f"{arch}.features"] = features.float()
    path = pathlib.Path(__file__).with_suffix(".safetensors")
    save_file({name: value.contiguous() for name, value in golden.items()}, path)
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
