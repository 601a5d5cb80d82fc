//! Two runs with all that a stranger might want to change, and everybody who may call.

use crate::raw;
use crate::support::{Bench, CONFIG, FakeAgent, FakeWorker, hello, hex, save, shard, submission, tensors};
use identity::{Access, Role};
use prost::Message;
use proto::PROTOCOL;
use proto::v1::*;
use tonic::transport::Channel;

/// `run` trains in its second generation, with a checkpoint of step 5 and another one open; `other` trains beside it.
pub struct Scene {
    pub bench: Bench,
    pub channel: Channel,
    pub workers: Vec<FakeWorker>,
    pub other: Vec<FakeWorker>,
    /// Of the first generation.
    pub former: FakeWorker,
    pub checkpoint_id: String,
    _agents: [FakeAgent; 2],
}

/// Who calls, in the order of the columns of the tables of rules.
pub const CALLERS: [&str; 11] = [
    "nobody",
    "a token of another coordinator",
    "viewer",
    "operator",
    "agent",
    "admin",
    "rank 0",
    "rank 1",
    "a worker of another run",
    "a worker of a former generation, as rank 0",
    "a worker of a former generation, as itself",
];

impl Scene {
    pub async fn start() -> Scene {
        let bench = Bench::start().await;
        let (agent, mut former) = bench.running(2).await;
        for worker in &former {
            agent.exited(worker, None, Some(9)).await;
        }
        bench.until("run", RunState::Failed).await;
        let run_dir = bench.run_dir("run").display().to_string();
        bench.submit(SubmitRunRequest { run_dir, resume: true, ..submission("", 2) }).await.unwrap();
        let (agent, workers) = bench.form(agent, 2).await;
        save(&workers, 5, &tensors(100)).await.unwrap();
        let checkpoint_id = workers[0].begin(6, 2).await.unwrap().checkpoint_id;
        let elsewhere = bench.agent("elsewhere", 1).await;
        bench.submit(submission("other", 1)).await.unwrap();
        let (elsewhere, other) = bench.form(elsewhere, 1).await;
        let channel = raw::encrypted(&bench.address()).await;
        let former = former.remove(0);
        Scene { bench, channel, workers, other, former, checkpoint_id, _agents: [agent, elsewhere] }
    }

    /// What each of [`CALLERS`] shows.
    pub fn authorization(&self, caller: usize) -> Option<String> {
        let token = |role| match self.bench.running.access(role) {
            Access::Token(file) => Some(format!("Bearer {}", file.token.to_hex())),
            other => panic!("{other:?}"),
        };
        let worker =
            |worker: &FakeWorker| Some(format!("Worker {} {}", worker.worker.nonce, hex(&worker.secret)));
        match caller {
            0 => None,
            1 => Some(format!("Bearer {}", hex(&[7; 32]))),
            2 => token(Role::Viewer),
            3 => token(Role::Operator),
            4 => token(Role::Agent),
            5 => token(Role::Admin),
            6 => worker(&self.workers[0]),
            7 => worker(&self.workers[1]),
            8 => worker(&self.other[0]),
            _ => worker(&self.former),
        }
    }

    /// Messages to a method that would be answered, and change something where the method does, if they came from the right
    /// one: they speak for rank 0.
    pub fn messages(&self, method: &str) -> Vec<Vec<u8>> {
        self.messages_of(method, &self.workers[0])
    }

    /// As [`Scene::messages`], for another worker.
    pub fn messages_of(&self, method: &str, speaker: &FakeWorker) -> Vec<Vec<u8>> {
        let (run_id, step, shard_index) = ("run".to_owned(), 5, 0);
        let (fence, worker) = (Some(speaker.fence.clone()), Some(speaker.worker.clone()));
        let checkpoint_id = self.checkpoint_id.clone();
        let command = CommandRequest { run_id: run_id.clone(), ..Default::default() }.encode_to_vec();
        let one = match method {
            "ControlService/GetServerInfo" | "ControlService/ListRuns" => Vec::new(),
            "ControlService/SubmitRun" => submission("intruder", 1).encode_to_vec(),
            "ControlService/GetStatus" => GetStatusRequest { run_id }.encode_to_vec(),
            "ControlService/Watch" => WatchRequest { run_id, since_seq: 0 }.encode_to_vec(),
            "ControlService/TailLogs" => {
                TailLogsRequest { run_id, follow: true, ..Default::default() }.encode_to_vec()
            }
            "ControlService/Pause" | "ControlService/Resume" => command,
            "ControlService/Stop" => StopRequest { run_id, kill: true, ..Default::default() }.encode_to_vec(),
            "ControlService/CheckpointNow" => {
                CheckpointNowRequest { run_id, ..Default::default() }.encode_to_vec()
            }
            "ControlService/ListCheckpoints" => ListCheckpointsRequest { run_id }.encode_to_vec(),
            "ControlService/VerifyCheckpoint" => VerifyCheckpointRequest { run_id, step }.encode_to_vec(),
            "AgentService/Session" => {
                let hello = AgentHello { secret: vec![3; 16], ..hello("intruder", 4) };
                AgentUp { message: Some(agent_up::Message::Hello(hello)) }.encode_to_vec()
            }
            "WorkerService/Attach" => {
                let data_address = "127.0.0.1:9".to_owned();
                AttachRequest { protocol: PROTOCOL, fence, worker, data_address, pid: 666 }.encode_to_vec()
            }
            "WorkerService/Session" => {
                let finished = Finished { step: 9, stopped_early: false };
                let message = Some(worker_up::Message::Finished(finished));
                WorkerUp { fence, worker, message }.encode_to_vec()
            }
            "CheckpointService/Begin" => {
                let of_step = 9;
                let request =
                    BeginCheckpointRequest { fence, step: of_step, n_shards: 2, ..Default::default() };
                request.encode_to_vec()
            }
            "CheckpointService/PutShard" => {
                let messages = shard(speaker.fence.clone(), &checkpoint_id, shard_index, CONFIG.as_bytes());
                let messages = messages.into_iter().map(|message| PutShardMessage { message: Some(message) });
                return messages.map(|message| message.encode_to_vec()).collect();
            }
            "CheckpointService/Commit" => CommitCheckpointRequest { fence, checkpoint_id }.encode_to_vec(),
            "CheckpointService/Abort" => AbortCheckpointRequest { fence, checkpoint_id }.encode_to_vec(),
            "CheckpointService/Get" => GetCheckpointRequest { fence, step }.encode_to_vec(),
            "CheckpointService/GetShard" => {
                GetShardRequest { fence, step, shard: shard_index, images: false }.encode_to_vec()
            }
            "Health/Check" | "Health/Watch" => Vec::new(),
            reflection if reflection.ends_with("ServerReflection/ServerReflectionInfo") => Vec::new(),
            other => panic!("no message for {other}"),
        };
        vec![one]
    }
}
