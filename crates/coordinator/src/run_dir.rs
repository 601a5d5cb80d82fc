//! A run's directory: what stands in it, written by the coordinator alone.
//!
//! Rows and events reach the file system as they are written; the directory is locked while its run is
//! unfinished, so that no second coordinator takes it up. Where it is was settled when the run was submitted
//! ([`Places`](crate::service::Places)): from then on no link is followed, neither on the way to it nor below it.

use checkpoint::Directory;
use proto::v1::{Event, MetricRow, RunEnded, RunState, Severity, WorkerId, event, metric};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::state::{Summary, state_name};

const METRICS: &str = "metrics.jsonl";
const EVENTS: &str = "events.jsonl";
const LOGS: &str = "logs";

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
    /// A link, a FIFO or the like is where a file of ours should be.
    #[error(transparent)]
    NotPlain(checkpoint::Error),
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

impl From<checkpoint::Error> for Error {
    fn from(error: checkpoint::Error) -> Error {
        match error {
            checkpoint::Error::Io { action, path, source } => Error::Io { what: action, path, source },
            other => Error::NotPlain(other),
        }
    }
}

/// The open directory of a run.
pub(crate) struct RunDir {
    /// Locked.
    dir: Directory,
    run_id: String,
    metrics: File,
    events: File,
    log_dir: Directory,
    /// By worker; of the present generation.
    logs: HashMap<WorkerId, File>,
}

/// A worker's log, to be opened when it is read: a run may have more of them than a process may open files.
pub(crate) struct Log {
    pub rank: u32,
    pub generation: u64,
    /// Its length.
    pub bytes: u64,
    log_dir: Arc<Directory>,
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
        let dir = locked(Directory::create_resolved(path)?)?;
        if ["config.toml", EVENTS, METRICS, "checkpoints"].iter().any(|name| dir.exists(name)) {
            return Err(Error::Occupied(path.to_owned()));
        }
        RunDir::open_files(dir, run_id, config_toml)
    }

    /// Opens the directory of a run that goes on after update `step`: rows of later updates are removed,
    /// because those updates happen again. So does the evaluation before the first one.
    pub fn resume(path: &Path, run_id: &str, config_toml: &str, step: Option<u64>) -> Result<RunDir, Error> {
        let dir = locked(open(path)?)?;
        keep_rows(&dir, step)?;
        drop_torn_line(&dir)?;
        RunDir::open_files(dir, run_id, config_toml)
    }

    fn open_files(dir: Directory, run_id: &str, config_toml: &str) -> Result<RunDir, Error> {
        let log_dir = dir.create_directory(LOGS)?;
        dir.replace("config.toml", config_toml.as_bytes())?;
        Ok(RunDir {
            run_id: run_id.to_owned(),
            metrics: dir.append(METRICS)?,
            events: dir.append(EVENTS)?,
            log_dir,
            logs: HashMap::new(),
            dir,
        })
    }

    /// Appends a row to `metrics.jsonl`.
    pub fn write_metrics(&mut self, row: &MetricRow) -> Result<(), Error> {
        write_line(&mut self.metrics, &row_json(row)).map_err(io("write", &self.dir.path().join(METRICS)))
    }

    /// Appends an event to `events.jsonl`. Rows of metrics have a file of their own.
    pub fn write_event(&mut self, event: &Event) -> Result<(), Error> {
        if matches!(event.kind, Some(event::Kind::Metrics(_))) {
            return Ok(());
        }
        let line = event_json(&self.run_id, event);
        write_line(&mut self.events, &line).map_err(io("write", &self.dir.path().join(EVENTS)))
    }

    /// Opens one log a member of a new generation.
    pub fn open_logs(&mut self, generation: u64, members: &[(WorkerId, u32)]) -> Result<(), Error> {
        self.logs.clear();
        for (worker, rank) in members {
            self.logs.insert(worker.clone(), self.log_dir.append(log_name(*rank, generation))?);
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
        file.write_all(text.as_bytes()).map_err(io("write a log in", self.log_dir.path()))
    }
}

