//! One run: its record, its phase and its members.

use proto::v1::order::Kind;
use proto::v1::{
    Abort, Fence, Member as MemberStatus, Order, Progress, RunState, RunStatus, Severity, StateChanged,
    WorkerDown, WorkerId, event, worker_down,
};
use std::time::Duration;

use super::input::{Command, Entry, Exit, Failure, Membership, Operation, Refused};
use super::record::{RunRecord, Stage};
use super::secrets::SpawnKey;
use super::timer::Timer;

/// A run and what is known of it now.
#[derive(Debug)]
pub(super) struct Run {
    pub record: RunRecord,
    /// The coordinator's: its groups' keys are derived from it.
    pub spawn_key: SpawnKey,
    pub phase: Phase,
    /// In rank order; empty until the first generation is dealt.
    pub members: Vec<Member>,
    /// Orders given before rank 0 could hear them.
    pub pending: Vec<(Operation, String)>,
    /// What rank 0 was told since, as far as it is not known to have heard it.
    pub wanted: Wanted,
    /// The end of training, `(step, stopped early)`, where rank 0's word of it overtook that another rank is ready.
    pub early_end: Option<(u64, bool)>,
    /// When the first sign of trouble was seen: others may name its cause better.
    pub troubled: Option<Duration>,
    /// Ranks in the order in which something went wrong with them.
    pub suspects: Vec<u32>,
    /// Step of the newest checkpoint that this generation took.
    pub checkpoint: Option<proto::v1::CheckpointInfo>,
    /// When the next checkpoint by time is due.
    pub timer: Timer,
    /// Why it waits, while it is queued.
    pub waits_for: String,
}

/// Where a run stands, in more detail than [`Stage`].
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    Queued,
    /// Workers were ordered; they attach one by one.
    Starting {
        /// When the last of them must have.
        until: Duration,
    },
    /// Ranks are dealt; the workers verify their group.
    Forming,
    Running {
        paused: bool,
        stopping: bool,
    },
    /// How it ends is decided; its workers are on their way out.
    Ending {
        verdict: Verdict,
        deadline: Duration,
        /// The last means: the workers were killed.
        forced: bool,
    },
    Ended,
}

/// Orders in a form that can be given twice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    /// The last of pause and resume.
    pub pause: bool,
    /// No checkpoint was committed since one was asked for.
    pub checkpoint: bool,
}

/// How a run ends.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub stage: Stage,
    pub exit_code: i32,
    pub reason: String,
    pub hint: String,
    pub log_tail: Vec<String>,
}

/// A worker in its generation.
#[derive(Debug)]
pub(super) struct Member {
    pub worker: WorkerId,
    pub host: String,
    pub pid: u32,
    pub data_address: Option<String>,
    pub connected: bool,
    pub ready: bool,
    /// Predicted size of its shard of a checkpoint, once it is ready.
    pub shard_bytes: u64,
    pub progress: Option<Progress>,
    pub failure: Option<Failure>,
    pub exit: Option<Exit>,
    pub stderr_tail: Vec<String>,
}

impl Member {
    pub fn new(worker: WorkerId, host: String) -> Member {
        Member {
            worker,
            host,
            pid: 0,
            data_address: None,
            connected: false,
            ready: false,
            shard_bytes: 0,
            progress: None,
            failure: None,
            exit: None,
            stderr_tail: Vec::new(),
        }
    }

    /// It listens for its peers and can be told of them.
    pub fn has_attached(&self) -> bool {
        self.connected && self.data_address.is_some()
    }

    /// Even a worker that is counted as lost may still run, cut off from its agent only.
    pub fn may_listen(&self) -> bool {
        self.connected || self.exit.is_none()
    }
}

impl Run {
    pub fn new(record: RunRecord, spawn_key: SpawnKey) -> Run {
        let phase = if record.stage.has_ended() { Phase::Ended } else { Phase::Queued };
        let timer = Timer::of(&record.config_toml);
        Run {
            record,
            spawn_key,
            phase,
            members: Vec::new(),
            pending: Vec::new(),
            wanted: Wanted::default(),
            early_end: None,
            troubled: None,
            suspects: Vec::new(),
            checkpoint: None,
            timer,
            waits_for: "waiting for an agent".to_owned(),
        }
    }

    pub fn id(&self) -> &str {
        &self.record.run_id
    }

    /// Moves everything that has a limit in time: for `gap` nobody was listened to.
    pub fn excuse(&mut self, gap: Duration) {
        if let Some(troubled) = &mut self.troubled {
            *troubled += gap;
        }
        if let Phase::Starting { until: limit } | Phase::Ending { deadline: limit, .. } = &mut self.phase {
            *limit += gap;
        }
        self.timer.since += gap;
    }

    /// Has workers that may do something.
    pub fn is_active(&self) -> bool {
        !matches!(self.phase, Phase::Queued | Phase::Ended)
    }

    pub fn fence(&self, incarnation: u64) -> Fence {
        Fence { run_id: self.record.run_id.clone(), incarnation, generation: self.record.generation }
    }

    /// Refuses a message of another membership than the present one.
    pub fn check_fence(&self, fence: &Fence, incarnation: u64) -> Result<(), Refused> {
        let present = self.fence(incarnation);
        let [theirs, ours] =
            [fence, &present].map(|f| Membership { incarnation: f.incarnation, generation: f.generation });
        let run_id = self.record.run_id.clone();
        if fence.is_older_than(&present) {
            return Err(Refused::Stale { run_id, theirs, ours });
        }
        if present.is_older_than(fence) {
            return Err(Refused::FromTheFuture { run_id, theirs, ours });
        }
        match self.phase {
            Phase::Ended => Err(self.has_ended()),
            Phase::Queued => Err(self.not_started()),
            _ => Ok(()),
        }
    }

