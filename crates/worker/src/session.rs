//! The worker's conversation with the coordinator, on threads of its own.
//!
//! The training thread never waits for the coordinator: it states where it is in a few atomics, leaves
//! messages in a queue and finds orders in another. A runtime of one thread sends heartbeats, keeps the
//! stream open, and pulls the group's abort handle when it must not go on: told so by the coordinator, or
//! without one for longer than `cluster.orphan_ttl`.

mod error;
mod shared;
mod stream;

use ::identity::{Access, Channel, Connection};
use proto::transport;
use proto::v1::worker_service_client::WorkerServiceClient;
use proto::v1::{
    Assign, AttachRequest, Failed, Fence, Finished, MetricRow, Notice, Order, Paused, Phase, Ready, Severity,
    WorkerId, worker_up,
};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

pub use error::Error;
pub(crate) use error::is_transient;
use shared::Shared;
use stream::Stream;

/// How long a session that is closed may take to deliver what is queued.
const FAREWELL: Duration = Duration::from_secs(5);

/// How often a wait for the stream looks at it.
const GLANCE: Duration = Duration::from_millis(5);

/// Rows of metrics that wait for a coordinator; more are dropped, as training goes on without it.
const MAX_WAITING_ROWS: usize = 1 << 14;

/// Who this worker is, and whom it speaks with.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The coordinator, "host:port".
    pub coordinator: String,
    /// The membership it was started for.
    pub fence: Fence,
    /// The process.
    pub worker: WorkerId,
    /// How it proves that, and what it knows the coordinator by.
    pub access: Access,
}

/// An attached worker that has not opened its stream yet.
pub struct Attached {
    runtime: Runtime,
    identity: Identity,
    /// The run's configuration, as the coordinator gave it.
    pub config_toml: String,
}

/// An open conversation. Belongs to the training thread.
pub struct Session {
    shared: Arc<Shared>,
    outbox: mpsc::UnboundedSender<worker_up::Message>,
    orders: Receiver<Order>,
    bulk: Channel,
    identity: Identity,
    closing: watch::Sender<bool>,
    stream: Option<tokio::task::JoinHandle<()>>,
    // Last, so that everything above is gone before its threads are.
    runtime: Runtime,
}

/// Registers `data_address`, where the other ranks reach this worker.
///
/// # Errors
/// If the coordinator cannot be reached or refuses this worker.
pub fn attach(identity: Identity, data_address: String) -> Result<Attached, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("session")
        .enable_all()
        .build()
        .map_err(|error| Error::Runtime(Arc::new(error)))?;
    let request = AttachRequest {
        protocol: proto::PROTOCOL,
        fence: Some(identity.fence.clone()),
        worker: Some(identity.worker.clone()),
        data_address,
        pid: std::process::id(),
    };
    let config_toml = runtime.block_on(async {
        let Connection { channel, .. } = connect(&identity).await?;
        let mut request = tonic::Request::new(request);
        request.set_timeout(transport::CALL_DEADLINE);
        let response = WorkerServiceClient::new(channel).attach(request).await;
        response.map_err(|status| Error::from_status(&identity.coordinator, &status))
    })?;
    Ok(Attached { runtime, identity, config_toml: config_toml.into_inner().config_toml })
}

impl Attached {
    /// Opens the stream and waits until the coordinator deals this worker its place. From then on `abort`
    /// is pulled when the group must end, also if the coordinator is gone for longer than `orphan_ttl`.
    ///
    /// # Errors
    /// If the coordinator ends the session instead, or is gone.
    pub fn open(
        self,
        abort: collective::AbortHandle,
        orphan_ttl: Duration,
    ) -> Result<(Session, Assign), Error> {
        let Attached { runtime, identity, .. } = self;
        let shared = Arc::new(Shared::new(abort));
        let (outbox, messages) = mpsc::unbounded_channel();
        let (order_sender, orders) = std::sync::mpsc::channel();
        let (assign_sender, assignment) = std::sync::mpsc::channel();
        let (closing, closing_seen) = watch::channel(false);
        let stream = Stream {
            identity: identity.clone(),
            orphan_ttl,
            shared: Arc::clone(&shared),
            messages,
            assignment: assign_sender,
            orders: order_sender,
            closing: closing_seen,
        };
        let _entered = runtime.enter();
        let bulk = identity.access.connect_lazy(&identity.coordinator);
        let bulk = bulk.map_err(|error| Error::from_identity(&identity.coordinator, error))?.channel;
        let stream = runtime.spawn(stream.keep_open());
        drop(_entered);
        let session =
            Session { shared, outbox, orders, bulk, identity, closing, stream: Some(stream), runtime };
        match assignment.recv() {
            Ok(assign) => Ok((session, assign)),
            // The stream's task has ended, and said why.
            Err(_) => Err(session.end()),
        }
    }
}

