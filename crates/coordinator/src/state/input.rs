//! What the state hears and what it answers: everything that crosses its border.

use proto::v1::{
    AgentHello, CheckpointInfo, Fence, MetricRow, Progress, Severity, StartWorkers, StopWorkers, WorkerDown,
    WorkerId, event,
};

use super::record::RunRecord;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// An agent opened a session; `session` is new for each.
    AgentJoined {
        /// What it said of itself.
        hello: AgentHello,
        /// Names the session.
        session: u64,
    },
    /// A sign of life.
    AgentBeat {
        /// The agent.
        agent_id: String,
        /// Its session.
        session: u64,
    },
    /// The agent's stream ended.
    AgentLost {
        /// The agent.
        agent_id: String,
        /// Its session.
        session: u64,
        /// How the stream ended.
        parting: Parting,
    },
    /// A run whose directory is ready, with warnings for its events.
    Submitted(RunRecord, Option<IdempotencyKey>, Vec<String>),
    /// An operator's command.
    Ordered {
        /// The run.
        run_id: String,
        /// What to do.
        order: Operation,
        /// Who asked.
        actor: String,
        /// Names the command.
        command_id: String,
        /// Repeats of it do nothing.
        key: Option<IdempotencyKey>,
    },
    /// Something about a worker, from itself.
    Worker {
        /// The membership that the message belongs to.
        fence: Fence,
        /// Which worker.
        worker: WorkerId,
        /// What.
        news: News,
    },
    /// Something about a worker's process, from the agent that has to have started it.
    AgentReport {
        /// Whose session it came in.
        agent_id: String,
        /// The membership that the message belongs to.
        fence: Fence,
        /// Which worker.
        worker: WorkerId,
        /// What.
        report: Report,
    },
    /// A checkpoint stands under its name.
    CheckpointCommitted {
        /// The membership that took it.
        fence: Fence,
        /// What was taken.
        info: CheckpointInfo,
    },
    /// A checkpoint that was asked for had been committed before: nothing was written.
    CheckpointStands {
        /// The membership that asked.
        fence: Fence,
        /// What stands.
        info: CheckpointInfo,
    },
    /// The run's files cannot be written: the run cannot go on.
    FilesFailed {
        /// The run.
        run_id: String,
        /// What went wrong.
        why: String,
    },
    /// Time passed.
    Tick,
    /// The coordinator is about to end.
    ShuttingDown,
}

/// How an agent's session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parting {
    /// The agent ended its stream itself: it gives up its id.
    Closed,
    /// In any other way, as this says: the agent may come back.
    Broken(String),
}

impl std::fmt::Display for Parting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Parting::Closed => f.write_str("it closed its session"),
            Parting::Broken(why) => f.write_str(why),
        }
    }
}

/// What a client names a mutating call by, so that a repeat of it does nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(pub String);

/// What an operator can ask of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Hold after the present update.
    Pause,
    /// Go on.
    Resume,
    /// End after the present update, with a checkpoint.
    Stop,
    /// End at once, without one.
    Kill,
    /// Take a checkpoint after the present update.
    Checkpoint,
}

impl Operation {
    /// The command's name, as people type it.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Pause => "pause",
            Operation::Resume => "resume",
            Operation::Stop => "stop",
            Operation::Kill => "kill",
            Operation::Checkpoint => "checkpoint",
        }
    }
}

/// What an agent reports of a process that it started.
#[derive(Clone, Debug)]
pub enum Report {
    /// It runs.
    Started {
        /// Process id on its node.
        pid: u32,
    },
    /// It is gone: the authority on how it ended.
    Exited {
        /// How.
        exit: Exit,
        /// Last lines of its stderr.
        stderr_tail: Vec<String>,
    },
}

/// What a worker says of itself, or rank 0 of the group.
#[derive(Clone, Debug)]
pub enum News {
    /// It listens for its peers.
    Attached {
        /// Where, "host:port".
        data_address: String,
        /// Process id on its node.
        pid: u32,
    },
    /// Its session is open.
    Connected,
    /// Its session is over: nothing more comes from it.
    Disconnected,
    /// It is alive.
    Beat(Progress),
    /// It verified the group and loaded its state.
    Ready {
        /// Completed updates.
        step: u64,
        /// Updates of the whole run.
        total_steps: u64,
        /// Predicted size of its shard of a checkpoint.
        shard_bytes: u64,
    },
    /// Rank 0 logged a step.
    Metrics(MetricRow),
    /// From rank 0: the group entered or left a pause.
    Paused {
        /// Which.
        paused: bool,
        /// Completed updates.
        step: u64,
    },
    /// From rank 0: training ended as asked.
    Finished {
        /// Completed updates.
        step: u64,
        /// On request, before the last step.
        stopped_early: bool,
    },
    /// It is about to exit with an error.
    Failed(Failure),
    /// A line for the run's events.
    Notice {
        /// How serious.
        severity: Severity,
        /// One sentence.
        text: String,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Unknown: its agent was lost, and an agent's workers do not outlive it.
    AgentLost,
}

/// What a worker said before it exited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its exit code to come.
    pub exit_code: i32,
    /// What went wrong.
    pub error: String,
    /// What to do about it; may be empty.
    pub hint: String,
    /// It only saw that a peer is gone.
    pub peer: bool,
}

