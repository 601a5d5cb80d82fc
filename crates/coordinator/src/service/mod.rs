//! The gRPC services: they read and write the wire, and ask the owner.

pub(crate) mod agent;
pub(crate) mod control;
pub(crate) mod gate;
pub(crate) mod places;
mod rules;
mod submission;
pub(crate) mod sync;
pub(crate) mod worker;

use identity::{Caller, Peer, Seal};
use proto::v1::WorkerId;
use proto::{PROTOCOL, Refusal, one_line};
use tonic::{Code, Request, Status};

use crate::checkpoints;
use crate::owner::CallError;
use crate::run_dir;
use crate::state::Refused;

/// Longest message of a refusal. It may repeat what the caller sent and travels in a header, of which clients take 16 KiB: a
/// character of it has twelve bytes there at most.
const MAX_MESSAGE: usize = 1000;

/// A refusal with the hint that fits it.
pub(crate) fn refusal(code: Code, reason: &str, message: String, hint: &str) -> Status {
    Refusal {
        code,
        message: short(message),
        reason: reason.to_owned(),
        retryable: false,
        hint: hint.to_owned(),
        current_generation: 0,
    }
    .into()
}

fn short(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
        message.truncate(end);
        message.push_str("...");
    }
    message
}

/// Who sends a request, as the gate found out.
///
/// # Panics
/// If the request did not come through it.
pub(crate) fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get().cloned().expect("every request comes through the gate")
}

/// How secrets travel on the connection of a request.
///
/// # Panics
/// If it is not one of our connections.
pub(crate) fn seal<T>(request: &Request<T>) -> Seal {
    request.extensions().get::<Peer>().expect("every connection of ours has a peer").seal.clone()
}

/// The nonce of the worker that sends a request.
///
/// # Errors
/// If it is no worker's.
pub(crate) fn nonce<T>(request: &Request<T>) -> Result<String, Status> {
    match caller(request) {
        Caller::Worker(nonce) => Ok(nonce),
        _ => Err(refusal(
            Code::PermissionDenied,
            "wrong_role",
            "this is for a worker of the run".to_owned(),
            "",
        )),
    }
}

/// Refuses what speaks for another worker than the caller.
pub(crate) fn check_nonce(nonce: &str, worker: &WorkerId) -> Result<(), Status> {
    if worker.nonce == nonce {
        return Ok(());
    }
    let message = format!("worker {nonce} speaks for itself, and not for {}", worker.nonce);
    Err(refusal(Code::PermissionDenied, "not_yours", message, ""))
}

/// Refuses a peer of another protocol by naming both.
pub(crate) fn check_protocol(theirs: u32, who: &str) -> Result<(), Status> {
    if theirs == PROTOCOL {
        return Ok(());
    }
    Err(refusal(
        Code::FailedPrecondition,
        "protocol_mismatch",
        format!("{who} speaks protocol {theirs}, this coordinator protocol {PROTOCOL}"),
        "start coordinator, agents and commands from the same version of himpun",
    ))
}

