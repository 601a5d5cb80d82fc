"""One SimCLR step in PyTorch on the CPU, on images of noise: forward, NT-Xent, backward, SGD with momentum.

    python torch_step.py --net resnet18 --channels-last            # f32
    python torch_step.py --net resnet18 --channels-last --bf16     # autocast

The nets are those of `himpun bench step`: ResNet-18 and ResNet-20 with CIFAR's stem, torchvision's ResNet-50 as it is,
each with a head of two layers whose hidden width is that of the features. Prints one JSON line.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

EMBEDDING = 128
TEMPERATURE = 0.5
# Small enough that weights stay numbers: a step's time does not depend on it.
LEARNING_RATE = 1e-3


class BasicBlock(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


class CifarResNet(nn.Module):
    """Basic blocks behind a 3x3 convolution of stride 1, without a max pool."""

    def __init__(self, widths, blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        layers, c_in = [], widths[0]
        for stage, (width, n) in enumerate(zip(widths, blocks)):
            for block in range(n):
                layers.append(BasicBlock(c_in, width, 2 if stage > 0 and block == 0 else 1))
                c_in = width
        self.layers = nn.Sequential(*layers)
        self.fc = head(c_in)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.fc(self.layers(x).mean((2, 3)))


def head(width):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, EMBEDDING))


def network(name):
    if name == "resnet18":
        return CifarResNet([64, 128, 256, 512], [2, 2, 2, 2])
    if name == "resnet20":
        return CifarResNet([16, 32, 64], [3, 3, 3])
    net = torchvision.models.resnet50()
    net.fc = head(2048)
    return net


def nt_xent(embeddings, temperature=TEMPERATURE):
    """Rows i and i + n/2 are two views of one image."""
    unit = F.normalize(embeddings.float(), dim=1)
    n = unit.shape[0]
    logits = unit @ unit.t() / temperature
    logits.fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(n, device=unit.device).roll(n // 2))


def peak_memory():
    """Of this process alone: `ru_maxrss` would count what its parent held before it started Python."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def times_of_steps(net, images, arguments):
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)

    def step():
        begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.bf16):
            embeddings = net(images)
        loss = nt_xent(embeddings)
        loss.backward()
        optimizer.step()
        loss.item()
        return time.perf_counter() - begun

    def steps(is_enough):
        times = []
        while not is_enough(times) and sum(times) < arguments.at_most:
            times.append(step())
        return times

    steps(lambda times: len(times) >= arguments.warm_up)
    return steps(lambda times: len(times) >= arguments.steps and (sum(times) >= arguments.seconds or len(times) >= 200))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=("resnet18", "resnet20", "resnet50"), required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed at least")
    parser.add_argument("--seconds", type=float, default=5.0, help="timed at least, up to 200 steps")
    parser.add_argument("--at-most", type=float, default=30.0, metavar="SECONDS",
                        help="after so long warm-up and timing end with the step, as with bfloat16 that a CPU lacks")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    net = network(arguments.net).train()
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    if arguments.channels_last:
        net = net.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    times = times_of_steps(net, images, arguments)
    median = statistics.median(times)
    report = {
        "views_per_s": arguments.batch / median,
        "step_ms": 1e3 * median,
        "min_ms": 1e3 * min(times),
        "max_ms": 1e3 * max(times),
        "steps": len(times),
        "peak_memory_bytes": peak_memory(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
