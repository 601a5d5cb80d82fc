"""Compares the results of two commits, byte by byte: for changes that must not change any.

    python3 tests/same_bits.py COMMIT [--presets NAME,NAME] [--steps 30] [--workers 2] [--batch IMAGES] [--binary FILE]

Builds COMMIT in a work tree of its own beside the present one and trains every small preset with both, on the built-in
images. Equal have to be

- exports and the safetensors shards of all checkpoints: every byte;
- rows of metrics.jsonl: every column but TIMING;
- manifests: every field but IDENTITY, and the configuration without its comments.

Then a run that COMMIT has stopped half-way is resumed by the present commit, and compared with COMMIT's undisturbed one.
Needs git and cargo. Ends with 1 if anything differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import tomllib

# What the clock says.
TIMING = {"images_per_s", "views_per_s", "step_ms", "data_wait_ms"}

# Drawn anew for each run, or a function of it.
IDENTITY = {"run_id", "time_ns", "digest"}

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build(tree):
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=tree, check=True)
    return tree / "target/release/himpun"


def call(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{binary} {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def train(binary, run, preset, options, *more):
    settings = {
        "run.steps": options.steps,
        "metrics.every": 1,
        "checkpoint.every": max(1, options.steps // 3),
        "checkpoint.at_start": "true",
        "eval.knn_every": options.steps,
    }
    if options.batch:
        settings["train.global_batch"] = options.batch
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    call(binary, "train", "--preset", preset, "--data", "builtin", "--workers", options.workers, "--out", run, *sets, *more)


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]


def manifest(path):
    fields = json.loads(path.read_text())
    metadata = dict(fields["metadata"])
    metadata["config_toml"] = tomllib.loads(metadata["config_toml"])
    # Of the configuration's text, comments included.
    fields.pop("config_digest")
    return {**{key: value for key, value in fields.items() if key not in IDENTITY}, "metadata": metadata}


def export(binary, checkpoint, scratch):
    out = scratch / "export.safetensors"
    call(binary, "export", "--checkpoint", checkpoint, "--out", out)
    return out.read_bytes()


def differences(name, expected, actual, binaries, scratch):
    """Yields a sentence for everything in which two runs differ."""
    if rows(expected) != rows(actual):
        pairs = zip(rows(expected), rows(actual))
        first = next((pair for pair in pairs if pair[0] != pair[1]), "one has more rows than the other")
        yield f"{name}: metrics: {first}"
    steps = [sorted(path.name for path in (run / "checkpoints").glob("step-*")) for run in (expected, actual)]
    if steps[0] != steps[1] or not steps[0]:
        yield f"{name}: checkpoints: {steps[0]} and {steps[1]}"
        return
    for step in steps[0]:
        of_both = [run / "checkpoints" / step for run in (expected, actual)]
        if manifest(of_both[0] / "manifest.json") != manifest(of_both[1] / "manifest.json"):
            yield f"{name}: {step}: manifests"
        for shard in sorted(path.name for path in of_both[0].glob("*.safetensors")):
            if (of_both[0] / shard).read_bytes() != (of_both[1] / shard).read_bytes():
                yield f"{name}: {step}: {shard}"
        exports = [export(binary, checkpoint, scratch) for binary, checkpoint in zip(binaries, of_both)]
        if exports[0] != exports[1]:
            yield f"{name}: {step}: export"


def compare(preset, binaries, options, scratch):
    runs = [scratch / preset / which for which in ("before", "now")]
    for binary, run in zip(binaries, runs):
        train(binary, run, preset, options)
    yield from differences(preset, *runs, binaries, scratch)
    stopped = scratch / preset / "stopped"
    train(binaries[0], stopped, preset, options, "--set", f"run.stop_after={options.steps // 2}")
    call(binaries[1], "train", "--resume", stopped, "--set", "run.stop_after=0")
    last = [run / "checkpoints" / f"step-{options.steps:08}" for run in (runs[0], stopped)]
    for shard in sorted(path.name for path in last[0].glob("*.safetensors")):
        if (last[0] / shard).read_bytes() != (last[1] / shard).read_bytes():
            yield f"{preset}: resumed: {shard}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--presets", type=lambda text: text.split(","))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, help="images of a step, where the preset's would take long")
    parser.add_argument("--binary", type=pathlib.Path, help="COMMIT's, if it is built already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = pathlib.Path(directory)
        before = options.binary
        if before is None:
            tree = scratch / "tree"
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, options.commit], cwd=ROOT, check=True)
            try:
                before = build(tree).rename(scratch / "himpun")
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
        binaries = [before.resolve(), build(ROOT)]
        names = [line.split()[0] for line in call(binaries[1], "presets").splitlines() if line.strip()]
        small = [name for name in names if name == "quickstart" or name.endswith("-small")]
        failed = False
        for preset in options.presets or small:
            found = list(compare(preset, binaries, options, scratch))
            failed |= bool(found)
            print("\n".join(found) or f"{preset}: equal", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
