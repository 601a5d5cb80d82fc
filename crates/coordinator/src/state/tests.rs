//! Every case is a list of inputs and what must come of them.

use proto::v1::order::Kind;
use proto::v1::{
    AgentHello, CheckpointInfo, Fence, Metric, MetricRow, RunEnded, RunState, WorkerDown, WorkerId, event,
    metric, worker_down,
};
use std::collections::HashMap;
use std::time::Duration;

use super::*;

mod agents;
mod checkpoints;
mod leader;
mod timer;

/// A state with its clock and everything that it commanded since it was last looked at.
struct World {
    state: State,
    now: Duration,
    sessions: u64,
    commands: Vec<Command>,
}

impl World {
    fn new() -> World {
        let state = State::new(7, Vec::new(), HashMap::new(), key()).0;
        World { state, now: Duration::ZERO, sessions: 0, commands: Vec::new() }
    }

    /// A world in which `run` trains on agents `a`, `b`, ... with these slots.
    fn running(slots: &[u32]) -> World {
        let mut world = World::forming(slots);
        let workers: u32 = slots.iter().sum();
        for rank in 0..workers as usize {
            world.news(rank, ready());
        }
        assert_eq!(world.run_state("run"), RunState::Running);
        world.commands.clear();
        world
    }

    fn forming(slots: &[u32]) -> World {
        let mut world = World::new();
        for (name, slots) in ["a", "b", "c"].into_iter().zip(slots) {
            world.join(name, *slots);
        }
        let workers: u32 = slots.iter().sum();
        world.submit("run", workers);
        for rank in 0..workers as usize {
            world.news(rank, News::Attached { data_address: format!("host:{rank}"), pid: 100 + rank as u32 });
            world.news(rank, News::Connected);
        }
        world
    }

    fn try_input(&mut self, input: Input) -> Result<(), Refused> {
        let commands = self.state.handle(input, self.now)?;
        self.commands.extend(commands);
        Ok(())
    }

    #[track_caller]
    fn input(&mut self, input: Input) {
        self.try_input(input).unwrap();
    }

    fn join(&mut self, name: &str, slots: u32) {
        self.try_join(name, slots, "a secret").unwrap();
    }

    /// A process with this secret asks to be taken in, in a session of its own.
    fn try_join(&mut self, name: &str, slots: u32, secret: &str) -> Result<(), Refused> {
        self.sessions += 1;
        let hello = AgentHello {
            protocol: proto::PROTOCOL,
            version: "1".to_owned(),
            agent_id: name.to_owned(),
            host: format!("host-{name}"),
            slots,
            device: "cpu".to_owned(),
            cores: 2 * slots,
            secret: secret.as_bytes().to_vec(),
        };
        self.try_input(Input::AgentJoined { hello, session: self.sessions })
    }

    fn submit(&mut self, run_id: &str, workers: u32) {
        self.input(Input::Submitted(record(run_id, workers), None, Vec::new()));
    }

    fn lose(&mut self, name: &str, session: u64) {
        self.input(Input::AgentLost {
            agent_id: name.to_owned(),
            session,
            parting: Parting::Broken("its stream broke".to_owned()),
        });
    }

    fn fence(&self) -> Fence {
        let generation = self.state.record("run").unwrap().generation;
        Fence { run_id: "run".to_owned(), incarnation: 7, generation }
    }

    fn worker(&self, rank: usize) -> WorkerId {
        self.state.status("run").unwrap().members[rank].worker.clone().unwrap()
    }

    fn try_news(&mut self, rank: usize, said: impl Into<Said>) -> Result<(), Refused> {
        let (fence, worker) = (self.fence(), self.worker(rank));
        self.try_input(match said.into() {
            Said::Worker(news) => Input::Worker { fence, worker, news },
            Said::Agent(report) => {
                Input::AgentReport { agent_id: worker.agent_id.clone(), fence, worker, report }
            }
        })
    }

    #[track_caller]
    fn news(&mut self, rank: usize, said: impl Into<Said>) {
        self.try_news(rank, said).unwrap();
    }

    fn order(&mut self, order: Operation) -> Result<(), Refused> {
        let (run_id, actor, command_id) = ("run".to_owned(), "me".to_owned(), order.name().to_owned());
        self.try_input(Input::Ordered { run_id, order, actor, command_id, key: None })
    }

    /// Lets time pass as it does: with ticks, and a sign of life of every agent now and then.
    fn wait(&mut self, time: Duration) {
        self.wait_hearing(time, &["a", "b", "c"]);
    }