impl Session {
    /// Fails once the session is over, so that a step boundary notices.
    ///
    /// # Errors
    /// Why it is over.
    pub fn check(&self) -> Result<(), Error> {
        if self.shared.is_over() { Err(self.end()) } else { Ok(()) }
    }

    /// States what this rank is doing, for the heartbeats.
    pub fn progress(&self, phase: Phase, step: u64, collective_seq: u64) {
        self.shared.progress(phase, step, collective_seq);
    }

    /// Takes the orders that have come, without waiting.
    pub fn orders(&self) -> Vec<Order> {
        self.orders.try_iter().collect()
    }

    /// Waits up to `limit` for an order.
    pub fn wait_orders(&self, limit: Duration) -> Vec<Order> {
        match self.orders.recv_timeout(limit) {
            Ok(first) => std::iter::once(first).chain(self.orders.try_iter()).collect(),
            // A session that is over is noticed by `check`.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Vec::new(),
        }
    }

    /// The group is formed and verified, and starts after `step` updates of `total_steps`. This rank's shard of a checkpoint
    /// will have about `shard_bytes`.
    pub fn ready(&self, step: u64, total_steps: u64, shard_bytes: u64) {
        let ready = Ready { step, total_steps, shard_bytes };
        self.shared.set_ready(ready);
        self.say(worker_up::Message::Ready(ready));
    }

    /// Leaves a row of metrics.
    pub fn metrics(&self, row: MetricRow) {
        if self.shared.waiting() < MAX_WAITING_ROWS {
            self.say(worker_up::Message::Metrics(row));
        } else {
            self.shared.count_dropped_row();
        }
    }

    /// The group entered or left a pause.
    pub fn paused(&self, paused: bool, step: u64) {
        self.say(worker_up::Message::Paused(Paused { paused, step }));
    }

    /// Leaves a warning for the run's events.
    pub fn warn(&self, text: String) {
        tracing::warn!("{text}");
        self.say(worker_up::Message::Notice(Notice { severity: Severity::Warn.into(), text }));
    }

    /// Training ended as asked.
    pub fn finished(&self, step: u64, stopped_early: bool) {
        self.say(worker_up::Message::Finished(Finished { step, stopped_early }));
    }

    /// This worker is about to exit with an error.
    pub fn failed(&self, failed: Failed) {
        self.say(worker_up::Message::Failed(failed));
    }

    /// Waits until everything said so far is on its way, or `limit` is over: a stream that is being opened
    /// again must not be overtaken by a call.
    pub fn flush(&self, limit: Duration) {
        let empty = async {
            while self.shared.waiting() > 0 {
                tokio::time::sleep(GLANCE).await;
            }
        };
        if self.block_on(async { tokio::time::timeout(limit, empty).await }).is_err() {
            tracing::debug!("messages still wait for the coordinator");
        }
    }

    /// Delivers what is queued and closes the stream.
    pub fn close(mut self) {
        self.closing.send_replace(true);
        if let Some(stream) = self.stream.take() {
            let delivered = self.runtime.block_on(async { tokio::time::timeout(FAREWELL, stream).await });
            if delivered.is_err() {
                tracing::warn!("the coordinator did not take the last messages");
            }
        }
    }

    /// The membership that every message carries.
    pub fn fence(&self) -> &Fence {
        &self.identity.fence
    }

    /// The agent that started this worker: what people call its node.
    pub fn node(&self) -> &str {
        &self.identity.worker.agent_id
    }

    /// The coordinator's address.
    pub fn coordinator(&self) -> &str {
        &self.identity.coordinator
    }

    /// A connection for bulk data: a checkpoint must not hold up heartbeats.
    pub fn bulk_channel(&self) -> Channel {
        self.bulk.clone()
    }

    /// Runs `work` on the session's runtime and waits for it.
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }

    fn say(&self, message: worker_up::Message) {
        self.shared.count_waiting();
        if self.outbox.send(message).is_err() {
            // The session is over, which `check` reports.
            tracing::debug!("a message of a session that is over is dropped");
        }
    }

    fn end(&self) -> Error {
        self.shared.end().unwrap_or_else(|| Error::Lost { reason: "its task ended".into() })
    }
}

async fn connect(identity: &Identity) -> Result<Connection, Error> {
    let Identity { coordinator, access, .. } = identity;
    access.connect(coordinator).await.map_err(|error| Error::from_identity(coordinator, error))
}
