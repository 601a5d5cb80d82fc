//! The states of a run and the phases of a worker: names for people and for JSON.

use proto::v1::{Phase, RunState, RunStatus};
use serde_json::{Map, Value, json};

/// The state's name, as in JSON.
pub fn name(state: i32) -> &'static str {
    match RunState::try_from(state) {
        Ok(RunState::Queued) => "queued",
        Ok(RunState::Forming) => "forming",
        Ok(RunState::Running) => "running",
        Ok(RunState::Paused) => "paused",
        Ok(RunState::Stopping) => "stopping",
        Ok(RunState::Finished) => "finished",
        Ok(RunState::Stopped) => "stopped",
        Ok(RunState::Failed) => "failed",
        // From a newer coordinator.
        Ok(RunState::Unspecified) | Err(_) => "unknown",
    }
}

/// Whether the run has ended.
pub fn is_over(state: i32) -> bool {
    matches!(RunState::try_from(state), Ok(RunState::Finished | RunState::Stopped | RunState::Failed))
}

/// The phase's name, as in JSON.
pub fn phase(phase: i32) -> &'static str {
    match Phase::try_from(phase) {
        Ok(Phase::Starting) => "starting",
        Ok(Phase::Forming) => "forming",
        Ok(Phase::Training) => "training",
        Ok(Phase::Evaluating) => "evaluating",
        Ok(Phase::Checkpointing) => "checkpointing",
        Ok(Phase::Paused) => "paused",
        Ok(Phase::Unspecified) | Err(_) => "unknown",
    }
}

/// Everything about a run as JSON; what is not known yet is left out.
pub fn to_json(status: &RunStatus) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    put("run_id", json!(status.run_id));
    put("run_dir", json!(status.run_dir));
    put("state", json!(name(status.state)));
    put("reason", json!(status.reason));
    put("incarnation", json!(status.incarnation));
    put("generation", json!(status.generation));
    put("world_size", json!(status.world_size));
    put("step", json!(status.step));
    put("total_steps", json!(status.total_steps));
    if status.step > 0 {
        put("epoch", json!(status.epoch));
        put("loss", json!(status.loss));
        put("chance_loss", json!(status.chance_loss));
        put("images_per_s", json!(status.images_per_s));
        put("views_per_s", json!(status.views_per_s));
    }
    if let Some(top1) = status.knn_top1 {
        put("knn_top1", json!(top1));
    }
    if !is_over(status.state) && status.step > 0 {
        put("eta_seconds", json!(status.eta_seconds));
    }
    put("members", Value::Array(status.members.iter().map(member).collect()));
    if !status.last_checkpoint.is_empty() {
        put("last_checkpoint", json!(status.last_checkpoint));
    }
    if let Some(code) = status.exit_code {
        put("exit_code", json!(code));
    }
    Value::Object(object)
}

fn member(member: &proto::v1::Member) -> Value {
    let progress = member.progress.unwrap_or_default();
    json!({
        "rank": member.rank,
        "worker": member.worker.as_ref().map(ToString::to_string),
        "host": member.host,
        "pid": member.pid,
        "phase": phase(progress.phase),
        "step": progress.step,
    })
}
