//! What happens to runs, as a function: an input and the time go in, commands come out.
//!
//! No clock, no files, no network, no async. `input` holds everything that crosses the border; `schedule`
//! deals slots to queued runs; `news` follows the workers of a run, `admission` says what the present members may say and
//! save, and `secrets` what they prove themselves by; `verdict` says who is to blame when a run fails; `orders` carries out
//! what operators ask, and `timer` asks for a checkpoint when it is time for one.
//! The owner (`crate::owner`) carries the commands out in their order, so that whatever is announced was
//! stored before.

mod admission;
mod agents;
mod input;
mod news;
mod orders;
mod record;
mod run;
mod schedule;
mod secrets;
mod timer;
mod verdict;

#[cfg(test)]
mod tests;

use proto::v1::{
    AgentInfo, CheckpointInfo, Fence, RunEnded, RunState, RunStatus, Severity, StateChanged, StopWorkers,
    event,
};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

pub use admission::{Admitted, CheckpointPlan};
pub use agents::{HEARTBEAT, LEASE};
pub use input::{
    Command, Entry, Exit, Failure, IdempotencyKey, Input, Membership, News, Operation, Parting, Refused,
    Report,
};
pub use record::{RunRecord, Stage, Summary};
pub use run::state_name;
pub use secrets::SpawnKey;
pub use verdict::{GRACE, how_to_go_on};

use agents::{Agent, Binding};
use run::{Phase, Run, Verdict};

/// How long workers have to end by themselves once their run's end is decided; then they are killed, and
/// after as long again the run ends without their report.
const EXIT_GRACE: Duration = Duration::from_secs(10);

/// Between SIGTERM and SIGKILL for the workers of a failed run.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// How long workers may take to start and attach: a process that hangs before it speaks ends its run.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Inputs come at least this often, unless the coordinator itself was held up.
const HELD_UP: Duration = Duration::from_secs(1);

/// All runs and agents.
#[derive(Debug)]
pub struct State {
    incarnation: u64,
    spawn_key: SpawnKey,
    /// In order of joining: ranks and slots are dealt in this order.
    agents: Vec<Agent>,
    /// Of agents that are gone and may come back: no other process gets their ids meanwhile.
    departed: Vec<Binding>,
    /// In order of submission.
    runs: Vec<Run>,
    answers: HashMap<IdempotencyKey, String>,
    /// When the last input came.
    heard: Duration,
    shutting_down: bool,
}

impl State {
    /// The state of a coordinator that has just started; runs that another one left active are failed.
    pub fn new(
        incarnation: u64,
        records: Vec<RunRecord>,
        answers: HashMap<IdempotencyKey, String>,
        spawn_key: SpawnKey,
    ) -> (State, Vec<Command>) {
        let runs = records.into_iter().map(|record| Run::new(record, spawn_key.clone())).collect();
        let mut state = State {
            incarnation,
            spawn_key,
            agents: Vec::new(),
            departed: Vec::new(),
            runs,
            answers,
            heard: Duration::ZERO,
            shutting_down: false,
        };
        let mut out = Vec::new();
        for run in state.runs.iter_mut().filter(|run| run.record.stage == Stage::Active) {
            let reason = format!("coordinator restarted while the run was active; {}", run.how_to_go_on());
            run.end(verdict::failed(reason), &mut out);
        }
        (state, out)
    }

    /// Takes up what happened at `now` and says what to do about it.
    ///
    /// # Errors
    /// If the input comes too late, too early, or from nobody known. Nothing has changed then.
    pub fn handle(&mut self, input: Input, now: Duration) -> Result<Vec<Command>, Refused> {
        let mut out = Vec::new();
        self.excuse(now);
        match input {
            Input::AgentJoined { hello, session } => self.agent_joined(hello, session, now, &mut out)?,
            Input::AgentBeat { agent_id, session } => {
                if let Some(agent) = self.agent_mut(&agent_id).filter(|agent| agent.session == session) {
                    agent.binding.last_beat = now;
                }
            }
            Input::AgentLost { agent_id, session, parting } => {
                self.agent_lost(&agent_id, session, &parting, now, &mut out)
            }
            Input::Submitted(record, key, warnings) => self.submitted(record, key, warnings, &mut out)?,
            Input::Ordered { run_id, order, actor, command_id, key } => {
                self.ordered(
                    orders::Ordered { run_id, operation: order, actor, command_id, key },
                    now,
                    &mut out,
                )?;
            }
            Input::Worker { fence, worker, news } => self.news(&fence, &worker, news, now, &mut out)?,
            Input::AgentReport { agent_id, fence, worker, report } => {
                self.report(&agent_id, (&fence, &worker), report, now, &mut out)?
            }
            Input::CheckpointCommitted { fence, info } => {
                self.checkpoint_committed(&fence, info, now, &mut out)?
            }
            Input::CheckpointStands { fence, info } => self.checkpoint_stands(&fence, info, now, &mut out)?,
            Input::FilesFailed { run_id, why } => {
                let incarnation = self.incarnation;
                if let Some(run) = self.runs.iter_mut().find(|run| run.id() == run_id && run.is_active()) {
                    let verdict = verdict::failed(format!("the run's files cannot be written: {why}"));
                    run.begin_end(verdict, incarnation, now, &mut out);
                }
            }
            Input::Tick => self.tick(now, &mut out),
            Input::ShuttingDown => self.shut_down(now, &mut out),
        }
        self.release_slots();
        if !self.shutting_down {
            self.schedule(now, &mut out);
        }
        Ok(out)
    }

