//! A coordinator that is only its ear and mouth.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use identity::{Access, Credentials, Guard, Role, Secret};
use proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use proto::v1::{
    AgentDown, AgentUp, AgentWelcome, Fence, StartWorkers, StopWorkers, WorkerAssignment, WorkerExited,
    WorkerId, agent_down, agent_up,
};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Of every worker here.
pub const SECRET: Secret<16> = Secret([0xa7; 16]);

/// One stream as the coordinator holds it.
pub struct Stream {
    pub up: Streaming<AgentUp>,
    pub down: mpsc::Sender<Result<AgentDown, Status>>,
}

pub struct Ear {
    pub streams: mpsc::Sender<Stream>,
    pub refuse: bool,
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

pub struct Fixture {
    pub address: SocketAddr,
    pub credentials: Credentials,
    pub sessions: mpsc::Sender<Stream>,
    pub streams: mpsc::Receiver<Stream>,
    pub server: Option<Server>,
    pub dir: tempfile::TempDir,
    pub shutdown: CancellationToken,
}

/// A coordinator's process: when it is stopped, its connections and its port are gone.
pub struct Server(Option<tokio::runtime::Runtime>);

impl Server {
    pub fn start(listener: std::net::TcpListener, credentials: &Credentials, ear: Ear) -> Server {
        let guard = Guard::new(credentials, None, Arc::new(|_: &str| SECRET)).unwrap();
        Server::serve(listener, move |listener| async move {
            let incoming = identity::incoming(listener, guard, |_| {}, CancellationToken::new());
            let server = proto::transport::server().add_service(AgentServiceServer::new(ear));
            server.serve_with_incoming(incoming).await.unwrap();
        })
    }

    pub fn serve<F>(
        listener: std::net::TcpListener,
        work: impl FnOnce(TcpListener) -> F + Send + 'static,
    ) -> Server
    where
        F: Future<Output = ()> + Send,
    {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move { work(TcpListener::from_std(listener).unwrap()).await });
        Server(Some(runtime))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.take().expect("it is dropped once").shutdown_background();
    }
}

impl Fixture {
    pub async fn new(refuse: bool) -> Fixture {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sessions, streams) = mpsc::channel(4);
        let credentials = Credentials::ephemeral().unwrap();
        let server = Server::start(listener, &credentials, Ear { streams: sessions.clone(), refuse });
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        Fixture { address, credentials, sessions, streams, server: Some(server), dir, shutdown }
    }

    /// The port, which its coordinator has just lost. Another process may be served on it.
    pub async fn listen_again(&self) -> std::net::TcpListener {
        let listening = async {
            loop {
                match std::net::TcpListener::bind(self.address) {
                    Ok(listener) => return listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, listening).await.expect("the port is free in time")
    }

    pub fn script(&self, body: &str) -> PathBuf {
        let path = self.dir.path().join("worker.sh");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    pub fn agent(&self, program: &Path, slots: u32) -> JoinHandle<Result<agent::Left, agent::Error>> {
        let options = agent::Options {
            access: Access::Token(self.credentials.access(Role::Agent)),
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

    pub async fn stream(&mut self) -> Stream {
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
    pub async fn tell(&self, message: agent_down::Message) {
        self.down.send(Ok(AgentDown { message: Some(message) })).await.unwrap();
    }

    pub async fn start(&self, generation: u64, slots: u32) {
        let workers = (0..slots).map(|slot| WorkerAssignment {
            worker: Some(worker(generation, slot)),
            secret: SECRET.0.to_vec(),
            ..Default::default()
        });
        self.tell(agent_down::Message::Start(StartWorkers {
            fence: Some(fence(generation)),
            workers: workers.collect(),
        }))
        .await;
    }

    pub async fn stop(&self, generation: u64, grace_ms: u32) {
        let stop = StopWorkers { fence: Some(fence(generation)), grace_ms, reason: "test".into() };
        self.tell(agent_down::Message::Stop(stop)).await;
    }

    pub async fn next(&mut self) -> agent_up::Message {
        let message = tokio::time::timeout(PATIENCE, self.up.message()).await.expect("a message in time");
        message.unwrap().expect("an open stream").message.unwrap()
    }

    /// The next message that is no heartbeat.
    pub async fn report(&mut self) -> agent_up::Message {
        loop {
            match self.next().await {
                agent_up::Message::Heartbeat(_) => {}
                other => return other,
            }
        }
    }

    pub async fn started(&mut self) -> (u32, u32) {
        match self.report().await {
            agent_up::Message::Started(started) => (started.worker.unwrap().slot, started.pid),
            other => panic!("{other:?} instead of a start"),
        }
    }

    /// Skips to the next end of a worker; the log lines on the way.
    pub async fn exited(&mut self) -> (WorkerExited, Vec<String>) {
        let mut lines = Vec::new();
        loop {
            match self.report().await {
                agent_up::Message::Exited(exited) => return (exited, lines),
                agent_up::Message::Logs(batch) => lines.extend(batch.lines),
                other => panic!("{other:?} instead of an end"),
            }
        }
    }

    pub async fn log_line(&mut self) -> String {
        match self.report().await {
            agent_up::Message::Logs(batch) => batch.lines.join("\n"),
            other => panic!("{other:?} instead of a line"),
        }
    }
}

pub fn fence(generation: u64) -> Fence {
    Fence { run_id: "r".into(), incarnation: 1, generation }
}

pub fn worker(generation: u64, slot: u32) -> WorkerId {
    WorkerId { agent_id: "a".into(), slot, nonce: format!("{generation}-{slot}") }
}

pub fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/stat")).exists()
}