/// What is known of the run in `path`.
pub(crate) fn past(path: &Path) -> Result<Past, Error> {
    let file = match open(path)?.read(EVENTS) {
        Err(error) if error.is_not_found() => return Err(Error::NoRun(path.to_owned())),
        opened => opened?,
    };
    let events = path.join(EVENTS);
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
    // A run that logged nothing yet has no such file, and what cannot be read does not keep it from being shown.
    let rows = open(path).and_then(|dir| read(&dir, METRICS)).ok().flatten().unwrap_or_default();
    let text = String::from_utf8_lossy(&rows);
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

/// Logs of the run in `path`, in order of generation and rank.
pub(crate) fn logs(path: &Path) -> Result<Vec<Log>, Error> {
    let log_dir = match Directory::open_resolved(path).and_then(|dir| dir.open_directory(LOGS)) {
        // No worker was ever started.
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        opened => Arc::new(opened?),
    };
    let mut found = Vec::new();
    for name in log_dir.entries()? {
        let Some((rank, generation)) = name.to_str().and_then(parse_log_name) else { continue };
        let mut log = Log { rank, generation, bytes: 0, log_dir: Arc::clone(&log_dir) };
        // Whoever reads one that cannot be opened hears why.
        log.bytes =
            log.open().ok().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        found.push(log);
    }
    found.sort_by_key(|log| (log.generation, log.rank));
    Ok(found)
}

impl Log {
    /// Opens it for reading.
    pub fn open(&self) -> Result<File, Error> {
        Ok(self.log_dir.read(log_name(self.rank, self.generation))?)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.log_dir.path().join(log_name(self.rank, self.generation))
    }
}

fn log_name(rank: u32, generation: u64) -> String {
    format!("rank-{rank}.gen-{generation}.log")
}

fn parse_log_name(name: &str) -> Option<(u32, u64)> {
    let (rank, generation) = name.strip_prefix("rank-")?.strip_suffix(".log")?.split_once(".gen-")?;
    let (rank, generation) = (rank.parse().ok()?, generation.parse().ok()?);
    // Other spellings of the same numbers (`rank-00`) are no names that we give.
    (log_name(rank, generation) == name).then_some((rank, generation))
}

/// Removes the rows of updates after `step`, or all where no update was made, and a last line that was cut
/// off; at once or not at all.
fn keep_rows(dir: &Directory, step: Option<u64>) -> Result<(), Error> {
    let Some(bytes) = read(dir, METRICS)? else { return Ok(()) };
    let mut kept = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let row: Option<Value> = serde_json::from_slice(line).ok();
        let row_step = row.as_ref().and_then(|row| row.get("step")).and_then(Value::as_u64);
        if row_step.zip(step).is_some_and(|(row_step, step)| step > 0 && row_step <= step) {
            kept.extend_from_slice(line);
        }
    }
    Ok(dir.replace(METRICS, &kept)?)
}

/// Removes a last event that was cut off. The file is a new one afterwards, as that of the rows is, so that a run of which
/// there is a backup by hard links can be resumed, and the backup keeps what it has.
fn drop_torn_line(dir: &Directory) -> Result<(), Error> {
    let Some(bytes) = read(dir, EVENTS)? else { return Ok(()) };
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    Ok(dir.replace(EVENTS, &bytes[..whole])?)
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

/// Opens the directory of a run.
pub(crate) fn open(path: &Path) -> Result<Directory, Error> {
    match Directory::open_resolved(path) {
        Err(error) if error.is_not_found() => Err(Error::NoRun(path.to_owned())),
        opened => Ok(opened?),
    }
}

fn locked(dir: Directory) -> Result<Directory, Error> {
    if dir.try_lock()? { Ok(dir) } else { Err(Error::Active(dir.path().to_owned())) }
}

/// The bytes of a file, if it is there.
fn read(dir: &Directory, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let mut file = match dir.read(name) {
        Err(error) if error.is_not_found() => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io("read", &dir.path().join(name)))?;
    Ok(Some(bytes))
}

/// One `write` for the whole line: a reader never sees half of it, unless this process is killed within.
fn write_line(file: &mut File, value: &Value) -> std::io::Result<()> {
    let mut line = value.to_string();
    line.push('\n');
    file.write_all(line.as_bytes())
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

#[cfg(test)]
mod links;
#[cfg(test)]
pub(crate) mod tests;
