//! What operators and the command line call.

use proto::PROTOCOL;
use proto::v1::control_service_server::ControlService;
use proto::v1::{
    CheckpointNowRequest, CheckpointNowResponse, CommandRequest, CommandResponse, Event,
    GetServerInfoRequest, GetStatusRequest, ListCheckpointsRequest, ListCheckpointsResponse, ListRunsRequest,
    ListRunsResponse, LogLine, RunStatus, ServerInfo, StopRequest, SubmitRunRequest, SubmitRunResponse,
    TailLogsRequest, VerifyCheckpointRequest, VerifyCheckpointResponse, WatchRequest,
};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::places::Places;
use super::{blocking, caller, refusal, submission};
use crate::checkpoints;
use crate::event_log::{EventLog, Next};
use crate::owner::{Accepted, Order, Owner, Tail};
use crate::run_dir::{self, Log};
use crate::state::{IdempotencyKey, Operation, Refused};

/// Events and lines on their way to one client.
const IN_FLIGHT: usize = 64;

/// Serves [`ControlService`].
pub(crate) struct Control {
    pub owner: Owner,
    pub places: Arc<Places>,
    pub incarnation: u64,
    pub shutdown: CancellationToken,
}

#[tonic::async_trait]
impl ControlService for Control {
    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<ServerInfo>, Status> {
        let agents = self.owner.read(|state| state.agents()).await?;
        Ok(Response::new(ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            incarnation: self.incarnation,
            agents,
        }))
    }

    async fn submit_run(
        &self,
        request: Request<SubmitRunRequest>,
    ) -> Result<Response<SubmitRunResponse>, Status> {
        let (caller, places) = (caller(&request), Arc::clone(&self.places));
        let submission = blocking(move || submission::read(request.into_inner(), &caller, &places)).await?;
        let (run_id, run_dir) = self.owner.submit(submission).await?;
        Ok(Response::new(SubmitRunResponse { run_id, run_dir }))
    }

    async fn list_runs(&self, _: Request<ListRunsRequest>) -> Result<Response<ListRunsResponse>, Status> {
        let runs = self.owner.read(|state| state.statuses()).await?;
        Ok(Response::new(ListRunsResponse { runs }))
    }

    async fn get_status(&self, request: Request<GetStatusRequest>) -> Result<Response<RunStatus>, Status> {
        Ok(Response::new(self.status(request.into_inner().run_id).await?))
    }

    type WatchStream = ReceiverStream<Result<Event, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { run_id, since_seq } = request.into_inner();
        let log = self.owner.watch(run_id).await?;
        let (events, stream) = mpsc::channel(IN_FLIGHT);
        let shutdown = self.shutdown.clone();
        // The task ends with the run or with its client.
        tokio::spawn(async move {
            tokio::select! {
                () = send_events(log, since_seq, &events) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type TailLogsStream = ReceiverStream<Result<LogLine, Status>>;

    async fn tail_logs(
        &self,
        request: Request<TailLogsRequest>,
    ) -> Result<Response<Self::TailLogsStream>, Status> {
        let TailLogsRequest { run_id, rank, follow, lines } = request.into_inner();
        let Tail { logs, follow: live } = self.owner.tail(run_id, rank).await?;
        let live = live.filter(|_| follow);
        let (sender, stream) = mpsc::channel(IN_FLIGHT);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let past = sender.clone();
            let read = blocking(move || send_past(&logs, lines as usize, &past)).await;
            if let Err(status) = read {
                // A client that has gone away needs no answer.
                sender.send(Err(status)).await.ok();
                return;
            }
            let Some(live) = live else { return };
            tokio::select! {
                () = send_lines(live, rank, &sender) => {}
                () = shutdown.cancelled() => {}
                () = sender.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn pause(&self, request: Request<CommandRequest>) -> Result<Response<CommandResponse>, Status> {
        self.command(request.into_inner(), Operation::Pause).await
    }

    async fn resume(&self, request: Request<CommandRequest>) -> Result<Response<CommandResponse>, Status> {
        self.command(request.into_inner(), Operation::Resume).await
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<CommandResponse>, Status> {
        let StopRequest { run_id, idempotency_key, actor, kill } = request.into_inner();
        let operation = if kill { Operation::Kill } else { Operation::Stop };
        self.command(CommandRequest { run_id, idempotency_key, actor }, operation).await
    }

    async fn checkpoint_now(
        &self,
        request: Request<CheckpointNowRequest>,
    ) -> Result<Response<CheckpointNowResponse>, Status> {
        let CheckpointNowRequest { run_id, idempotency_key, actor, wait } = request.into_inner();
        let command = CommandRequest { run_id, idempotency_key, actor };
        let accepted = self.order(command, Operation::Checkpoint).await?;
        let checkpoint = match wait {
            false => None,
            true => Some(accepted.checkpoint.await.map_err(|_| {
                let message = "the run ended before the checkpoint was taken".to_owned();
                refusal(Code::FailedPrecondition, "run_ended", message, "`himpun status` says how")
            })?),
        };
        Ok(Response::new(CheckpointNowResponse { command_id: accepted.command_id, checkpoint }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let run_dir = self.status(request.into_inner().run_id).await?.run_dir;
        let (found, problems) = blocking(move || list(Path::new(&run_dir))).await?;
        for problem in problems {
            tracing::warn!(%problem, "a checkpoint cannot be listed");
        }
        let checkpoints = found.iter().map(checkpoints::to_proto).collect();
        Ok(Response::new(ListCheckpointsResponse { checkpoints }))
    }

    async fn verify_checkpoint(
        &self,
        request: Request<VerifyCheckpointRequest>,
    ) -> Result<Response<VerifyCheckpointResponse>, Status> {
        let VerifyCheckpointRequest { run_id, step } = request.into_inner();
        let run_dir = self.status(run_id).await?.run_dir;
        blocking(move || verify(Path::new(&run_dir), step)).await.map(Response::new)
    }
}

impl Control {
    async fn status(&self, run: String) -> Result<RunStatus, Status> {
        let status = self.owner.read(move |state| {
            let run_id = state.resolve(&run)?;
            Ok::<_, Refused>(state.status(run_id).expect("a resolved id has a status"))
        });
        Ok(status.await??)
    }

    async fn order(&self, command: CommandRequest, operation: Operation) -> Result<Accepted, Status> {
        let CommandRequest { run_id, idempotency_key, actor } = command;
        let key = format!("{}/{run_id}/{idempotency_key}", operation.name());
        let key = (!idempotency_key.is_empty()).then_some(IdempotencyKey(key));
        Ok(self.owner.order(Order { run: run_id, operation, actor, key }).await?)
    }

    async fn command(
        &self,
        command: CommandRequest,
        operation: Operation,
    ) -> Result<Response<CommandResponse>, Status> {
        let accepted = self.order(command, operation).await?;
        Ok(Response::new(CommandResponse { command_id: accepted.command_id, state: accepted.state.into() }))
    }
}

/// Sends a run's events in order, at the client's pace, until the run has ended.
async fn send_events(log: EventLog, since_seq: u64, events: &mpsc::Sender<Result<Event, Status>>) {
    let mut bell = log.bell();
    let mut seq = since_seq;
    loop {
        bell.mark_unchanged();
        match log.read(seq, IN_FLIGHT) {
            Next::Events(found) => {
                for event in found {
                    seq = event.seq + 1;
                    if events.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
            }
            Next::End => return,
            Next::Wait => {
                tokio::select! {
                    changed = bell.changed() => if changed.is_err() { return },
                    () = events.closed() => return,
                }
            }
        }
    }
}

/// Sends the last `n` lines of each file (all, if `n` is 0), as far as the files reached when they were asked for.
fn send_past(logs: &[Log], n: usize, lines: &mpsc::Sender<Result<LogLine, Status>>) -> Result<(), Status> {
    for log in logs {
        let failed = |error: std::io::Error| {
            Status::internal(format!("failed to read {}: {error}", log.path().display()))
        };
        let text = BufReader::new(log.open()?.take(log.bytes));
        let mut last = VecDeque::new();
        for line in text.split(b'\n') {
            let line = String::from_utf8_lossy(&line.map_err(failed)?).into_owned();
            let line = LogLine { rank: log.rank, generation: log.generation, line };
            if n == 0 {
                if lines.blocking_send(Ok(line)).is_err() {
                    return Ok(());
                }
                continue;
            }
            if last.len() == n {
                last.pop_front();
            }
            last.push_back(line);
        }
        for line in last {
            if lines.blocking_send(Ok(line)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Sends lines as they come, until the run has ended.
async fn send_lines(
    mut live: broadcast::Receiver<LogLine>,
    rank: Option<u32>,
    lines: &mpsc::Sender<Result<LogLine, Status>>,
) {
    loop {
        let line = match live.recv().await {
            Ok(line) if rank.is_some_and(|rank| rank != line.rank) => continue,
            Ok(line) => line,
            Err(broadcast::error::RecvError::Lagged(n)) => {
                LogLine { rank: rank.unwrap_or(0), generation: 0, line: format!("... {n} lines skipped") }
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if lines.send(Ok(line)).await.is_err() {
            return;
        }
    }
}

fn list(run_dir: &Path) -> Result<(Vec<checkpoint::CheckpointInfo>, Vec<checkpoint::Error>), Status> {
    Ok(checkpoint::list(&run_dir::open(run_dir)?).map_err(checkpoints::Error::from)?)
}

fn verify(run_dir: &Path, step: u64) -> Result<VerifyCheckpointResponse, Status> {
    let run = run_dir::open(run_dir)?;
    let dir = match checkpoint::open(&run, step) {
        Err(checkpoint::Error::Missing { .. }) => {
            let message = format!("{} has no checkpoint of step {step}", run_dir.display());
            let hint = "`himpun checkpoint list` shows them";
            return Err(refusal(Code::NotFound, "checkpoint_missing", message, hint));
        }
        opened => opened.map_err(checkpoints::Error::from)?,
    };
    let problems = checkpoint::verify_in(&dir).iter().map(|problem| proto::one_line(problem)).collect();
    let (listed, _) = checkpoint::list(&run).map_err(checkpoints::Error::from)?;
    let checkpoint = listed.iter().find(|info| info.step == step).map(checkpoints::to_proto);
    Ok(VerifyCheckpointResponse { checkpoint, problems })
}
