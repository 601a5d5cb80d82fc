//! Which workers run on this node, and what the coordinator's orders mean for them.

use identity::{Access, Secret, Spawn};
use proto::v1::agent_up::Message;
use proto::v1::{
    AgentUp, Fence, LogBatch, StartWorkers, StopWorkers, WorkerAssignment, WorkerExited, WorkerStarted,
};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cores::{self, Share};
use crate::process::{self, Identity, Logs, Stop};
use crate::spawn::Spawner;
use crate::{Error, Left, Options};

/// Batches of log lines waiting for the coordinator; more are dropped and counted.
const LOG_BATCHES: usize = 512;

/// Ends that are told again to a coordinator that comes back.
const REMEMBERED_EXITS: usize = 64;

/// How long workers have to end when their agent leaves.
const LEAVING_GRACE: Duration = Duration::from_secs(5);

/// What a shell says when a program does not start.
const CANNOT_START: i32 = 127;

/// The workers of a node.
pub(crate) struct Supervisor {
    spawner: Spawner,
    program: PathBuf,
    coordinator: String,
    access: Access,
    slots: u32,
    cores: Vec<usize>,
    data_roots: Vec<String>,
    /// By nonce.
    workers: HashMap<String, Worker>,
    lives: JoinSet<WorkerExited>,
    /// The newest fence heard of each run: orders of an older one are void.
    fences: HashMap<String, Fence>,
    exits: VecDeque<WorkerExited>,
    /// Workers were ended because this agent leaves.
    cut_short: bool,
    logs: mpsc::Sender<LogBatch>,
}

struct Worker {
    identity: Identity,
    pid: u32,
    stops: mpsc::Sender<Stop>,
}

impl Supervisor {
    /// No workers yet, and the channel on which comes what they will write.
    pub fn new(options: &Options) -> Result<(Self, mpsc::Receiver<LogBatch>), Error> {
        let (logs, batches) = mpsc::channel(LOG_BATCHES);
        let supervisor = Self {
            spawner: Spawner::start().map_err(Error::Spawner)?,
            program: options.program.clone(),
            coordinator: options.coordinator.clone(),
            access: options.access.clone(),
            slots: options.slots,
            cores: options.cores.clone(),
            data_roots: options.data_roots.clone(),
            workers: HashMap::new(),
            lives: JoinSet::new(),
            fences: HashMap::new(),
            exits: VecDeque::new(),
            cut_short: false,
            logs,
        };
        Ok((supervisor, batches))
    }

    /// Starts the workers of `order`, unless it is of an older fence; returns what to report.
    pub async fn start(&mut self, order: StartWorkers) -> Vec<AgentUp> {
        let Some(fence) = self.admit(order.fence) else { return Vec::new() };
        let mut reports = Vec::new();
        // Those that run already have taken their memory.
        let started = order.workers.len();
        for assignment in order.workers {
            reports.extend(self.start_one(&fence, assignment, started).await);
        }
        reports
    }

    /// Starts one of the workers that are started together.
    async fn start_one(
        &mut self,
        fence: &Fence,
        assignment: WorkerAssignment,
        started_together: usize,
    ) -> Option<AgentUp> {
        let share = self.share(&assignment);
        let input = self.spawn_input(&assignment.secret);
        let Some(worker) = assignment.worker else {
            tracing::warn!("assignment without a worker ignored");
            return None;
        };
        if self.workers.contains_key(&worker.nonce) {
            return None;
        }
        let mut arguments = arguments(&self.coordinator, fence, &worker, &share);
        arguments.extend(self.data_roots.iter().flat_map(|root| ["--data-root".to_owned(), root.clone()]));
        arguments.extend(["--share".to_owned(), started_together.to_string()]);
        let identity = Identity { fence: fence.clone(), worker };
        let spawned = match input {
            Ok(input) => self.spawner.spawn(&self.program, &arguments, &input).await,
            Err(error) => Err(std::io::Error::other(error)),
        };
        match spawned {
            Ok(child) => {
                let (stops, inbox) = mpsc::channel(4);
                let pid = child.id().expect("a child that nobody has waited for has an id");
                tracing::info!(run_id = fence.run_id, worker = %identity.worker, pid, "worker started");
                let logs = Logs::new(identity.clone(), self.logs.clone());
                self.lives.spawn(process::supervise(child, logs, inbox));
                let report = started(&identity, pid);
                self.workers.insert(identity.worker.nonce.clone(), Worker { identity, pid, stops });
                Some(report)
            }
            Err(error) => {
                let exited = WorkerExited {
                    fence: Some(identity.fence),
                    worker: Some(identity.worker),
                    code: Some(CANNOT_START),
                    signal: None,
                    stderr_tail: vec![format!("failed to start {}: {error}", self.program.display())],
                };
                Some(AgentUp { message: Some(Message::Exited(exited)) })
            }
        }
    }

