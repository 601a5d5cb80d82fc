//! The agent against a coordinator that is only its ear and mouth: what it is told, what it reports.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use proto::v1::{
    AgentDown, AgentUp, AgentWelcome, Fence, StartWorkers, StopWorkers, WorkerAssignment, WorkerExited,
    WorkerId, agent_down, agent_up,
};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

/// One stream as the coordinator holds it.
struct Stream {
    up: Streaming<AgentUp>,
    down: mpsc::Sender<Result<AgentDown, Status>>,
}

struct Ear {
    streams: mpsc::Sender<Stream>,
    refuse: bool,
}

#[tonic::async_trait]
impl AgentService for Ear {
    type SessionStream = ReceiverStream<Result<AgentDown, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if self.refuse {
            return Err(proto::Refusal {
                code: tonic::Code::FailedPrecondition,
                message: "protocol 1 is spoken here, not 9".into(),
                reason: "protocol".into(),
                retryable: false,
                hint: String::new(),
                current_generation: 0,
            }
            .into());
        }
        let (down, messages) = mpsc::channel(16);
        self.streams.send(Stream { up: request.into_inner(), down }).await.unwrap();
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

struct Fixture {
    address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
    _server: JoinHandle<()>,
    dir: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Fixture {
    async fn new(refuse: bool) -> Fixture {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(4);
        let service = AgentServiceServer::new(Ear { streams: sender, refuse });
        let server = proto::transport::server()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        let dir = tempfile::tempdir().unwrap();
        Fixture { address, streams, _server: server, dir, shutdown: CancellationToken::new() }
    }

    fn script(&self, body: &str) -> PathBuf {
        let path = self.dir.path().join("worker.sh");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn agent(&self, program: &Path, slots: u32) -> JoinHandle<Result<agent::Left, agent::Error>> {
        let options = agent::Options {
            data_roots: Vec::new(),
            coordinator: self.address.to_string(),
            agent_id: "a".into(),
            host: "here".into(),
            slots,
            cores: vec![4, 5],
            program: program.to_owned(),
        };
        tokio::spawn(agent::run(options, self.shutdown.clone()))
    }

    async fn stream(&mut self) -> Stream {
        let mut stream =
            tokio::time::timeout(PATIENCE, self.streams.recv()).await.expect("a session").unwrap();
        let hello = stream.next().await;
        assert!(matches!(&hello, agent_up::Message::Hello(hello) if hello.agent_id == "a"), "{hello:?}");
        let welcome = AgentWelcome { incarnation: 1, heartbeat_ms: 50, lease_ms: 5000 };
        stream.tell(agent_down::Message::Welcome(welcome)).await;
        stream
    }
}

impl Stream {
    async fn tell(&self, message: agent_down::Message) {
        self.down.send(Ok(AgentDown { message: Some(message) })).await.unwrap();
    }

    async fn start(&self, generation: u64, slots: u32) {
        let workers = (0..slots)
            .map(|slot| WorkerAssignment { worker: Some(worker(generation, slot)), ..Default::default() });
        self.tell(agent_down::Message::Start(StartWorkers {
            fence: Some(fence(generation)),
            workers: workers.collect(),
        }))
        .await;
    }

    async fn stop(&self, generation: u64, grace_ms: u32) {
        let stop = StopWorkers { fence: Some(fence(generation)), grace_ms, reason: "test".into() };
        self.tell(agent_down::Message::Stop(stop)).await;
    }

    async fn next(&mut self) -> agent_up::Message {
        let message = tokio::time::timeout(PATIENCE, self.up.message()).await.expect("a message in time");
        message.unwrap().expect("an open stream").message.unwrap()
    }

    /// The next message that is no heartbeat.
    async fn report(&mut self) -> agent_up::Message {
        loop {
            match self.next().await {
                agent_up::Message::Heartbeat(_) => {}
                other => return other,
            }
        }
    }

    async fn started(&mut self) -> (u32, u32) {
        match self.report().await {
            agent_up::Message::Started(started) => (started.worker.unwrap().slot, started.pid),
            other => panic!("{other:?} instead of a start"),
        }
    }

    /// Skips to the next end of a worker; the log lines on the way.
    async fn exited(&mut self) -> (WorkerExited, Vec<String>) {
        let mut lines = Vec::new();
        loop {
            match self.report().await {
                agent_up::Message::Exited(exited) => return (exited, lines),
                agent_up::Message::Logs(batch) => lines.extend(batch.lines),
                other => panic!("{other:?} instead of an end"),
            }
        }
    }

    async fn log_line(&mut self) -> String {
        match self.report().await {
            agent_up::Message::Logs(batch) => batch.lines.join("\n"),
            other => panic!("{other:?} instead of a line"),
        }
    }
}

fn fence(generation: u64) -> Fence {
    Fence { run_id: "r".into(), incarnation: 1, generation }
}

fn worker(generation: u64, slot: u32) -> WorkerId {
    WorkerId { agent_id: "a".into(), slot, nonce: format!("{generation}-{slot}") }
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/stat")).exists()
}

#[tokio::test]
async fn workers_are_started_as_told_and_their_ends_reported() {
    let mut fixture = Fixture::new(false).await;
    let program = fixture.script("echo \"$@\"; echo 'disk on fire' >&2; exit 3");
    let agent = fixture.agent(&program, 2);
    let mut stream = fixture.stream().await;
    stream.start(7, 2).await;
    assert_eq!(stream.started().await.0, 0);
    let mut lines = Vec::new();
    for _ in 0..2 {
        // The second start may come after the first end.
        loop {
            match stream.report().await {
                agent_up::Message::Started(started) => assert_eq!(started.worker.unwrap().slot, 1),
                agent_up::Message::Logs(batch) => lines.extend(batch.lines),
                agent_up::Message::Exited(exited) => {
                    assert_eq!((exited.code, exited.signal, exited.fence), (Some(3), None, Some(fence(7))));
                    assert_eq!(exited.stderr_tail, ["disk on fire"]);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let arguments = |slot: u32, core: u32| {
        format!(
            "worker --coordinator {} --run r --incarnation 1 --generation 7 --agent-id a --slot {slot} --nonce 7-{slot} --threads 1 --cores {core} --share 2",
            fixture.address
        )
    };
    for expected in [arguments(0, 4), arguments(1, 5)] {
        assert!(lines.contains(&expected), "{expected} in {lines:#?}");
    }
    fixture.shutdown.cancel();
    assert_eq!(agent.await.unwrap().unwrap(), agent::Left::Nothing);
}

#[tokio::test]
async fn an_older_fence_starts_and_stops_nothing() {
    let mut fixture = Fixture::new(false).await;
    let program = fixture.script("echo up; while :; do sleep 1; done");
    let agent = fixture.agent(&program, 1);
    let mut stream = fixture.stream().await;
    stream.start(5, 1).await;
    let (_, pid) = stream.started().await;
    assert_eq!(stream.log_line().await, "up");
    stream.stop(4, 0).await;
    stream.start(4, 1).await;
    stream.stop(5, 60_000).await;
    // Had the older orders been obeyed, the end would be a SIGKILL, or a second worker's.
    let (exited, _) = stream.exited().await;
    assert_eq!((exited.signal, exited.worker), (Some(15), Some(worker(5, 0))));
    assert!(!is_alive(pid));
    fixture.shutdown.cancel();
    agent.await.unwrap().unwrap();
    while let Some(AgentUp { message }) = stream.up.message().await.unwrap() {
        assert!(matches!(message, Some(agent_up::Message::Heartbeat(_))), "{message:?}");
    }
}

#[tokio::test]
async fn a_lost_coordinator_ends_no_worker_and_hears_of_them_when_it_is_back() {
    let mut fixture = Fixture::new(false).await;
    let go = fixture.dir.path().join("go");
    let program =
        fixture.script(&format!("echo up; while [ ! -e {} ]; do sleep 0.05; done; exit 9", go.display()));
    let agent = fixture.agent(&program, 1);
    let mut stream = fixture.stream().await;
    stream.start(1, 1).await;
    let (_, pid) = stream.started().await;
    drop(stream);
    let mut stream = fixture.stream().await;
    assert_eq!(stream.started().await, (0, pid));
    assert!(is_alive(pid));
    std::fs::write(go, "").unwrap();
    assert_eq!(stream.exited().await.0.code, Some(9));
    fixture.shutdown.cancel();
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_agent_that_leaves_ends_its_workers_first() {
    let mut fixture = Fixture::new(false).await;
    let program =
        fixture.script("trap 'echo drained >&2; exit 85' TERM; echo up; while :; do sleep 1 & wait; done");
    let agent = fixture.agent(&program, 1);
    let mut stream = fixture.stream().await;
    stream.start(1, 1).await;
    let (_, pid) = stream.started().await;
    assert_eq!(stream.log_line().await, "up");
    fixture.shutdown.cancel();
    let (exited, _) = stream.exited().await;
    assert_eq!((exited.code, exited.stderr_tail), (Some(85), vec!["drained".to_owned()]));
    drop(stream);
    assert_eq!(agent.await.unwrap().unwrap(), agent::Left::Workers);
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_program_that_does_not_start_is_reported_as_an_end() {
    let mut fixture = Fixture::new(false).await;
    let agent = fixture.agent(Path::new("/nonexistent/himpun"), 1);
    let mut stream = fixture.stream().await;
    stream.start(1, 1).await;
    let (exited, _) = stream.exited().await;
    assert_eq!(exited.code, Some(127));
    assert!(exited.stderr_tail[0].contains("/nonexistent/himpun"), "{exited:?}");
    fixture.shutdown.cancel();
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_ends_the_agent() {
    let fixture = Fixture::new(true).await;
    let error = fixture.agent(Path::new("/bin/true"), 1).await.unwrap().unwrap_err();
    assert!(error.to_string().ends_with("protocol 1 is spoken here, not 9"), "{error}");
}
