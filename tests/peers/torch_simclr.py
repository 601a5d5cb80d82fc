"""SimCLR on a folder of CIFAR-10 images in PyTorch, as people write it: ResNet-20, batch 256, SGD, a DataLoader.

    python torch_simclr.py --images cifar10/train
    python torch_simclr.py --images cifar10/train --channels-last

Prints one JSON line: images (pairs of views) a second over a fixed number of steps after warm-up, loading included.
"""

import argparse
import json
import os
import time

# Before OpenMP pins this process to one of them: the loader's processes would inherit that, and share one core.
CORES = os.sched_getaffinity(0)

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torch_step import network, nt_xent, peak_memory

BATCH = 256
TEMPERATURE = 0.2


class TwoViews:
    """Two independent draws of one pipeline."""

    def __init__(self, view):
        self.view = view

    def __call__(self, image):
        return self.view(image), self.view(image)


def simclr_cifar(t, end):
    """SimCLR, appendix B.9: jitter of strength 0.5 and no blur; `t` is either generation of torchvision's transforms."""
    return t.Compose([
        t.RandomResizedCrop(32),
        t.RandomHorizontalFlip(),
        t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        t.RandomGrayscale(0.2),
        *end,
        t.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ])


def view(generation):
    if generation == "v1":
        return simclr_cifar(transforms, [transforms.ToTensor()])
    return simclr_cifar(v2, [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def batches(loader):
    while True:
        for (a, b), _ in loader:
            yield torch.cat([a, b])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a folder of a folder for each class")
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader")
    parser.add_argument("--transforms", choices=("v1", "v2"), default="v1")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    data = ImageFolder(arguments.images, TwoViews(view(arguments.transforms)))
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=arguments.workers,
                        worker_init_fn=lambda _: os.sched_setaffinity(0, CORES))
    net = network("resnet20").to(memory_format=layout).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-4)
    images = batches(loader)
    for step in range(arguments.warm_up + arguments.steps):
        if step == arguments.warm_up:
            begun = time.perf_counter()
        views = next(images).contiguous(memory_format=layout)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.bf16):
            embeddings = net(views)
        loss = nt_xent(embeddings, TEMPERATURE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()
    images_per_s = BATCH * arguments.steps / (time.perf_counter() - begun)
    print(json.dumps({"images_per_s": images_per_s, "peak_memory_bytes": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
