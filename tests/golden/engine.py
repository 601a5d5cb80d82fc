"""Computes with PyTorch what crates/engine/tests/golden.rs expects of the engine.

    python tests/golden/engine.py

writes tests/golden/engine.safetensors. The nets are torchvision's (for the small one its blocks), the optimizers
PyTorch's, LARS a dozen lines below. Inputs and first weights are not stored: both sides draw them from `noise`.
Of every tensor the file keeps its norm, four projections and some elements (`digest`), which would show any error at a
thousandth of the size.

Written with torch 2.15.0 and torchvision 0.29.2, in float64. The float32 runs beside them measure how far rounding alone
carries each result; the engine's float32 is held to a small multiple of that.
"""

import json
import pathlib

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock

STEPS = 10
PROJECTIONS, SAMPLES = 4, 12
GOLDEN_RATIO = 0x9E3779B97F4A7C15


def noise(name, shape):
    """Numbers in [-1, 1): SplitMix64 from a key that is the name's FNV-1a hash."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) % 2**64
    x = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(GOLDEN_RATIO) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def digest(tensor):
    flat = tensor.detach().double().flatten()
    projections = [flat @ noise(f"projection/{k}", flat.shape) for k in range(PROJECTIONS)]
    samples = flat[[i * len(flat) // SAMPLES for i in range(SAMPLES)]]
    return torch.cat([flat.norm()[None], torch.stack(projections), samples])


def digests(tensors):
    return torch.stack([digest(tensor) for tensor in tensors])


class Small(nn.Module):
    """He's ResNet-20 for 32x32 images, of torchvision's blocks."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        width = 16
        for stage in range(3):
            blocks = []
            for block in range(3):
                out, stride = 16 << stage, 2 if stage > 0 and block == 0 else 1
                downsample = None
                if stride != 1 or width != out:
                    downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
                blocks.append(BasicBlock(width, out, stride, downsample))
                width = out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))


def torchvision_net(arch, stem):
    net = getattr(torchvision.models, arch)()
    if stem == "cifar":
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    return net


class ScaleOnlyBatchNorm(nn.BatchNorm1d):
    """The last norm of a SimCLR head: a scale but no shift."""

    def __init__(self, width):
        super().__init__(width)
        self.bias = None


def hidden_layer(width, hidden):
    return nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()


def predictor_of(case):
    """facebookresearch/moco-v3's of residual nets: no bias, no norm behind the last layer."""
    out = int(case["head"].split("-")[-1])
    return nn.Sequential(*hidden_layer(out, case["predictor"]), nn.Linear(case["predictor"], out, bias=False))


class JigsawHead(nn.Sequential):
    """PIRL's head of nine patches: a layer over each, and one over the nine of an image side by side."""

    def __init__(self, width, out):
        super().__init__(nn.Linear(width, out), nn.Linear(9 * out, out))

    def forward(self, patches):
        return self[1](self[0](patches).unflatten(0, (-1, 9)).flatten(1))


def head_of(name, width):
    if name.startswith("simclr"):
        layers = {"simclr-v1": 1, "simclr-v2": 2}[name]
        hidden = [module for _ in range(layers) for module in hidden_layer(width, width)]
        return nn.Sequential(*hidden, nn.Linear(width, 128, bias=False), ScaleOnlyBatchNorm(128))
    if name.startswith("moco-v3"):
        hidden, out = map(int, name.split("-")[2:])
        last = nn.BatchNorm1d(out, affine=False)
        return nn.Sequential(*hidden_layer(width, hidden), nn.Linear(hidden, out, bias=False), last)
    kind, *widths = name.split("-")
    if kind == "jigsaw":
        return JigsawHead(width, int(widths[0]))
    if kind == "mlp":
        hidden, out = map(int, widths)
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
    return nn.Sequential(nn.Linear(width, int(widths[0])))


def head_name(case):
    return "jigsaw_head" if case["head"].startswith("jigsaw") else "head"


def build(case):
    backbone = Small() if case["arch"] == "resnet20" else torchvision_net(case["arch"], case["stem"])
    width = {"resnet20": 64, "resnet18": 512, "resnet34": 512, "resnet50": 2048}[case["arch"]]
    net = nn.ModuleDict({"backbone": backbone, head_name(case): head_of(case["head"], width)}).double()
    if "predictor" in case:
        net["predictor"] = predictor_of(case).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            drawn = noise(name, parameter.shape)
            if name.endswith(("bn2.weight", "bn3.weight")):
                # Short residual branches keep a deep random net well conditioned.
                drawn = 0.3 + 0.15 * drawn
            elif parameter.dim() > 1:
                drawn *= (6.0 / parameter[0].numel()) ** 0.5
            elif name.endswith("weight"):
                drawn = 1.0 + 0.5 * drawn
            else:
                drawn *= 0.2
            parameter.copy_(drawn)
    return net


