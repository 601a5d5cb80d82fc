#!/usr/bin/env python3
"""Runs Himpun and its peers in turn on this machine, prints the ratios, and writes tests/peers/RESULTS.md.

    python3 tests/peers/run.py --cifar cifar10.tar --photos imagenette-val.tar

Needs cargo and Python 3.11 or newer with venv; what PyTorch needs is installed into an environment of its own, from pip's
configured index. Without the data those rows say so. Figures are kept after every command, so a run that was stopped
goes on where it was; they are dropped when the binary, a script, a version or the machine changes. Three quarters of an
hour on two quiet cores.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import machine
import report
from comparisons import CONVERGENCE, GROUPS

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ALL = [*GROUPS, CONVERGENCE]
N_CORES = 2


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[group.name for group in ALL], help="may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="that there shall be in the end [default: 5]")
    parser.add_argument("--quick", action="store_true", help="one round of each, kept apart; RESULTS.md stays as it is")
    parser.add_argument("--fresh", action="store_true", help="forget the figures that are there")
    parser.add_argument("--report", action="store_true", help="only write RESULTS.md again")
    parser.add_argument("--environment", type=pathlib.Path, help="a virtual environment to use [default: one is made]")
    parser.add_argument("--himpun", type=pathlib.Path, help="the binary [default: built with `cargo build --release`]")
    parser.add_argument("--cifar", type=pathlib.Path, help="CIFAR-10: a folder with train/CLASS/NAME.jpg, or a tar of it")
    parser.add_argument("--photos", type=pathlib.Path, help="a tar of JPEG photos")
    parser.add_argument("--runs", type=pathlib.Path, help="where the runs of `--only convergence` are kept")
    return parser.parse_args()


def target_directory():
    """Cargo's, wherever that is configured to be."""
    command = ["cargo", "metadata", "--no-deps", "--offline", "--format-version", "1"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return pathlib.Path(json.loads(out)["target_directory"])


def build(target):
    subprocess.run(["cargo", "build", "--release", "--bin", "himpun"], cwd=ROOT, check=True)
    return target / "release" / "himpun"


def interpreter(directory, ours):
    """Python with PyTorch; an environment of ours is made, and installed again when the requirements change."""
    python = directory / "bin" / "python"
    if not ours:
        return python
    requirements = (HERE / "requirements.txt").read_text()
    installed = directory / "installed.txt"
    if not installed.exists() or installed.read_text() != requirements:
        print(f"installing PyTorch into {directory}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"], check=True)
        installed.write_text(requirements)
    return python


def extracted(archive, scratch):
    """The folder itself, or where the archive was unpacked: PyTorch reads folders only."""
    if archive.is_dir():
        return archive.resolve()
    folder = scratch / archive.name.split(".")[0]
    if not folder.exists():
        partial = folder.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        subprocess.run(["tar", "-xf", archive.resolve(), "-C", partial], check=True)
        partial.rename(folder)
    return folder


def last_json(text, best):
    """The JSON that a command ends with; of several lines, that with the best figure."""
    try:
        return json.loads(text)
    except ValueError:
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return max(lines, key=lambda line: line[best]) if best else lines[-1]


def output_of(command, run, timeout):
    """Runs a command on its cores; its whole process group ends with it, or with us."""
    allowed = machine.cores(run.cores)
    child = subprocess.Popen(command, env={**os.environ, **run.environment}, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, start_new_session=True,
                             preexec_fn=lambda: os.sched_setaffinity(0, allowed))
    try:
        out, err = child.communicate(timeout=timeout)
        return child.returncode, out, err
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise


def carry_out(run, places):
    if run.instructions and not set(run.instructions) & set(machine.instructions()):
        reason = f"not run: without {' or '.join(run.instructions)}"
        return {"error": reason, "reason": reason}
    command = [word.format_map(places) for word in shlex.split(run.command)]
    try:
        code, out, err = output_of(command, run, places["timeout"])
        if code != 0:
            said = err.strip().splitlines() or [f"exit code {code}"]
            # Rust says why in its first line, Python in its last.
            return {"error": said[-1] if said[0].startswith("Traceback") else said[0]}
        return last_json(out, run.best)
    except (ValueError, IndexError, KeyError):
        return {"error": "no JSON in what it printed"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}


