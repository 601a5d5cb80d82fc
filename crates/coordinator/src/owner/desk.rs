//! What the owner has before it, and how it carries out what the state decides.

use proto::v1::{
    AgentDown, AgentHello, AgentWelcome, CheckpointInfo, Event, Fence, LogLine, WorkerDown, WorkerId,
};
use proto::v1::{agent_down, event};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{Accepted, Answer, CallError, Message, Order, Outbox, Submission, Tail};
use crate::Error;
use crate::checkpoints::Checkpoints;
use crate::clock::{self, Clock};
use crate::event_log::EventLog;
use crate::run_dir::{self, RunDir};
use crate::state::{
    Command, Entry, HEARTBEAT, Input, LEASE, News, Operation, Refused, SpawnKey, State, Summary,
};
use crate::store::{Recovered, Store};

/// Lines that a follower of logs may be behind.
const TAIL: usize = 4096;

/// The owner's state, files and open sessions.
pub(super) struct Desk {
    state: State,
    store: Store,
    clock: Clock,
    checkpoints: Checkpoints,
    incarnation: u64,
    spawn_key: SpawnKey,
    sessions: u64,
    agents: HashMap<String, (u64, Outbox<AgentDown>)>,
    workers: HashMap<WorkerId, WorkerSession>,
    /// Of runs that have not ended.
    files: HashMap<String, Files>,
    events: HashMap<String, EventLog>,
    waiting: HashMap<String, Vec<oneshot::Sender<CheckpointInfo>>>,
}

struct WorkerSession {
    run_id: String,
    session: u64,
    outbox: Outbox<WorkerDown>,
}

struct Files {
    dir: RunDir,
    tail: broadcast::Sender<LogLine>,
}

impl Desk {
    pub fn new(store: Store, incarnation: u64, checkpoints: Checkpoints, spawn_key: SpawnKey) -> Desk {
        Desk {
            state: State::new(incarnation, Vec::new(), HashMap::new(), spawn_key.clone()).0,
            store,
            clock: Clock::start(),
            checkpoints,
            incarnation,
            spawn_key,
            sessions: 0,
            agents: HashMap::new(),
            workers: HashMap::new(),
            files: HashMap::new(),
            events: HashMap::new(),
            waiting: HashMap::new(),
        }
    }

    /// Takes up the runs of the coordinator before this one.
    pub fn recover(&mut self, mut recovered: Recovered) -> Result<(), Error> {
        for record in &mut recovered.runs {
            let path = Path::new(&record.run_dir);
            // A directory that is gone or damaged does not keep the coordinator from starting.
            let past = run_dir::past(path).unwrap_or_default();
            let log = EventLog::new(past.next_seq);
            if record.stage.has_ended() {
                if let Some(end) = past.ended {
                    log.push(end);
                }
                log.close();
            } else {
                let total_steps = record.summary.total_steps;
                record.summary = Summary { total_steps, ..run_dir::summary(path, u64::MAX) };
                match RunDir::resume(path, &record.run_id, &record.config_toml, Some(u64::MAX)) {
                    // Locked by now: nobody else writes checkpoints there.
                    Ok(dir) => {
                        self.open_files(&record.run_id, dir);
                        self.checkpoints.clean(&record.run_id, path);
                    }
                    Err(error) => {
                        tracing::warn!(run_id = record.run_id, %error, "the run's files cannot be opened")
                    }
                }
            }
            self.events.insert(record.run_id.clone(), log);
        }
        let Recovered { incarnation, runs, answers, .. } = recovered;
        let (state, commands) = State::new(incarnation, runs, answers, self.spawn_key.clone());
        self.state = state;
        self.carry_out(commands)
    }

    pub fn serve(&mut self, mut messages: mpsc::Receiver<Message>) -> Result<(), Error> {
        while let Some(message) = messages.blocking_recv() {
            if let Message::ShutDown(answer) = message {
                self.handle(Input::ShuttingDown)?.expect("a shutdown is never refused");
                // Dropping the sessions ends their streams, after what is queued in them.
                self.agents.clear();
                self.workers.clear();
                self.events.values().for_each(EventLog::close);
                self.files.clear();
                reply(answer, Ok(()));
                return Ok(());
            }
            self.take(message)?;
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Input(input, answer) => {
                let outcome = self.handle(input)?;
                if let Some(answer) = answer {
                    reply(answer, outcome.map_err(CallError::from));
                }
            }
            Message::OpenAgent(hello, outbox, answer) => {
                let outcome = self.open_agent(hello, outbox)?;
                reply(answer, outcome.map_err(CallError::from));
            }
            Message::OpenWorker(fence, worker, outbox, answer) => {
                let outcome = self.open_worker(fence, worker, outbox)?;
                reply(answer, outcome.map_err(CallError::from));
            }
            Message::CloseWorker(fence, worker, session) => self.close_worker(fence, worker, session)?,
            Message::Submit(submission, answer) => {
                let outcome = self.submit(*submission)?;
                reply(answer, outcome);
            }
            Message::Order(order, answer) => {
                let outcome = self.order(order)?;
                reply(answer, outcome.map_err(CallError::from));
            }
            Message::Logs(agent_id, fence, worker, lines) => self.logs(&agent_id, &fence, &worker, lines)?,
            Message::Watch(run, answer) => reply(answer, self.watch(&run).map_err(CallError::from)),
            Message::Tail(run, rank, answer) => reply(answer, self.tail(&run, rank)),
            Message::Read(look) => look(&self.state),
            Message::ShutDown(_) => unreachable!("served by the loop"),
        }
        Ok(())
    }

