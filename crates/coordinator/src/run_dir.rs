//! A run's directory: what stands in it, written by the coordinator alone.
//!
//! Rows and events reach the file system as they are written; the directory is locked while its run is
//! unfinished, so that no second coordinator takes it up.

use nix::fcntl::{Flock, FlockArg};
use proto::v1::{Event, MetricRow, RunEnded, RunState, Severity, WorkerId, event, metric};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::state::{Summary, state_name};

/// Why a run's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A run is there, and nobody asked to resume it.
    #[error("{} holds a run", .0.display())]
    Occupied(PathBuf),
    /// Nothing to resume.
    #[error("{} holds no run", .0.display())]
    NoRun(PathBuf),
    /// Another coordinator, or another run of this one, works in it.
    #[error("{} belongs to a run that is active", .0.display())]
    Active(PathBuf),
    /// A line of `events.jsonl` is not one of ours.
    #[error("{} is damaged: line {line}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The file system refused.
    #[error("failed to {what} {}: {source}", path.display())]
    Io {
        /// Verb phrase.
        what: &'static str,
        /// What of.
        path: PathBuf,
        /// Why; part of the message, because it ends in a status as one line.
        source: std::io::Error,
    },
}

/// The open directory of a run.
pub(crate) struct RunDir {
    path: PathBuf,
    run_id: String,
    metrics: File,
    events: File,
    /// By worker; of the present generation.
    logs: HashMap<WorkerId, File>,
    _lock: Flock<File>,
}

/// What `events.jsonl` tells of a run's past.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Past {
    pub run_id: String,
    /// Highest of all events.
    pub generation: u64,
    /// Of the event after the last.
    pub next_seq: u64,
    /// The last end, if the run is not active.
    pub ended: Option<Event>,
}

impl RunDir {
    /// Makes the directory of a new run.
    pub fn create(path: &Path, run_id: &str, config_toml: &str) -> Result<RunDir, Error> {
        std::fs::create_dir_all(path).map_err(io("create", path))?;
        let lock = lock(path)?;
        if ["config.toml", "events.jsonl", "metrics.jsonl", "checkpoints"]
            .iter()
            .any(|name| path.join(name).exists())
        {
            return Err(Error::Occupied(path.to_owned()));
        }
        RunDir::open_files(path, run_id, config_toml, lock)
    }

    /// Opens the directory of a run that goes on after update `step`: rows of later updates are removed,
    /// because those updates happen again. So does the evaluation before the first one.
    pub fn resume(path: &Path, run_id: &str, config_toml: &str, step: Option<u64>) -> Result<RunDir, Error> {
        let lock = lock(path)?;
        keep_rows(&path.join("metrics.jsonl"), step)?;
        drop_torn_line(&path.join("events.jsonl"))?;
        RunDir::open_files(path, run_id, config_toml, lock)
    }

