//! The workers' attachments and sessions.

use identity::Seal;
use proto::v1::worker_service_server::WorkerService;
use proto::v1::{
    AttachRequest, AttachResponse, Fence, MetricRow, Ready, WorkerDown, WorkerId, WorkerUp, metric,
    worker_down, worker_up,
};
use proto::{MissingField, transport};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{check_nonce, check_protocol, nonce, seal};
use crate::owner::{OUTBOX, Owner};
use crate::state::{Failure, Input, News};

/// Longest name of a host, and some more for a scope.
const MAX_HOST: usize = 300;

/// Serves [`WorkerService`].
pub(crate) struct Workers {
    pub owner: Owner,
    pub shutdown: CancellationToken,
}

#[tonic::async_trait]
impl WorkerService for Workers {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<WorkerDown, Status>> + Send>>;

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let nonce = nonce(&request)?;
        let AttachRequest { protocol, fence, worker, data_address, pid } = request.into_inner();
        check_protocol(protocol, "the worker")?;
        let fence = fence.ok_or(MissingField("fence"))?;
        let worker = worker.ok_or(MissingField("worker"))?;
        check_nonce(&nonce, &worker)?;
        check_address(&data_address)?;
        let news = News::Attached { data_address, pid };
        self.owner.tell(Input::Worker { fence: fence.clone(), worker, news }).await?;
        let config_toml = self
            .owner
            .read(move |state| state.admit(&fence).map(|(record, _)| record.config_toml.clone()))
            .await??;
        Ok(Response::new(AttachResponse { config_toml }))
    }

    async fn session(
        &self,
        request: Request<Streaming<WorkerUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (nonce, seal) = (nonce(&request)?, seal(&request));
        let mut inbox = request.into_inner();
        // Refused before the session opens, so that the call itself fails.
        let first = tokio::time::timeout(transport::CALL_DEADLINE, inbox.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the session began without a message"))??
            .ok_or_else(|| Status::cancelled("the session ended before it began"))?;
        let fence = first.fence.clone().ok_or(MissingField("fence"))?;
        let worker = first.worker.clone().ok_or(MissingField("worker"))?;
        check_nonce(&nonce, &worker)?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let weak = outbox.downgrade();
        // From here on only the owner keeps the stream open: it ends when the run does, or when this side is closed.
        let number = self.owner.open_worker(fence.clone(), worker.clone(), outbox).await?;
        let session = Session { owner: self.owner.clone(), fence, worker, number };
        let shutdown = self.shutdown.clone();
        // The task ends with the stream it reads.
        tokio::spawn(async move {
            tokio::select! {
                () = session.serve(inbox, first, weak) => {}
                () = shutdown.cancelled() => {}
            }
        });
        let messages: Self::SessionStream =
            Box::pin(ReceiverStream::new(messages).map(move |message| Ok(sealed(message?, &seal))));
        Ok(Response::new(messages))
    }
}

/// An open session, and whom it speaks for.
struct Session {
    owner: Owner,
    fence: Fence,
    worker: WorkerId,
    number: u64,
}

impl Session {
    /// Takes up what the worker sends until its stream ends or a message is refused.
    async fn serve(
        self,
        mut inbox: Streaming<WorkerUp>,
        first: WorkerUp,
        outbox: mpsc::WeakSender<Result<WorkerDown, Status>>,
    ) {
        if let Err(status) = self.follow(&mut inbox, first).await
            && let Some(outbox) = outbox.upgrade()
        {
            // A worker that has gone away needs no answer.
            outbox.send(Err(status)).await.ok();
        }
        let Session { owner, fence, worker, number } = self;
        // A worker that closed its side waits for ours to close: then it knows that all it said was read.
        if let Err(error) = owner.close_worker(fence, worker, number).await {
            tracing::debug!(%error, "the end of a worker's session was not taken up");
        }
    }

    async fn follow(&self, inbox: &mut Streaming<WorkerUp>, first: WorkerUp) -> Result<(), Status> {
        let mut next = Some(first);
        while let Some(up) = next {
            // A message may repeat whom it is of, and be of nobody else.
            if let Some(worker) = &up.worker {
                check_nonce(&self.worker.nonce, worker)?;
            }
            let fence = up.fence.unwrap_or_else(|| self.fence.clone());
            if let Some(news) = up.message.and_then(news) {
                self.owner.tell(Input::Worker { fence, worker: self.worker.clone(), news }).await?;
            }
            next = inbox.message().await?;
        }
        Ok(())
    }
}

/// All ranks are sent the addresses of all: one that is none, or long, is not handed on.
fn check_address(address: &str) -> Result<(), Status> {
    let host_and_port = address.rsplit_once(':');
    let is_one = host_and_port.is_some_and(|(host, port)| {
        (1..=MAX_HOST).contains(&host.len())
            && host.chars().all(|c| c.is_ascii_graphic())
            && port.parse().is_ok_and(|port: u16| port > 0)
    });
    if is_one { Ok(()) } else { Err(MissingField("data_address of a host and a port").into()) }
}

/// The group's key travels as the connection has it.
fn sealed(mut down: WorkerDown, seal: &Seal) -> WorkerDown {
    if let Some(worker_down::Message::Assign(assign)) = &mut down.message {
        assign.group_key = seal.apply("group", &assign.group_key);
    }
    down
}

/// Files and the database hold JSON, which has neither NaN nor infinities: such a value is none.
fn finite(mut row: MetricRow) -> MetricRow {
    for metric in &mut row.values {
        metric.value = metric.value.take().filter(|value| match value {
            metric::Value::Number(number) => number.is_finite(),
            metric::Value::Count(_) | metric::Value::Counts(_) => true,
        });
    }
    row
}

fn news(message: worker_up::Message) -> Option<News> {
    use worker_up::Message;
    Some(match message {
        Message::Heartbeat(beat) => News::Beat(beat.progress?),
        Message::Ready(Ready { step, total_steps, shard_bytes }) => {
            News::Ready { step, total_steps, shard_bytes }
        }
        Message::Metrics(row) => News::Metrics(finite(row)),
        Message::Paused(paused) => News::Paused { paused: paused.paused, step: paused.step },
        Message::Finished(done) => News::Finished { step: done.step, stopped_early: done.stopped_early },
        Message::Failed(failed) => News::Failed(Failure {
            exit_code: failed.exit_code,
            error: failed.error,
            hint: failed.hint,
            peer: failed.peer,
        }),
        Message::Notice(notice) => News::Notice { severity: notice.severity(), text: notice.text },
    })
}