    /// What was answered to the call with this key before.
    pub fn answer(&self, key: &IdempotencyKey) -> Option<&str> {
        self.answers.get(key).map(String::as_str)
    }

    /// Finds a run by its id, by a beginning that no other has, or, by "", the newest.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn resolve(&self, prefix: &str) -> Result<&str, Refused> {
        if prefix.is_empty() {
            return self.runs.last().map(Run::id).ok_or(Refused::NoRuns);
        }
        if let Some(run) = self.runs.iter().find(|run| run.id() == prefix) {
            return Ok(run.id());
        }
        let mut found = self.runs.iter().map(Run::id).filter(|id| id.starts_with(prefix));
        match (found.next(), found.count()) {
            (None, _) => Err(Refused::UnknownRun(prefix.to_owned())),
            (Some(id), 0) => Ok(id),
            (Some(_), more) => Err(Refused::Ambiguous { prefix: prefix.to_owned(), n: more + 1 }),
        }
    }

    /// The record of a run.
    pub fn record(&self, run_id: &str) -> Option<&RunRecord> {
        self.runs.iter().find(|run| run.id() == run_id).map(|run| &run.record)
    }

    /// The run that has not ended and lives in this directory.
    pub fn unfinished_in(&self, run_dir: &str) -> Option<&str> {
        self.runs.iter().find(|run| run.record.run_dir == run_dir && run.phase != Phase::Ended).map(Run::id)
    }

    /// Whether there is a run of this id that has not ended.
    pub fn is_unfinished(&self, run_id: &str) -> bool {
        self.runs.iter().any(|run| run.id() == run_id && run.phase != Phase::Ended)
    }

    /// Everything that a status shows of a run.
    pub fn status(&self, run_id: &str) -> Option<RunStatus> {
        self.runs.iter().find(|run| run.id() == run_id).map(|run| run.status(self.incarnation))
    }

    /// All runs, in order of submission.
    pub fn statuses(&self) -> Vec<RunStatus> {
        self.runs.iter().map(|run| run.status(self.incarnation)).collect()
    }

    /// All connected agents, in order of joining.
    pub fn agents(&self) -> Vec<AgentInfo> {
        let info = |agent: &Agent| AgentInfo {
            agent_id: agent.hello.agent_id.clone(),
            host: agent.hello.host.clone(),
            slots: agent.hello.slots,
            free_slots: agent.free_slots().count() as u32,
            device: agent.hello.device.clone(),
        };
        self.agents.iter().map(info).collect()
    }

    /// A checkpoint of the present generation that already holds the last update known of.
    pub fn fresh_checkpoint(&self, run_id: &str) -> Option<&CheckpointInfo> {
        let run = self.runs.iter().find(|run| run.id() == run_id)?;
        run.checkpoint.as_ref().filter(|info| info.step >= run.record.summary.step)
    }

    /// A coordinator that was held up (by its disk, say, or a machine that slept) has signs of life waiting
    /// in its queue that it has not read: the time it was away counts against nobody.
    fn excuse(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.heard);
        self.heard = now;
        if gap > HELD_UP {
            let bindings = self.agents.iter_mut().map(|agent| &mut agent.binding).chain(&mut self.departed);
            bindings.for_each(|binding| binding.last_beat += gap);
            self.runs.iter_mut().for_each(|run| run.excuse(gap));
        }
    }

    /// An agent's workers do not outlive its session: whatever they still do, their run has failed.
    fn agent_lost(
        &mut self,
        agent_id: &str,
        session: u64,
        parting: &Parting,
        now: Duration,
        out: &mut Vec<Command>,
    ) {
        let known = |agent: &Agent| agent.hello.agent_id == agent_id && agent.session == session;
        let Some(position) = self.agents.iter().position(known) else { return };
        let agent = self.agents.remove(position);
        self.agent_left(agent, parting);
        out.push(Command::DropAgent { agent_id: agent_id.to_owned(), session });
        let incarnation = self.incarnation;
        for run in self.runs.iter_mut().filter(|run| run.is_active()) {
            let lost: Vec<usize> = (0..run.members.len())
                .filter(|&rank| {
                    run.members[rank].worker.agent_id == agent_id && run.members[rank].exit.is_none()
                })
                .collect();
            if lost.is_empty() {
                continue;
            }
            out.push(run.note(Severity::Warn, format!("agent {agent_id} was lost: {parting}"), None));
            for rank in lost {
                run.members[rank].exit = Some(Exit::AgentLost);
                run.suspect(rank, now);
            }
            run.judge(incarnation, now, out);
        }
    }

    fn submitted(
        &mut self,
        record: RunRecord,
        key: Option<IdempotencyKey>,
        warnings: Vec<String>,
        out: &mut Vec<Command>,
    ) -> Result<(), Refused> {
        if let Some(position) = self.runs.iter().position(|run| run.id() == record.run_id) {
            if self.runs[position].phase != Phase::Ended {
                return Err(Refused::RunExists(record.run_id));
            }
            // A resumed run takes the place of what it was, at the end of the queue.
            self.runs.remove(position);
        }
        out.push(Command::Persist(record.clone()));
        if let Some(key) = key {
            out.push(Command::Remember(key.clone(), record.run_id.clone()));
            self.answers.insert(key, record.run_id.clone());
        }
        let run = Run::new(record, self.spawn_key.clone());
        let how = match run.record.checkpoint_step {
            Some(step) => format!("resumed from the checkpoint of step {step}"),
            None => "submitted".to_owned(),
        };
        out.push(run.note(Severity::Info, format!("run {how}"), None));
        out.extend(warnings.into_iter().map(|text| run.note(Severity::Warn, text, None)));
        self.runs.push(run);
        Ok(())
    }

    fn checkpoint_committed(
        &mut self,
        fence: &Fence,
        info: CheckpointInfo,
        now: Duration,
        out: &mut Vec<Command>,
    ) -> Result<(), Refused> {
        let run = self.admitted_mut(fence)?;
        run.has_saved(info.clone(), now);
        let kind = proto::v1::CheckpointEvent { step: info.step, path: info.path.clone(), bytes: info.bytes };
        out.push(run.note(
            Severity::Info,
            format!("checkpoint of step {} committed", info.step),
            Some(event::Kind::Checkpoint(kind)),
        ));
        out.push(Command::Persist(run.record.clone()));
        out.push(Command::CheckpointTaken(fence.run_id.clone(), info));
        Ok(())
    }

    /// Whoever waits for a checkpoint of the step that is saved already is answered with that one.
    fn checkpoint_stands(
        &mut self,
        fence: &Fence,
        info: CheckpointInfo,
        now: Duration,
        out: &mut Vec<Command>,
    ) -> Result<(), Refused> {
        self.admitted_mut(fence)?.has_saved(info.clone(), now);
        out.push(Command::CheckpointTaken(fence.run_id.clone(), info));
        Ok(())
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Command>) {
        let overdue: Vec<(String, u64)> = self
            .agents
            .iter()
            .filter(|agent| agent.is_overdue(now))
            .map(|agent| (agent.hello.agent_id.clone(), agent.session))
            .collect();
        for (agent_id, session) in overdue {
            let why = format!("no heartbeat for {} s", LEASE.as_secs());
            self.agent_lost(&agent_id, session, &Parting::Broken(why), now, out);
        }
        self.departed.retain(|binding| !binding.has_expired(now));
        let incarnation = self.incarnation;
        for run in self.runs.iter_mut().filter(|run| run.is_active()) {
            run.judge(incarnation, now, out);
            run.ask_for_checkpoint(incarnation, now, out);
        }
    }

    fn shut_down(&mut self, now: Duration, out: &mut Vec<Command>) {
        self.shutting_down = true;
        let incarnation = self.incarnation;
        for run in self.runs.iter_mut().filter(|run| run.is_active()) {
            let reason = format!("the coordinator was shut down; {}", run.how_to_go_on());
            run.begin_end(verdict::failed(reason), incarnation, now, out);
            // Nobody will be there to hear of the workers' ends.
            if let Phase::Ending { verdict, .. } = &run.phase {
                let verdict = verdict.clone();
                run.end(verdict, out);
            }
        }
    }

    /// Slots are free again when their worker is gone or its run has ended.
    fn release_slots(&mut self) {
        for agent in &mut self.agents {
            agent.taken.clear();
        }
        for run in self.runs.iter().filter(|run| run.is_active()) {
            for member in run.members.iter().filter(|member| member.exit.is_none()) {
                let holder =
                    self.agents.iter_mut().find(|agent| agent.hello.agent_id == member.worker.agent_id);
                if let Some(agent) = holder {
                    agent.taken.insert(member.worker.slot);
                }
            }
        }
    }
}

