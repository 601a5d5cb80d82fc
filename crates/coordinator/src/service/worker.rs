//! The workers' attachments and sessions.

use proto::MissingField;
use proto::v1::worker_service_server::WorkerService;
use proto::v1::{AttachRequest, AttachResponse, Fence, Ready, WorkerDown, WorkerId, WorkerUp, worker_up};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::check_protocol;
use crate::owner::{OUTBOX, Owner};
use crate::state::{Failure, Input, News};

/// Serves [`WorkerService`].
pub(crate) struct Workers {
    pub owner: Owner,
    pub shutdown: CancellationToken,
}

#[tonic::async_trait]
impl WorkerService for Workers {
    type SessionStream = ReceiverStream<Result<WorkerDown, Status>>;

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let AttachRequest { protocol, fence, worker, data_address, pid } = request.into_inner();
        check_protocol(protocol, "the worker")?;
        let fence = fence.ok_or(MissingField("fence"))?;
        let worker = worker.ok_or(MissingField("worker"))?;
        if data_address.is_empty() {
            return Err(MissingField("data_address").into());
        }
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
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let (owner, shutdown, inbox) = (self.owner.clone(), self.shutdown.clone(), request.into_inner());
        // The task ends with the stream it reads.
        tokio::spawn(async move {
            tokio::select! {
                () = serve(&owner, inbox, outbox) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Takes up what a worker sends until its stream ends or a message is refused.
async fn serve(
    owner: &Owner,
    mut inbox: Streaming<WorkerUp>,
    outbox: mpsc::Sender<Result<WorkerDown, Status>>,
) {
    let opened = async {
        let first =
            inbox.message().await?.ok_or_else(|| Status::cancelled("the session ended before it began"))?;
        let fence = first.fence.clone().ok_or(MissingField("fence"))?;
        let worker = first.worker.clone().ok_or(MissingField("worker"))?;
        let session = owner.open_worker(fence.clone(), worker.clone(), outbox.clone()).await?;
        Ok::<_, Status>((first, fence, worker, session))
    };
    let (first, fence, worker, session) = match opened.await {
        Ok(opened) => opened,
        Err(status) => {
            // A worker that has gone away needs no answer.
            outbox.send(Err(status)).await.ok();
            return;
        }
    };
    // Only the owner keeps the stream open: it ends when the run does, or when this side is closed.
    let weak = outbox.downgrade();
    drop(outbox);
    if let Err(status) = follow(owner, &mut inbox, first, &fence, &worker).await
        && let Some(outbox) = weak.upgrade()
    {
        outbox.send(Err(status)).await.ok();
    }
    // A worker that closed its side waits for ours to close: then it knows that all it said was read.
    if let Err(error) = owner.close_worker(fence, worker, session).await {
        tracing::debug!(%error, "the end of a worker's session was not taken up");
    }
}

async fn follow(
    owner: &Owner,
    inbox: &mut Streaming<WorkerUp>,
    first: WorkerUp,
    fence: &Fence,
    worker: &WorkerId,
) -> Result<(), Status> {
    let mut next = Some(first);
    while let Some(up) = next {
        // A message may repeat the fence; what it repeats is what holds for it.
        let fence = up.fence.unwrap_or_else(|| fence.clone());
        let worker = up.worker.unwrap_or_else(|| worker.clone());
        if let Some(news) = up.message.and_then(news) {
            owner.tell(Input::Worker { fence, worker, news }).await?;
        }
        next = inbox.message().await?;
    }
    Ok(())
}

fn news(message: worker_up::Message) -> Option<News> {
    use worker_up::Message;
    Some(match message {
        Message::Heartbeat(beat) => News::Beat(beat.progress?),
        Message::Ready(Ready { step, total_steps, shard_bytes }) => {
            News::Ready { step, total_steps, shard_bytes }
        }
        Message::Metrics(row) => News::Metrics(row),
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
