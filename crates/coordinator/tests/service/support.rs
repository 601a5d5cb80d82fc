//! A coordinator, and the peers that a test plays.

use bytes::Bytes;
use coordinator::{Coordinator, Identity, Options, Running};
use identity::{Access, Channel, Role, Trust, WorkerSecret};
use proto::v1::agent_service_client::AgentServiceClient;
use proto::v1::checkpoint_service_client::CheckpointServiceClient;
use proto::v1::control_service_client::ControlServiceClient;
use proto::v1::worker_service_client::WorkerServiceClient;
use proto::v1::*;
use proto::{PROTOCOL, Refusal};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};

/// Longest wait for anything that a test expects.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Size that every rank predicts for its shards.
pub const SHARD_BYTES: u64 = 1 << 21;

/// A configuration of which checkpoints are kept, and nothing trained.
pub const CONFIG: &str = "[run]\nsteps = 9\n[train]\nglobal_batch = 8\n[checkpoint]\nkeep = 2\n";

/// A coordinator on a port of the system's choice. What no other channel is named for goes by its own token.
pub struct Bench {
    pub dir: TempDir,
    pub running: Running,
    pub admin: Channel,
}

impl Bench {
    pub async fn start() -> Bench {
        Bench::with(Identity::Ephemeral, Vec::new()).await
    }

    pub async fn with(identity: Identity, allow_dirs: Vec<PathBuf>) -> Bench {
        let dir = private_directory();
        let (running, admin) = start(dir.path(), identity, allow_dirs).await;
        Bench { dir, running, admin }
    }

    /// Ends the coordinator and starts another in the same directory.
    pub async fn restart(self) -> Bench {
        self.running.shutdown().await.unwrap();
        let (running, admin) = start(self.dir.path(), Identity::Ephemeral, Vec::new()).await;
        Bench { dir: self.dir, running, admin }
    }

    pub fn address(&self) -> String {
        self.running.address().to_string()
    }

    /// A connection of its own for each role.
    pub async fn role(&self, role: Role) -> Channel {
        connect(&self.running.access(role), &self.address()).await
    }

    /// A worker's connection, by what its agent was sent.
    pub async fn worker(&self, worker: &WorkerId, secret: &[u8]) -> Channel {
        let secret = WorkerSecret::from_hex(&hex(secret)).expect("16 bytes");
        let trust = self.trust();
        connect(&Access::Worker { trust, nonce: worker.nonce.clone(), secret }, &self.address()).await
    }

    pub fn trust(&self) -> Trust {
        self.running.access(Role::Agent).trust(&self.address()).unwrap()
    }

    pub fn control(&self) -> ControlServiceClient<Channel> {
        ControlServiceClient::new(self.admin.clone())
    }

    pub fn run_dir(&self, run_id: &str) -> PathBuf {
        self.dir.path().join("runs").join(run_id)
    }

    pub async fn submit(&self, request: SubmitRunRequest) -> Result<SubmitRunResponse, Refusal> {
        answer(self.control().submit_run(request).await)
    }

    pub async fn status(&self, run_id: &str) -> RunStatus {
        let request = GetStatusRequest { run_id: run_id.to_owned() };
        self.control().get_status(request).await.unwrap().into_inner()
    }