impl Run {
    /// Notes that something is wrong with a rank; what, its member says.
    fn suspect(&mut self, rank: usize, now: Duration) {
        self.troubled.get_or_insert(now);
        if !self.suspects.contains(&(rank as u32)) {
            self.suspects.push(rank as u32);
        }
    }

    /// The checkpoint holds this generation's newest step that is saved.
    fn has_saved(&mut self, info: CheckpointInfo, now: Duration) {
        self.record.last_checkpoint.clone_from(&info.path);
        self.wanted.checkpoint = false;
        self.timer.restart(now, info.step);
        self.checkpoint = Some(info);
    }

    /// Decides what time and the members' reports now allow to decide.
    fn judge(&mut self, incarnation: u64, now: Duration, out: &mut Vec<Command>) {
        match &self.phase {
            Phase::Queued | Phase::Ended => {}
            Phase::Starting { .. } | Phase::Forming | Phase::Running { .. } => {
                self.clear_suspicions();
                if let Some(verdict) = self.cause(now).or_else(|| self.overdue(now)) {
                    self.begin_end(verdict, incarnation, now, out);
                }
            }
            Phase::Ending { verdict, deadline, forced } => {
                let gone = self.members.iter().all(|member| member.exit.is_some());
                if gone || (now >= *deadline && *forced) {
                    let verdict = verdict.clone();
                    if !gone {
                        out.push(self.note(Severity::Warn, "not all workers reported their end", None));
                    }
                    self.end(verdict, out);
                } else if now >= *deadline {
                    let verdict = verdict.clone();
                    self.stop_workers(incarnation, Duration::ZERO, "the worker did not end by itself", out);
                    self.phase = Phase::Ending { verdict, deadline: now + EXIT_GRACE, forced: true };
                }
            }
        }
    }