def lacking(group, name, result):
    """An error in place of a result that the rows cannot be made of."""
    sides = [side for row in group.rows for side in (row.ours, row.peer, row.given) if side is not None]
    for side in sides:
        try:
            if side.run == name and "error" not in result:
                side.of({name: result})
        except (KeyError, TypeError):
            return {"error": f"its JSON has no `{side.key}`"}
    return result


def today():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def load(path):
    return json.loads(path.read_text()) if path.exists() else None


def save(path, stored):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(stored, indent=1))
    partial.rename(path)


def digest(himpun, about):
    """Of all that figures depend on."""
    scripts = sorted(path for path in HERE.glob("*.py") if path.name not in ("run.py", "report.py"))
    parts = [himpun.read_bytes(), *(path.read_bytes() for path in scripts), json.dumps(about).encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def measure(group, rounds, path, places, identity):
    """Runs what is missing of the group's rounds; failures are tried again."""
    stored = load(path)
    if stored is None or stored.get("digest") != identity["digest"]:
        stored = {"rounds": []}
    stored.update(identity)
    for index in range(group.rounds or rounds):
        if index == len(stored["rounds"]):
            stored["rounds"].append({})
        results = stored["rounds"][index]
        order = list(group.runs) if index % 2 == 0 else list(reversed(group.runs))
        for name in order:
            if "error" in results.get(name, {"error": ""}):
                results[name] = lacking(group, name, carry_out(group.runs[name], places))
                stored["date"] = today()
                save(path, stored)
                print(f"{group.name} round {index + 1}: {name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)


def write_report(results, reasons, quick):
    stored = {group.name: load(results / f"{group.name}.json") for group in ALL}
    stored = {name: found for name, found in stored.items() if found}
    if not stored:
        sys.exit("error: nothing was measured yet")
    newest = max(stored.values(), key=lambda found: found["date"])
    text = report.markdown(ALL, stored, reasons, newest["about"])
    print(text)
    if not quick:
        (HERE / "RESULTS.md").write_text(text)


def main():
    arguments = parse()
    target = target_directory()
    kept = target / "peers" / ("quick" if arguments.quick else "results")
    data = {"cifar": arguments.cifar, "photos": arguments.photos}
    missing = {group.name: "not run: no data" for group in ALL if any(data[need] is None for need in group.needs)}
    reasons = {**missing, CONVERGENCE.name: "not run: takes hours, `--only convergence`"}
    if arguments.report:
        return write_report(kept, reasons, quick=False)
    python = interpreter(arguments.environment or target / "peers" / "venv", ours=arguments.environment is None)
    himpun = (arguments.himpun or build(target)).resolve()
    places = {
        "himpun": himpun,
        "python": python,
        "here": HERE,
        "photos": arguments.photos and arguments.photos.resolve(),
        "cifar": arguments.cifar and extracted(arguments.cifar, target / "peers" / "data"),
        "runs": arguments.runs or target / "peers" / "convergence",
    }
    about = {**machine.describe(), **machine.versions(python)}
    identity = {
        "digest": digest(himpun, about),
        "himpun": machine.commit(ROOT) if arguments.himpun is None else "a binary that was given",
        "about": {**about, "date": today()},
    }
    chosen = [group for group in ALL if (group.name in arguments.only if arguments.only else group.default)]
    for group in chosen:
        path = kept / f"{group.name}.json"
        if arguments.fresh or arguments.quick:
            path.unlink(missing_ok=True)
        if group.name not in missing:
            timeout = None if group is CONVERGENCE else 600
            measure(group, 1 if arguments.quick else arguments.rounds, path, {**places, "timeout": timeout}, identity)
    write_report(kept, reasons, arguments.quick)


if __name__ == "__main__":
    main()
