"""Replays a short SimCLR run in PyTorch, from himpun's first weights and the views it exports.

    python tests/golden/replay.py target/release/himpun

writes tests/golden/replay.safetensors, which tests/replay.rs compares with runs of its own. The net, the loss, the
optimizer and the batch norm here are PyTorch's; of himpun it uses what anybody can: the checkpoint taken before the
first step (`checkpoint.at_start`, exported) and the augmented views (`data views`). The whole data set is one global
batch, so that a step sees every image and the order of the images does not matter.

Written with torch 2.15.0, numpy 2.4 and Pillow, in float64; the float32 replay beside it gives the yardstick: how far
rounding alone carries a run.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

IMAGES, SIZE, STEPS = 24, 16, 10
LR, MOMENTUM, WEIGHT_DECAY, TEMPERATURE = 0.005, 0.9, 1e-4, 0.5
# Kept in step with tests/replay.rs.
SETTINGS = [
    f"run.steps={STEPS}", f"train.global_batch={IMAGES}", "model.arch=resnet20", "model.stem=cifar",
    "model.head=mlp-64-32", f"objective.temperature={TEMPERATURE}", "optimizer.kind=sgd", f"optimizer.lr={LR}",
    f"optimizer.momentum={MOMENTUM}", f"optimizer.weight_decay={WEIGHT_DECAY}", "schedule.kind=constant",
    "schedule.warmup_steps=0", f"data.size={SIZE}", "data.augment=simclr-cifar", "eval.knn_every=0",
    "checkpoint.every=0", "checkpoint.at_start=true",
]


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for stage in (1, 2, 3):
            first = Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            blocks = [first] + [Block(widths[stage], widths[stage], 1) for _ in range(2)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x):
        return self.head(self.backbone(x))


def nt_xent(z):
    """Equation 1 of Chen et al. 2020, mean over both views of all images; rows are [view][image]."""
    u = F.normalize(z, dim=1)
    logits = u @ u.T / TEMPERATURE
    logits.fill_diagonal_(float("-inf"))
    n = len(z) // 2
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


def replay(first, views, dtype):
    net = Encoder()
    net.load_state_dict(first)
    net = net.to(dtype).train()
    optimized = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(optimized, lr=LR, momentum=MOMENTUM)
    losses = []
    for batch in views:
        sgd.zero_grad()
        loss = nt_xent(net(batch.to(dtype)))
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    return np.array(losses), {name: value.double() for name, value in net.state_dict().items()}


def himpun(program, *arguments):
    subprocess.run([program, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def main(program):
    here = pathlib.Path(__file__).parent
    rng = np.random.default_rng(20261124)
    # Smooth coloured patterns: noise would leave the augmentations nothing to keep.
    coarse = rng.integers(0, 256, (IMAGES, 5, 5, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(c).resize((20, 20), Image.BICUBIC)) for c in coarse])
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        data = directory / "images"
        data.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(data / f"{i:04}.png")
        run = directory / "run"
        settings = [word for pair in SETTINGS for word in ("--set", pair)]
        himpun(program, "train", "--workers", 1, "--data", data, "--out", run, *settings)
        exported = directory / "first.safetensors"
        himpun(program, "export", "--checkpoint", run / "checkpoints/step-00000000", "--format", "state-dict", "--out", exported)
        first = load_file(exported)
        views = []
        for epoch in range(STEPS):
            pairs = []
            for index in range(IMAGES):
                out = directory / "views.safetensors"
                himpun(program, "data", "views", "--run", run, "--epoch", epoch, "--index", index, "--out", out)
                pair = load_file(out)
                pairs.append((pair["view_0"], pair["view_1"]))
            views.append(torch.stack([v for view in zip(*pairs) for v in view]))
    exact_losses, exact = replay(first, views, torch.float64)
    rounded_losses, rounded = replay(first, views, torch.float32)
    names = [name for name in exact if "num_batches" not in name]
    difference = torch.cat([(rounded[name] - exact[name]).flatten() for name in names])
    golden = {
        "images": torch.from_numpy(images),
        "losses_f64": torch.from_numpy(exact_losses),
        "losses_f32": torch.from_numpy(rounded_losses),
        "weights_relative_error_f32": (difference.norm() / torch.cat([exact[name].flatten() for name in names]).norm()).reshape(1),
    }
    for name in names:
        if exact[name].ndim == 1:
            golden[f"value.{name}"] = exact[name]
        else:
            # Ten small steps move a weight little: the difference in 16 bits is exact to 1e-6 of the weight.
            golden[f"update.{name}"] = ((exact[name] - first[name].double()) / LR).to(torch.float16)
    save_file(golden, here / "replay.safetensors")
    print("losses", exact_losses, "f32", np.abs(rounded_losses - exact_losses), "weights f32", golden["weights_relative_error_f32"])


if __name__ == "__main__":
    main(sys.argv[1])
