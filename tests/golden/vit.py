"""Computes with PyTorch what crates/engine/tests/vit.rs expects of vision transformers.

    python tests/golden/vit.py

writes tests/golden/vit.safetensors. The net is a short one of PyTorch's own modules under timm's names: a convolution,
layer norms, linear layers, `scaled_dot_product_attention` and `GELU`. MoCo v3's projector and predictor are as
facebookresearch/moco-v3 builds them for vision transformers, and positions are made by its formula. Inputs and weights
are not stored: both sides draw them from `noise`, but for what is fixed.

Written with torch 2.15.0, in float64. The float32 runs beside them say how far rounding carries PyTorch's own results.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F
from engine import digests, noise
from safetensors.torch import save_file
from torch import nn

STEPS = 10


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def positions_of(side, width):
    """The numbers of MoCo v3's embedding: a quarter of the width each for sine and cosine of either coordinate, the row
    first; the class token has zeros."""
    rates = [10000.0 ** -(i / (width // 4)) for i in range(width // 4)]
    rows = [[0.0] * width]
    for row in range(side):
        for column in range(side):
            of = [[f(place * rate) for rate in rates] for place in (row, column) for f in (math.sin, math.cos)]
            rows.append(sum(of, []))
    return torch.tensor([rows], dtype=torch.float64)


class VisionTransformer(nn.Module):
    def __init__(self, size, patch, width, depth, heads):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width), requires_grad=False)
        self.patch_embed = PatchEmbed(width, patch)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def mlp(layers, width, hidden, out):
    """facebookresearch/moco-v3's, with its last norm."""
    modules = []
    for layer in range(layers - 1):
        modules += [nn.Linear(hidden if layer else width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(hidden, out, bias=False), nn.BatchNorm1d(out, affine=False))


def build(case):
    width, depth, heads = map(int, case["arch"].split("-")[1:])
    backbone = VisionTransformer(case["size"], case["patch"], width, depth, heads)
    widths = [int(part) for part in case["head"].split("-") if part.isdigit()]
    if case["head"].startswith("moco-v3-vit"):
        net = {"backbone": backbone, "head": mlp(3, width, *widths), "predictor": mlp(2, widths[1], case["predictor"], widths[1])}
    else:
        net = {"backbone": backbone, "head": nn.Sequential(nn.Linear(width, widths[0]))}
    net = nn.ModuleDict(net).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            drawn = noise(name, parameter.shape)
            if parameter.dim() > 1 and name.endswith("weight"):
                drawn *= (6.0 / parameter[0].numel()) ** 0.5
            elif name.endswith("weight"):
                drawn = 1.0 + 0.5 * drawn
            else:
                drawn *= 0.2
            parameter.copy_(drawn)
        backbone.pos_embed.copy_(positions_of(case["size"] // case["patch"], width))
    if case["freeze_patch"]:
        for parameter in backbone.patch_embed.parameters():
            parameter.requires_grad = False
    return net


def forward(net, case, step):
    dtype = net["backbone"].cls_token.dtype
    images = noise(f"images/{step}", (case["rows"], case["size"], case["size"], 3)).to(dtype)
    features = net["backbone"](images.permute(0, 3, 1, 2))
    embeddings = net["head"](features)
    return features, net["predictor"](embeddings) if "predictor" in net else embeddings


def backward(embeddings, step):
    embeddings.backward(noise(f"d_embeddings/{step}", embeddings.shape).to(embeddings.dtype))


def train(net, case):
    """AdamW, the decay of facebookresearch/moco-v3: of all that is trained, biases and norms too."""
    optimizer = torch.optim.AdamW([w for w in net.parameters() if w.requires_grad], lr=0.001, weight_decay=0.1, eps=1e-4)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(forward(net, case, step)[1], step)
        optimizer.step()


CASES = [
    dict(arch="vit-24-2-3", patch=4, freeze_patch=False, head="linear-5", size=12, rows=3, train=True),
    dict(arch="vit-8-1-2", patch=5, freeze_patch=False, head="linear-3", size=15, rows=1, train=False),
    dict(arch="vit-16-2-4", patch=4, freeze_patch=True, head="moco-v3-vit-12-6", predictor=10, size=8, rows=7, train=True),
]


def gradient(w):
    return torch.zeros_like(w) if w.grad is None else w.grad


def error(a, b):
    return float((a.detach().double() - b).norm() / b.norm())


def main():
    tensors = {}
    for index, case in enumerate(CASES):
        net = build(case)
        features, embeddings = forward(net, case, 0)
        backward(embeddings, 0)
        case["parameters"] = [[name, list(w.shape)] for name, w in net.named_parameters()]
        tensors[f"{index}/features"] = features.detach()
        tensors[f"{index}/embeddings"] = embeddings.detach()
        gradients = torch.cat([gradient(w).flatten() for w in net.parameters()])
        tensors[f"{index}/gradients"] = gradients
        single = build(case).float()
        embeddings_f32 = forward(single, case, 0)[1]
        backward(embeddings_f32, 0)
        gradients_f32 = torch.cat([gradient(w).flatten() for w in single.parameters()])
        print(case["arch"], "f32", error(embeddings_f32, embeddings.detach()), error(gradients_f32, gradients))
        if case["train"]:
            net = build(case)
            train(net, case)
            tensors[f"{index}/trained"] = digests(net.parameters())
    path = pathlib.Path(__file__).parent / "vit.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"cases": json.dumps(CASES)})
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
