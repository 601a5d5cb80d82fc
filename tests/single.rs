//! `himpun train` on one machine.

use crate::support::{
    alive, assert_quiet, checkpoints, children, endless, fail, himpun, metrics, signal, succeed, tiny_run,
    until, until_within,
};
use serde_json::Value;

#[test]
fn a_run_leaves_what_the_contract_says() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    // A link on the way is followed once, and the run is known by where it led.
    let (run, named) = (root.join("real/run"), root.join("link/run"));
    std::fs::create_dir(root.join("real")).unwrap();
    std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
    let stdout = succeed(
        himpun().args(["train", "--json", "--workers", "2", "--out"]).arg(&named).args(tiny_run(3)).args([
            "--set",
            "eval.knn_every=3",
            "--set",
            "checkpoint.at_start=true",
        ]),
    );
    let last: Value = serde_json::from_str(stdout.lines().last().expect("a line of JSON")).unwrap();
    for key in [
        "run_id",
        "run_dir",
        "steps",
        "loss",
        "knn_top1",
        "images_per_s",
        "views_per_s",
        "world_size",
        "checkpoint",
    ] {
        assert!(last.get(key).is_some_and(|value| !value.is_null()), "{key} in {last}");
    }
    assert_eq!(last["steps"], 3);
    assert_eq!(last["world_size"], 2);
    assert_eq!(last["run_dir"].as_str(), run.to_str());
    assert_eq!(last["checkpoint"].as_str(), run.join("checkpoints/step-00000003").to_str());

    let rows = metrics(&run);
    let steps: Vec<u64> = rows.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 1, 2, 3]);
    assert!(rows[0].get("loss").is_none() && rows[0]["knn_top1"].is_f64(), "{}", rows[0]);
    assert_eq!(rows[3]["knn_top1"], last["knn_top1"]);
    // 6,000 images of ten classes: as many neighbours as the papers take.
    assert_eq!(
        (&rows[0]["knn_k"], &rows[3]["knn_k"], &last["knn_k"]),
        (&200.into(), &200.into(), &200.into())
    );
    assert!(rows[1].get("knn_top1").is_none(), "{}", rows[1]);
    let chance = f64::ln(2.0 * 16.0 - 1.0);
    for row in &rows[1..] {
        assert!((row["chance_loss"].as_f64().unwrap() - chance).abs() < 1e-12, "{row}");
        // Each rank encodes its own rows and no others.
        assert_eq!(row["rows_encoded"], serde_json::json!([16, 16]));
    }

    let config: toml::Table = std::fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(config["optimizer"]["momentum"].as_float(), Some(0.9), "defaults are written out");
    for step in ["step-00000000", "step-00000003"] {
        assert!(run.join("checkpoints").join(step).join("manifest.json").is_file(), "{step}");
    }
    assert!(std::fs::read_to_string(run.join("events.jsonl")).unwrap().lines().count() > 2);
    let mut logs: Vec<_> =
        std::fs::read_dir(run.join("logs")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    logs.sort();
    assert_eq!(logs, ["rank-0.gen-1.log", "rank-1.gen-1.log"], "one log for each worker and generation");
    assert_quiet(&run, &[]);

    let stderr = fail(himpun().args(["train", "--out"]).arg(&run).args(tiny_run(1)), 2);
    assert!(stderr.contains(run.to_str().unwrap()) && stderr.contains("hint:"), "{stderr}");
}

/// What a rank sends does not grow with the images it does not own: with gradients left out (they are
/// the same size at any batch), embeddings and log-sum-exps are what travels.
#[test]
fn bytes_sent_grow_with_the_rows_of_a_rank() {
    let directory = tempfile::tempdir().unwrap();
    let sent = |batch: usize| {
        let run = directory.path().join(format!("batch-{batch}"));
        let batch = format!("train.global_batch={batch}");
        succeed(
            himpun()
                .args(["train", "--workers", "2", "--out"])
                .arg(&run)
                .args(tiny_run(3))
                .args(["--set", &batch]),
        );
        let rows = metrics(&run);
        let of = |row: &Value| row["bytes_sent"][0].as_u64().unwrap();
        of(&rows[2]) - of(&rows[1])
    };
    let (small, large) = (sent(8), sent(24));
    // 16 more rows on this rank, each an embedding of 32 values and a log-sum-exp, to one peer.
    assert_eq!(large - small, 16 * (32 + 1) * 4);
}

#[test]
fn workers_are_children_and_do_not_outlive_a_killed_train() {
    let directory = tempfile::tempdir().unwrap();
    let (mut train, run) = endless(directory.path(), "run", &[]);
    until("a trained step", || (!metrics(&run).is_empty()).then_some(()));
    let workers = children(train.id());
    assert_eq!(workers.len(), 2, "{workers:?}");
    for (_, line) in &workers {
        assert!(line.starts_with("himpun worker"), "{line}");
    }
    train.kill();
    // `CONTRACT.md`: nothing outlives it by more.
    let limit = std::time::Duration::from_secs(10);
    until_within(limit, "the workers to end", || workers.iter().all(|(id, _)| !alive(*id)).then_some(()));
}

#[test]
fn a_killed_worker_is_named_and_ends_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let (mut train, run) = endless(directory.path(), "run", &[]);
    until("a trained step", || (!metrics(&run).is_empty()).then_some(()));
    let workers = children(train.id());
    let victim = workers.iter().find(|(_, line)| line.contains("--slot 1 ")).expect("a worker in slot 1");
    signal(victim.0, "KILL");
    assert_eq!(train.wait().code(), Some(1));
    let stderr = train.stderr();
    assert!(stderr.contains("rank 1") && stderr.contains("SIGKILL"), "{stderr}");
    assert!(stderr.contains("nothing was saved before") && !stderr.contains("resume"), "{stderr}");
    assert!(workers.iter().all(|(id, _)| !alive(*id)), "{workers:?}");
}

#[test]
fn an_interrupted_run_leaves_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    // The last step has its row also where rows are rare.
    let rare = ["metrics.every=1000", "checkpoint.every=2", "checkpoint.keep=1"];
    let (mut train, run) = endless(directory.path(), "run", &rare);
    until("a trained step", || (!checkpoints(&run).is_empty()).then_some(()));
    signal(train.id(), "INT");
    assert_eq!(train.wait().code(), Some(85), "{}", train.stderr());
    let last = metrics(&run).last().unwrap()["step"].as_u64().unwrap();
    assert_eq!(checkpoints(&run), [last]);
}
