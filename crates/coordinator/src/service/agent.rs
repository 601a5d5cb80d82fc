//! The agents' sessions.

use proto::MissingField;
use proto::v1::agent_service_server::AgentService;
use proto::v1::{
    AgentDown, AgentHello, AgentUp, Fence, StopWorkers, WorkerExited, WorkerId, agent_down, agent_up,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{check_protocol, refusal};
use crate::owner::{CallError, OUTBOX, Owner};
use crate::state::{Exit, Input, Parting, Refused, Report};

/// Serves [`AgentService`].
pub(crate) struct Agents {
    pub owner: Owner,
    pub shutdown: CancellationToken,
}

/// More than any node has devices; fewer than would hurt to deal.
const MAX_SLOTS: u32 = 4096;

type Outbox = mpsc::WeakSender<Result<AgentDown, Status>>;

#[tonic::async_trait]
impl AgentService for Agents {
    type SessionStream = ReceiverStream<Result<AgentDown, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let session = Session { owner: self.owner.clone(), outbox: outbox.downgrade() };
        let shutdown = self.shutdown.clone();
        let inbox = request.into_inner();
        // The task ends with the stream it reads; what it returns is on its own stream already.
        tokio::spawn(async move {
            tokio::select! {
                () = session.serve(inbox, outbox) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

struct Session {
    owner: Owner,
    /// Weak: the stream ends when the owner drops its end.
    outbox: Outbox,
}

impl Session {
    async fn serve(&self, mut inbox: Streaming<AgentUp>, outbox: mpsc::Sender<Result<AgentDown, Status>>) {
        let opened = async {
            let hello = first(&mut inbox).await?;
            let agent_id = hello.agent_id.clone();
            Ok::<_, Status>((self.owner.open_agent(hello, outbox.clone()).await?, agent_id))
        };
        let (session, agent_id) = match opened.await {
            Ok(opened) => opened,
            Err(status) => {
                // An agent that has gone away needs no answer.
                outbox.send(Err(status)).await.ok();
                return;
            }
        };
        // From here on only the owner keeps the stream open.
        drop(outbox);
        let parting = match self.follow(&mut inbox, &agent_id, session).await {
            Ok(()) => Parting::Closed,
            Err(status) => Parting::Broken(proto::one_line(&status)),
        };
        if let Err(error) = self.owner.tell(Input::AgentLost { agent_id, session, parting }).await {
            tracing::debug!(%error, "the end of an agent's session was not taken up");
        }
    }

    async fn follow(
        &self,
        inbox: &mut Streaming<AgentUp>,
        agent_id: &str,
        session: u64,
    ) -> Result<(), Status> {
        while let Some(up) = inbox.message().await? {
            // Whatever an agent sends, it lives.
            self.owner.tell(Input::AgentBeat { agent_id: agent_id.to_owned(), session }).await?;
            match up.message {
                Some(agent_up::Message::Heartbeat(_)) | None => {}
                Some(agent_up::Message::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
                Some(agent_up::Message::Started(started)) => {
                    let (fence, worker) = identity(started.fence, started.worker)?;
                    self.started(agent_id, fence, worker, started.pid).await?;
                }
                Some(agent_up::Message::Exited(exited)) => self.exited(agent_id, exited).await?,
                Some(agent_up::Message::Logs(logs)) => {
                    let (fence, worker) = identity(logs.fence, logs.worker)?;
                    self.owner.logs(agent_id, fence, worker, logs.lines).await?;
                }
            }
        }
        Ok(())
    }

    async fn started(&self, agent_id: &str, fence: Fence, worker: WorkerId, pid: u32) -> Result<(), Status> {
        let (agent_id, report) = (agent_id.to_owned(), Report::Started { pid });
        match self.owner.tell(Input::AgentReport { agent_id, fence: fence.clone(), worker, report }).await {
            Err(CallError::Refused(refused @ Refused::NotYours { .. })) => Err(refused.into()),
            Err(CallError::Refused(refused)) => {
                // A worker of a run that went on without it, or that has ended: it must not linger.
                tracing::info!(run_id = fence.run_id, %refused, "worker of a former membership is stopped");
                let stop = StopWorkers { fence: Some(fence), grace_ms: 0, reason: refused.to_string() };
                if let Some(outbox) = self.outbox.upgrade() {
                    let message = AgentDown { message: Some(agent_down::Message::Stop(stop)) };
                    outbox.send(Ok(message)).await.map_err(|_| Status::unavailable("the session is over"))?;
                }
                Ok(())
            }
            outcome => Ok(outcome?),
        }
    }

    async fn exited(&self, agent_id: &str, exited: WorkerExited) -> Result<(), Status> {
        let (fence, worker) = identity(exited.fence, exited.worker)?;
        let exit = match (exited.code, exited.signal) {
            (_, Some(signal)) => Exit::Signal(signal),
            (Some(code), None) => Exit::Code(code),
            (None, None) => return Err(MissingField("code or signal").into()),
        };
        let report = Report::Exited { exit, stderr_tail: exited.stderr_tail };
        let agent_id = agent_id.to_owned();
        match self.owner.tell(Input::AgentReport { agent_id, fence, worker, report }).await {
            Err(CallError::Refused(refused @ Refused::NotYours { .. })) => Err(refused.into()),
            // Its run ended without waiting for it.
            Err(CallError::Refused(refused)) => {
                tracing::debug!(%refused, "late report of a worker's end");
                Ok(())
            }
            outcome => Ok(outcome?),
        }
    }
}

async fn first(inbox: &mut Streaming<AgentUp>) -> Result<AgentHello, Status> {
    let up = inbox.message().await?.ok_or_else(|| Status::cancelled("the session ended before its hello"))?;
    let Some(agent_up::Message::Hello(hello)) = up.message else {
        return Err(MissingField("hello").into());
    };
    check_protocol(hello.protocol, &format!("agent {} (himpun {})", hello.agent_id, hello.version))?;
    // The id becomes part of names.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if hello.agent_id.is_empty() || hello.agent_id.len() > 100 || !hello.agent_id.chars().all(plain) {
        return Err(refusal(
            tonic::Code::InvalidArgument,
            "bad_agent_id",
            format!("`{}` is not an agent id", hello.agent_id),
            "use letters, digits, `-`, `_` and `.`, at most 100",
        ));
    }
    if !(1..=MAX_SLOTS).contains(&hello.slots) {
        return Err(refusal(
            tonic::Code::InvalidArgument,
            "bad_slots",
            format!("agent {} offers {} slots", hello.agent_id, hello.slots),
            "offer 1 to 4096 slots",
        ));
    }
    Ok(hello)
}

fn identity(fence: Option<Fence>, worker: Option<WorkerId>) -> Result<(Fence, WorkerId), Status> {
    Ok((fence.ok_or(MissingField("fence"))?, worker.ok_or(MissingField("worker"))?))
}