    /// Lets the state decide and does what it says.
    fn handle(&mut self, input: Input) -> Result<Result<(), Refused>, Error> {
        match self.state.handle(input, self.clock.now()) {
            Ok(commands) => self.carry_out(commands).map(Ok),
            Err(refused) => Ok(Err(refused)),
        }
    }

    fn carry_out(&mut self, commands: Vec<Command>) -> Result<(), Error> {
        let mut queue = VecDeque::from(commands);
        while let Some(command) = queue.pop_front() {
            let Err(failed) = self.carry_out_one(command)? else { continue };
            tracing::error!(run_id = failed.run_id, error = %failed.error, "a run's files cannot be written");
            self.files.remove(&failed.run_id);
            let input = Input::FilesFailed { run_id: failed.run_id, why: failed.error.to_string() };
            if let Ok(more) = self.state.handle(input, self.clock.now()) {
                queue.extend(more);
            }
        }
        Ok(())
    }

    fn carry_out_one(&mut self, command: Command) -> Result<Result<(), FilesFailed>, Error> {
        match command {
            Command::Persist(record) => self.store.put_run(&record)?,
            Command::Remember(key, answer) => self.store.put_answer(&key, &answer)?,
            Command::OpenLogs { run_id, generation, members } => {
                return Ok(self.with_files(&run_id, |files| files.dir.open_logs(generation, &members)));
            }
            Command::StartWorkers(agent_id, start) => {
                self.tell_agent(&agent_id, agent_down::Message::Start(start))
            }
            Command::StopWorkers(agent_id, stop) => {
                self.tell_agent(&agent_id, agent_down::Message::Stop(stop))
            }
            Command::DropAgent { agent_id, session } => {
                if self.agents.get(&agent_id).is_some_and(|(open, _)| *open == session) {
                    self.agents.remove(&agent_id);
                    tracing::info!(agent_id, "agent session closed");
                }
            }
            Command::ToWorker(worker, message) => {
                if let Some(open) = self.workers.get(&worker)
                    && let Err(error) = open.outbox.try_send(Ok(message))
                {
                    tracing::warn!(%worker, %error, "worker cut off: it does not read its orders");
                    self.workers.remove(&worker);
                }
            }
            Command::Record(run_id, entry) => return Ok(self.record(&run_id, entry)),
            Command::WriteMetrics(run_id, row) => {
                let written = self.with_files(&run_id, |files| files.dir.write_metrics(&row));
                let text = format!("step {}", row.step);
                let generation = self.state.record(&run_id).map_or(0, |record| record.generation);
                let severity = proto::v1::Severity::Info;
                let entry = Entry { generation, severity, text, kind: Some(event::Kind::Metrics(row)) };
                return Ok(written.and_then(|()| self.record(&run_id, entry)));
            }
            Command::CheckpointTaken(run_id, info) => {
                for waiting in self.waiting.remove(&run_id).unwrap_or_default() {
                    // Whoever asked may have gone away.
                    waiting.send(info.clone()).ok();
                }
            }
            Command::Close(run_id) => self.close(&run_id),
        }
        Ok(Ok(()))
    }

    fn record(&mut self, run_id: &str, entry: Entry) -> Result<(), FilesFailed> {
        let Some(log) = self.events.get(run_id).cloned() else { return Ok(()) };
        let event = Event {
            seq: log.next_seq(),
            time_ns: clock::wall_ns(),
            generation: entry.generation,
            severity: entry.severity.into(),
            text: entry.text,
            kind: entry.kind,
        };
        if !matches!(event.kind, Some(event::Kind::Metrics(_))) {
            tracing::info!(run_id, generation = event.generation, event = event.text, "run event");
        }
        let written = self.with_files(run_id, |files| files.dir.write_event(&event));
        log.push(event);
        written
    }