    fn wait_hearing(&mut self, time: Duration, agents: &[&str]) {
        let end = self.now + time;
        while self.now < end {
            self.now += (SECOND / 2).min(end - self.now);
            for name in agents {
                for session in 1..=self.sessions {
                    self.input(Input::AgentBeat { agent_id: (*name).to_owned(), session });
                }
            }
            self.input(Input::Tick);
        }
    }

    fn run_state(&self, run_id: &str) -> RunState {
        self.state.status(run_id).unwrap().state()
    }

    fn reason(&self, run_id: &str) -> String {
        self.state.status(run_id).unwrap().reason
    }

    /// What was sent to workers, by rank.
    fn sent(&self) -> Vec<(usize, worker_down::Message)> {
        let status = self.state.status("run").unwrap();
        let rank_of = |worker: &WorkerId| {
            status.members.iter().position(|m| m.worker.as_ref() == Some(worker)).unwrap()
        };
        let sent = self.commands.iter().filter_map(|command| match command {
            Command::ToWorker(worker, WorkerDown { message, .. }) => {
                Some((rank_of(worker), message.clone().unwrap()))
            }
            _ => None,
        });
        sent.collect()
    }

    fn orders(&self) -> Vec<(usize, Kind)> {
        let order = |(rank, message)| match message {
            worker_down::Message::Order(order) => Some((rank, order.kind())),
            _ => None,
        };
        self.sent().into_iter().filter_map(order).collect()
    }

    /// A checkpoint of this step stands under its name.
    fn commit(&mut self, step: u64) {
        let path = format!("/runs/run/checkpoints/{step}");
        let info = CheckpointInfo { step, path, ..CheckpointInfo::default() };
        self.input(Input::CheckpointCommitted { fence: self.fence(), info });
    }

    /// The group has made updates up to this one.
    fn reach(&mut self, step: u64) {
        self.news(0, News::Metrics(MetricRow { step, values: Vec::new() }));
    }

    fn aborted(&self) -> Vec<usize> {
        let abort = |(rank, message)| matches!(message, worker_down::Message::Abort(_)).then_some(rank);
        self.sent().into_iter().filter_map(abort).collect()
    }

    fn ended(&self) -> Option<RunEnded> {
        self.commands.iter().find_map(|command| match command {
            Command::Record(_, Entry { kind: Some(event::Kind::Ended(ended)), .. }) => Some(ended.clone()),
            _ => None,
        })
    }

    fn position(&self, find: impl Fn(&Command) -> bool) -> Option<usize> {
        self.commands.iter().position(find)
    }
}

/// What is new about a worker, from itself or from its agent.
#[derive(Clone)]
enum Said {
    Worker(News),
    Agent(Report),
}

impl From<News> for Said {
    fn from(news: News) -> Said {
        Said::Worker(news)
    }
}

impl From<Report> for Said {
    fn from(report: Report) -> Said {
        Said::Agent(report)
    }
}

/// No coordinator's.
fn key() -> SpawnKey {
    SpawnKey::new([3; 32])
}

/// Of a run of nine steps from its beginning.
fn ready() -> News {
    News::Ready { step: 0, total_steps: 9, shard_bytes: 100 }
}

fn record(run_id: &str, workers: u32) -> RunRecord {
    RunRecord {
        run_id: run_id.to_owned(),
        run_dir: format!("/runs/{run_id}"),
        config_toml: String::new(),
        workers,
        threads: None,
        checkpoint_step: None,
        generation: 0,
        stage: Stage::Queued,
        reason: String::new(),
        exit_code: None,
        summary: Summary::default(),
        accept_changed_data: false,
        last_checkpoint: String::new(),
    }
}

fn killed() -> Said {
    Said::Agent(Report::Exited { exit: Exit::Signal(9), stderr_tail: vec!["last words".to_owned()] })
}

fn exited(code: i32) -> Said {
    Said::Agent(Report::Exited { exit: Exit::Code(code), stderr_tail: vec![format!("code {code}")] })
}

fn failed(exit_code: i32, error: &str) -> Said {
    let hint = "do better".to_owned();
    News::Failed(Failure { exit_code, error: error.to_owned(), hint, peer: false }).into()
}

