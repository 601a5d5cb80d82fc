"""Computes with PyTorch what crates/objectives/tests/contrastive.rs expects of SupCon, DCL and align-uniform.

    python tests/golden/contrastive.py

writes tests/golden/contrastive.safetensors: per case `<case>/z`, `<case>/labels`, and of each loss `<case>/<loss>/loss`
and `<case>/<loss>/d_z`, all float64. The losses are written as the papers' own code does, with dense matrices:
SupCon as equation 2 of Khosla et al. 2020 (the mean over positives outside the logarithm), DCL as equation 6 of Yeh et
al. 2022, alignment and uniformity as the listing of Wang & Isola 2020 (with `pdist`), over all rows of both views. The
gradients are autograd's.

Written with torch 2.15.0.
"""

import pathlib

import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

# name, images, width, temperature, classes
CASES = [
    ("few", 8, 16, 0.5, 3),
    ("many", 33, 20, 0.1, 4),
    ("sharp", 20, 7, 0.02, 40),
]


def supcon(u, temperature, labels):
    """Rows are [view][image]."""
    rows = torch.eye(len(u), dtype=torch.bool)
    logits = (u @ u.T / temperature).masked_fill(rows, -torch.inf)
    log_probabilities = logits - logits.logsumexp(dim=1, keepdim=True)
    labels = labels.repeat(2)
    positive = (labels[:, None] == labels[None, :]) & ~rows
    return -(log_probabilities.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)).mean()


def dcl(u, temperature):
    m = len(u)
    other_view = (torch.arange(m) + m // 2) % m
    logits = u @ u.T / temperature
    excluded = torch.eye(m, dtype=torch.bool)
    excluded[torch.arange(m), other_view] = True
    positives = logits[torch.arange(m), other_view]
    return (logits.masked_fill(excluded, -torch.inf).logsumexp(dim=1) - positives).mean()


def align_uniform(u, temperature):
    first, second = u.chunk(2)
    alignment = (first - second).norm(dim=1).pow(2).mean()
    uniformity = torch.pdist(u).pow(2).mul(-0.5 / temperature).exp().mean().log()
    return alignment + uniformity


def main():
    torch.manual_seed(0)
    tensors = {}
    for name, images, width, temperature, classes in CASES:
        z = torch.randn(2 * images, width, dtype=torch.float64) * torch.rand(2 * images, 1, dtype=torch.float64) * 3
        labels = torch.randint(classes, (images,))
        losses = {
            "supcon": lambda u: supcon(u, temperature, labels),
            "dcl": lambda u: dcl(u, temperature),
            "align-uniform": lambda u: align_uniform(u, temperature),
        }
        tensors[f"{name}/z"] = z
        tensors[f"{name}/labels"] = labels.double()
        tensors[f"{name}/temperature"] = torch.tensor([temperature], dtype=torch.float64)
        for loss_name, compute in losses.items():
            leaf = z.clone().requires_grad_()
            loss = compute(normalize(leaf))
            loss.backward()
            tensors[f"{name}/{loss_name}/loss"] = loss.detach().reshape(1)
            tensors[f"{name}/{loss_name}/d_z"] = leaf.grad
    save_file(tensors, pathlib.Path(__file__).with_suffix(".safetensors"))


main()