    /// Writes to a run's files; a run without open files has ended or failed already.
    fn with_files(
        &mut self,
        run_id: &str,
        write: impl FnOnce(&mut Files) -> Result<(), run_dir::Error>,
    ) -> Result<(), FilesFailed> {
        let Some(files) = self.files.get_mut(run_id) else { return Ok(()) };
        write(files).map_err(|error| FilesFailed { run_id: run_id.to_owned(), error })
    }

    fn close(&mut self, run_id: &str) {
        self.files.remove(run_id);
        self.workers.retain(|_, open| open.run_id != run_id);
        self.waiting.remove(run_id);
        let generation = self.state.record(run_id).map_or(0, |record| record.generation);
        self.checkpoints.end(run_id, generation);
        if let Some(log) = self.events.get(run_id) {
            log.close();
        }
    }

    fn tell_agent(&mut self, agent_id: &str, message: agent_down::Message) {
        let Some((_, outbox)) = self.agents.get(agent_id) else { return };
        if let Err(error) = outbox.try_send(Ok(AgentDown { message: Some(message) })) {
            // Its session ends with this, and its service then reports it lost.
            tracing::warn!(agent_id, %error, "agent cut off: it does not read its orders");
            self.agents.remove(agent_id);
        }
    }

    fn open_agent(
        &mut self,
        hello: AgentHello,
        outbox: Outbox<AgentDown>,
    ) -> Result<Result<u64, Refused>, Error> {
        self.sessions += 1;
        let (session, agent_id) = (self.sessions, hello.agent_id.clone());
        let (host, slots) = (hello.host.clone(), hello.slots);
        let commands = match self.state.handle(Input::AgentJoined { hello, session }, self.clock.now()) {
            Ok(commands) => commands,
            Err(refused) => return Ok(Err(refused)),
        };
        tracing::info!(agent_id, host, slots, "agent joined");
        self.agents.insert(agent_id.clone(), (session, outbox));
        let welcome = AgentWelcome {
            incarnation: self.incarnation,
            heartbeat_ms: HEARTBEAT.as_millis() as u32,
            lease_ms: LEASE.as_millis() as u32,
        };
        self.tell_agent(&agent_id, agent_down::Message::Welcome(welcome));
        self.carry_out(commands)?;
        Ok(Ok(session))
    }

    fn open_worker(
        &mut self,
        fence: Fence,
        worker: WorkerId,
        outbox: Outbox<WorkerDown>,
    ) -> Result<Result<u64, Refused>, Error> {
        let input = Input::Worker { fence: fence.clone(), worker: worker.clone(), news: News::Connected };
        match self.state.handle(input, self.clock.now()) {
            Ok(commands) => {
                self.sessions += 1;
                let session = self.sessions;
                // A session that this one replaces ends with its outbox.
                self.workers.insert(worker, WorkerSession { run_id: fence.run_id, session, outbox });
                self.carry_out(commands)?;
                Ok(Ok(session))
            }
            Err(refused) => Ok(Err(refused)),
        }
    }

    fn close_worker(&mut self, fence: Fence, worker: WorkerId, session: u64) -> Result<(), Error> {
        match self.workers.get(&worker) {
            Some(open) if open.session == session => self.workers.remove(&worker),
            // Cut off by the owner, which is news to the state; or replaced, which is not.
            None => None,
            Some(_) => return Ok(()),
        };
        if let Err(refused) = self.handle(Input::Worker { fence, worker, news: News::Disconnected })? {
            tracing::debug!(%refused, "end of a session of a former membership");
        }
        Ok(())
    }

    fn submit(&mut self, submission: Submission) -> Result<Result<(String, String), CallError>, Error> {
        let Submission { mut record, key, resumed, warnings } = submission;
        // A copy of an older state of the run must not assign a generation again.
        let known = self.state.record(&record.run_id).map_or(0, |known| known.generation);
        record.generation = record.generation.max(known);
        let (run_id, run_dir) = (record.run_id.clone(), record.run_dir.clone());
        if let Some(known) = key.as_ref().and_then(|key| self.state.answer(key)) {
            let run_dir = self.state.record(known).map(|record| record.run_dir.clone());
            return Ok(Ok((known.to_owned(), run_dir.unwrap_or_default())));
        }
        let path = Path::new(&run_dir);
        if self.state.unfinished_in(&run_dir).is_some() {
            return Ok(Err(run_dir::Error::Active(path.to_owned()).into()));
        }
        // A copy of a run's directory bears the id of a run that may be active elsewhere.
        let taken = match resumed {
            None => self.state.record(&run_id).is_some(),
            Some(_) => self.state.is_unfinished(&run_id),
        };
        if taken {
            return Ok(Err(Refused::RunExists(run_id).into()));
        }
        let opened = match resumed {
            None => RunDir::create(path, &run_id, &record.config_toml),
            Some(_) => RunDir::resume(path, &run_id, &record.config_toml, record.checkpoint_step),
        };
        match opened {
            Ok(dir) => self.open_files(&run_id, dir),
            Err(error) => return Ok(Err(error.into())),
        }
        // Whoever watched an earlier run has seen its end by now, or will ask for its last events only.
        self.events.values().for_each(EventLog::forget_if_closed);
        self.events.insert(run_id.clone(), EventLog::new(resumed.unwrap_or(1)));
        let generation = record.generation;
        match self.handle(Input::Submitted(record, key, warnings))? {
            Ok(()) => {
                tracing::info!(run_id, run_dir, generation, "run submitted");
                Ok(Ok((run_id, run_dir)))
            }
            Err(refused) => {
                self.close(&run_id);
                Ok(Err(refused.into()))
            }
        }
    }

