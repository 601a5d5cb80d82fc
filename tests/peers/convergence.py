"""Trains CIFAR-10 with Winograd and with direct convolutions, eight seeds each, and compares the kNN accuracies.

    python convergence.py --himpun target/release/himpun --images cifar10 --runs DIR

A run is `simclr-cifar10-small` cut to `--epochs`, one worker, in DIR/auto-0, DIR/direct-0 and so on. Hours on two cores; a
run that was stopped goes on from its newest checkpoint, one that is complete is not repeated. Prints one JSON line.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

SEEDS = range(8)
# Student's t for 95 % with the 14 degrees of freedom of two times eight seeds.
T_95 = 2.145


def train(arguments, method, seed):
    run = arguments.runs / f"{method}-{seed}"
    command = [arguments.himpun, "train", "--json"]
    if any(run.glob("checkpoints/step-*/manifest.json")):
        command += ["--resume", run]
    else:
        keys = [f"eval.data={arguments.images}#test", "eval.knn_every=0", f"run.epochs={arguments.epochs}"]
        keys += [f"run.seed={seed}", f"train.convolution={method}", "checkpoint.every=100", "checkpoint.keep=1"]
        command += ["--preset", "simclr-cifar10-small", "--data", f"{arguments.images}#train", "--workers", "1", "--out", run]
        command += [word for key in keys for word in ("--set", key)]
    report = run.with_suffix(".json")
    if not report.exists() or not report.read_text().strip():
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        report.write_text(done.stdout.strip().splitlines()[-1])
    return run


def knn(arguments, run):
    """In percent, on the test images."""
    command = [arguments.himpun, "eval", "knn", "--json", "--checkpoint", run, "--data", f"{arguments.images}#train"]
    command += ["--test", f"{arguments.images}#test"]
    report = run.with_suffix(".knn.json")
    if not report.exists():
        report.write_text(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return 100.0 * json.loads(report.read_text())["knn_top1"]


def compare(auto, direct):
    """The gap of the means as a share of what seeds alone explain."""
    error = (statistics.variance(auto) / len(auto) + statistics.variance(direct) / len(direct)) ** 0.5
    means = statistics.mean(auto), statistics.mean(direct)
    return {
        "auto": auto,
        "direct": direct,
        "auto_mean": means[0],
        "direct_mean": means[1],
        "gap": means[0] - means[1],
        "gap_over_noise": abs(means[0] - means[1]) / (T_95 * error),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--himpun", required=True)
    parser.add_argument("--images", required=True, help="a folder with train/ and test/, or a tar of one")
    parser.add_argument("--runs", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    accuracies = {"auto": [], "direct": []}
    for seed in SEEDS:
        for method, found in accuracies.items():
            found.append(knn(arguments, train(arguments, method, seed)))
            print(f"{method}, seed {seed}: kNN {found[-1]:.2f} %", file=sys.stderr, flush=True)
    print(json.dumps(compare(accuracies["auto"], accuracies["direct"])))


if __name__ == "__main__":
    main()
