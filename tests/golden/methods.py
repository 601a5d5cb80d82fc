"""Computes with PyTorch what crates/objectives/tests/methods/golden.rs expects of MoCo, NPID and PIRL.

    python tests/golden/methods.py

writes tests/golden/methods.safetensors. Each case is two steps: `<case>/<step>/...` holds what goes in (`queries`, `keys` or
`jigsaw`, `indices`, `positions`) and what comes out (`loss`, `d_queries`, `d_jigsaw`); `<case>/bank` or `<case>/queue` is the
state before the first step, `<case>/bank_after` and so on the state after the second. All float64, computed the way the
papers write it, with autograd; banks and queues are rounded to float32 where they are stored. The negatives are drawn by
SplitMix64 in Python's integers: seed, purpose 3, step, position in the global batch.

Written with torch 2.15.0.
"""

import pathlib

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, normalize

SEED = 17
WORD = (1 << 64) - 1
GOLDEN_RATIO = 0x9E3779B97F4A7C15

# name: estimator, negatives (0: all others), options
BANKS = {
    "npid_nce": dict(estimator="nce", k=12),
    "npid_ema": dict(estimator="nce", k=12, ema=0.9, exclude=True, proximal=2.0, momentum=0.3),
    "npid_softmax": dict(estimator="softmax", k=12, proximal=0.5),
    "npid_full": dict(estimator="softmax", k=0, momentum=0.0),
    "npid_nce_all": dict(estimator="nce", k=0),
    "pirl_nce": dict(estimator="nce", k=9, jigsaw=0.3),
    "pirl_softmax": dict(estimator="softmax", k=70, jigsaw=0.5, exclude=True),
    "pirl_full_ema": dict(estimator="nce", k=0, jigsaw=0.6, ema=0.5),
}
SLOTS, IMAGES, WIDTH, TEMPERATURE = 30, 6, 20, 0.1


def mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def draw(step, position, own, k, exclude):
    key = mix(SEED + GOLDEN_RATIO & WORD)
    for word in (3, step, position):
        key = mix((key ^ word) + GOLDEN_RATIO & WORD)
    n = SLOTS - exclude
    slots = [mix(key + i * GOLDEN_RATIO & WORD) * n >> 64 for i in range(k)]
    return [slot + (exclude and slot >= own) for slot in slots]


def stored(rows):
    return rows.detach().float().double()


def of_bank(f, positive, negatives, estimator, z):
    """Losses of a row of features; negatives [b, k, d]."""
    own = (f * positive).sum(1, keepdim=True) / TEMPERATURE
    others = torch.einsum("bd,bkd->bk", f, negatives) / TEMPERATURE
    logits = torch.cat([own, others], 1)
    if estimator == "softmax":
        return cross_entropy(logits, torch.zeros(len(f), dtype=torch.long)), None
    estimate = logits.detach().exp().mean() * SLOTS
    z = estimate if z is None else z
    p, noise = logits.exp() / z, negatives.shape[1] / SLOTS
    h = p / (p + noise)
    return (-h[:, 0].log() - (1 - h[:, 1:]).log().sum(1)).mean(), (z, estimate)


def bank_case(name, tensors, estimator, k, ema=None, exclude=False, proximal=0.0, momentum=0.5, jigsaw=None):
    bank = stored(torch.rand(SLOTS, WIDTH, dtype=torch.float64) * 2 - 1) / (WIDTH / 3) ** 0.5
    bank = stored(bank)
    tensors[f"{name}/bank"] = bank.float()
    zs = [None, None]
    for step in (1, 2):
        indices = torch.randperm(SLOTS)[:IMAGES]
        positions = torch.randperm(IMAGES)
        if k == 0:
            drawn = [[slot for slot in range(SLOTS) if slot != own] for own in indices.tolist()]
        else:
            pairs = zip(positions.tolist(), indices.tolist())
            drawn = [draw(step, position, own, k, exclude) for position, own in pairs]
        branches = [torch.randn(IMAGES, WIDTH, dtype=torch.float64).requires_grad_() for _ in range(2)]
        features = [normalize(branch, eps=1e-12) for branch in branches]
        weights = [1.0] if jigsaw is None else [1 - jigsaw, jigsaw]
        loss = 0
        for branch, (weight, f) in enumerate(zip(weights, features)):
            part, normalizer = of_bank(f, bank[indices], bank[torch.tensor(drawn)], estimator, zs[branch])
            loss = loss + weight * part
            if normalizer:
                z, estimate = normalizer
                zs[branch] = z if ema is None or step == 1 else ema * z + (1 - ema) * estimate
        loss = loss + proximal * (features[0] - bank[indices]).square().sum(1).mean()
        loss.backward()
        bank = bank.clone()
        bank[indices] = stored(normalize(momentum * bank[indices] + (1 - momentum) * features[0].detach()))
        put(tensors, f"{name}/{step}", indices=indices, positions=positions, queries=branches[0], loss=loss)
        if jigsaw is not None:
            put(tensors, f"{name}/{step}", jigsaw=branches[1])
    tensors[f"{name}/bank_after"] = bank.float()
    if estimator == "nce":
        tensors[f"{name}/log_normalizers_after"] = torch.stack([z.log() for z in zs if z is not None])


def put(tensors, prefix, **values):
    for name, value in values.items():
        tensors[f"{prefix}/{name}"] = value.detach().reshape(value.shape or (1,)).clone()
        if name in ("queries", "jigsaw"):
            tensors[f"{prefix}/d_{name}"] = value.grad


def moco_case(tensors):
    temperature, queue_len = 0.2, 10
    queue = stored(normalize(torch.randn(queue_len, WIDTH, dtype=torch.float64)))
    tensors["moco/queue"] = queue.float()
    pointer = 0
    for step in (1, 2):
        positions = torch.randperm(IMAGES)
        queries = torch.randn(IMAGES, WIDTH, dtype=torch.float64).requires_grad_()
        keys = torch.randn(IMAGES, WIDTH, dtype=torch.float64)
        q, k = normalize(queries), normalize(keys)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / temperature
        loss = cross_entropy(logits, torch.zeros(IMAGES, dtype=torch.long))
        loss.backward()
        queue = queue.clone()
        for row in positions.argsort():
            queue[pointer] = stored(k[row])
            pointer = (pointer + 1) % queue_len
        put(tensors, f"moco/{step}", positions=positions, queries=queries, keys=keys, loss=loss)
    tensors["moco/queue_after"] = queue.float()


def moco_v3_case(tensors):
    temperature = 0.3
    for step in (1, 2):
        queries = torch.randn(2 * IMAGES, WIDTH, dtype=torch.float64).requires_grad_()
        keys = torch.randn(2 * IMAGES, WIDTH, dtype=torch.float64)
        (q1, q2), (k1, k2) = normalize(queries).split(IMAGES), normalize(keys).split(IMAGES)
        labels = torch.arange(IMAGES)
        contrast = lambda q, k: 2 * temperature * cross_entropy(q @ k.T / temperature, labels)
        loss = contrast(q1, k2) + contrast(q2, k1)
        loss.backward()
        put(tensors, f"moco_v3/{step}", positions=labels, queries=queries, keys=keys, loss=loss)


def main():
    torch.manual_seed(0)
    tensors = {}
    moco_case(tensors)
    moco_v3_case(tensors)
    for name, options in BANKS.items():
        bank_case(name, tensors, **options)
    save_file(tensors, pathlib.Path(__file__).with_suffix(".safetensors"))


main()