def forward(net, case, step):
    dtype = net["backbone"].conv1.weight.dtype
    images = noise(f"images/{step}", (case["rows"], case["size"], case["size"], 3)).to(dtype)
    features = net["backbone"](images.permute(0, 3, 1, 2))
    embeddings = net[head_name(case)](features)
    return features, net["predictor"](embeddings) if "predictor" in net else embeddings


def backward(embeddings, step):
    embeddings.backward(noise(f"d_embeddings/{step}", embeddings.shape).to(embeddings.dtype))


class Lars(torch.optim.Optimizer):
    """google-research/simclr's: the rate inside the momentum, ratios after the decay, only weights are adapted."""

    def __init__(self, groups, lr, momentum, eta):
        super().__init__(groups, dict(lr=lr, momentum=momentum, eta=eta, weight_decay=0.0))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                g = w.grad + group["weight_decay"] * w
                trust = 1.0
                if w.dim() > 1 and w.norm() > 0 and g.norm() > 0:
                    trust = group["eta"] * w.norm() / g.norm()
                v = self.state[w].setdefault("v", torch.zeros_like(w))
                v.mul_(group["momentum"]).add_(group["lr"] * trust * g)
                w.sub_(v)


def optimizer_of(kind, net):
    groups = [
        {"params": [w for w in net.parameters() if w.dim() > 1], "weight_decay": 0.01},
        {"params": [w for w in net.parameters() if w.dim() == 1], "weight_decay": 0.0},
    ]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0002, momentum=0.9)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.001, betas=(0.9, 0.999), eps=1e-8)
    return Lars(groups, lr=0.0001, momentum=0.9, eta=0.5)


def train(net, case, kind):
    optimizer = optimizer_of(kind, net)
    base = optimizer.param_groups[0]["lr"]
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = base * (1.0 - step / 20.0)
        optimizer.zero_grad()
        backward(forward(net, case, step)[1], step)
        optimizer.step()


def worst(tensors, references):
    """The largest relative error of a tensor, in the Euclidean norm."""
    pairs = zip(tensors, references)
    return max(float((a.detach().double() - b.detach()).norm() / b.detach().norm()) for a, b in pairs)


def one_pass(case, dtype):
    net = build(case).to(dtype)
    features, embeddings = forward(net, case, 0)
    backward(embeddings, 0)
    return net, features.detach(), embeddings.detach(), [w.grad for w in net.parameters()]


def running_statistics(net):
    return [b for name, b in net.named_buffers() if not name.endswith("num_batches_tracked")]


CASES = [
    dict(arch="resnet20", stem="cifar", head="mlp-24-16", size=16, rows=6, optimizers=["sgd", "lars", "adamw"]),
    dict(arch="resnet20", stem="cifar", head="simclr-v1", size=8, rows=8, optimizers=["sgd", "lars", "adamw"]),
    dict(arch="resnet18", stem="imagenet", head="linear-8", size=48, rows=3, optimizers=[]),
    dict(arch="resnet34", stem="cifar", head="linear-8", size=9, rows=3, optimizers=[]),
    dict(arch="resnet50", stem="imagenet", head="linear-8", size=40, rows=4, optimizers=[]),
    dict(arch="resnet20", stem="cifar", head="moco-v3-20-8", predictor=12, size=8, rows=8, optimizers=["sgd"]),
    dict(arch="resnet20", stem="cifar", head="simclr-v2", size=8, rows=16, optimizers=["lars"]),
    dict(arch="resnet20", stem="cifar", head="jigsaw-7", size=6, rows=27, optimizers=[]),
]


def main():
    tensors = {}
    for index, case in enumerate(CASES):
        net, features, embeddings, gradients = one_pass(case, torch.float64)
        case["parameters"] = [[name, list(w.shape)] for name, w in net.named_parameters()]
        case["buffers"] = [name for name, _ in net.named_buffers() if not name.endswith("num_batches_tracked")]
        tensors[f"{index}/features"] = digest(features)
        tensors[f"{index}/embeddings"] = embeddings
        tensors[f"{index}/gradients"] = digests(gradients)
        tensors[f"{index}/running"] = digests(running_statistics(net))
        single = one_pass(case, torch.float32)
        case["f32_error"] = {
            "embeddings": worst([single[2]], [embeddings]),
            "gradients": worst(single[3], gradients),
        }
        for kind in case["optimizers"]:
            net, single = build(case), build(case).float()
            train(net, case, kind)
            train(single, case, kind)
            tensors[f"{index}/{kind}/parameters"] = digests(net.parameters())
            tensors[f"{index}/{kind}/running"] = digests(running_statistics(net))
            case["f32_error"][kind] = worst(single.parameters(), list(net.parameters()))
        net.eval()
        with torch.no_grad():
            tensors[f"{index}/evaluated"] = digest(forward(net, case, 1)[1])
        print(case["arch"], case["head"], case["f32_error"])
    path = pathlib.Path(__file__).parent / "engine.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"cases": json.dumps(CASES)})
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
