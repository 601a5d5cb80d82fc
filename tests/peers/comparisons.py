"""What is compared: groups of commands that run in turn, and the rows that their figures make.

Every command ends stdout with JSON; `{himpun}`, `{python}`, `{cifar}` and so on stand for what `run.py` was given.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace

MIB = 2**20

# glibc keeps what was freed, in huge pages; threads stay on their cores. With channels-last, that is "tuned".
TUNED = {
    "OMP_PROC_BIND": "close",
    "OMP_PLACES": "cores",
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
    ":glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True)
class Run:
    """A command. Of several JSON lines the one whose `best` is largest counts: a peer's fastest way.

    It is run only on a CPU that has one of the `instructions`, if any are named.
    """

    command: str
    environment: dict = field(default_factory=dict)
    cores: int = 2
    best: str | None = None
    instructions: tuple = ()


@dataclass(frozen=True)
class Side:
    """A figure of one of the group's runs: which key of its JSON (`part.key` of a nested one), in which unit."""

    run: str
    key: str
    unit: str = ""
    scale: float = 1.0

    def of(self, results):
        found = results[self.run]
        for key in self.key.split("."):
            found = found[key]
        return found * self.scale


@dataclass(frozen=True)
class Row:
    """A line of the table: `figure` of our side and the peer's, ours over the peer's by default, or what is `given`."""

    what: str
    ours: Side
    peer: Side | None
    wanted: float
    at_most: bool = False
    unit: str = "x"
    figure: Callable[[float, float | None], float] = lambda ours, peer: ours if peer is None else ours / peer
    given: Side | None = None

    def figures(self, rounds):
        """One for each round in which both sides ran."""
        sides = [side for side in (self.ours, self.peer) if side is not None]
        whole = [r for r in rounds if all("error" not in r.get(side.run, {"error": ""}) for side in sides)]
        if self.given is not None:
            return [self.given.of(r) for r in whole]
        return [self.figure(self.ours.of(r), self.peer.of(r) if self.peer else None) for r in whole]

    def met(self, figures):
        median = statistics.median(figures)
        return median <= self.wanted if self.at_most else median >= self.wanted


@dataclass(frozen=True)
class Group:
    """Runs that take turns within a round. Figures that hardly scatter (memory) need one round only."""

    name: str
    runs: dict
    rows: list
    needs: tuple = ()
    rounds: int | None = None
    default: bool = True
    note: str = ""


def ours(arch, batch, size, *more):
    return Run(" ".join(["{himpun} bench step --json --arch", arch, f"--batch {batch} --size {size}", *more]))


def tuned(arch, batch, size, *more):
    command = ["{python} {here}/torch_step.py --channels-last --net", arch, f"--batch {batch} --size {size}", *more]
    return Run(" ".join(command), TUNED)


def as_run(arch, batch, size, *more):
    return Run(tuned(arch, batch, size, *more).command.replace(" --channels-last", ""))


def speed(what, ours, peer, wanted):
    return Row(what, Side(ours, "views_per_s", "views/s"), Side(peer, "views_per_s", "views/s"), wanted)


def steps(name, arch, batch, size, rows):
    runs = {"auto": ours(arch, batch, size), "f32": tuned(arch, batch, size)}
    if any(row.ours.run == "direct" for row in rows):
        runs["direct"] = ours(arch, batch, size, "--convolution direct")
    if any(row.peer.run == "bf16" for row in rows):
        # Without instructions for it PyTorch emulates bfloat16, which nobody would train with.
        runs["bf16"] = replace(tuned(arch, batch, size, "--bf16"), instructions=("avx512_bf16", "amx_bf16"))
    return Group(name, runs, rows)


R18 = steps("resnet18", "resnet18", 128, 32, [
    speed("ResNet-18 step, batch 128 of 32x32: auto (Winograd) against tuned f32", "auto", "f32", 2.0),
    speed("ResNet-18 step: direct against tuned f32", "direct", "f32", 1.05),
    speed("ResNet-18 step: auto (Winograd) in f32 against tuned **bf16**", "auto", "bf16", 1.3),
])

R20 = steps("resnet20", "resnet20", 128, 32, [
    speed("ResNet-20 step, batch 128 of 32x32: auto (Winograd) against tuned f32", "auto", "f32", 2.2),
    speed("ResNet-20 step: direct against tuned f32", "direct", "f32", 1.3),
    speed("ResNet-20 step: auto (Winograd) in f32 against tuned **bf16**", "auto", "bf16", 1.6),
])

R50 = steps("resnet50", "resnet50", 16, 224, [
    speed("ResNet-50 step, batch 16 of 224x224: auto against tuned f32", "auto", "f32", 1.15),
])

AVX2 = Group(
    "avx2",
    {
        "direct": ours("resnet18", 128, 32, "--kernel-path avx2 --convolution direct"),
        "auto": ours("resnet18", 128, 32, "--kernel-path avx2"),
    },
    [
        Row(f"ResNet-18 step without AVX-512, {run}: share of the AVX2 peak", Side(run, "share_of_peak", "%", 100.0),
            None, 70.0, unit=" %")
        for run in ("auto", "direct")
    ],
    note="Shares count the multiplications of direct convolution, so Winograd can pass 100 %.",
)


def allowance_used(peak, predicted):
    return abs(peak - predicted) / (0.05 * predicted + 64 * MIB / 1e6)