    pub fn has_ended(&self) -> Refused {
        Refused::Ended { run_id: self.record.run_id.clone(), outcome: self.record.reason.clone() }
    }

    pub fn not_started(&self) -> Refused {
        Refused::NotStarted { run_id: self.record.run_id.clone(), reason: self.waits_for.clone() }
    }

    /// Rank of a member of the present generation.
    pub fn rank_of(&self, worker: &WorkerId) -> Result<usize, Refused> {
        let rank = self.members.iter().position(|member| member.worker == *worker);
        rank.ok_or_else(|| self.not_a_member(worker.to_string()))
    }

    pub fn not_a_member(&self, worker: String) -> Refused {
        let (run_id, generation) = (self.record.run_id.clone(), self.record.generation);
        Refused::NotAMember { run_id, generation, worker }
    }

    /// "rank 1 on host-a", as every message for people names a worker.
    pub fn name_of(&self, rank: usize) -> String {
        let member = &self.members[rank];
        format!("rank {rank} (worker {} on {})", member.worker, member.host)
    }

    pub fn note(&self, severity: Severity, text: impl Into<String>, kind: Option<event::Kind>) -> Command {
        let entry = Entry { generation: self.record.generation, severity, text: text.into(), kind };
        Command::Record(self.record.run_id.clone(), entry)
    }

    /// The event of a change of state, worded as the status words it.
    pub fn state_note(&self) -> Command {
        let (state, reason) = (self.state(), self.reason());
        let text = format!("{}: {reason}", state_name(state));
        self.note(
            Severity::Info,
            text,
            Some(event::Kind::State(StateChanged { state: state.into(), reason })),
        )
    }

    /// A message to one of the workers.
    pub fn to_worker(&self, rank: usize, incarnation: u64, message: worker_down::Message) -> Command {
        let down = WorkerDown { fence: Some(self.fence(incarnation)), message: Some(message) };
        Command::ToWorker(self.members[rank].worker.clone(), down)
    }

    pub fn abort(&self, rank: usize, incarnation: u64, reason: &str) -> Command {
        self.to_worker(rank, incarnation, worker_down::Message::Abort(Abort { reason: reason.to_owned() }))
    }

    /// An operator's order, to rank 0.
    pub fn order(&self, operation: Operation, command_id: &str, incarnation: u64) -> Option<Command> {
        let kind = match operation {
            Operation::Pause => Kind::Pause,
            Operation::Resume => Kind::Resume,
            Operation::Stop => Kind::Stop,
            Operation::Checkpoint => Kind::Checkpoint,
            Operation::Kill => return None,
        };
        let order = Order { kind: kind.into(), command_id: command_id.to_owned() };
        Some(self.to_worker(0, incarnation, worker_down::Message::Order(order)))
    }

    pub fn state(&self) -> RunState {
        match &self.phase {
            Phase::Queued => RunState::Queued,
            Phase::Starting { .. } | Phase::Forming => RunState::Forming,
            Phase::Running { stopping: true, .. } | Phase::Ending { .. } => RunState::Stopping,
            Phase::Running { paused: true, .. } => RunState::Paused,
            Phase::Running { .. } => RunState::Running,
            Phase::Ended => self.record.stage.ended_state(),
        }
    }

    /// One sentence: why it is in this state.
    pub fn reason(&self) -> String {
        let count = |what: fn(&Member) -> bool| self.members.iter().filter(|member| what(member)).count();
        let n = self.members.len();
        match &self.phase {
            Phase::Queued => self.waits_for.clone(),
            Phase::Starting { .. } => {
                format!("waiting for workers: {} of {n} attached", count(Member::has_attached))
            }
            Phase::Forming => format!("waiting for the group: {} of {n} ranks ready", count(|m| m.ready)),
            Phase::Running { stopping: true, .. } => "stopping after a checkpoint, as asked".to_owned(),
            Phase::Running { paused: true, .. } => {
                format!("paused after step {}, as asked", self.record.summary.step)
            }
            Phase::Running { .. } => "training".to_owned(),
            Phase::Ending { verdict, .. } => {
                format!("{}; {} of {n} workers have ended", verdict.reason, count(|m| m.exit.is_some()))
            }
            Phase::Ended => self.record.reason.clone(),
        }
    }

    pub fn status(&self, incarnation: u64) -> RunStatus {
        let summary = &self.record.summary;
        let member = |(rank, member): (usize, &Member)| MemberStatus {
            worker: Some(member.worker.clone()),
            rank: rank as u32,
            host: member.host.clone(),
            pid: member.pid,
            progress: member.progress,
        };
        RunStatus {
            run_id: self.record.run_id.clone(),
            run_dir: self.record.run_dir.clone(),
            state: self.state().into(),
            reason: self.reason(),
            incarnation,
            generation: self.record.generation,
            world_size: self.members.len() as u32,
            step: summary.step,
            total_steps: summary.total_steps,
            epoch: summary.epoch,
            loss: summary.loss,
            chance_loss: summary.chance_loss,
            knn_top1: summary.knn_top1,
            images_per_s: summary.images_per_s,
            views_per_s: summary.views_per_s,
            eta_seconds: summary.eta_seconds(),
            members: self.members.iter().enumerate().map(member).collect(),
            last_checkpoint: self.record.last_checkpoint.clone(),
            exit_code: self.record.exit_code,
        }
    }
}

/// A state as people read it.
pub fn state_name(state: RunState) -> &'static str {
    match state {
        RunState::Unspecified => "unknown",
        RunState::Queued => "queued",
        RunState::Forming => "forming",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Stopping => "stopping",
        RunState::Finished => "finished",
        RunState::Stopped => "stopped",
        RunState::Failed => "failed",
    }
}
