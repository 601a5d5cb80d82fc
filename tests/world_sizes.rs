//! The same run over different numbers of workers.

use crate::support::{assert_quiet, himpun, metrics, succeed, tiny_run};

/// Trains for 20 steps with each number of workers, with `set` beside the settings of a tiny run.
#[track_caller]
fn check(set: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let losses = |workers: usize| -> Vec<f64> {
        let run = directory.path().join(format!("workers-{workers}"));
        let workers = workers.to_string();
        let mut command = himpun();
        command.args(["train", "--workers", &workers, "--out"]).arg(&run).args(tiny_run(20));
        succeed(command.args(set.iter().flat_map(|pair| ["--set", pair])));
        assert_quiet(&run, &[]);
        metrics(&run).iter().map(|row| row["loss"].as_f64().unwrap()).collect()
    };
    let alone = losses(1);
    assert_eq!(alone.len(), 20);
    for workers in [2, 3, 4] {
        for (step, (a, b)) in alone.iter().zip(losses(workers)).enumerate() {
            assert!(
                (a - b).abs() <= 1e-4 * a.abs(),
                "step {}: {a} alone, {b} with {workers} workers",
                step + 1
            );
        }
    }
}

/// `CONTRACT.md`, "Across world sizes": the first 20 losses agree to 1e-4, uneven shares included.
#[test]
fn losses_agree_over_world_sizes() {
    check(&[]);
}

/// At a smaller rate: the rounding of a transformer's first steps grows faster.
#[test]
fn losses_of_a_vision_transformer_agree_over_world_sizes() {
    check(&["model.arch=vit-32-2-2", "model.patch=4", "optimizer.lr=0.001"]);
}
