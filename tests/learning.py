"""Trains the small preset of every method on CIFAR-10, and says what each has learnt.

    python3 tests/learning.py --images cifar10.tar.zst

Runs `himpun train --preset METHOD-cifar10-small` for every method and seed, one after the other, in target/learning (or
`--runs`): on two cores and one seed over an hour. A run that was stopped goes on from its newest checkpoint, one that is
complete is not repeated. Once all are complete, writes their table into README.md, between its two comments `learning`.
Fails if a method is not 10 points above the untrained net, whose batch-norm statistics were set by one pass.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
METHODS = ("simclr", "npid", "npidpp", "pirl", "moco-v1", "moco-v2", "moco-v3", "supcon", "dcl")
# Of kNN accuracy, and of wall time on two cores.
GAIN_IN_POINTS, MINUTES = 10.0, 10.0
MARKS = ("<!-- learning -->\n", "<!-- /learning -->\n")


def train(arguments, method, seed):
    """The directory of the complete run."""
    run = arguments.runs / f"{method}-cifar10-small-{seed}"
    done, preset = run.with_suffix(".json"), run.with_suffix(".toml")
    text = subprocess.check_output([arguments.himpun, "presets", "show", f"{method}-cifar10-small"], text=True)
    if run.exists() and (not preset.exists() or preset.read_text() != text):
        sys.exit(f"error: {run} was made by another preset of that name; remove it, or take another `--runs`")
    preset.write_text(text)
    if done.exists() and done.read_text().strip():
        return run
    command = [arguments.himpun, "train", "--json"]
    if (run / "config.toml").exists():
        command += ["--resume", run]
    else:
        keys = (f"run.seed={seed}", f"eval.data={arguments.images}#test", "checkpoint.every=500", "checkpoint.keep=1")
        command += ["--preset", f"{method}-cifar10-small", "--data", f"{arguments.images}#train", "--out", run]
        command += [word for key in keys for word in ("--set", key)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    done.write_text(result.stdout.strip().splitlines()[-1] + "\n")
    return run


def last_logged(log):
    """When rank 0 wrote its last line, in nanoseconds since 1970."""
    written = log.read_text().splitlines()[-1].split()[0]
    return datetime.datetime.fromisoformat(written.replace("Z", "+00:00")).timestamp() * 1e9


def minutes(run):
    """From submission to end, over all the pieces that a run was trained in; one that was killed ends with its log."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    starts = [event["time_ns"] for event in events if event["text"] == "run submitted"]
    seen = [event["time_ns"] for event in events] + [last_logged(log) for log in run.glob("logs/rank-0.gen-*.log")]
    pieces = zip(starts, starts[1:] + [float("inf")])
    return sum(max(time for time in seen if start <= time < end) - start for start, end in pieces) / 60e9


def measure(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    accuracies = [row["knn_top1"] for row in rows if "knn_top1" in row]
    return {
        "epochs": losses[-1]["epoch"],
        "minutes": minutes(run),
        "loss": losses[-1]["loss"],
        "chance": losses[-1]["chance_loss"],
        "untrained": 100.0 * accuracies[0],
        "trained": 100.0 * accuracies[-1],
    }


def met(found):
    return found["trained"] >= found["untrained"] + GAIN_IN_POINTS and found["minutes"] <= MINUTES


def row(run):
    preset, seed = run.name.rsplit("-", 1)
    found = measure(run)
    loss = f"{found['loss']:.2f} ({found['chance']:.2f})"
    accuracies = f"{found['untrained']:.1f} % | **{found['trained']:.1f} %**"
    return f"| `{preset}` | {seed} | {found['epochs']:.0f} | {found['minutes']:.1f} min | {loss} | {accuracies} |"


def write(readme, rows):
    text = readme.read_text()
    head, rest = text.split(MARKS[0], 1)
    tail = rest.split(MARKS[1], 1)[1]
    table = ["| preset | seed | epochs | time | loss at the end (chance) | untrained | trained |", "|---|---|---|---|---|---|---|", *rows]
    readme.write_text(head + MARKS[0] + "\n".join(table) + "\n" + MARKS[1] + tail)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=pathlib.Path, help="a folder with train/ and test/, or a tar of one")
    parser.add_argument("--himpun", type=pathlib.Path, help="built if not given")
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "target" / "learning")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--readme", type=pathlib.Path, default=ROOT / "README.md")
    arguments = parser.parse_args()
    if arguments.himpun is None:
        subprocess.run(["cargo", "build", "--release", "--bin", "himpun"], cwd=ROOT, check=True)
        arguments.himpun = ROOT / "target" / "release" / "himpun"
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for method in arguments.only:
        for seed in arguments.seeds:
            print(row(train(arguments, method, seed)), flush=True)
    complete = [run for method in METHODS for run in sorted(arguments.runs.glob(f"{method}-cifar10-small-*.json"))]
    runs = [done.with_suffix("") for done in complete if done.read_text().strip()]
    if {run.name.split("-cifar10-small")[0] for run in runs} == set(METHODS):
        write(arguments.readme, [row(run) for run in runs])
    short = [run.name for run in runs if not met(measure(run))]
    if short:
        sys.exit(f"not {GAIN_IN_POINTS:.0f} points above the untrained net within {MINUTES:.0f} minutes: {', '.join(short)}")


if __name__ == "__main__":
    main()
