//! The agent's conversation with the coordinator: one stream, opened again whenever it breaks.

use identity::{Connection, Seal, WorkerSecret};
use proto::v1::agent_service_client::AgentServiceClient;
use proto::v1::{
    AgentDown, AgentHeartbeat, AgentHello, AgentUp, LogBatch, StartWorkers, agent_down, agent_up,
};
use proto::{PROTOCOL, Refusal, transport};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::backoff::Backoff;
use crate::supervise::Supervisor;
use crate::{Error, Options};

/// Messages under way to the coordinator. A stream this far behind stalls the session, and HTTP/2's
/// keepalive then tells whether it is dead.
const OUTBOX: usize = 1024;

/// Heartbeats until the coordinator has said how often it wants them.
const FIRST_HEARTBEAT: Duration = Duration::from_secs(1);

/// How long the coordinator has to read the last reports of an agent that leaves.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a session is over.
enum End {
    /// The agent was told to leave, and its workers have ended.
    Left,
    /// The coordinator closed the stream.
    Closed,
}

/// Keeps a session open until `shutdown`.
pub(crate) async fn serve(
    options: &Options,
    supervisor: &mut Supervisor,
    logs: &mut mpsc::Receiver<LogBatch>,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    // Names this process: nobody else takes its id while its lease lasts.
    let secret = WorkerSecret::random();
    let mut backoff = Backoff::default();
    let mut reachable = true;
    // The coordinator has been reached before.
    let mut known = false;
    loop {
        let attempt = async {
            let connection = options.access.connect(&options.coordinator).await?;
            Ok::<_, Failed>(Session::open(connection, options, &secret).await?)
        };
        let opened = tokio::select! {
            opened = attempt => opened,
            () = shutdown.cancelled() => return Ok(()),
        };
        let outcome = match opened {
            Ok(mut session) => {
                tracing::info!(
                    coordinator = options.coordinator,
                    agent_id = options.agent_id,
                    "session opened"
                );
                backoff.succeeded();
                (reachable, known) = (true, true);
                session.follow(supervisor, logs, shutdown).await.map_err(Failed::from)
            }
            Err(failed) => Err(failed),
        };
        let why = match outcome {
            Ok(End::Left) => return Ok(()),
            Ok(End::Closed) => "it closed the session".to_owned(),
            // A coordinator that was here may be back, whatever holds its port meanwhile and whatever cannot be read just now:
            // workers end only when it says no itself.
            Err(Failed::Unproven(error)) if error.is_transient() || (known && !error.is_refusal()) => {
                proto::one_line(&error)
            }
            Err(Failed::Unproven(error)) => return Err(error.into()),
            Err(Failed::Call(status)) => {
                let refusal = Refusal::from(&status);
                // Only a coordinator that understood and said no ends the agent; what a network or a
                // restart can cause does not.
                if !refusal.reason.is_empty() && !refusal.retryable {
                    return Err(Error::Refused { coordinator: options.coordinator.clone(), refusal });
                }
                refusal.message
            }
        };
        if reachable {
            tracing::warn!(coordinator = options.coordinator, why, "coordinator lost, trying again");
            reachable = false;
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.failed()) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Why there is no session.
enum Failed {
    /// Neither side knows the other.
    Unproven(identity::Error),
    /// The call failed.
    Call(Status),
}

impl From<identity::Error> for Failed {
    fn from(error: identity::Error) -> Failed {
        Failed::Unproven(error)
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Failed {
        Failed::Call(status)
    }
}

struct Session {
    outbox: mpsc::Sender<AgentUp>,
    inbox: tonic::Streaming<AgentDown>,
    seal: Seal,
}

impl Session {
    async fn open(connection: Connection, options: &Options, secret: &WorkerSecret) -> Result<Self, Status> {
        let seal = connection.seal();
        let mut client = AgentServiceClient::new(connection.channel)
            .max_decoding_message_size(transport::MAX_MESSAGE_BYTES);
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let hello = AgentHello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_id: options.agent_id.clone(),
            host: options.host.clone(),
            slots: options.slots,
            device: "cpu".to_owned(),
            cores: options.cores.len() as u32,
            secret: seal.apply(&options.agent_id, &secret.0),
        };
        outbox
            .try_send(AgentUp { message: Some(agent_up::Message::Hello(hello)) })
            .expect("a new channel has room and its receiver stands above");
        let inbox = client.session(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Self { outbox, inbox, seal })
    }

    async fn follow(
        &mut self,
        supervisor: &mut Supervisor,
        logs: &mut mpsc::Receiver<LogBatch>,
        shutdown: &CancellationToken,
    ) -> Result<End, Status> {
        for report in supervisor.recap() {
            self.send(report).await?;
        }
        let mut beat = heartbeats(FIRST_HEARTBEAT);
        let mut leaving = false;
        loop {
            if leaving && supervisor.is_idle() {
                self.farewell(logs).await;
                return Ok(End::Left);
            }
            tokio::select! {
                message = self.inbox.message() => match message? {
                    None => return Ok(End::Closed),
                    Some(AgentDown { message }) => match message {
                        Some(agent_down::Message::Welcome(welcome)) => {
                            beat = heartbeats(Duration::from_millis(welcome.heartbeat_ms.max(1).into()));
                        }
                        Some(agent_down::Message::Start(order)) if leaving => {
                            let run_id = order.fence.map(|fence| fence.run_id);
                            tracing::info!(run_id, "order to start workers ignored: this agent is leaving");
                        }
                        Some(agent_down::Message::Start(order)) => {
                            for report in supervisor.start(opened(order, &self.seal)).await {
                                self.send(report).await?;
                            }
                        }
                        Some(agent_down::Message::Stop(order)) => supervisor.stop(order),
                        None => tracing::warn!("message of an unknown kind ignored"),
                    },
                },
                _ = beat.tick() => {
                    self.send(AgentUp { message: Some(agent_up::Message::Heartbeat(AgentHeartbeat {})) }).await?;
                }
                Some(batch) = logs.recv() => self.send_logs(batch).await?,
                Some(report) = supervisor.next_exit(), if !supervisor.is_idle() => {
                    // The lines that explain the end come before it.
                    while let Ok(batch) = logs.try_recv() {
                        self.send_logs(batch).await?;
                    }
                    self.send(report).await?;
                }
                () = shutdown.cancelled(), if !leaving => {
                    leaving = true;
                    supervisor.leave();
                }
            }
        }
    }

    async fn send_logs(&self, batch: LogBatch) -> Result<(), Status> {
        self.send(AgentUp { message: Some(agent_up::Message::Logs(batch)) }).await
    }

    async fn send(&self, message: AgentUp) -> Result<(), Status> {
        self.outbox.send(message).await.map_err(|_| Status::unavailable("the stream broke"))
    }

    /// Closes this side and waits until the coordinator, having read everything, closes its own.
    async fn farewell(&mut self, logs: &mut mpsc::Receiver<LogBatch>) {
        while let Ok(batch) = logs.try_recv() {
            if self.send_logs(batch).await.is_err() {
                return;
            }
        }
        self.outbox = mpsc::channel(1).0;
        let drained = async { while let Ok(Some(_)) = self.inbox.message().await {} };
        if timeout(FAREWELL, drained).await.is_err() {
            tracing::debug!("the coordinator did not close the session");
        }
    }
}

/// Workers' secrets travel as the connection has it.
fn opened(mut order: StartWorkers, seal: &Seal) -> StartWorkers {
    for assignment in &mut order.workers {
        let label = assignment.worker.as_ref().map_or("", |worker| &worker.nonce);
        // What is longer than a secret is none, and the worker says so.
        assignment.secret.truncate(32);
        assignment.secret = seal.apply(label, &assignment.secret);
    }
    order
}

fn heartbeats(period: Duration) -> tokio::time::Interval {
    let mut beat = interval(period);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}
