//! From a request to a run that can be queued: everything that can be refused is refused here.

use config::RunConfig;
use identity::Caller;
use proto::v1::SubmitRunRequest;
use std::path::{Path, PathBuf};
use tonic::{Code, Status};

use super::places::{Places, not_a_place};
use super::{check_protocol, refusal};
use crate::checkpoints;
use crate::owner::Submission;
use crate::run_dir;
use crate::state::{IdempotencyKey, RunRecord, Stage, Summary};

/// Reads a submission. Blocks on the disk: to resume, checkpoints are verified.
///
/// `places` says which directories the caller may name.
pub(super) fn read(
    request: SubmitRunRequest,
    caller: &Caller,
    places: &Places,
) -> Result<Submission, Status> {
    check_protocol(request.protocol, "the client")?;
    let config = RunConfig::from_toml(&request.config_toml).map_err(|error| {
        let hint = error.hint().unwrap_or_default();
        refusal(Code::InvalidArgument, "bad_config", proto::one_line(&error), &hint)
    })?;
    if !matches!(request.device.as_str(), "" | "auto" | "cpu") {
        let message = format!("device `{}` is not one that workers of this version use", request.device);
        return Err(refusal(Code::InvalidArgument, "bad_device", message, "use `auto` or `cpu`"));
    }
    if request.workers as usize > config.train.global_batch {
        let message = format!(
            "{} workers cannot share train.global_batch = {}: each needs an image at least",
            request.workers, config.train.global_batch
        );
        return Err(refusal(
            Code::InvalidArgument,
            "bad_workers",
            message,
            "use fewer workers or a larger batch",
        ));
    }
    let key = (!request.idempotency_key.is_empty())
        .then(|| IdempotencyKey(format!("submit/{}", request.idempotency_key)));
    if request.resume {
        let run_dir = places.check(caller, &absolute(Path::new(&request.run_dir))?)?;
        return resumed(request, &run_dir, key);
    }
    let mut submission = fresh(request, key, &places.dir)?;
    let run_dir = places.check(caller, Path::new(&submission.record.run_dir))?;
    submission.record.run_dir = run_dir.to_string_lossy().into_owned();
    Ok(submission)
}

fn fresh(request: SubmitRunRequest, key: Option<IdempotencyKey>, dir: &Path) -> Result<Submission, Status> {
    let run_id = if request.run_id.is_empty() { new_run_id() } else { request.run_id };
    check_run_id(&run_id)?;
    let run_dir =
        if request.run_dir.is_empty() { dir.join("runs").join(&run_id) } else { request.run_dir.into() };
    let record = record(run_id, &absolute(&run_dir)?, request.config_toml, request.workers);
    Ok(Submission { record, key, resumed: None, warnings: Vec::new() })
}

/// The id becomes the name of a directory, and part of the names of workers.
fn check_run_id(run_id: &str) -> Result<(), Status> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !run_id.is_empty() && !run_id.starts_with('.') && run_id.len() <= 100 && run_id.chars().all(plain) {
        return Ok(());
    }
    let hint = "use letters, digits, `-`, `_` and `.`, at most 100, the first no `.`";
    Err(refusal(Code::InvalidArgument, "bad_run_id", format!("`{run_id}` is not a run id"), hint))
}

/// A run goes on under its own id from its newest good checkpoint.
fn resumed(
    request: SubmitRunRequest,
    run_dir: &Path,
    key: Option<IdempotencyKey>,
) -> Result<Submission, Status> {
    let past = run_dir::past(run_dir)?;
    check_run_id(&past.run_id)?;
    let (newest, problems) = checkpoint::newest_good(&run_dir::open(run_dir)?);
    let mut record = record(past.run_id, run_dir, request.config_toml, request.workers);
    record.generation = past.generation;
    record.accept_changed_data = request.accept_changed_data;
    let mut warnings: Vec<String> = problems.iter().map(|problem| proto::one_line(problem)).collect();
    match newest {
        Some(checkpoint) => {
            let manifest = checkpoint::Manifest::read(&checkpoint).map_err(checkpoints::Error::from)?;
            record.checkpoint_step = Some(manifest.step);
            record.last_checkpoint = checkpoint.path().to_string_lossy().into_owned();
            record.summary = run_dir::summary(run_dir, manifest.step);
            let threads = manifest.metadata.get("threads").and_then(serde_json::Value::as_u64);
            record.threads = threads.and_then(|threads| u32::try_from(threads).ok());
            if let Some(last) = warnings.last_mut() {
                let name = checkpoint.path().file_name().unwrap_or_default().to_string_lossy();
                last.push_str(&format!("; the run goes on from {name}"));
            }
        }
        None if problems.is_empty() => {
            warnings.push("the run has no checkpoint yet: it starts from the beginning".to_owned());
        }
        None => {
            let message =
                format!("no checkpoint of {} is intact: {}", run_dir.display(), warnings.join("; "));
            let hint = "restore the named files from a copy, or start the run anew";
            return Err(refusal(Code::DataLoss, "damaged_checkpoint", message, hint));
        }
    }
    Ok(Submission { record, key, resumed: Some(past.next_seq), warnings })
}

fn record(run_id: String, run_dir: &Path, config_toml: String, workers: u32) -> RunRecord {
    RunRecord {
        run_id,
        run_dir: run_dir.to_string_lossy().into_owned(),
        config_toml,
        workers,
        threads: None,
        checkpoint_step: None,
        generation: 0,
        stage: Stage::Queued,
        reason: String::new(),
        exit_code: None,
        summary: Summary::default(),
        accept_changed_data: false,
        last_checkpoint: String::new(),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Status> {
    std::path::absolute(path).map_err(|error| not_a_place(path, &error))
}

/// Short, because people type it: 32 random bits are plenty among the runs of one coordinator, and a
/// clash is refused.
fn new_run_id() -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    id[..8].to_owned()
}