    /// What a worker knows the coordinator by, and proves itself by.
    fn spawn_input(&self, secret: &[u8]) -> Result<Vec<u8>, identity::Error> {
        let trust = self.access.trust(&self.coordinator)?;
        let secret = secret.try_into().map(Secret).map_err(|_| identity::Error::Malformed {
            path: PathBuf::from("the order to start a worker"),
            what: "one with a secret of 16 bytes",
            reason: format!("it has {}", secret.len()),
        })?;
        Ok(serde_json::to_vec(&Spawn { trust, secret }).expect("strings are JSON"))
    }

    /// What the coordinator chose, or this node's own partition where it left the choice open.
    fn share(&self, assignment: &WorkerAssignment) -> Share {
        if assignment.threads > 0 {
            return Share { threads: assignment.threads, cores: assignment.cores.clone() };
        }
        let slot = assignment.worker.as_ref().map_or(0, |worker| worker.slot);
        cores::share(&self.cores, self.slots, slot)
    }

    /// Ends the workers that `order`'s fence covers, unless it is an older one itself.
    pub fn stop(&mut self, order: StopWorkers) {
        let Some(fence) = self.admit(order.fence) else { return };
        tracing::info!(run_id = fence.run_id, reason = order.reason, "stopping workers");
        let grace = Duration::from_millis(order.grace_ms.into());
        for worker in self.workers.values() {
            let theirs = &worker.identity.fence;
            if theirs.run_id == fence.run_id && !fence.is_older_than(theirs) {
                worker.stop(Stop { grace });
            }
        }
    }

    /// Remembers the newest fence of a run; `None` for a message of an older one.
    fn admit(&mut self, fence: Option<Fence>) -> Option<Fence> {
        let Some(fence) = fence else {
            tracing::warn!("order without a fence ignored");
            return None;
        };
        let newest = self.fences.entry(fence.run_id.clone()).or_insert_with(|| fence.clone());
        if fence.is_older_than(newest) {
            tracing::warn!(
                run_id = fence.run_id,
                generation = fence.generation,
                "order of an older fence ignored"
            );
            return None;
        }
        newest.clone_from(&fence);
        Some(fence)
    }

    pub fn is_idle(&self) -> bool {
        self.lives.is_empty()
    }

    /// Waits for the next worker to end; `None` if none is running.
    pub async fn next_exit(&mut self) -> Option<AgentUp> {
        let exited = match self.lives.join_next().await? {
            Ok(exited) => exited,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let nonce = exited.worker.as_ref().map(|worker| worker.nonce.as_str()).unwrap_or_default();
        if let Some(worker) = self.workers.remove(nonce) {
            tracing::info!(worker = %worker.identity.worker, pid = worker.pid, code = exited.code, signal = exited.signal, "worker ended");
        }
        self.exits.truncate(REMEMBERED_EXITS - 1);
        self.exits.push_front(exited.clone());
        Some(AgentUp { message: Some(Message::Exited(exited)) })
    }

    /// What a coordinator that comes back may have missed. Both reports mean the same when heard twice.
    pub fn recap(&self) -> Vec<AgentUp> {
        let running = self.workers.values().map(|worker| started(&worker.identity, worker.pid));
        let ended =
            self.exits.iter().rev().map(|exited| AgentUp { message: Some(Message::Exited(exited.clone())) });
        running.chain(ended).collect()
    }

    /// Asks every worker to end, and kills those that have not within a few seconds.
    pub fn leave(&mut self) {
        self.cut_short |= !self.is_idle();
        for worker in self.workers.values() {
            worker.stop(Stop { grace: LEAVING_GRACE });
        }
    }

    /// What [`leave`](Self::leave) met.
    pub fn left(&self) -> Left {
        if self.cut_short { Left::Workers } else { Left::Nothing }
    }

    /// Ends every worker that is left.
    pub async fn finish(&mut self) {
        self.leave();
        while self.next_exit().await.is_some() {}
    }
}

impl Worker {
    fn stop(&self, stop: Stop) {
        // Full or closed: it has been told often enough, or has ended.
        if self.stops.try_send(stop).is_err() {
            tracing::debug!(worker = %self.identity.worker, "worker is already ending");
        }
    }
}

fn started(identity: &Identity, pid: u32) -> AgentUp {
    let Identity { fence, worker } = identity.clone();
    AgentUp {
        message: Some(Message::Started(WorkerStarted { fence: Some(fence), worker: Some(worker), pid })),
    }
}

/// The arguments that `himpun worker` parses.
fn arguments(coordinator: &str, fence: &Fence, worker: &proto::v1::WorkerId, share: &Share) -> Vec<String> {
    let mut arguments = vec!["worker".to_owned()];
    let mut option = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    option("coordinator", coordinator.to_owned());
    option("run", fence.run_id.clone());
    option("incarnation", fence.incarnation.to_string());
    option("generation", fence.generation.to_string());
    option("agent-id", worker.agent_id.clone());
    option("slot", worker.slot.to_string());
    option("nonce", worker.nonce.clone());
    option("threads", share.threads.to_string());
    if !share.cores.is_empty() {
        option("cores", share.cores.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    }
    arguments
}
