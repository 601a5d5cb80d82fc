//! The one owner of the state: a thread that takes messages in turn and carries out what the state decides.
//!
//! It is a thread, not a task, because it waits for the disk: a run's new generation is on it before an
//! agent hears of it. It never waits for a peer. Bounds, and what happens at them:
//!
//! - messages to the owner ([`INBOX`]): the sender waits, and through HTTP/2 so does its peer;
//! - orders to an agent or a worker ([`OUTBOX`]): a peer that far behind is cut off, and taken for lost;
//! - events ([`EventLog`]): a slow watcher misses the oldest;
//! - log lines to followers (`desk::TAIL`): a slow follower misses lines and is told how many.

mod desk;

use proto::v1::{AgentDown, AgentHello, CheckpointInfo, Fence, LogLine, WorkerDown, WorkerId};
use tokio::sync::{broadcast, mpsc, oneshot};
use tonic::Status;

use crate::Error;
use crate::checkpoints::Checkpoints;
use crate::event_log::EventLog;
use crate::run_dir;
use crate::state::{IdempotencyKey, Input, Operation, Refused, RunRecord, SpawnKey, State};
use crate::store::{Recovered, Store};
use desk::Desk;

/// Messages that wait for the owner.
const INBOX: usize = 1024;
/// Messages that an agent or worker may be behind.
pub(crate) const OUTBOX: usize = 64;

/// Messages to an agent or a worker; the stream ends when the owner drops its end.
pub(crate) type Outbox<T> = mpsc::Sender<Result<T, Status>>;

/// Why a call to the owner has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    RunDir(#[from] run_dir::Error),
    #[error("the coordinator is shutting down")]
    Gone,
}

/// A run that is ready to be queued.
pub(crate) struct Submission {
    pub record: RunRecord,
    pub key: Option<IdempotencyKey>,
    /// Number of its first event, if it is resumed.
    pub resumed: Option<u64>,
    /// For the run's events.
    pub warnings: Vec<String>,
}

/// A command of an operator.
pub(crate) struct Order {
    pub run: String,
    pub operation: Operation,
    pub actor: String,
    pub key: Option<IdempotencyKey>,
}

/// What an order was answered.
pub(crate) struct Accepted {
    pub command_id: String,
    pub state: proto::v1::RunState,
    /// The next checkpoint of the run; ends without one if the run does.
    pub checkpoint: oneshot::Receiver<CheckpointInfo>,
}

/// A worker's log as it stands, and what comes after.
pub(crate) struct Tail {
    /// In order of generation and rank.
    pub logs: Vec<run_dir::Log>,
    /// Lines after those; nothing if the run has ended.
    pub follow: Option<broadcast::Receiver<LogLine>>,
}

type Answer<T> = oneshot::Sender<Result<T, CallError>>;

enum Message {
    Input(Input, Option<Answer<()>>),
    OpenAgent(AgentHello, Outbox<AgentDown>, Answer<u64>),
    OpenWorker(Fence, WorkerId, Outbox<WorkerDown>, Answer<u64>),
    CloseWorker(Fence, WorkerId, u64),
    Submit(Box<Submission>, Answer<(String, String)>),
    Order(Order, Answer<Accepted>),
    Logs(String, Fence, WorkerId, Vec<String>),
    Watch(String, Answer<EventLog>),
    Tail(String, Option<u32>, Answer<Tail>),
    Read(Box<dyn FnOnce(&State) + Send>),
    ShutDown(Answer<()>),
}

/// Speaks with the owner.
#[derive(Clone)]
pub(crate) struct Owner {
    inbox: mpsc::Sender<Message>,
}

impl Owner {
    /// Starts the owner's thread. The receiver tells how it ended.
    pub fn start(
        store: Store,
        recovered: Recovered,
        checkpoints: Checkpoints,
        spawn_key: SpawnKey,
    ) -> std::io::Result<(Owner, oneshot::Receiver<Result<(), Error>>)> {
        let (inbox, messages) = mpsc::channel(INBOX);
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("owner".to_owned()).spawn(move || {
            let mut desk = Desk::new(store, recovered.incarnation, checkpoints, spawn_key);
            let outcome = desk.recover(recovered).and_then(|()| desk.serve(messages));
            // The directory is free for another coordinator before anybody hears that this one has ended.
            drop(desk);
            // Nobody may be waiting for it any more.
            end.send(outcome).ok();
        })?;
        Ok((Owner { inbox }, ended))
    }

    /// Tells what happened and waits until it was taken up.
    pub async fn tell(&self, input: Input) -> Result<(), CallError> {
        self.ask(|answer| Message::Input(input, Some(answer))).await
    }

    /// Says that time passed; dropped when the owner is busy, because the next tick says the same.
    pub fn tick(&self) {
        self.inbox.try_send(Message::Input(Input::Tick, None)).ok();
    }

    pub async fn open_agent(&self, hello: AgentHello, outbox: Outbox<AgentDown>) -> Result<u64, CallError> {
        self.ask(|answer| Message::OpenAgent(hello, outbox, answer)).await
    }

    pub async fn open_worker(
        &self,
        fence: Fence,
        worker: WorkerId,
        outbox: Outbox<WorkerDown>,
    ) -> Result<u64, CallError> {
        self.ask(|answer| Message::OpenWorker(fence, worker, outbox, answer)).await
    }

    /// Says that nothing more comes in a worker's session; its stream then ends as well.
    pub async fn close_worker(&self, fence: Fence, worker: WorkerId, session: u64) -> Result<(), CallError> {
        self.inbox.send(Message::CloseWorker(fence, worker, session)).await.map_err(|_| CallError::Gone)
    }

    /// Queues a run; answers with its id and directory.
    pub async fn submit(&self, submission: Submission) -> Result<(String, String), CallError> {
        self.ask(|answer| Message::Submit(Box::new(submission), answer)).await
    }

    pub async fn order(&self, order: Order) -> Result<Accepted, CallError> {
        self.ask(|answer| Message::Order(order, answer)).await
    }

    pub async fn logs(
        &self,
        agent_id: &str,
        fence: Fence,
        worker: WorkerId,
        lines: Vec<String>,
    ) -> Result<(), CallError> {
        let message = Message::Logs(agent_id.to_owned(), fence, worker, lines);
        self.inbox.send(message).await.map_err(|_| CallError::Gone)
    }

    pub async fn watch(&self, run: String) -> Result<EventLog, CallError> {
        self.ask(|answer| Message::Watch(run, answer)).await
    }

    pub async fn tail(&self, run: String, rank: Option<u32>) -> Result<Tail, CallError> {
        self.ask(|answer| Message::Tail(run, rank, answer)).await
    }

    /// Looks something up in the state.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let (answer, value) = oneshot::channel();
        // The asker may have gone away meanwhile.
        let message = Message::Read(Box::new(move |state| drop(answer.send(look(state)))));
        self.inbox.send(message).await.map_err(|_| CallError::Gone)?;
        value.await.map_err(|_| CallError::Gone)
    }

    /// Ends all runs and sessions; the owner's thread ends with it.
    pub async fn shut_down(&self) -> Result<(), CallError> {
        self.ask(Message::ShutDown).await
    }

    async fn ask<T>(&self, message: impl FnOnce(Answer<T>) -> Message) -> Result<T, CallError> {
        let (answer, value) = oneshot::channel();
        self.inbox.send(message(answer)).await.map_err(|_| CallError::Gone)?;
        value.await.map_err(|_| CallError::Gone)?
    }
}