/// Something to carry out, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Store the run durably before anything after this is carried out.
    Persist(RunRecord),
    /// Store durably that the call with this key was answered so.
    Remember(IdempotencyKey, String),
    /// Open one log a member: `(worker, rank)`.
    OpenLogs {
        /// The run.
        run_id: String,
        /// In the names of the files.
        generation: u64,
        /// Whose.
        members: Vec<(WorkerId, u32)>,
    },
    /// Send to an agent.
    StartWorkers(String, StartWorkers),
    /// Send to an agent.
    StopWorkers(String, StopWorkers),
    /// Close an agent's session.
    DropAgent {
        /// The agent.
        agent_id: String,
        /// Which session of it.
        session: u64,
    },
    /// Send to a worker, if its session is open.
    ToWorker(WorkerId, WorkerDown),
    /// Write down and tell watchers.
    Record(String, Entry),
    /// Append to the run's metrics.
    WriteMetrics(String, MetricRow),
    /// Answer those who wait for a checkpoint of the run.
    CheckpointTaken(String, CheckpointInfo),
    /// The run has ended: close its files, sessions and unfinished checkpoints.
    Close(String),
}

/// An event of a run before it has a number and a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The run's generation.
    pub generation: u64,
    /// How serious.
    pub severity: Severity,
    /// One sentence for people.
    pub text: String,
    /// For programs.
    pub kind: Option<event::Kind>,
}

/// Why the state did not take an input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such run.
    #[error("there is no run `{0}`")]
    UnknownRun(String),
    /// Nothing was ever submitted.
    #[error("there is no run yet")]
    NoRuns,
    /// A prefix of more than one id.
    #[error("`{prefix}` is the beginning of {n} runs")]
    Ambiguous {
        /// As given.
        prefix: String,
        /// How many begin so.
        n: usize,
    },
    /// Of a former membership, or of another coordinator's.
    #[error("{theirs} of run {run_id} is over: {ours} holds")]
    Stale {
        /// The run.
        run_id: String,
        /// What the message carried.
        theirs: Membership,
        /// What holds now.
        ours: Membership,
    },
    /// Of a membership that was never dealt.
    #[error("{theirs} of run {run_id} was never dealt: {ours} holds")]
    FromTheFuture {
        /// The run.
        run_id: String,
        /// What the message carried.
        theirs: Membership,
        /// What holds now.
        ours: Membership,
    },
    /// Not one of the workers that the generation was dealt to.
    #[error("worker {worker} is not a member of run {run_id} in generation {generation}")]
    NotAMember {
        /// The run.
        run_id: String,
        /// Its generation.
        generation: u64,
        /// Who asked.
        worker: String,
    },
    /// Something that rank 0 alone says or does for the group, from another rank.
    #[error("{what} of run {run_id} comes from rank {rank} and not from rank 0")]
    NotTheLeader {
        /// The run.
        run_id: String,
        /// Whose message it was.
        rank: usize,
        /// What was said.
        what: &'static str,
    },
    /// A report on a worker from an agent that did not start it.
    #[error("worker {worker} of run {run_id} is not one of agent {agent_id}")]
    NotYours {
        /// The run.
        run_id: String,
        /// The worker.
        worker: String,
        /// Who reported.
        agent_id: String,
    },
    /// What the run cannot have come to.
    #[error("not plausible of run {run_id}: {what}")]
    Implausible {
        /// The run.
        run_id: String,
        /// What was said, and what it contradicts.
        what: String,
    },
    /// A checkpoint of a step before the last one saved.
    #[error(
        "run {run_id} has a checkpoint of step {saved} or came from it, and takes none of step {step} any more"
    )]
    StepGoesBack {
        /// The run.
        run_id: String,
        /// The step that was to be saved.
        step: u64,
        /// The last one that is.
        saved: u64,
    },
    /// A checkpoint of another number of shards than the run has ranks.
    #[error("{n_shards} shards of a checkpoint by {world_size} ranks")]
    WrongShards {
        /// As asked for.
        n_shards: u32,
        /// Ranks of the run.
        world_size: usize,
    },
    /// A checkpoint before all ranks have said what they will write.
    #[error("{n_ready} of {world_size} ranks of run {run_id} are ready")]
    NotReady {
        /// The run.
        run_id: String,
        /// How many are.
        n_ready: usize,
        /// Ranks of the run.
        world_size: usize,
    },
    /// Too late.
    #[error("run {run_id} has ended: {outcome}")]
    Ended {
        /// The run.
        run_id: String,
        /// How.
        outcome: String,
    },
    /// Too early.
    #[error("run {run_id} has no workers yet: {reason}")]
    NotStarted {
        /// The run.
        run_id: String,
        /// Why.
        reason: String,
    },
    /// The id is taken.
    #[error("there is a run `{0}` already")]
    RunExists(String),
    /// Another process had the id so shortly before that its lease lasts.
    #[error("the agent id `{0}` belongs to another process, which is connected or was until just now")]
    AgentConnected(String),
}

/// An incarnation of the coordinator and a generation of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Counts starts of the coordinator.
    pub incarnation: u64,
    /// Counts memberships of the run.
    pub generation: u64,
}

impl std::fmt::Display for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "generation {} (incarnation {})", self.generation, self.incarnation)
    }
}
