"""Computes with PyTorch one SimCLR step whose batch goes through the net chunk by chunk, all negatives kept.

    python tests/golden/accumulation.py

writes tests/golden/accumulation.safetensors, which crates/trainer/src/step/tests/accumulation.rs compares with the
trainer's step. Net, first weights and digests are those of engine.py. Every chunk has both views of its images; batch norm
spans a chunk, in both passes and in the backward, and the running statistics take the mean of the chunks' batch
statistics, weighted by their images, in one update. The gradient is that of the loss over the whole batch, through every
chunk's own graph: PyTorch keeps all of them here, so that no second pass is needed to have it.

Written with torch 2.15.0, in float64.
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from engine import build, digests, noise

IMAGES, CHUNKS, SIZE, TEMPERATURE = 8, [3, 3, 2], 8, 0.5
CASE = dict(arch="resnet20", stem="cifar", head="mlp-16-8", size=SIZE, rows=2 * IMAGES)


def nt_xent(first, second):
    z = F.normalize(torch.cat([first, second]))
    similarity = z @ z.T / TEMPERATURE
    similarity.fill_diagonal_(float("-inf"))
    n = len(first)
    partners = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    return F.cross_entropy(similarity, partners)


def main():
    net = build(CASE)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    # A momentum of 1 leaves a chunk's own statistics in the buffers.
    for norm in norms:
        norm.momentum = 1.0
    views = noise("views", (2, IMAGES, SIZE, SIZE, 3)).permute(0, 1, 4, 2, 3)
    embeddings, statistics = [], []
    for chunk in views.split(CHUNKS, dim=1):
        embeddings.append(net["head"](net["backbone"](chunk.flatten(0, 1))).unflatten(0, (2, -1)))
        statistics.append([b.clone() for norm in norms for b in (norm.running_mean, norm.running_var)])
    loss = nt_xent(*torch.cat(embeddings, dim=1))
    loss.backward()
    first = [b for norm in norms for b in (torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var))]
    means = [sum(n / IMAGES * s for n, s in zip(CHUNKS, chunks)) for chunks in zip(*statistics)]
    tensors = {
        "loss": loss.detach()[None],
        "gradients": digests([w.grad for w in net.parameters()]),
        "running": digests([0.9 * before + 0.1 * mean for before, mean in zip(first, means)]),
    }
    save_file(tensors, pathlib.Path(__file__).parent / "accumulation.safetensors")
    print(float(loss.detach()))


if __name__ == "__main__":
    main()
