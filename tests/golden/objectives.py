"""Computes with PyTorch what crates/objectives/tests/nt_xent.rs expects of NT-Xent.

    python tests/golden/objectives.py

writes tests/golden/objectives.safetensors: per case `<case>/z`, the loss, `dL/du` and `dL/dz`, all float64. The loss is
the dense textbook one: the whole similarity matrix, its diagonal masked, and PyTorch's cross entropy against the index
of the other view; the gradients are autograd's. One row of the last case is shorter than the 1e-12 of `normalize`.

Written with torch 2.15.0.
"""

import pathlib

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, normalize

# name, images, width, temperature
CASES = [
    ("cifar", 8, 16, 0.5),
    ("imagenet", 33, 20, 0.1),
    ("sharp", 20, 7, 0.02),
    ("short_row", 5, 6, 0.2),
]


def nt_xent(u, temperature):
    """Rows are [view][image]."""
    m = len(u)
    logits = (u @ u.T / temperature).masked_fill(torch.eye(m, dtype=torch.bool), -torch.inf)
    other_view = (torch.arange(m) + m // 2) % m
    return cross_entropy(logits, other_view)


def main():
    torch.manual_seed(0)
    tensors = {}
    for name, images, width, temperature in CASES:
        z = torch.randn(2 * images, width, dtype=torch.float64) * torch.rand(2 * images, 1, dtype=torch.float64) * 3
        if name == "short_row":
            z[3] *= 1e-13
        z.requires_grad_()
        u = normalize(z, eps=1e-12)
        u.retain_grad()
        loss = nt_xent(u, temperature)
        loss.backward()
        tensors[f"{name}/temperature"] = torch.tensor([temperature], dtype=torch.float64)
        tensors[f"{name}/z"] = z.detach()
        tensors[f"{name}/loss"] = loss.detach().reshape(1)
        tensors[f"{name}/d_u"] = u.grad
        tensors[f"{name}/d_z"] = z.grad
    save_file(tensors, pathlib.Path(__file__).with_suffix(".safetensors"))


main()
