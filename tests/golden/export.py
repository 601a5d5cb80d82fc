"""Writes with PyTorch what tests/export.rs expects of an exported vision transformer.

    python tests/golden/export.py

writes tests/golden/export.safetensors: the state dict of tests/golden/vit.py's net, whose names are timm's, with MoCo v3's
heads; images; and the features that the net gives of them, prepared as `himpun embed` prepares them.

Written with torch 2.15.0: float32 weights, features computed in float64.
"""

import pathlib

import torch
from safetensors.torch import save_file
from vit import build, forward

# Kept in step with tests/export.rs.
CASE = dict(arch="vit-16-2-4", patch=4, freeze_patch=True, head="moco-v3-vit-12-6", predictor=12, size=8, rows=16)
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]


def main():
    net = build(CASE).float()
    # A pass in training mode, so that batch norm's statistics are not its first ones.
    forward(net, CASE, 0)
    state = {name: value.detach() for name, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(20261128)
    images = torch.randint(0, 256, (CASE["rows"], CASE["size"], CASE["size"], 3), generator=generator, dtype=torch.uint8)

    def features(dtype):
        pixels = (images.to(dtype) / 255 - torch.tensor(MEAN, dtype=dtype)) / torch.tensor(STD, dtype=dtype)
        return net["backbone"].to(dtype)(pixels.permute(0, 3, 1, 2)).detach()

    rounded, exact = features(torch.float32), features(torch.float64)
    print("f32", float((rounded.double() - exact).norm() / exact.norm()))
    golden = {f"state.{name}": value.clone() for name, value in state.items()}
    golden |= {"images": images, "features": exact.float()}
    path = pathlib.Path(__file__).parent / "export.safetensors"
    save_file({name: value.contiguous() for name, value in golden.items()}, path)
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