def memory_rows(name, peers):
    peak = Side(f"{name} ours", "peak_memory_bytes", "MB", 1e-6)
    predicted = Side(f"{name} ours", "predicted_memory_bytes", "MB predicted", 1e-6)
    against = [
        Row(f"{name} step: peak memory against PyTorch {peer}", peak,
            Side(f"{name} {peer}", "peak_memory_bytes", "MB", 1e-6), 1.0, at_most=True)
        for peer in peers
    ]
    return against + [
        Row(f"{name} step: peak memory against the prediction, share of the allowance (5 % + 64 MiB)", peak, predicted,
            1.0, at_most=True, unit="", figure=allowance_used)
    ]


FEW = "--warm-up 1 --steps 2 --seconds 0"
MEMORY = Group(
    "memory",
    {
        "ResNet-18 ours": ours("resnet18", 128, 32),
        "ResNet-18 tuned": tuned("resnet18", 128, 32, FEW),
        "ResNet-18 as run": as_run("resnet18", 128, 32, FEW),
        "ResNet-50 ours": ours("resnet50", 16, 224),
        "ResNet-50 tuned": tuned("resnet50", 16, 224, FEW),
        "ResNet-50 as run": as_run("resnet50", 16, 224, FEW),
    },
    memory_rows("ResNet-18", ("tuned", "as run")) + memory_rows("ResNet-50", ("tuned", "as run")),
    rounds=1,
    note="Peak memory is that of the whole process (`VmHWM`), interpreter and libraries included, on both sides.",
)

def data(command, part, size, what, wanted):
    return Group(
        "views" if size == 32 else "jpeg",
        {
            "ours": Run("{himpun} bench data --json --threads 1 " + command, cores=1),
            "torchvision": Run("{python} {here}/torchvision_views.py --photos {photos} --rounds 3 --size " + str(size),
                               cores=1, best="views_per_s"),
        },
        [Row(what, Side("ours", f"{part}.views_per_s", "views/s"), Side("torchvision", "views_per_s", "views/s"), wanted)],
        needs=("photos",),
    )


VIEWS = data("--data builtin --size 32 --augment simclr-cifar", "augment", 32,
             "SimCLR views at 32 px from pixels in memory on one core, against torchvision's best pipeline", 15.0)
JPEG = data("--data {photos}#val --size 224 --augment simclr-imagenet", "total", 224,
            "JPEG decode and two SimCLR views at 224 px with blur on one core, real photos, against torchvision's best", 4.0)


def milliseconds(what, key, peer, wanted):
    """Times, so the peer's over ours."""
    return Row(what, Side("ours", key, "ms"), Side(peer, key, "ms"), wanted, figure=lambda ours, peer: peer / ours)


LOSS = Group(
    "loss",
    {
        "ours": Run("{himpun} bench loss --json --batch 16384 --width 128"),
        # Plain and tuned, each in a process of its own; it reports the faster.
        "torch": Run("{python} {here}/torch_loss.py --batch 16384 --width 128 --samples 3"),
    },
    [milliseconds("NT-Xent forward and backward, 16,384 x 128, against PyTorch's dense version", "loss_ms", "torch", 3.0)],
)

BIG_LOSS = Group(
    "big-loss",
    {"ours": Run("{himpun} bench loss --json --batch 65536 --width 128")},
    [Row("NT-Xent forward and backward, 65,536 x 128: peak memory of the process",
         Side("ours", "peak_memory_bytes", "MB", 1e-6), None, 300.0, at_most=True, unit=" MB")],
    rounds=1,
)

ALL_REDUCE = Group(
    "all-reduce",
    {
        "ours": Run("{himpun} bench collective --json --world-size 4 --bytes 45000000"),
        "gloo": Run("{python} {here}/torch_allreduce.py --world-size 4 --bytes 45000000"),
    },
    [milliseconds("All-reduce of 45 MB between 4 local processes, against gloo", "operation_ms", "gloo", 1.0)],
)


def images_per_s(what, peer, wanted):
    return Row(what, Side("ours", "images_per_s", "images/s"), Side(peer, "images_per_s", "images/s"), wanted)


SIMCLR = "{python} {here}/torch_simclr.py --images {cifar}/train"
WHOLE = Group(
    "whole",
    {
        "ours": Run("{python} {here}/himpun_train.py --himpun {himpun} --images {cifar}"),
        "as run": Run(SIMCLR),
        "tuned": Run(SIMCLR + " --channels-last", TUNED),
    },
    [
        images_per_s("`himpun train` on CIFAR-10, ResNet-20, 2 cores, against a plain PyTorch SimCLR script, as run",
                     "as run", 3.0),
        images_per_s("`himpun train` on CIFAR-10, ResNet-20, 2 cores, against the same script, tuned", "tuned", 2.0),
    ],
    needs=("cifar",),
    note="`himpun train` runs its default of two workers of one thread each. Images/s after warm-up, loading included.",
)

GROUPS = [R18, R20, R50, AVX2, MEMORY, VIEWS, JPEG, LOSS, BIG_LOSS, ALL_REDUCE, WHOLE]

CONVERGENCE = Group(
    "convergence",
    {"both": Run("{python} {here}/convergence.py --himpun {himpun} --images {cifar} --runs {runs}")},
    [Row("CIFAR-10 kNN after 5 epochs, Winograd against direct, means of 8 seeds: gap as a share of the seeds' noise",
         Side("both", "auto_mean", "%"), Side("both", "direct_mean", "%"), 1.0, at_most=True, unit="",
         given=Side("both", "gap_over_noise"))],
    needs=("cifar",),
    rounds=1,
    default=False,
    note="The noise is the 95 % interval of the difference of two means of eight seeds each (Student's t). A run that is complete is not "
         "repeated, so that its kernels may be older than the row (ROOFLINE.md).",
)
