"""What the figures were measured on, without names of hosts or people."""

import os
import pathlib
import platform
import subprocess

INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")


def cpu_info(key):
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return "unknown"


def cores(n):
    """`n` of the logical CPUs that this process may use, each on a core of its own where there are enough."""
    allowed, taken = sorted(os.sched_getaffinity(0)), {}
    for cpu in allowed:
        topology = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings = topology.read_text() if topology.exists() else str(cpu)
        taken.setdefault(siblings, cpu)
    own = list(taken.values())
    return (own + [cpu for cpu in allowed if cpu not in own])[:n]


def instructions():
    flags = cpu_info("flags").split()
    return [flag for flag in INSTRUCTIONS if flag in flags]


def describe():
    # The line `model`, not `model name`.
    model = cpu_info("model\t")
    memory = next(line for line in pathlib.Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    return {
        "CPU": f"{cpu_info('model name')} (family {cpu_info('cpu family')}, model {model}), {os.cpu_count()} logical CPUs",
        "instructions": " ".join(instructions()) or platform.machine(),
        "memory": f"{int(memory.split()[1]) / 2**20:.0f} GiB",
        "kernel": platform.release().split("-")[0],
    }


def output(*command):
    """Of a command that may be missing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions(python):
    ask = "import torch, torchvision, numpy, PIL; print(torch.__version__, torchvision.__version__, numpy.__version__, PIL.__version__)"
    names = ("torch", "torchvision", "numpy", "Pillow")
    found = output(python, "-c", ask).split()
    packages = dict(zip(names, found)) if len(found) == len(names) else {name: "unknown" for name in names}
    return {"Python": output(python, "--version").removeprefix("Python "), **packages, "rustc": output("rustc", "--version")}


def commit(root):
    """The commit that is built, marked where the sources differ from it."""
    short = output("git", "-C", str(root), "rev-parse", "--short=10", "HEAD")
    changed = output("git", "-C", str(root), "status", "--porcelain", "--", "crates", "proto", "Cargo.toml", "Cargo.lock")
    return short + (" with changes" if changed else "")
