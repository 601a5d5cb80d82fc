//! The same run over different numbers of workers.

use crate::support::{assert_quiet, himpun, metrics, succeed, tiny_run};

/// `CONTRACT.md`, "Across world sizes": the first 20 losses agree to 1e-4, uneven shares included.
#[test]
fn losses_agree_over_world_sizes() {
    let directory = tempfile::tempdir().unwrap();
    let losses = |workers: usize| -> Vec<f64> {
        let run = directory.path().join(format!("workers-{workers}"));
        let workers = workers.to_string();
        succeed(himpun().args(["train", "--workers", &workers, "--out"]).arg(&run).args(tiny_run(20)));
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