    /// Waits until the run's state is `state`.
    pub async fn until(&self, run_id: &str, state: RunState) -> RunStatus {
        let poll = async {
            loop {
                let status = self.status(run_id).await;
                if status.state() == state {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(DEADLINE, poll).await {
            Ok(status) => status,
            Err(_) => panic!("{run_id} is not {state:?} but {:?}", self.status(run_id).await),
        }
    }

    pub async fn agent(&self, id: &str, slots: u32) -> FakeAgent {
        let channel = self.role(Role::Agent).await;
        let mut agent = FakeAgent::connect(channel, hello(id, slots)).await.unwrap();
        match agent.next().await {
            agent_down::Message::Welcome(welcome) => {
                assert!(welcome.heartbeat_ms > 0 && welcome.lease_ms > 0)
            }
            other => panic!("{other:?} instead of a welcome"),
        }
        agent
    }

    /// A run `run` that trains with one worker on each slot of an agent of its own.
    pub async fn running(&self, slots: u32) -> (FakeAgent, Vec<FakeWorker>) {
        let agent = self.agent("node", slots).await;
        self.submit(submission("run", slots)).await.unwrap();
        self.form(agent, slots).await
    }

    /// Attaches a worker for every assignment, up to `Ready`.
    pub async fn form(&self, mut agent: FakeAgent, slots: u32) -> (FakeAgent, Vec<FakeWorker>) {
        let start = loop {
            match agent.next().await {
                agent_down::Message::Start(start) => break start,
                // Of a run before this one.
                agent_down::Message::Stop(_) => {}
                other => panic!("{other:?} instead of a start"),
            }
        };
        assert_eq!(start.workers.len(), slots as usize);
        let mut workers = Vec::new();
        for assignment in start.workers {
            let fence = start.fence.clone().unwrap();
            let WorkerAssignment { worker, secret, .. } = assignment;
            let worker = worker.unwrap();
            let channel = self.worker(&worker, &secret).await;
            workers.push(FakeWorker { secret, ..FakeWorker::connect(channel, fence, worker).await.unwrap() });
        }
        for (rank, worker) in workers.iter_mut().enumerate() {
            let worker_down::Message::Assign(assign) = worker.next().await.unwrap() else {
                panic!("no place")
            };
            assert_eq!((assign.rank as usize, assign.world_size), (rank, slots));
            assert_eq!(assign.peers.len(), slots as usize);
            let step = assign.checkpoint_step.unwrap_or(0);
            worker.group_key = assign.group_key;
            let ready = Ready { step, total_steps: 9, shard_bytes: SHARD_BYTES };
            worker.say(worker_up::Message::Ready(ready)).await;
        }
        let run_id = workers[0].fence.run_id.clone();
        self.until(&run_id, RunState::Running).await;
        (agent, workers)
    }
}

/// As whatever holds secrets has to be, whatever the umask.
pub fn private_directory() -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let temporary = std::env::temp_dir().canonicalize().unwrap();
    tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(temporary)
        .unwrap()
}

async fn start(dir: &Path, identity: Identity, allow_dirs: Vec<PathBuf>) -> (Running, Channel) {
    let bind = "127.0.0.1:0".parse().unwrap();
    let options = Options { bind, dir: dir.to_owned(), identity, allow_dirs };
    let running = Coordinator::start(options).await.unwrap();
    let admin = connect(&running.access(Role::Admin), &running.address().to_string()).await;
    (running, admin)
}

async fn connect(access: &Access, address: &str) -> Channel {
    access.connect(address).await.unwrap().channel
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Begins, fills and commits a checkpoint, whose shards are all of these bytes.
pub async fn save(workers: &[FakeWorker], step: u64, bytes: &[u8]) -> Result<CheckpointInfo, Refusal> {
    let checkpoint_id = workers[0].begin(step, workers.len() as u32).await?.checkpoint_id;
    for (rank, worker) in workers.iter().enumerate() {
        let messages = shard(worker.fence.clone(), &checkpoint_id, rank as u32, bytes);
        assert_eq!(worker.put(messages).await?.durable_bytes, bytes.len() as u64);
    }
    workers[0].commit(&checkpoint_id).await
}

/// Of a process of its own.
pub fn hello(id: &str, slots: u32) -> AgentHello {
    AgentHello {
        protocol: PROTOCOL,
        version: "0".to_owned(),
        agent_id: id.to_owned(),
        host: "here".to_owned(),
        slots,
        device: "cpu".to_owned(),
        cores: slots,
        secret: identity::random::<16>().to_vec(),
    }
}

pub fn submission(run_id: &str, workers: u32) -> SubmitRunRequest {
    SubmitRunRequest {
        protocol: PROTOCOL,
        config_toml: CONFIG.to_owned(),
        workers,
        run_id: run_id.to_owned(),
        device: "auto".to_owned(),
        ..SubmitRunRequest::default()
    }
}

/// The bytes of a shard that holds `n` numbers.
pub fn tensors(n: usize) -> Vec<u8> {
    checkpoint::encode_shard(&[checkpoint::Tensor::from_f32(format!("weights-{n}"), &[n], &vec![0.5; n])])
}

/// A shard as a worker sends it, in chunks of 100 bytes.
pub fn shard(fence: Fence, checkpoint_id: &str, shard: u32, bytes: &[u8]) -> Vec<put_shard_message::Message> {
    use put_shard_message::Message;
    let total_bytes = bytes.len() as u64;
    let header = ShardHeader {
        fence: Some(fence),
        checkpoint_id: checkpoint_id.to_owned(),
        shard,
        total_bytes,
        images: false,
    };
    let chunk = |(index, data): (usize, &[u8])| {
        let (offset, crc32c) = (100 * index as u64, crc32c::crc32c(data));
        Message::Chunk(Chunk { offset, data: Bytes::copy_from_slice(data), crc32c })
    };
    let digest = Digest { blake3: blake3::hash(bytes).as_bytes().to_vec() };
    std::iter::once(Message::Header(header))
        .chain(bytes.chunks(100).enumerate().map(chunk))
        .chain([Message::Trailer(ShardTrailer { digest: Some(digest) })])
        .collect()
}

/// An agent that starts nothing.
pub struct FakeAgent {
    pub secret: Vec<u8>,
    pub up: mpsc::Sender<AgentUp>,
    down: Streaming<AgentDown>,
}

impl FakeAgent {
    pub async fn connect(channel: Channel, hello: AgentHello) -> Result<FakeAgent, Refusal> {
        let (up, messages) = mpsc::channel(16);
        let secret = hello.secret.clone();
        up.send(AgentUp { message: Some(agent_up::Message::Hello(hello)) }).await.unwrap();
        // However long a busy machine takes for a test, the agent's lease must not end in it.
        let beating = up.downgrade();
        tokio::spawn(async move {
            let beat = || AgentUp { message: Some(agent_up::Message::Heartbeat(AgentHeartbeat {})) };
            while let Some(up) = beating.upgrade() {
                if up.send(beat()).await.is_err() {
                    return;
                }
                drop(up);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        let opened = AgentServiceClient::new(channel).session(ReceiverStream::new(messages)).await;
        opened
            .map(|down| FakeAgent { secret, up, down: down.into_inner() })
            .map_err(|status| Refusal::from(&status))
    }

    pub async fn say(&self, message: agent_up::Message) {
        self.up.send(AgentUp { message: Some(message) }).await.unwrap();
    }

    pub async fn try_next(&mut self) -> Result<Option<agent_down::Message>, Status> {
        let next =
            tokio::time::timeout(DEADLINE, self.down.message()).await.expect("a message for the agent");
        Ok(next?.map(|down| down.message.unwrap()))
    }

    pub async fn next(&mut self) -> agent_down::Message {
        self.try_next().await.unwrap().expect("the session is open")
    }

    pub async fn exited(&self, worker: &FakeWorker, code: Option<i32>, signal: Option<i32>) {
        let (fence, worker) = (Some(worker.fence.clone()), Some(worker.worker.clone()));
        let stderr_tail = vec!["last words".to_owned()];
        self.say(agent_up::Message::Exited(WorkerExited { fence, worker, code, signal, stderr_tail })).await;
    }

    pub async fn logs(&self, worker: &FakeWorker, lines: &[&str]) {
        let (fence, worker) = (Some(worker.fence.clone()), Some(worker.worker.clone()));
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        self.say(agent_up::Message::Logs(LogBatch { fence, worker, lines })).await;
    }
}

/// A worker that trains nothing.
#[derive(Debug)]
pub struct FakeWorker {
    pub fence: Fence,
    pub worker: WorkerId,
    /// Shown on its connection.
    pub channel: Channel,
    pub secret: Vec<u8>,
    pub group_key: Vec<u8>,
    pub up: mpsc::Sender<WorkerUp>,
    down: Streaming<WorkerDown>,
}

impl FakeWorker {
    pub async fn connect(channel: Channel, fence: Fence, worker: WorkerId) -> Result<FakeWorker, Refusal> {
        let mut client = WorkerServiceClient::new(channel.clone());
        let attach = AttachRequest {
            protocol: PROTOCOL,
            fence: Some(fence.clone()),
            worker: Some(worker.clone()),
            data_address: format!("127.0.0.1:{}", worker.slot + 1),
            pid: 1,
        };
        let attached = client.attach(attach).await.map_err(|status| Refusal::from(&status))?;
        assert_eq!(attached.into_inner().config_toml, CONFIG);
        let (up, down) = FakeWorker::open(channel.clone(), &fence, &worker).await?;
        Ok(FakeWorker { fence, worker, channel, secret: Vec::new(), group_key: Vec::new(), up, down })
    }

    /// Opens a session that speaks for this worker.
    pub async fn open(
        channel: Channel,
        fence: &Fence,
        worker: &WorkerId,
    ) -> Result<(mpsc::Sender<WorkerUp>, Streaming<WorkerDown>), Refusal> {
        let (up, messages) = mpsc::channel(16);
        let beat = worker_up::Message::Heartbeat(Heartbeat::default());
        up.send(up_message(fence, worker, beat)).await.unwrap();
        let opened = WorkerServiceClient::new(channel).session(ReceiverStream::new(messages)).await;
        opened.map(|down| (up, down.into_inner())).map_err(|status| Refusal::from(&status))
    }

    pub fn checkpoints(&self) -> CheckpointServiceClient<Channel> {
        CheckpointServiceClient::new(self.channel.clone())
    }

    pub async fn begin(&self, step: u64, n_shards: u32) -> Result<BeginCheckpointResponse, Refusal> {
        let fence = Some(self.fence.clone());
        let metadata_json = r#"{"threads":3}"#.to_owned();
        let request = BeginCheckpointRequest { fence, step, n_shards, metadata_json, images: None };
        answer(self.checkpoints().begin(request).await)
    }

    /// Streams one shard.
    pub async fn put(&self, messages: Vec<put_shard_message::Message>) -> Result<ShardReceipt, Refusal> {
        let messages: Vec<_> = messages.into_iter().map(|m| PutShardMessage { message: Some(m) }).collect();
        answer(self.checkpoints().put_shard(tokio_stream::iter(messages)).await)
    }

    pub async fn commit(&self, checkpoint_id: &str) -> Result<CheckpointInfo, Refusal> {
        let (fence, checkpoint_id) = (Some(self.fence.clone()), checkpoint_id.to_owned());
        answer(self.checkpoints().commit(CommitCheckpointRequest { fence, checkpoint_id }).await)
    }

    pub async fn say(&self, message: worker_up::Message) {
        self.up.send(up_message(&self.fence, &self.worker, message)).await.unwrap();
    }

    pub async fn metrics(&self, step: u64, loss: f64) {
        let loss = Metric { name: "loss".to_owned(), value: Some(metric::Value::Number(loss)) };
        self.say(worker_up::Message::Metrics(MetricRow { step, values: vec![loss] })).await;
    }

    /// The next message; `None` once the stream has ended.
    pub async fn try_next(&mut self) -> Result<Option<worker_down::Message>, Refusal> {
        let next =
            tokio::time::timeout(DEADLINE, self.down.message()).await.expect("a message for the worker");
        match next {
            Ok(down) => Ok(down.map(|down| down.message.unwrap())),
            Err(status) => Err(Refusal::from(&status)),
        }
    }

    pub async fn next(&mut self) -> Result<worker_down::Message, Refusal> {
        Ok(self.try_next().await?.expect("the session is open"))
    }

    pub async fn order(&mut self) -> order::Kind {
        match self.next().await.unwrap() {
            worker_down::Message::Order(order) => order.kind(),
            other => panic!("{other:?} instead of an order"),
        }
    }
}

/// An answer, or why there is none.
pub fn answer<T>(outcome: Result<Response<T>, Status>) -> Result<T, Refusal> {
    outcome.map(Response::into_inner).map_err(|status| Refusal::from(&status))
}

fn up_message(fence: &Fence, worker: &WorkerId, message: worker_up::Message) -> WorkerUp {
    WorkerUp { fence: Some(fence.clone()), worker: Some(worker.clone()), message: Some(message) }
}

/// Reads a stream to its end.
pub async fn collect<T>(mut stream: Streaming<T>) -> Vec<T> {
    let mut found = Vec::new();
    let all = async {
        while let Some(item) = stream.message().await.unwrap() {
            found.push(item);
        }
    };
    tokio::time::timeout(DEADLINE, all).await.expect("the stream ends");
    found
}

#[track_caller]
pub fn assert_refused(refusal: &Refusal, code: Code, reason: &str, words: &str) {
    assert_eq!((refusal.code, refusal.reason.as_str()), (code, reason), "{refusal:?}");
    assert!(refusal.message.contains(words), "`{words}` is not in `{}`", refusal.message);
}
