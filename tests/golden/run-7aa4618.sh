#!/usr/bin/env bash
# The compatibility fixture of commit 7aa4618: a run that it stopped at step 3, and its own export of the same run
# undisturbed.
#
#     tests/golden/run-7aa4618.sh PATH_OF_ITS_BINARY
#
# writes run-7aa4618.tar.zst (the stopped run, without logs, `export --format state-dict` of it, and the features of the
# first 16 built-in test images) and
# run-7aa4618.safetensors (the export of the undisturbed run, at step 6). Build the binary with
# `git worktree add ../himpun-7aa4618 7aa4618` and `cargo build --release` there. Written on the kernel path avx2, by
# two workers of one thread each: with another path, or other threads, training gives other bits.
set -euo pipefail
himpun=$(realpath "$1")
golden=$(realpath "$(dirname "$0")")

# The run's events name its directory, and no other path.
run=/tmp/himpun-run
[ ! -e "$run" ] || { echo "error: $run is in the way" >&2; exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$run" "$scratch"' EXIT

# A convolution net, batch norm, a bank that the workers share, and momentum.
train() {
    # Workers share the cores: two, so that each has one thread.
    taskset --cpu-list 0,1 "$himpun" train --data builtin --workers 2 --out "$1" "${@:2}" \
        --set objective.kind=npid --set objective.negatives=64 --set bank.dtype=bf16 \
        --set model.arch=resnet20 --set model.stem=cifar --set model.head=linear-16 --set data.size=16 \
        --set train.global_batch=16 --set optimizer.kind=sgd --set optimizer.lr=0.02 --set optimizer.momentum=0.9 \
        --set run.steps=6 --set checkpoint.every=3 --set eval.knn_every=0
}
train "$run" --set run.stop_after=3
rm -r "$run/logs"
"$himpun" export --format state-dict --checkpoint "$run" --out "$scratch/step-3.safetensors"
"$himpun" embed --checkpoint "$run" --data 'builtin#test' --out "$scratch/features.npy"
# Behind a header of 128 bytes.
tail --bytes=+129 "$scratch/features.npy" | head --bytes=$((16 * 64 * 4)) >"$scratch/features.f32"
tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 \
    --directory /tmp himpun-run --directory "$scratch" step-3.safetensors features.f32 |
    zstd -19 --force -o "$golden/run-7aa4618.tar.zst"
train "$scratch/undisturbed"
"$himpun" export --format state-dict --checkpoint "$scratch/undisturbed" --out "$golden/run-7aa4618.safetensors"