    fn open_files(&mut self, run_id: &str, dir: RunDir) {
        self.files.insert(run_id.to_owned(), Files { dir, tail: broadcast::channel(TAIL).0 });
    }

    fn order(&mut self, order: Order) -> Result<Result<Accepted, Refused>, Error> {
        let Order { run, operation, actor, key } = order;
        let run_id = match self.state.resolve(&run) {
            Ok(run_id) => run_id.to_owned(),
            Err(refused) => return Ok(Err(refused)),
        };
        let (promise, checkpoint) = oneshot::channel();
        let answer = |state: &State, command_id: String| {
            let state =
                state.status(&run_id).map_or(proto::v1::RunState::Unspecified, |status| status.state());
            Accepted { command_id, state, checkpoint }
        };
        let repeated = key.as_ref().and_then(|key| self.state.answer(key)).map(str::to_owned);
        if let Some(fresh) =
            self.state.fresh_checkpoint(&run_id).filter(|_| operation == Operation::Checkpoint)
        {
            // The receiver is at hand.
            promise.send(fresh.clone()).ok();
            let command_id = repeated.unwrap_or_else(new_id);
            return Ok(Ok(answer(&self.state, command_id)));
        }
        // Without a promise kept anywhere, the receiver hears at once that none will be.
        let promised = operation == Operation::Checkpoint && self.state.is_unfinished(&run_id);
        let command_id = match repeated {
            Some(command_id) => command_id,
            None => {
                let command_id = new_id();
                let (run_id, command) = (run_id.clone(), command_id.clone());
                let input = Input::Ordered { run_id, order: operation, actor, command_id: command, key };
                if let Err(refused) = self.handle(input)? {
                    return Ok(Err(refused));
                }
                command_id
            }
        };
        if promised {
            self.waiting.entry(run_id.clone()).or_default().push(promise);
        }
        Ok(Ok(answer(&self.state, command_id)))
    }

    fn logs(
        &mut self,
        agent_id: &str,
        fence: &Fence,
        worker: &WorkerId,
        lines: Vec<String>,
    ) -> Result<(), Error> {
        let rank = match self.state.rank(agent_id, fence, worker) {
            Ok(rank) => rank as u32,
            Err(refused) => {
                tracing::debug!(agent_id, %refused, "log lines of no worker of this agent dropped");
                return Ok(());
            }
        };
        if let Err(failed) = self.with_files(&fence.run_id, |files| files.dir.write_log(worker, &lines)) {
            self.handle(Input::FilesFailed { run_id: failed.run_id, why: failed.error.to_string() })?.ok();
        }
        if let Some(files) = self.files.get(&fence.run_id) {
            for line in lines {
                // Without a follower nobody hears it.
                files.tail.send(LogLine { rank, generation: fence.generation, line }).ok();
            }
        }
        Ok(())
    }

    fn watch(&self, run: &str) -> Result<EventLog, Refused> {
        let run_id = self.state.resolve(run)?;
        Ok(self.events.get(run_id).cloned().expect("every run has a log of events"))
    }

    /// The logs as long as they are at this moment, so that no line is missed or seen twice.
    fn tail(&self, run: &str, rank: Option<u32>) -> Result<Tail, CallError> {
        let run_id = self.state.resolve(run)?;
        let record = self.state.record(run_id).expect("a resolved id has a record");
        let mut logs = run_dir::logs(Path::new(&record.run_dir))?;
        logs.retain(|log| rank.is_none_or(|rank| rank == log.rank));
        Ok(Tail { logs, follow: self.files.get(run_id).map(|files| files.tail.subscribe()) })
    }
}

struct FilesFailed {
    run_id: String,
    error: run_dir::Error,
}

fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Answers a call; its caller may have gone away.
fn reply<T>(answer: Answer<T>, value: Result<T, CallError>) {
    answer.send(value).ok();
}
