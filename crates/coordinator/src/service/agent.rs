//! The agents' sessions.

use ::identity::{Caller, Seal};
use proto::v1::agent_service_server::AgentService;
use proto::v1::{
    AgentDown, AgentHello, AgentUp, Fence, StopWorkers, WorkerExited, WorkerId, agent_down, agent_up,
};
use proto::{MissingField, transport};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{caller, check_protocol, refusal, seal};
use crate::owner::{CallError, OUTBOX, Owner};
use crate::state::{Exit, Input, Parting, Refused, Report};

/// Serves [`AgentService`].
pub(crate) struct Agents {
    pub owner: Owner,
    pub shutdown: CancellationToken,
}

/// Of an agent's process.
const SECRET_BYTES: usize = 16;

/// More than any node has devices; fewer than would hurt to deal.
const MAX_SLOTS: u32 = 4096;

type Outbox = mpsc::WeakSender<Result<AgentDown, Status>>;

#[tonic::async_trait]
impl AgentService for Agents {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<AgentDown, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (caller, seal) = (caller(&request), seal(&request));
        let mut inbox = request.into_inner();
        // Refused before the session opens, so that the call itself fails.
        let mut hello = tokio::time::timeout(transport::CALL_DEADLINE, first(&mut inbox))
            .await
            .map_err(|_| Status::deadline_exceeded("the session began without a hello"))??;
        check_id(&caller, &hello.agent_id)?;
        hello.secret = seal.apply(&hello.agent_id, &hello.secret);
        let agent_id = hello.agent_id.clone();
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let session = Session { owner: self.owner.clone(), outbox: outbox.downgrade() };
        let number = self.owner.open_agent(hello, outbox).await?;
        let shutdown = self.shutdown.clone();
        // The task ends with the stream it reads; what it returns is on its own stream already.
        tokio::spawn(async move {
            tokio::select! {
                () = session.serve(inbox, agent_id, number) => {}
                () = shutdown.cancelled() => {}
            }
        });
        let messages: Self::SessionStream =
            Box::pin(ReceiverStream::new(messages).map(move |message| Ok(sealed(message?, &seal))));
        Ok(Response::new(messages))
    }
}

struct Session {
    owner: Owner,
    /// Weak: the stream ends when the owner drops its end.
    outbox: Outbox,
}

impl Session {
    async fn serve(&self, mut inbox: Streaming<AgentUp>, agent_id: String, session: u64) {
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
            // Once the owner has closed the session, its id may belong to another process.
            if self.outbox.upgrade().is_none() {
                return Err(Status::cancelled("the session is over"));
            }
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
    if hello.secret.len() != SECRET_BYTES {
        return Err(MissingField("secret of 16 bytes").into());
    }
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

/// An agent's certificate may be for one id alone. With a token, or a certificate for all agents, an id belongs to the process
/// whose secret opened it (see `state::agents`).
fn check_id(caller: &Caller, agent_id: &str) -> Result<(), Status> {
    match caller {
        Caller::Holder { name: Some(name), .. } if name != agent_id => {
            let message = format!("a certificate of agent {name} does not speak for agent {agent_id}");
            let hint = "start the agent with that `--id`, or with a certificate of its own";
            Err(refusal(tonic::Code::PermissionDenied, "not_yours", message, hint))
        }
        _ => Ok(()),
    }
}

/// Workers' secrets travel as the connection has it.
fn sealed(mut down: AgentDown, seal: &Seal) -> AgentDown {
    if let Some(agent_down::Message::Start(start)) = &mut down.message {
        for assignment in &mut start.workers {
            let label = assignment.worker.as_ref().map_or("", |worker| &worker.nonce);
            assignment.secret = seal.apply(label, &assignment.secret);
        }
    }
    down
}

fn identity(fence: Option<Fence>, worker: Option<WorkerId>) -> Result<(Fence, WorkerId), Status> {
    Ok((fence.ok_or(MissingField("fence"))?, worker.ok_or(MissingField("worker"))?))
}