    /// The verdict on a worker that does not attach in time.
    fn overdue(&self, now: Duration) -> Option<Verdict> {
        let Phase::Starting { until } = self.phase else { return None };
        let rank = self.members.iter().position(|member| !member.has_attached()).filter(|_| now >= until)?;
        let reason = format!("{} did not attach within {} s", self.name_of(rank), START_LIMIT.as_secs());
        Some(Verdict { hint: "see its log and its agent's".to_owned(), ..verdict::failed(reason) })
    }

    /// The run's end is decided: the workers are told, and it ends when they have.
    fn begin_end(&mut self, verdict: Verdict, incarnation: u64, now: Duration, out: &mut Vec<Command>) {
        if matches!(self.phase, Phase::Ending { .. } | Phase::Ended) {
            return;
        }
        if verdict.stage == Stage::Failed {
            let kind = StateChanged { state: RunState::Stopping.into(), reason: verdict.reason.clone() };
            out.push(self.note(Severity::Error, &verdict.reason, Some(event::Kind::State(kind))));
            for rank in (0..self.members.len()).filter(|&rank| self.members[rank].may_listen()) {
                out.push(self.abort(rank, incarnation, &verdict.reason));
            }
            self.stop_workers(incarnation, TERM_GRACE, &verdict.reason, out);
        }
        self.phase = Phase::Ending { verdict, deadline: now + EXIT_GRACE, forced: false };
        self.judge(incarnation, now, out);
    }

    fn stop_workers(&self, incarnation: u64, grace: Duration, reason: &str, out: &mut Vec<Command>) {
        let mut agents: BTreeMap<&str, ()> = BTreeMap::new();
        for member in self.members.iter().filter(|member| member.exit.is_none()) {
            agents.insert(&member.worker.agent_id, ());
        }
        for agent_id in agents.into_keys() {
            let message = StopWorkers {
                fence: Some(self.fence(incarnation)),
                grace_ms: grace.as_millis() as u32,
                reason: reason.to_owned(),
            };
            out.push(Command::StopWorkers(agent_id.to_owned(), message));
        }
    }

    fn end(&mut self, verdict: Verdict, out: &mut Vec<Command>) {
        self.phase = Phase::Ended;
        self.record.stage = verdict.stage;
        self.record.reason.clone_from(&verdict.reason);
        self.record.exit_code = Some(verdict.exit_code);
        out.push(Command::Persist(self.record.clone()));
        let failed = verdict.stage == Stage::Failed;
        let ended = RunEnded {
            state: self.state().into(),
            exit_code: verdict.exit_code,
            error: if failed { verdict.reason.clone() } else { String::new() },
            hint: verdict.hint,
            log_tail: verdict.log_tail,
        };
        let severity = if failed { Severity::Error } else { Severity::Info };
        let text = format!("run {}: {}", state_name(self.state()), verdict.reason);
        out.push(self.note(severity, text, Some(event::Kind::Ended(ended))));
        out.push(Command::Close(self.record.run_id.clone()));
    }
}
