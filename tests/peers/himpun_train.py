"""`himpun train` on a folder of CIFAR-10 images, ResNet-20, batch 256: the other side of torch_simclr.py.

    python himpun_train.py --himpun target/release/himpun --images cifar10

Prints one JSON line: images a second over the steps after warm-up, from the rows of the run's metrics.jsonl, so that
start-up counts on neither side. Every image is decoded: the steps lie within the first pass over the data.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

BATCH = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--himpun", required=True)
    parser.add_argument("--images", required=True, help="a folder with `train/CLASS/NAME.jpg`")
    parser.add_argument("--warm-up", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = pathlib.Path(scratch) / "run"
        command = [arguments.himpun, "train", "--preset", "simclr-cifar10-small", "--out", run]
        command += ["--data", f"{arguments.images}#train", "--set", "eval.knn_every=0"]
        command += ["--set", f"train.global_batch={BATCH}", "--set", f"run.steps={arguments.warm_up + arguments.steps}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = [row for row in rows if row["step"] > arguments.warm_up]
    seconds = sum(row["step_ms"] for row in timed) / 1e3
    waited = statistics.mean(row["data_wait_ms"] for row in timed)
    print(json.dumps({"images_per_s": BATCH * len(timed) / seconds, "data_wait_ms": waited}))


if __name__ == "__main__":
    main()
