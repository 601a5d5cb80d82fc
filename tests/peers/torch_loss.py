"""PyTorch's dense NT-Xent, forward and backward: what `himpun bench loss` is compared with.

    python torch_loss.py [--batch ROWS] [--width D] [--temperature T] [--threads N]

Prints one JSON line: the median of the faster of two ways to write it, each in a process of its own so that its
peak memory is its own. Both normalise, divide z z^T by the temperature, exclude the diagonal and take the cross
entropy; "plain" does so as tutorials do, "tuned" in place where autograd allows it, and with malloc tuned.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

MALLOC = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1"
TUNED = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores", "GLIBC_TUNABLES": MALLOC}


def plain(torch, z, temperature):
    """As tutorials write it."""
    u = torch.nn.functional.normalize(z)
    rows = len(u)
    logits = u @ u.T / temperature
    logits = logits.masked_fill(torch.eye(rows, dtype=torch.bool), float("-inf"))
    return torch.nn.functional.cross_entropy(logits, partners(torch, rows))


def tuned(torch, z, temperature):
    """One matrix less: the temperature divides the rows, and the diagonal is written in place."""
    u = torch.nn.functional.normalize(z)
    rows = len(u)
    logits = torch.mm(u / temperature, u.T)
    logits.fill_diagonal_(float("-inf"))
    return torch.nn.functional.cross_entropy(logits, partners(torch, rows))


def partners(torch, rows):
    """The other view of each row's image: `[view][image]`."""
    return torch.arange(rows).roll(rows // 2)


WAYS = {"plain": plain, "tuned": tuned}


def measure(arguments):
    """One way, in this process."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    z = torch.rand(arguments.batch, arguments.width) - 0.5
    z.requires_grad_()
    times = []
    for call in range(1 + arguments.samples):
        z.grad = None
        begun = time.perf_counter()
        loss = WAYS[arguments.way](torch, z, arguments.temperature)
        loss.backward()
        if call > 0:
            times.append(1e3 * (time.perf_counter() - begun))
    print(
        json.dumps(
            {
                "loss_ms": statistics.median(times),
                "loss_ms_min": min(times),
                "loss_ms_max": max(times),
                "calls": len(times),
                "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                "loss": loss.item(),
                "way": arguments.way,
                "torch": torch.__version__,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16384)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help="measure only this, in this process")
    arguments = parser.parse_args()
    if arguments.way:
        return measure(arguments)
    results = []
    for way in WAYS:
        environment = os.environ | (TUNED if way == "tuned" else {})
        command = [sys.executable, __file__, "--way", way]
        for name in ("batch", "width", "temperature", "threads", "samples"):
            command += [f"--{name}", str(getattr(arguments, name))]
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        results.append(json.loads(output))
    print(json.dumps(min(results, key=lambda result: result["loss_ms"])))


if __name__ == "__main__":
    main()