    fn open_files(path: &Path, run_id: &str, config_toml: &str, lock: Flock<File>) -> Result<RunDir, Error> {
        let logs = path.join("logs");
        std::fs::create_dir_all(&logs).map_err(io("create", &logs))?;
        replace(&path.join("config.toml"), config_toml.as_bytes())?;
        Ok(RunDir {
            run_id: run_id.to_owned(),
            metrics: append(&path.join("metrics.jsonl"))?,
            events: append(&path.join("events.jsonl"))?,
            logs: HashMap::new(),
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Appends a row to `metrics.jsonl`.
    pub fn write_metrics(&mut self, row: &MetricRow) -> Result<(), Error> {
        write_line(&mut self.metrics, &row_json(row)).map_err(io("write", &self.path.join("metrics.jsonl")))
    }

    /// Appends an event to `events.jsonl`. Rows of metrics have a file of their own.
    pub fn write_event(&mut self, event: &Event) -> Result<(), Error> {
        if matches!(event.kind, Some(event::Kind::Metrics(_))) {
            return Ok(());
        }
        let line = event_json(&self.run_id, event);
        write_line(&mut self.events, &line).map_err(io("write", &self.path.join("events.jsonl")))
    }

    /// Opens one log a member of a new generation.
    pub fn open_logs(&mut self, generation: u64, members: &[(WorkerId, u32)]) -> Result<(), Error> {
        self.logs.clear();
        for (worker, rank) in members {
            let file = append(&self.path.join("logs").join(log_name(*rank, generation)))?;
            self.logs.insert(worker.clone(), file);
        }
        Ok(())
    }

    /// Appends lines to a worker's log; those of a former generation come too late and are dropped.
    pub fn write_log(&mut self, worker: &WorkerId, lines: &[String]) -> Result<(), Error> {
        let Some(file) = self.logs.get_mut(worker) else { return Ok(()) };
        let mut text = String::new();
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        file.write_all(text.as_bytes()).map_err(io("write a log in", &self.path.join("logs")))
    }
}

/// What is known of the run in `path`.
pub(crate) fn past(path: &Path) -> Result<Past, Error> {
    let events = path.join("events.jsonl");
    let file = match File::open(&events) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NoRun(path.to_owned()));
        }
        Err(error) => return Err(io("open", &events)(error)),
    };
    let mut past = Past::default();
    let mut damaged = None;
    for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(io("read", &events))?;
        // A coordinator that was killed may have left half a line, but only as the last.
        if let Some(line) = damaged {
            return Err(Error::Damaged { path: events, line });
        }
        let Ok(Value::Object(object)) = serde_json::from_slice(&line) else {
            damaged = Some(number + 1);
            continue;
        };
        let number_of = |key: &str| object.get(key).and_then(Value::as_u64).unwrap_or(0);
        past.run_id = text(&object, "run_id");
        past.generation = past.generation.max(number_of("generation"));
        past.next_seq = number_of("seq") + 1;
        past.ended = (text(&object, "kind") == "ended").then(|| ended_event(&object));
    }
    if past.run_id.is_empty() { Err(Error::NoRun(path.to_owned())) } else { Ok(past) }
}

/// The last numbers in `metrics.jsonl` up to update `step`.
pub(crate) fn summary(path: &Path, step: u64) -> Summary {
    let mut summary = Summary::default();
    // A run that logged nothing yet has no such file.
    let text = std::fs::read_to_string(path.join("metrics.jsonl")).unwrap_or_default();
    for row in text.lines().filter_map(|line| serde_json::from_str::<Map<String, Value>>(line).ok()) {
        let Some(row_step) = row.get("step").and_then(Value::as_u64).filter(|row_step| *row_step <= step)
        else {
            continue;
        };
        summary.step = row_step;
        for (column, value) in &row {
            if let Some(number) = value.as_f64() {
                summary.set(column, number);
            }
        }
    }
    summary
}

/// Logs of a run: `(rank, generation, path)`, in order of generation and rank.
pub(crate) fn logs(run_dir: &Path) -> Vec<(u32, u64, PathBuf)> {
    // No directory: no worker was ever started.
    let Ok(entries) = std::fs::read_dir(run_dir.join("logs")) else { return Vec::new() };
    let mut found: Vec<(u32, u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let (rank, generation) = parse_log_name(path.file_name()?.to_str()?)?;
            Some((rank, generation, path))
        })
        .collect();
    found.sort_by_key(|(rank, generation, _)| (*generation, *rank));
    found
}

fn log_name(rank: u32, generation: u64) -> String {
    format!("rank-{rank}.gen-{generation}.log")
}

fn parse_log_name(name: &str) -> Option<(u32, u64)> {
    let (rank, generation) = name.strip_prefix("rank-")?.strip_suffix(".log")?.split_once(".gen-")?;
    Some((rank.parse().ok()?, generation.parse().ok()?))
}

/// Removes the rows of updates after `step`, or all where no update was made, and a last line that was cut
/// off; at once or not at all.
fn keep_rows(path: &Path, step: Option<u64>) -> Result<(), Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("read", path)(error)),
    };
    let mut kept = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let row: Option<Value> = serde_json::from_slice(line).ok();
        let row_step = row.as_ref().and_then(|row| row.get("step")).and_then(Value::as_u64);
        if row_step.zip(step).is_some_and(|(row_step, step)| step > 0 && row_step <= step) {
            kept.extend_from_slice(line);
        }
    }
    replace(path, &kept)
}

fn drop_torn_line(path: &Path) -> Result<(), Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("read", path)(error)),
    };
    if bytes.is_empty() || bytes.ends_with(b"\n") {
        return Ok(());
    }
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    replace(path, &bytes[..whole])
}

