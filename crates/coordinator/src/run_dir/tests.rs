use super::*;
use proto::v1::{Counts, Metric};

/// A directory by a path without links, as a run's is, wherever temporary files are kept.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(std::env::temp_dir().canonicalize().unwrap()).unwrap()
}

pub(super) fn row(step: u64, loss: f64) -> MetricRow {
    let metric = |name: &str, value| Metric { name: name.to_owned(), value: Some(value) };
    let values = vec![
        metric("epoch", metric::Value::Number(0.5)),
        metric("loss", metric::Value::Number(loss)),
        metric("corrupt_images", metric::Value::Count(u64::MAX)),
        metric("rows_encoded", metric::Value::Counts(Counts { values: vec![3, 2] })),
        metric("bad", metric::Value::Number(f64::NAN)),
    ];
    MetricRow { step, values }
}

pub(super) fn event(seq: u64, text: &str, kind: Option<event::Kind>) -> Event {
    Event { seq, time_ns: 5, generation: 2, severity: Severity::Info.into(), text: text.to_owned(), kind }
}

pub(super) fn worker(slot: u32) -> WorkerId {
    WorkerId { agent_id: "a".to_owned(), slot, nonce: "n".to_owned() }
}

fn text_of(path: &Path, name: &str) -> String {
    std::fs::read_to_string(path.join(name)).unwrap()
}

#[test]
fn rows_keep_order_and_precision() {
    let dir = directory();
    let path = dir.path().join("deep/run");
    let mut run = RunDir::create(&path, "r", "[run]\n").unwrap();
    let loss = 0.1 + 0.2;
    run.write_metrics(&row(1, loss)).unwrap();
    let line = text_of(&path, "metrics.jsonl");
    let expected = "{\"step\":1,\"epoch\":0.5,\"loss\":0.30000000000000004,\"corrupt_images\":18446744073709551615,\"rows_encoded\":[3,2]}\n";
    assert_eq!(line, expected);
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["loss"].as_f64(), Some(loss));
    assert_eq!(text_of(&path, "config.toml"), "[run]\n");
}

#[test]
fn a_directory_belongs_to_one_run() {
    let dir = directory();
    let path = dir.path().join("run");
    assert!(matches!(RunDir::resume(&path, "r", "", None), Err(Error::NoRun(_))));
    let run = RunDir::create(&path, "r", "").unwrap();
    assert!(matches!(RunDir::create(&path, "r", ""), Err(Error::Active(_))));
    assert!(matches!(RunDir::resume(&path, "r", "", None), Err(Error::Active(_))));
    drop(run);
    assert!(matches!(RunDir::create(&path, "r", ""), Err(Error::Occupied(_))));
    assert!(RunDir::resume(&path, "r", "", None).is_ok());
}

/// Rows of steps 0 to 4 and half a row; `kept` is what a resume at `step` leaves.
#[track_caller]
fn check_resume(step: Option<u64>, kept: &[u64]) {
    let dir = directory();
    let mut run = RunDir::create(dir.path(), "r", "old").unwrap();
    for step in 0..5 {
        run.write_metrics(&row(step, step as f64)).unwrap();
    }
    run.metrics.write_all(b"{\"step\":1,\"lo").unwrap();
    drop(run);
    let mut run = RunDir::resume(dir.path(), "r", "new", step).unwrap();
    run.write_metrics(&row(99, 0.5)).unwrap();
    let rows: Vec<Value> =
        text_of(dir.path(), "metrics.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps: Vec<u64> = rows.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [kept, &[99]].concat());
    assert_eq!(text_of(dir.path(), "config.toml"), "new");
}

#[test]
fn a_resume_removes_the_rows_that_come_again() {
    check_resume(None, &[]);
    check_resume(Some(0), &[]);
    check_resume(Some(2), &[0, 1, 2]);
    check_resume(Some(u64::MAX), &[0, 1, 2, 3, 4]);
}

#[test]
fn the_past_is_read_from_the_events() {
    let dir = directory();
    assert!(matches!(past(dir.path()), Err(Error::NoRun(_))));
    let mut run = RunDir::create(dir.path(), "r", "").unwrap();
    run.write_event(&event(1, "submitted", None)).unwrap();
    run.write_event(&event(2, "", Some(event::Kind::Metrics(row(1, 2.0))))).unwrap();
    let end = RunEnded {
        state: RunState::Failed.into(),
        exit_code: 3,
        error: "no".to_owned(),
        hint: "h".to_owned(),
        log_tail: vec!["a".to_owned(), "b".to_owned()],
    };
    let mut end = event(3, "failed", Some(event::Kind::Ended(end)));
    end.severity = Severity::Error.into();
    run.write_event(&end).unwrap();
    assert_eq!(text_of(dir.path(), "events.jsonl").lines().count(), 2, "metrics have a file of their own");
    let found = past(dir.path()).unwrap();
    assert_eq!(found, Past { run_id: "r".to_owned(), generation: 2, next_seq: 4, ended: Some(end) });

    // A coordinator killed in the middle of a line, and of a letter.
    run.events.write_all(b"{\"seq\":4,\"text\":\"\xc3").unwrap();
    assert_eq!(past(dir.path()).unwrap(), found);
    drop(run);
    let mut run = RunDir::resume(dir.path(), "r", "", None).unwrap();
    run.write_event(&event(4, "resumed", None)).unwrap();
    let found = past(dir.path()).unwrap();
    assert_eq!((found.next_seq, found.ended), (5, None));

    run.events.write_all(b"garbage\n{}\n").unwrap();
    assert!(matches!(past(dir.path()), Err(Error::Damaged { line: 4, .. })));
}

#[test]
fn numbers_of_a_status_come_from_the_rows() {
    let dir = directory();
    assert_eq!(summary(dir.path(), 9), Summary::default());
    let mut run = RunDir::create(dir.path(), "r", "").unwrap();
    for step in 1..4 {
        run.write_metrics(&row(step, step as f64)).unwrap();
    }
    let found = summary(dir.path(), 2);
    assert_eq!((found.step, found.loss, found.epoch, found.knn_top1), (2, 2.0, 0.5, None));
}

#[test]
fn logs_are_one_file_a_worker_and_generation() {
    let dir = directory();
    let mut run = RunDir::create(dir.path(), "r", "").unwrap();
    run.open_logs(1, &[(worker(0), 0), (worker(1), 1)]).unwrap();
    run.write_log(&worker(1), &["one".to_owned(), "two".to_owned()]).unwrap();
    run.write_log(&worker(7), &["nobody's".to_owned()]).unwrap();
    run.open_logs(2, &[(worker(0), 0)]).unwrap();
    std::fs::write(dir.path().join("logs/rank-00.gen-1.log"), "not ours").unwrap();
    let found: Vec<_> =
        logs(dir.path()).unwrap().into_iter().map(|log| (log.generation, log.rank, log.bytes)).collect();
    assert_eq!(found, [(1, 0, 0), (1, 1, 8), (2, 0, 0)]);
    assert_eq!(text_of(dir.path(), "logs/rank-1.gen-1.log"), "one\ntwo\n");
    assert_eq!(text_of(dir.path(), "logs/rank-0.gen-1.log"), "");
}
