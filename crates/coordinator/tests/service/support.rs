//! A coordinator, and the peers that a test plays.

use bytes::Bytes;
use coordinator::{Coordinator, Options, Running};
use proto::v1::agent_service_client::AgentServiceClient;
use proto::v1::checkpoint_service_client::CheckpointServiceClient;
use proto::v1::control_service_client::ControlServiceClient;
use proto::v1::worker_service_client::WorkerServiceClient;
use proto::v1::*;
use proto::{PROTOCOL, Refusal, transport};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Longest wait for anything that a test expects.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Size that every rank predicts for its shards.
pub const SHARD_BYTES: u64 = 1 << 21;

/// A configuration of which checkpoints are kept, and nothing trained.
pub const CONFIG: &str = "[run]\nsteps = 9\n[train]\nglobal_batch = 8\n[checkpoint]\nkeep = 2\n";

/// A coordinator on a port of the system's choice.
pub struct Bench {
    pub dir: TempDir,
    pub running: Running,
    pub channel: Channel,
}

impl Bench {
    pub async fn start() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let (running, channel) = start(dir.path()).await;
        Bench { dir, running, channel }
    }

    /// Ends the coordinator and starts another in the same directory.
    pub async fn restart(self) -> Bench {
        self.running.shutdown().await.unwrap();
        let (running, channel) = start(self.dir.path()).await;
        Bench { dir: self.dir, running, channel }
    }

    pub fn control(&self) -> ControlServiceClient<Channel> {
        ControlServiceClient::new(self.channel.clone())
    }

    pub fn checkpoints(&self) -> CheckpointServiceClient<Channel> {
        CheckpointServiceClient::new(self.channel.clone())
    }

    pub fn run_dir(&self, run_id: &str) -> PathBuf {
        self.dir.path().join("runs").join(run_id)
    }

    pub async fn submit(&self, request: SubmitRunRequest) -> Result<SubmitRunResponse, Refusal> {
        let response = self.control().submit_run(request).await;
        response.map(tonic::Response::into_inner).map_err(|status| Refusal::from(&status))
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
        let mut agent = FakeAgent::connect(self.channel.clone(), hello(id, slots)).await;
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
        let agent_down::Message::Start(start) = agent.next().await else { panic!("no start") };
        assert_eq!(start.workers.len(), slots as usize);
        let mut workers = Vec::new();
        for assignment in start.workers {
            let fence = start.fence.clone().unwrap();
            let worker =
                FakeWorker::connect(self.channel.clone(), fence, assignment.worker.unwrap()).await.unwrap();
            workers.push(worker);
        }
        for (rank, worker) in workers.iter_mut().enumerate() {
            let worker_down::Message::Assign(assign) = worker.next().await.unwrap() else {
                panic!("no place")
            };
            assert_eq!((assign.rank as usize, assign.world_size), (rank, slots));
            assert_eq!(assign.peers.len(), slots as usize);
            let step = assign.checkpoint_step.unwrap_or(0);
            let ready = Ready { step, total_steps: 9, shard_bytes: SHARD_BYTES };
            worker.say(worker_up::Message::Ready(ready)).await;
        }
        let run_id = workers[0].fence.run_id.clone();
        self.until(&run_id, RunState::Running).await;
        (agent, workers)
    }

    /// Streams one shard.
    pub async fn put(&self, messages: Vec<put_shard_message::Message>) -> Result<ShardReceipt, Refusal> {
        let messages: Vec<_> = messages.into_iter().map(|m| PutShardMessage { message: Some(m) }).collect();
        let response = self.checkpoints().put_shard(tokio_stream::iter(messages)).await;
        response.map(tonic::Response::into_inner).map_err(|status| Refusal::from(&status))
    }

    /// Begins, fills and commits a checkpoint, whose shards are all of these bytes.
    pub async fn checkpoint(
        &self,
        fence: &Fence,
        step: u64,
        bytes: &[u8],
    ) -> Result<CheckpointInfo, Refusal> {
        let n_shards = self.status(&fence.run_id).await.world_size;
        let fence = Some(fence.clone());
        let metadata_json = r#"{"threads":3}"#.to_owned();
        let begin =
            BeginCheckpointRequest { fence: fence.clone(), step, n_shards, metadata_json, images: None };
        let begun = self.checkpoints().begin(begin).await.map_err(|status| Refusal::from(&status))?;
        let checkpoint_id = begun.into_inner().checkpoint_id;
        for index in 0..n_shards {
            let receipt = self.put(shard(fence.clone().unwrap(), &checkpoint_id, index, bytes)).await?;
            assert_eq!(receipt.durable_bytes, bytes.len() as u64);
        }
        let commit = CommitCheckpointRequest { fence, checkpoint_id };
        let committed = self.checkpoints().commit(commit).await;
        committed.map(tonic::Response::into_inner).map_err(|status| Refusal::from(&status))
    }
}

async fn start(dir: &Path) -> (Running, Channel) {
    let bind = "127.0.0.1:0".parse().unwrap();
    let running = Coordinator::start(Options { bind, dir: dir.to_owned(), insecure: false }).await.unwrap();
    let channel = transport::endpoint(&running.address().to_string()).unwrap().connect().await.unwrap();
    (running, channel)
}

/// Of a process of its own.
pub fn hello(id: &str, slots: u32) -> AgentHello {
    static PROCESSES: AtomicU64 = AtomicU64::new(0);
    let process = PROCESSES.fetch_add(1, Ordering::Relaxed);
    AgentHello {
        protocol: PROTOCOL,
        version: "0".to_owned(),
        agent_id: id.to_owned(),
        host: "here".to_owned(),
        slots,
        device: "cpu".to_owned(),
        cores: slots,
        secret: [process.to_le_bytes(); 2].concat(),
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
    pub up: mpsc::Sender<AgentUp>,
    down: Streaming<AgentDown>,
}

impl FakeAgent {
    pub async fn connect(channel: Channel, hello: AgentHello) -> FakeAgent {
        let (up, messages) = mpsc::channel(16);
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
        let down = AgentServiceClient::new(channel).session(ReceiverStream::new(messages)).await.unwrap();
        FakeAgent { up, down: down.into_inner() }
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
    pub up: mpsc::Sender<WorkerUp>,
    down: Streaming<WorkerDown>,
}

impl FakeWorker {
    pub async fn connect(channel: Channel, fence: Fence, worker: WorkerId) -> Result<FakeWorker, Refusal> {
        let mut client = WorkerServiceClient::new(channel);
        let attach = AttachRequest {
            protocol: PROTOCOL,
            fence: Some(fence.clone()),
            worker: Some(worker.clone()),
            data_address: format!("127.0.0.1:{}", worker.slot + 1),
            pid: 1,
        };
        let attached = client.attach(attach).await.map_err(|status| Refusal::from(&status))?;
        assert_eq!(attached.into_inner().config_toml, CONFIG);
        let (up, messages) = mpsc::channel(16);
        up.send(up_message(&fence, &worker, worker_up::Message::Heartbeat(Heartbeat::default())))
            .await
            .unwrap();
        let down = client.session(ReceiverStream::new(messages)).await.unwrap().into_inner();
        Ok(FakeWorker { fence, worker, up, down })
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