fn lost_peer() -> Said {
    News::Failed(Failure { exit_code: 75, error: "peer gone".to_owned(), hint: String::new(), peer: true })
        .into()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_run_from_submission_to_its_end() {
    let mut world = World::new();
    world.submit("run", 3);
    assert_eq!(world.reason("run"), "waiting for slots: 0 of 3 slots free, all agents together have fewer");
    world.join("a", 1);
    assert_eq!(world.reason("run"), "waiting for slots: 1 of 3 slots free, all agents together have fewer");
    world.commands.clear();
    world.join("b", 2);

    // Stored first, then announced.
    let stored =
        world.position(|c| matches!(c, Command::Persist(r) if r.generation == 1 && r.stage == Stage::Active));
    let announced = world.position(|c| matches!(c, Command::StartWorkers(..)));
    assert!(stored.unwrap() < announced.unwrap(), "{:?}", world.commands);
    let starts: Vec<_> = world
        .commands
        .iter()
        .filter_map(|command| match command {
            Command::StartWorkers(agent, start) => Some((agent.as_str(), start.workers.len())),
            _ => None,
        })
        .collect();
    assert_eq!(starts, [("a", 1), ("b", 2)]);
    assert_eq!(world.reason("run"), "waiting for workers: 0 of 3 attached");

    for rank in [2, 0, 1] {
        assert_eq!(world.sent(), []);
        world.news(rank, News::Attached { data_address: format!("host:{rank}"), pid: 5 });
        world.news(rank, News::Connected);
    }
    let assigned: Vec<_> = world
        .sent()
        .into_iter()
        .map(|(rank, message)| match message {
            worker_down::Message::Assign(assign) => {
                (rank, assign.rank, assign.world_size, assign.peers.join(" "))
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let peers = || "host:0 host:1 host:2".to_owned();
    assert_eq!(assigned, [(0, 0, 3, peers()), (1, 1, 3, peers()), (2, 2, 3, peers())]);
    assert_eq!(world.run_state("run"), RunState::Forming);

    for rank in 0..3 {
        assert_eq!(world.run_state("run"), RunState::Forming);
        world.news(rank, ready());
    }
    assert_eq!(world.run_state("run"), RunState::Running);
    let loss = Metric { name: "loss".to_owned(), value: Some(metric::Value::Number(3.5)) };
    world.news(0, News::Metrics(MetricRow { step: 4, values: vec![loss] }));
    let status = world.state.status("run").unwrap();
    assert_eq!((status.step, status.total_steps, status.loss, status.world_size), (4, 9, 3.5, 3));

    world.news(1, News::Disconnected);
    world.news(1, exited(0));
    world.news(0, News::Finished { step: 9, stopped_early: false });
    assert_eq!(world.run_state("run"), RunState::Stopping);
    world.news(2, exited(0));
    world.news(0, exited(0));
    let status = world.state.status("run").unwrap();
    assert_eq!((status.state(), status.exit_code, status.step), (RunState::Finished, Some(0), 9));
    assert_eq!(world.ended().unwrap().error, "");
    assert_eq!(world.commands.last(), Some(&Command::Close("run".to_owned())));
    assert_eq!(world.state.agents().iter().map(|agent| agent.free_slots).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_worker_that_does_not_end_by_itself_is_killed() {
    let mut world = World::running(&[2]);
    world.news(0, News::Finished { step: 9, stopped_early: true });
    world.news(0, exited(0));
    world.wait(9 * SECOND);
    assert!(world.position(|c| matches!(c, Command::StopWorkers(..))).is_none());
    world.wait(2 * SECOND);
    let kill =
        |c: &Command| matches!(c, Command::StopWorkers(agent, stop) if agent == "a" && stop.grace_ms == 0);
    assert!(world.position(kill).is_some());
    assert_eq!(world.run_state("run"), RunState::Stopping);
    world.wait(11 * SECOND);
    assert_eq!(world.run_state("run"), RunState::Stopped);
    assert_eq!(world.reason("run"), "stopped after step 9, as asked");
}

/// Two ranks on two agents; ends must come within `wait` of the last news, with this code and this reason.
#[track_caller]
fn check_failure(news: &[(usize, Said)], wait: Duration, exit_code: i32, reason: &str) {
    let mut world = World::running(&[1, 1]);
    for (rank, news) in news {
        // What a worker reports while its run is ending is taken up as well.
        world.news(*rank, news.clone());
    }
    if !wait.is_zero() {
        assert!(world.aborted().is_empty(), "decided before a better cause could come");
        world.wait(wait);
    }
    assert!(world.reason("run").contains(reason), "{}", world.reason("run"));
    for rank in 0..2 {
        // Those that ended already say so again here; nothing changes by it.
        world.try_news(rank, exited(75)).ok();
    }
    let ended = world.ended().expect("the run has ended");
    assert!(ended.error.contains(reason), "{ended:?}");
    assert_eq!((ended.state(), ended.exit_code), (RunState::Failed, exit_code), "{ended:?}");
    assert_eq!(world.state.status("run").unwrap().exit_code, Some(exit_code));
    assert_eq!(world.state.agents().iter().map(|agent| agent.free_slots).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn the_cause_is_named_in_whatever_order_it_is_heard() {
    let gone = || Said::Worker(News::Disconnected);
    let zero = Duration::ZERO;
    let killed_1 = "rank 1 (worker b/0 on host-b) was killed by SIGKILL";
    check_failure(&[(1, gone()), (1, killed())], zero, 1, killed_1);
    check_failure(&[(1, killed()), (1, gone())], zero, 1, killed_1);
    check_failure(&[(0, lost_peer()), (1, gone()), (1, killed())], zero, 1, killed_1);
    check_failure(
        &[(0, lost_peer()), (0, gone()), (0, exited(75)), (1, gone()), (1, killed())],
        zero,
        1,
        killed_1,
    );
    // The exit of the one that lost its peer comes before its message.
    check_failure(
        &[(0, exited(75)), (0, lost_peer()), (0, gone()), (1, gone()), (1, killed())],
        zero,
        1,
        killed_1,
    );
    // Killed, and its session's end is never noticed.
    check_failure(&[(1, killed())], 4 * SECOND, 1, killed_1);

    let own = "rank 0 (worker a/0 on host-a) failed: the loss of step 3 is NaN";
    let nan = || failed(3, "the loss of step 3 is NaN");
    check_failure(&[(0, nan()), (0, gone()), (0, exited(3))], zero, 3, own);
    check_failure(
        &[(0, nan()), (1, lost_peer()), (1, gone()), (1, exited(75)), (0, exited(3)), (0, gone())],
        zero,
        3,
        own,
    );
    check_failure(&[(1, lost_peer()), (0, exited(3)), (0, nan()), (0, gone())], zero, 3, own);
    check_failure(&[(0, nan())], 4 * SECOND, 3, own);
    check_failure(
        &[(0, failed(1, "no such file")), (0, exited(1)), (0, gone())],
        zero,
        1,
        "failed: no such file",
    );
    check_failure(&[(0, failed(101, "x")), (0, exited(101)), (0, gone())], zero, 1, "failed: x");

    check_failure(
        &[(1, gone()), (1, exited(101))],
        zero,
        1,
        "rank 1 (worker b/0 on host-b) exited with code 101",
    );
    check_failure(&[(1, gone()), (1, exited(2))], zero, 2, "exited with code 2");
    let all = [(0, gone()), (0, exited(0)), (1, gone()), (1, exited(0))];
    check_failure(&all, zero, 1, "all workers ended before the run did");
    // Nobody names the cause.
    check_failure(&[(0, lost_peer())], 4 * SECOND, 1, "rank 0 (worker a/0 on host-a) lost a peer: peer gone");
    check_failure(&[(0, gone())], 4 * SECOND, 1, "rank 0 (worker a/0 on host-a) lost its connection");
}

#[test]
fn a_failure_aborts_the_others_and_carries_the_log() {
    let mut world = World::running(&[1, 1, 1]);
    world.news(2, News::Disconnected);
    world.news(2, killed());
    assert_eq!(world.aborted(), [0, 1]);
    let stopped: Vec<_> = world
        .commands
        .iter()
        .filter_map(|c| match c {
            Command::StopWorkers(agent, stop) => Some((agent.as_str(), stop.grace_ms)),
            _ => None,
        })
        .collect();
    assert_eq!(stopped, [("a", 2000), ("b", 2000)]);
    assert_eq!(world.ended(), None);
    world.news(0, exited(75));
    world.news(1, exited(75));
    let ended = world.ended().unwrap();
    assert_eq!(ended.log_tail, ["last words"]);
    assert!(ended.hint.contains("memory"), "{}", ended.hint);
}

/// What is said of going on with a run that ends in each way in which it could: after a checkpoint, and before any.
#[test]
fn a_checkpoint_to_go_on_from_is_named_only_where_there_is_one() {
    let ends: [fn(&mut World); 4] = [
        |world| world.news(1, killed()),
        |world| world.news(1, Report::Exited { exit: Exit::Signal(15), stderr_tail: Vec::new() }),
        |world| world.lose("b", 2),
        |world| world.input(Input::ShuttingDown),
    ];
    for end in ends {
        let said = |saved: bool| {
            let mut world = World::running(&[1, 1]);
            if saved {
                world.commit(4);
            }
            end(&mut world);
            // A shutdown waits for nobody's end.
            world.try_news(1, News::Disconnected).ok();
            world.try_news(0, exited(75)).ok();
            let ended = world.ended().unwrap();
            format!("{} {}", ended.error, ended.hint)
        };
        let (with, without) = (said(true), said(false));
        assert!(with.contains("/checkpoints/4 with `himpun train --resume /runs/run`"), "{with}");
        assert!(!without.contains("resume"), "{without}");
        assert!(
            without.contains("nothing was saved") && without.contains("checkpoint.every_minutes"),
            "{without}"
        );
    }
}

#[test]
fn a_session_that_comes_back_or_ends_well_is_no_failure() {
    let mut world = World::running(&[1, 1]);
    world.news(1, News::Disconnected);
    world.wait(SECOND);
    world.news(1, News::Connected);
    world.wait(9 * SECOND);
    assert_eq!(world.run_state("run"), RunState::Running);
    world.news(1, News::Disconnected);
    world.news(1, exited(0));
    world.wait(9 * SECOND);
    assert_eq!(world.run_state("run"), RunState::Running);
}

#[test]
fn a_lost_agent_fails_its_runs_and_no_others() {
    let mut world = World::running(&[1, 1]);
    world.join("c", 1);
    world.submit("other", 1);
    world.news(0, lost_peer());
    world.lose("b", 2);
    assert!(world.reason("run").starts_with("agent b was lost, and rank 1"), "{}", world.reason("run"));
    assert_eq!(world.run_state("other"), RunState::Forming);
    world.news(0, exited(75));
    assert_eq!(world.run_state("run"), RunState::Failed);
    assert_eq!(world.state.agents().len(), 2);

    // A session that is over already changes nothing.
    world.join("b", 1);
    world.lose("b", 2);
    assert_eq!(world.state.agents().len(), 3);
}

#[test]
fn a_silent_agent_is_lost_when_its_lease_ends() {
    let mut world = World::running(&[1, 1]);
    world.wait_hearing(4 * SECOND, &["a"]);
    assert_eq!(world.run_state("run"), RunState::Running);
    world.wait_hearing(4 * SECOND, &["a"]);
    assert!(world.reason("run").starts_with("agent b was lost"), "{}", world.reason("run"));
    assert_eq!(
        world.position(|c| *c == Command::DropAgent { agent_id: "b".to_owned(), session: 2 }).map(|_| ()),
        Some(())
    );
    assert_eq!(world.state.agents().len(), 1);
}

#[test]
fn an_agent_id_is_connected_once() {
    let mut world = World::new();
    world.join("a", 1);
    let hello = AgentHello { agent_id: "a".to_owned(), slots: 1, ..AgentHello::default() };
    let again = Input::AgentJoined { hello, session: 9 };
    assert_eq!(world.try_input(again.clone()), Err(Refused::AgentConnected("a".to_owned())));
    // Its old session has been silent for longer than the lease: the new one takes its place.
    world.wait_hearing(5 * SECOND, &[]);
    world.now += SECOND / 10;
    world.input(again);
    assert_eq!(world.state.agents().len(), 1);
}

#[test]
fn time_in_which_nobody_was_listened_to_counts_against_nobody() {
    let mut world = World::running(&[1, 1]);
    world.news(0, lost_peer());
    // The disk held the coordinator up; heartbeats and the cause of the failure are still in its queue.
    world.now += 60 * SECOND;
    world.input(Input::Tick);
    assert_eq!((world.run_state("run"), world.state.agents().len()), (RunState::Running, 2));
    world.news(1, News::Disconnected);
    world.news(1, killed());
    assert!(
        world.reason("run").contains("rank 1 (worker b/0 on host-b) was killed"),
        "{}",
        world.reason("run")
    );
    // Nor does it count for anybody.
    world.wait_hearing(6 * SECOND, &["b"]);
    assert_eq!(world.state.agents().len(), 1);
}

#[test]
fn a_worker_that_never_attaches_ends_its_run() {
    let mut world = World::new();
    world.join("a", 2);
    world.submit("run", 2);
    world.news(0, News::Attached { data_address: "host:0".to_owned(), pid: 1 });
    world.news(0, News::Connected);
    world.wait(119 * SECOND);
    assert_eq!(world.run_state("run"), RunState::Forming);
    world.wait(2 * SECOND);
    assert!(world.reason("run").starts_with("rank 1 (worker a/1 on host-a) did not attach within 120 s"));
    world.news(0, exited(75));
    world.news(1, killed());
    assert_eq!(world.run_state("run"), RunState::Failed);
}

#[test]
fn what_a_broken_session_may_have_swallowed_is_said_again() {
    let mut world = World::forming(&[1, 1]);
    world.commands.clear();
    world.news(1, News::Disconnected);
    world.news(1, News::Connected);
    assert!(matches!(&world.sent()[..], [(1, worker_down::Message::Assign(assign))] if assign.rank == 1));
    for rank in [0, 1, 1] {
        world.news(rank, ready());
    }
    world.news(0, News::Metrics(MetricRow { step: 3, values: Vec::new() }));
    // A rank repeats that it is ready, for the same reason; that does not set the run back.
    world.news(0, ready());
    assert_eq!(world.state.status("run").unwrap().step, 3);

    let reconnect = |world: &mut World| {
        world.commands.clear();
        world.news(0, News::Disconnected);
        world.news(0, News::Connected);
        world.orders().into_iter().map(|(_, kind)| kind).collect::<Vec<_>>()
    };
    assert_eq!(reconnect(&mut world), []);
    world.order(Operation::Pause).unwrap();
    assert_eq!(reconnect(&mut world), [Kind::Pause]);
    world.news(0, News::Paused { paused: true, step: 4 });
    assert_eq!(reconnect(&mut world), []);
    world.order(Operation::Checkpoint).unwrap();
    world.order(Operation::Resume).unwrap();
    assert_eq!(reconnect(&mut world), [Kind::Resume, Kind::Checkpoint]);
    world.news(0, News::Paused { paused: false, step: 4 });
    world.input(Input::CheckpointCommitted { fence: world.fence(), info: CheckpointInfo::default() });
    world.order(Operation::Stop).unwrap();
    assert_eq!(reconnect(&mut world), [Kind::Stop]);
    // Only rank 0 hears orders.
    world.commands.clear();
    world.news(1, News::Connected);
    assert_eq!(world.sent(), []);
}

#[test]
fn fences() {
    let mut world = World::running(&[1]);
    let worker = world.worker(0);
    let mut check = |incarnation, generation, expected: &str| {
        let fence = Fence { run_id: "run".to_owned(), incarnation, generation };
        let input = Input::Worker {
            fence,
            worker: worker.clone(),
            news: News::Finished { step: 1, stopped_early: false },
        };
        let refused = world.try_input(input).unwrap_err();
        assert_eq!(refused.to_string(), expected);
    };
    let ours = "generation 1 (incarnation 7) holds";
    check(7, 0, &format!("generation 0 (incarnation 7) of run run is over: {ours}"));
    check(6, 5, &format!("generation 5 (incarnation 6) of run run is over: {ours}"));
    check(7, 2, &format!("generation 2 (incarnation 7) of run run was never dealt: {ours}"));
    check(8, 1, &format!("generation 1 (incarnation 8) of run run was never dealt: {ours}"));
    assert_eq!(world.run_state("run"), RunState::Running);

    let predecessor = WorkerId { nonce: "old".to_owned(), ..worker };
    let input = Input::Worker { fence: world.fence(), worker: predecessor, news: News::Connected };
    assert!(matches!(world.try_input(input), Err(Refused::NotAMember { .. })));
    let info = CheckpointInfo { step: 3, ..CheckpointInfo::default() };
    let stale = Fence { generation: 0, ..world.fence() };
    assert!(world.try_input(Input::CheckpointCommitted { fence: stale, info }).is_err());

    world.news(0, killed());
    world.news(0, News::Disconnected);
    assert!(matches!(world.try_news(0, News::Connected), Err(Refused::Ended { .. })));
}

#[test]
fn runs_wait_for_slots_in_the_order_of_their_submission() {
    let mut world = World::running(&[2]);
    world.submit("large", 2);
    world.submit("small", 1);
    world.submit("all", 0);
    assert_eq!(world.reason("large"), "waiting for slots: 0 of 2 slots free");
    assert_eq!(world.reason("small"), "waiting for run large, which is ahead in the queue");
    world.join("b", 1);
    // A small run does not overtake.
    assert_eq!(world.reason("large"), "waiting for slots: 1 of 2 slots free");
    assert_eq!(world.run_state("small"), RunState::Queued);

    world.news(0, News::Finished { step: 9, stopped_early: false });
    world.news(0, exited(0));
    world.news(1, exited(0));
    assert_eq!(world.run_state("large"), RunState::Forming);
    assert_eq!(world.run_state("small"), RunState::Forming);
    assert_eq!(world.reason("all"), "waiting for slots: 0 of 3 slots free");
    let taken: Vec<_> = ["large", "small"]
        .iter()
        .flat_map(|run| world.state.status(run).unwrap().members)
        .map(|member| member.worker.unwrap().to_string())
        .collect();
    // The first slot that was free again counted at once.
    assert_eq!(taken, ["a/0", "b/0", "a/1"]);
}

#[test]
fn a_run_that_no_agent_can_hold_holds_up_nobody() {
    let mut world = World::new();
    world.submit("huge", 3);
    world.submit("small", 1);
    world.join("a", 1);
    assert_eq!(world.reason("huge"), "waiting for slots: 1 of 3 slots free, all agents together have fewer");
    assert_eq!(world.run_state("small"), RunState::Forming);
    // Once it could be held, it is next.
    world.join("b", 2);
    world.submit("late", 1);
    assert_eq!(world.reason("huge"), "waiting for slots: 2 of 3 slots free");
    assert_eq!(world.reason("late"), "waiting for run huge, which is ahead in the queue");
}

#[test]
fn a_resume_keeps_the_threads_and_takes_a_later_generation() {
    let mut world = World::new();
    world.join("a", 1);
    let resumed =
        RunRecord { threads: Some(5), checkpoint_step: Some(40), generation: 3, ..record("run", 1) };
    world.input(Input::Submitted(resumed, None, vec!["shard damaged".to_owned()]));
    let started = world.commands.iter().find_map(|c| match c {
        Command::StartWorkers(_, start) => {
            Some((start.fence.clone().unwrap().generation, start.workers[0].threads))
        }
        _ => None,
    });
    assert_eq!(started, Some((4, 5)));
    let warned = |c: &Command| matches!(c, Command::Record(_, e) if e.severity == Severity::Warn && e.text == "shard damaged");
    assert!(world.position(warned).is_some());
    world.news(0, News::Connected);
    world.news(0, News::Attached { data_address: "h:1".to_owned(), pid: 1 });
    assert!(matches!(&world.sent()[0].1, worker_down::Message::Assign(a) if a.checkpoint_step == Some(40)));
    assert_eq!(world.state.status("run").unwrap().step, 40);

    // Two threads are what agent `a` gives by itself, with the cores to run them on.
    let mut world = World::new();
    world.join("a", 1);
    world.input(Input::Submitted(RunRecord { threads: Some(2), ..record("run", 1) }, None, Vec::new()));
    assert!(
        world.commands.iter().any(|c| matches!(c, Command::StartWorkers(_, s) if s.workers[0].threads == 0))
    );
}

#[test]
fn orders_reach_rank_0_and_change_the_state_when_they_took_effect() {
    let mut world = World::running(&[1, 1]);
    world.order(Operation::Pause).unwrap();
    assert_eq!(world.run_state("run"), RunState::Running);
    world.news(0, News::Paused { paused: true, step: 4 });
    assert_eq!(world.run_state("run"), RunState::Paused);
    assert_eq!(world.reason("run"), "paused after step 4, as asked");
    world.order(Operation::Checkpoint).unwrap();
    world.order(Operation::Resume).unwrap();
    world.news(0, News::Paused { paused: false, step: 4 });
    assert_eq!(world.run_state("run"), RunState::Running);
    world.order(Operation::Stop).unwrap();
    assert_eq!(world.run_state("run"), RunState::Stopping);
    assert_eq!(world.orders(), [(0, Kind::Pause), (0, Kind::Checkpoint), (0, Kind::Resume), (0, Kind::Stop)]);
    world.news(0, News::Finished { step: 5, stopped_early: true });
    world.news(1, exited(0));
    world.news(0, exited(0));
    let status = world.state.status("run").unwrap();
    assert_eq!((status.state(), status.exit_code), (RunState::Stopped, Some(85)));
    assert_eq!(world.ended().unwrap().exit_code, 85);
    assert!(matches!(world.order(Operation::Pause), Err(Refused::Ended { .. })));
}

#[test]
fn orders_before_the_group_is_formed_are_given_when_it_is() {
    let mut world = World::forming(&[1]);
    world.order(Operation::Stop).unwrap();
    assert_eq!(world.orders(), []);
    world.news(0, ready());
    assert_eq!(world.orders(), [(0, Kind::Stop)]);
    assert_eq!(world.run_state("run"), RunState::Stopping);
}

#[test]
fn a_queued_run_can_be_stopped_and_nothing_else() {
    let mut world = World::new();
    world.submit("run", 1);
    assert!(matches!(world.order(Operation::Pause), Err(Refused::NotStarted { .. })));
    world.order(Operation::Stop).unwrap();
    assert_eq!(world.run_state("run"), RunState::Stopped);
    assert_eq!((world.ended().unwrap().exit_code, world.ended().unwrap().error.as_str()), (85, ""));
    world.join("a", 1);
    assert!(world.position(|c| matches!(c, Command::StartWorkers(..))).is_none());
}

#[test]
fn a_kill_is_immediate() {
    let mut world = World::running(&[1]);
    world.order(Operation::Kill).unwrap();
    let kill = |c: &Command| matches!(c, Command::StopWorkers(_, stop) if stop.grace_ms == 0);
    assert!(world.position(kill).is_some());
    world.news(0, killed());
    let ended = world.ended().unwrap();
    assert_eq!((ended.exit_code, ended.error.as_str()), (1, "killed, as asked"));
}

#[test]
fn answers_are_stored_under_their_key() {
    let mut world = World::new();
    let key = IdempotencyKey("submit/k".to_owned());
    world.input(Input::Submitted(record("run", 1), Some(key.clone()), Vec::new()));
    assert_eq!(world.state.answer(&key), Some("run"));
    assert!(world.position(|c| *c == Command::Remember(key.clone(), "run".to_owned())).is_some());
    let taken = world.try_input(Input::Submitted(record("run", 1), None, Vec::new()));
    assert_eq!(taken, Err(Refused::RunExists("run".to_owned())));
}

#[test]
fn a_checkpoint_that_is_fresh_enough_answers_at_once() {
    let mut world = World::running(&[1]);
    assert_eq!(world.state.fresh_checkpoint("run"), None);
    let info = CheckpointInfo { step: 4, path: "/c".to_owned(), ..CheckpointInfo::default() };
    world.news(0, News::Metrics(MetricRow { step: 4, values: Vec::new() }));
    world.input(Input::CheckpointCommitted { fence: world.fence(), info: info.clone() });
    assert!(world.position(|c| *c == Command::CheckpointTaken("run".to_owned(), info.clone())).is_some());
    assert_eq!(world.state.fresh_checkpoint("run"), Some(&info));
    assert_eq!(world.state.status("run").unwrap().last_checkpoint, "/c");
    world.news(0, News::Metrics(MetricRow { step: 5, values: Vec::new() }));
    assert_eq!(world.state.fresh_checkpoint("run"), None);
}

#[test]
fn a_restart_fails_active_runs_and_goes_on_with_queued_ones() {
    let mut active = record("active", 1);
    active.stage = Stage::Active;
    active.generation = 2;
    active.last_checkpoint = "/runs/active/checkpoints/3".to_owned();
    let mut done = record("done", 1);
    done.stage = Stage::Finished;
    done.exit_code = Some(0);
    let records = vec![active, done, record("queued", 1)];
    let (state, commands) = State::new(8, records, HashMap::new(), key());
    let mut world = World { state, now: Duration::ZERO, sessions: 0, commands };
    assert_eq!(world.run_state("active"), RunState::Failed);
    let ended = world.ended().unwrap();
    let expected =
        "coordinator restarted while the run was active; go on from /runs/active/checkpoints/3 with";
    assert!(ended.error.starts_with(expected), "{ended:?}");
    assert_eq!(world.run_state("done"), RunState::Finished);
    world.join("a", 1);
    assert_eq!(world.run_state("queued"), RunState::Forming);
}

#[test]
fn a_shutdown_aborts_and_fails_what_is_active() {
    let mut world = World::running(&[1]);
    world.submit("queued", 1);
    world.input(Input::ShuttingDown);
    assert_eq!(world.aborted(), [0]);
    assert!(world.ended().unwrap().error.contains("shut down"));
    assert_eq!(world.run_state("queued"), RunState::Queued);
}

#[test]
fn files_that_cannot_be_written_fail_the_run() {
    let mut world = World::running(&[1]);
    world.input(Input::FilesFailed { run_id: "run".to_owned(), why: "disk full".to_owned() });
    assert_eq!(world.aborted(), [0]);
    assert!(world.reason("run").contains("disk full"));
}

#[test]
fn runs_are_found_by_the_beginning_of_their_id() {
    let mut world = World::new();
    assert_eq!(world.state.resolve(""), Err(Refused::NoRuns));
    for run_id in ["ab1", "ab2", "c"] {
        world.submit(run_id, 1);
    }
    assert_eq!(world.state.resolve("ab1"), Ok("ab1"));
    assert_eq!(world.state.resolve("c"), Ok("c"));
    assert_eq!(world.state.resolve(""), Ok("c"));
    assert_eq!(world.state.resolve("ab"), Err(Refused::Ambiguous { prefix: "ab".to_owned(), n: 2 }));
    assert_eq!(world.state.resolve("d"), Err(Refused::UnknownRun("d".to_owned())));
}