/// One row as JSON: `step` first, then the columns in their order; numbers so that they read back equal.
fn row_json(row: &MetricRow) -> Value {
    let mut object = Map::new();
    object.insert("step".to_owned(), json!(row.step));
    for metric in &row.values {
        let value = match &metric.value {
            Some(metric::Value::Number(number)) => json!(number),
            Some(metric::Value::Count(count)) => json!(count),
            Some(metric::Value::Counts(counts)) => json!(counts.values),
            None => Value::Null,
        };
        // What is not a number in JSON (NaN, infinities) is left out, as is what does not apply.
        if !value.is_null() {
            object.insert(metric.name.clone(), value);
        }
    }
    Value::Object(object)
}

fn event_json(run_id: &str, event: &Event) -> Value {
    let severity = match event.severity() {
        Severity::Unspecified | Severity::Info => "info",
        Severity::Warn => "warn",
        Severity::Error => "error",
    };
    let mut line = json!({
        "seq": event.seq,
        "time_ns": event.time_ns,
        "run_id": run_id,
        "generation": event.generation,
        "severity": severity,
        "text": event.text,
    });
    let more = match &event.kind {
        None | Some(event::Kind::Metrics(_)) => json!({}),
        Some(event::Kind::State(state)) => json!({"kind": "state", "state": state_name(state.state())}),
        Some(event::Kind::Member(member)) => json!({
            "kind": "member",
            "rank": member.rank,
            "worker": member.worker.as_ref().map(ToString::to_string),
            "change": member.change,
        }),
        Some(event::Kind::Checkpoint(checkpoint)) => json!({
            "kind": "checkpoint", "step": checkpoint.step, "path": checkpoint.path, "bytes": checkpoint.bytes,
        }),
        Some(event::Kind::Command(command)) => {
            json!({"kind": "command", "command": command.command, "actor": command.actor})
        }
        Some(event::Kind::Ended(ended)) => json!({
            "kind": "ended",
            "state": state_name(ended.state()),
            "exit_code": ended.exit_code,
            "error": ended.error,
            "hint": ended.hint,
            "log_tail": ended.log_tail,
        }),
    };
    if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
        line.extend(more);
    }
    line
}

/// The inverse of [`event_json`] for the end of a run, which a watcher after a restart asks for.
fn ended_event(object: &Map<String, Value>) -> Event {
    let number = |key: &str| object.get(key).and_then(Value::as_u64).unwrap_or(0);
    let states = [RunState::Finished, RunState::Stopped, RunState::Failed];
    let state = states.into_iter().find(|state| state_name(*state) == text(object, "state"));
    let failed = state == Some(RunState::Failed);
    let tail = object.get("log_tail").and_then(Value::as_array);
    let ended = RunEnded {
        state: state.unwrap_or(RunState::Unspecified).into(),
        exit_code: object
            .get("exit_code")
            .and_then(Value::as_i64)
            .and_then(|code| code.try_into().ok())
            .unwrap_or(1),
        error: text(object, "error"),
        hint: text(object, "hint"),
        log_tail: tail.into_iter().flatten().filter_map(|line| line.as_str().map(str::to_owned)).collect(),
    };
    Event {
        seq: number("seq"),
        time_ns: number("time_ns"),
        generation: number("generation"),
        severity: if failed { Severity::Error } else { Severity::Info }.into(),
        text: text(object, "text"),
        kind: Some(event::Kind::Ended(ended)),
    }
}

fn text(object: &Map<String, Value>, key: &str) -> String {
    object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn lock(path: &Path) -> Result<Flock<File>, Error> {
    let directory = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::NoRun(path.to_owned()),
        _ => io("open", path)(error),
    })?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, _)| Error::Active(path.to_owned()))
}

fn append(path: &Path) -> Result<File, Error> {
    OpenOptions::new().create(true).append(true).open(path).map_err(io("open", path))
}

/// One `write` for the whole line: a reader never sees half of it, unless this process is killed within.
fn write_line(file: &mut File, value: &Value) -> std::io::Result<()> {
    let mut line = value.to_string();
    line.push('\n');
    file.write_all(line.as_bytes())
}

/// Replaces a file by a rename, after its bytes are on the disk, and waits until the rename is as well.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().expect("a file in a run's directory has a name").to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(path.parent().expect("a file in a run's directory has a parent"))?.sync_all()
    };
    write().map_err(io("write", path))
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

#[cfg(test)]
mod tests;
