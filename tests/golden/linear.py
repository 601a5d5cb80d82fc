"""Trains linear classifiers in PyTorch, for crates/tools/src/linear.rs.

    python tests/golden/linear.py

writes tests/golden/linear.safetensors. Written with torch 2.15.0, in float64 on float32 features. The learning rates
are those of the batch, 64, scaled from 256. No accuracy hangs on rounding: see the assertion.
"""

import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

N, TEST, WIDTH, CLASSES, EPOCHS, BATCH = 300, 90, 20, 12, 6, 64


def cosine(update, updates, epoch):
    return 0.1 * BATCH / 256 * 0.5 * (1 + math.cos(math.pi * update / updates))


def step(update, updates, epoch):
    return 4.0 * BATCH / 256 * 0.1 ** ((epoch >= 2) + (epoch >= 4))


def train(features, labels, orders, lr, nesterov, weight_decay):
    classifier = torch.nn.Linear(WIDTH, CLASSES).double()
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    groups = [{"params": [classifier.weight], "weight_decay": weight_decay}, {"params": [classifier.bias]}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=nesterov)
    updates = EPOCHS * math.ceil(N / BATCH)
    update = 0
    for epoch, order in enumerate(orders):
        loss_sum = 0.0
        for rows in order.split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = lr(update, updates, epoch)
            loss = F.cross_entropy(classifier(features[rows].double()), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(rows)
            update += 1
    return classifier, loss_sum / N


def main():
    generator = torch.Generator().manual_seed(8)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    centres = normal(CLASSES, WIDTH)
    tensors = {}
    for prefix, n in ("", N), ("test ", TEST):
        labels = torch.randint(CLASSES, (n,), generator=generator)
        tensors[prefix + "labels"] = labels
        tensors[prefix + "features"] = (centres[labels] * 0.6 + normal(n, WIDTH)).relu()
    for name, arguments in ("nesterov", (cosine, True, 1e-2)), ("step", (step, False, 0.0)):
        orders = torch.stack([torch.randperm(N, generator=generator) for _ in range(EPOCHS)])
        classifier, loss = train(tensors["features"], tensors["labels"], orders, *arguments)
        with torch.no_grad():
            logits = classifier(tensors["test features"].double())
        labels = tensors["test labels"]
        gaps = (logits - logits.gather(1, labels[:, None])).abs().scatter(1, labels[:, None], torch.inf)
        assert gaps.min() > 1e-4, "an accuracy hangs on rounding"
        shares = [(logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).double().mean() for k in (1, 5)]
        print(name, loss, [share.item() for share in shares])
        tensors[f"{name} orders"] = orders
        tensors[f"{name} weight"] = classifier.weight.detach().float()
        tensors[f"{name} bias"] = classifier.bias.detach().float()
        tensors[f"{name} loss"] = torch.tensor([loss], dtype=torch.float32)
        tensors[f"{name} accuracy"] = torch.stack(shares).float()
    save_file(tensors, pathlib.Path(__file__).with_suffix(".safetensors"))


main()
