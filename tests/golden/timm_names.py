"""Writes with timm what tests/export.rs expects of ResNets under timm's names.

    python tests/golden/timm_names.py

writes tests/golden/timm_names.json: of ResNet-18, ResNet-34 and ResNet-50 the names, types and shapes of timm's state dict
without its classifier. They have to be torchvision's, and a net of timm that takes torchvision's weights under those names
has to give the same features; both are asserted here, so that one exported file serves both. timm has no ResNet-20.

Written with torch 2.15.0, torchvision 0.29.2 and timm 1.0.31.
"""

import json
import pathlib

import timm
import torch
import torchvision

ARCHS = ("resnet18", "resnet34", "resnet50")


def form(state):
    return [[name, str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in state.items()]


def main():
    torch.manual_seed(20261201)
    images = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    golden = {}
    for arch in ARCHS:
        theirs = timm.create_model(arch, pretrained=False, num_classes=0).double().eval()
        torchvisions = torchvision.models.get_model(arch, weights=None).double().eval()
        torchvisions.fc = torch.nn.Identity()
        golden[arch] = sorted(form(timm.create_model(arch, pretrained=False, num_classes=0).state_dict()))
        # The types of the nets as they are built, before `double`.
        assert golden[arch] == sorted(form(torchvisions.float().state_dict())), arch
        torchvisions.double()
        theirs.load_state_dict(torchvisions.state_dict(), strict=True)
        with torch.no_grad():
            difference = (theirs(images) - torchvisions(images)).abs().max()
        assert difference < 1e-12, (arch, difference)
        print(arch, len(golden[arch]), "tensors; features differ by", float(difference))
    path = pathlib.Path(__file__).with_suffix(".json")
    lines = (f'  "{arch}": [\n    ' + ",\n    ".join(map(json.dumps, tensors)) + "\n  ]" for arch, tensors in golden.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