/// Runs what blocks on the disk where it may.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Status>
where
    T: Send + 'static,
    E: Send + 'static,
    Status: From<E>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(outcome?),
        Err(error) => Err(Status::internal(format!("a task of the coordinator failed: {error}"))),
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Status {
        match error {
            CallError::Refused(refused) => refused.into(),
            CallError::RunDir(error) => error.into(),
            CallError::Gone => Status::unavailable(error.to_string()),
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Status {
        let (code, reason, hint) = match &refused {
            Refused::UnknownRun(_) => (Code::NotFound, "unknown_run", "`himpun runs` lists the runs"),
            Refused::NoRuns => (Code::NotFound, "no_runs", "`himpun submit` starts one"),
            Refused::Ambiguous { .. } => (Code::InvalidArgument, "ambiguous_run", "give more of the id"),
            Refused::Stale { .. } => (Code::FailedPrecondition, "stale_fence", ""),
            Refused::FromTheFuture { .. } => (Code::FailedPrecondition, "unknown_fence", ""),
            Refused::NotAMember { .. } => (Code::FailedPrecondition, "not_a_member", ""),
            Refused::NotTheLeader { .. } => (Code::PermissionDenied, "not_rank_0", ""),
            Refused::NotYours { .. } => (Code::PermissionDenied, "not_yours", ""),
            Refused::Implausible { .. } => (Code::InvalidArgument, "implausible", ""),
            Refused::StepGoesBack { .. } => (Code::FailedPrecondition, "step_goes_back", ""),
            Refused::WrongShards { .. } => (Code::InvalidArgument, "bad_n_shards", ""),
            Refused::NotReady { .. } => (Code::FailedPrecondition, "group_not_ready", ""),
            Refused::Ended { .. } => (Code::FailedPrecondition, "run_ended", ""),
            Refused::NotStarted { .. } => {
                (Code::FailedPrecondition, "run_not_started", "try again when it runs")
            }
            Refused::RunExists(_) => (Code::AlreadyExists, "run_exists", "choose another id"),
            Refused::AgentConnected(_) => {
                (Code::AlreadyExists, "agent_connected", "give every agent an `--id` of its own")
            }
        };
        let current_generation = match &refused {
            Refused::Stale { ours, .. } | Refused::FromTheFuture { ours, .. } => ours.generation,
            Refused::NotAMember { generation, .. } => *generation,
            _ => 0,
        };
        // An agent whose process is new has its id again once the lease of the one before is over; and a call of rank 0 may
        // overtake, on a connection of its own, the word of the ranks that they are ready.
        let retryable = matches!(refused, Refused::AgentConnected(_) | Refused::NotReady { .. });
        Refusal {
            code,
            message: short(refused.to_string()),
            reason: reason.to_owned(),
            retryable,
            hint: hint.to_owned(),
            current_generation,
        }
        .into()
    }
}

/// Whether what the system says of a path is the fault of the path, and not the machine's.
fn is_misplaced(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{
        InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
    };
    // The last two of names that are too long, and of names with a NUL.
    matches!(
        kind,
        NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem | InvalidFilename | InvalidInput
    )
}

impl From<run_dir::Error> for Status {
    fn from(error: run_dir::Error) -> Status {
        let (code, reason, hint) = match &error {
            run_dir::Error::Occupied(_) => (
                Code::AlreadyExists,
                "run_dir_occupied",
                "choose another directory, or go on with that run: `--resume`",
            ),
            run_dir::Error::NoRun(_) => (Code::NotFound, "no_run", "give the directory of a run"),
            run_dir::Error::Active(_) => {
                (Code::FailedPrecondition, "run_active", "stop that run, or wait for its end")
            }
            run_dir::Error::Damaged { .. } => (Code::DataLoss, "damaged_events", "remove the damaged line"),
            run_dir::Error::NotPlain(error) => {
                (Code::FailedPrecondition, "not_a_plain_file", error.hint().unwrap_or_default())
            }
            // Not a place for a run: another one is.
            run_dir::Error::Io { source, .. } if is_misplaced(source.kind()) => {
                (Code::InvalidArgument, "bad_run_dir", "choose another directory with `--out`")
            }
            run_dir::Error::Io { .. } => (Code::Internal, "run_dir_io", ""),
        };
        refusal(code, reason, error.to_string(), hint)
    }
}

impl From<checkpoints::Error> for Status {
    fn from(error: checkpoints::Error) -> Status {
        use checkpoint::Error as Inner;
        use checkpoints::Error;
        let (code, reason) = match &error {
            Error::NotOpen(_) => (Code::FailedPrecondition, "checkpoint_not_open"),
            Error::Chunk { .. } => (Code::DataLoss, "damaged_chunk"),
            Error::Length { .. } => (Code::DataLoss, "wrong_length"),
            Error::TooLarge { .. } => (Code::InvalidArgument, "too_large"),
            Error::NoPart { .. } => (Code::NotFound, "no_shard"),
            Error::Read { .. } => (Code::Internal, "checkpoint_io"),
            Error::Checkpoint(inner) => match inner {
                Inner::Received { .. } => (Code::DataLoss, "damaged_shard"),
                Inner::Busy { .. } => (Code::Aborted, "checkpoint_busy"),
                Inner::Incomplete { .. } => (Code::FailedPrecondition, "shards_missing"),
                Inner::Refused { .. } => (Code::FailedPrecondition, "shard_refused"),
                Inner::Missing { .. } => (Code::NotFound, "checkpoint_missing"),
                Inner::NotPlain { .. } => (Code::FailedPrecondition, "not_a_plain_file"),
                inner if inner.exit_code() == 3 => (Code::DataLoss, "damaged_checkpoint"),
                _ => (Code::Internal, "checkpoint_io"),
            },
        };
        let hint = match &error {
            Error::Checkpoint(inner) => inner.hint().unwrap_or_default(),
            _ => "",
        };
        refusal(code, reason, one_line(&error), hint)
    }
}
