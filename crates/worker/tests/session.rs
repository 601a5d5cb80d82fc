//! A worker's session against a coordinator that is only its ear and mouth.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use collective::AbortHandle;
use identity::{Access, Credentials, Guard, Role, Secret};
use proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use proto::v1::{
    Abort, Assign, AttachRequest, AttachResponse, Failed, Fence, MetricRow, Order, Phase, Ready, WorkerDown,
    WorkerId, WorkerUp, order, worker_down, worker_up,
};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use worker::session::{self, Error, Identity, Session};

const PATIENCE: Duration = Duration::from_secs(20);

type Down = tokio::sync::mpsc::Sender<Result<WorkerDown, Status>>;

/// What a stream says first, then everything that comes up it.
enum Heard {
    Opened(Down),
    Up(WorkerUp),
    Closed,
}

struct Ear(Sender<Heard>);

#[tonic::async_trait]
impl WorkerService for Ear {
    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let request = request.into_inner();
        let refusal = match request.fence {
            Some(theirs) if theirs == fence(1) => Some(("stale_fence", "generation 1 is over")),
            Some(theirs) if theirs == fence(3) => Some(("protocol_mismatch", "protocol 9 is spoken here")),
            _ => None,
        };
        if let Some((reason, message)) = refusal {
            return Err(proto::Refusal {
                code: tonic::Code::FailedPrecondition,
                message: message.into(),
                reason: reason.into(),
                retryable: false,
                hint: String::new(),
                current_generation: 2,
            }
            .into());
        }
        Ok(Response::new(AttachResponse { config_toml: format!("# {}", request.data_address) }))
    }

    type SessionStream = ReceiverStream<Result<WorkerDown, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (down, messages) = tokio::sync::mpsc::channel(16);
        let heard = self.0.clone();
        heard.send(Heard::Opened(down)).unwrap();
        let mut up = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                heard.send(Heard::Up(message)).unwrap();
            }
            heard.send(Heard::Closed).ok();
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Of the one worker here.
const SECRET: Secret<16> = Secret([7; 16]);

struct Coordinator {
    address: String,
    credentials: Credentials,
    heard: Receiver<Heard>,
    // Ends the server when the test ends.
    _runtime: Runtime,
}

impl Coordinator {
    fn start() -> Coordinator {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, heard) = channel();
        let credentials = Credentials::ephemeral().unwrap();
        let guard = Guard::new(&credentials, None, Arc::new(|_: &str| SECRET)).unwrap();
        let entered = runtime.enter();
        let incoming = identity::incoming(listener, guard, |_| {}, Default::default());
        let server = proto::transport::server()
            .add_service(WorkerServiceServer::new(Ear(sender)))
            .serve_with_incoming(incoming);
        runtime.spawn(server);
        drop(entered);
        Coordinator { address, credentials, heard, _runtime: runtime }
    }

    fn identity(&self, generation: u64) -> Identity {
        let worker = WorkerId { agent_id: "a".into(), slot: 0, nonce: "n".into() };
        let trust = Access::Token(self.credentials.access(Role::Agent)).trust(&self.address).unwrap();
        let access = Access::Worker { trust, nonce: worker.nonce.clone(), secret: SECRET };
        Identity { coordinator: self.address.clone(), fence: fence(generation), worker, access }
    }

    /// An open session as rank 0 of one, and the stream to tell it things.
    fn session(&self, orphan_ttl: Duration) -> (Session, AbortHandle, Down) {
        let attached = session::attach(self.identity(2), "here:1".into()).unwrap();
        assert_eq!(attached.config_toml, "# here:1");
        let abort = AbortHandle::new().unwrap();
        let handle = abort.clone();
        let open = std::thread::spawn(move || attached.open(handle, orphan_ttl));
        let down = self.opened();
        let assign = Assign {
            rank: 0,
            world_size: 1,
            peers: vec!["here:1".into()],
            checkpoint_step: Some(7),
            ..Assign::default()
        };
        tell(&down, worker_down::Message::Assign(assign.clone()));
        let (session, dealt) = open.join().unwrap().unwrap();
        assert_eq!(dealt, assign);
        (session, abort, down)
    }

    fn next(&self) -> Heard {
        self.heard.recv_timeout(PATIENCE).expect("something is heard in time")
    }

    /// Skips to the next stream.
    fn opened(&self) -> Down {
        loop {
            if let Heard::Opened(down) = self.next() {
                return down;
            }
        }
    }

    /// Skips heartbeats.
    fn message(&self) -> worker_up::Message {
        loop {
            match self.next() {
                Heard::Up(WorkerUp { message: Some(worker_up::Message::Heartbeat(_)), .. }) => {}
                Heard::Up(up) => {
                    assert_eq!(up.fence, Some(fence(2)));
                    return up.message.unwrap();
                }
                Heard::Opened(_) | Heard::Closed => panic!("the stream changed"),
            }
        }
    }
}

fn fence(generation: u64) -> Fence {
    Fence { run_id: "r".into(), incarnation: 1, generation }
}

fn tell(down: &Down, message: worker_down::Message) {
    down.blocking_send(Ok(WorkerDown { fence: Some(fence(2)), message: Some(message) })).unwrap();
}

/// What a connection that breaks looks like from the stream.
fn break_off(down: &Down) {
    down.blocking_send(Err(Status::unavailable("the connection broke"))).unwrap();
}

fn wait_until(condition: impl Fn() -> bool) {
    let begun = std::time::SystemTime::now();
    while !condition() {
        assert!(begun.elapsed().unwrap() < PATIENCE, "in time");
        std::thread::yield_now();
    }
}

#[test]
fn orders_arrive_and_everything_said_is_delivered_before_the_close() {
    let coordinator = Coordinator::start();
    let (session, abort, down) = coordinator.session(Duration::ZERO);
    let pause = Order { kind: order::Kind::Pause.into(), command_id: "c".into() };
    tell(&down, worker_down::Message::Order(pause.clone()));
    assert_eq!(session.wait_orders(PATIENCE), [pause]);
    assert_eq!(session.orders(), []);

    for step in 0..500 {
        session.metrics(MetricRow { step, values: Vec::new() });
    }
    session.failed(Failed { exit_code: 3, error: "diverged".into(), hint: String::new(), peer: false });
    let closing = std::thread::spawn(move || session.close());
    for step in 0..500 {
        assert_eq!(
            coordinator.message(),
            worker_up::Message::Metrics(MetricRow { step, values: Vec::new() })
        );
    }
    assert!(matches!(coordinator.message(), worker_up::Message::Failed(failed) if failed.exit_code == 3));
    // As the coordinator does: it closes its side once the worker's is read to its end.
    while !matches!(coordinator.next(), Heard::Closed) {}
    drop(down);
    closing.join().unwrap();
    assert!(!abort.is_aborted());
}

#[test]
fn heartbeats_say_where_training_is() {
    let coordinator = Coordinator::start();
    // Dropping the stream's other end would end the run.
    let (session, _, _down) = coordinator.session(Duration::ZERO);
    session.progress(Phase::Training, 41, 1234);
    loop {
        if let Heard::Up(WorkerUp { message: Some(worker_up::Message::Heartbeat(beat)), .. }) =
            coordinator.next()
        {
            let progress = beat.progress.unwrap();
            if progress.step == 41 {
                assert_eq!((progress.phase(), progress.collective_seq), (Phase::Training, 1234));
                break;
            }
        }
    }
}

#[test]
fn an_abort_frees_the_group_and_an_older_one_does_not() {
    let coordinator = Coordinator::start();
    let (session, abort, down) = coordinator.session(PATIENCE);
    let message = |reason: &str| worker_down::Message::Abort(Abort { reason: reason.into() });
    let old = WorkerDown { fence: Some(fence(1)), message: Some(message("old")) };
    down.blocking_send(Ok(old)).unwrap();
    tell(&down, message("rank 3 is gone"));
    wait_until(|| abort.is_aborted());
    assert_eq!(session.check().unwrap_err().to_string(), "told to abort: rank 3 is gone");
}

#[test]
fn a_lost_coordinator_ends_the_group_when_orphan_ttl_is_over() {
    let coordinator = Coordinator::start();
    let (session, abort, down) = coordinator.session(Duration::ZERO);
    assert!(session.check().is_ok());
    break_off(&down);
    wait_until(|| abort.is_aborted());
    assert!(matches!(session.check(), Err(Error::Lost { .. })));
    // A paused group does not wait for orders that cannot come.
    assert_eq!(session.wait_orders(PATIENCE), []);
}

#[test]
fn the_end_of_the_run_breaks_no_collective_that_is_under_way() {
    let coordinator = Coordinator::start();
    let (session, abort, down) = coordinator.session(PATIENCE);
    drop(down);
    wait_until(|| session.check().is_err());
    assert!(matches!(session.check(), Err(Error::Ended)));
    assert!(!abort.is_aborted());
    session.close();
}

#[test]
fn a_coordinator_that_comes_back_in_time_hears_what_was_said_meanwhile() {
    let coordinator = Coordinator::start();
    let (session, abort, down) = coordinator.session(PATIENCE);
    session.ready(7, 9, 11);
    let ready = worker_up::Message::Ready(Ready { step: 7, total_steps: 9, shard_bytes: 11 });
    assert_eq!(coordinator.message(), ready);
    break_off(&down);
    loop {
        if matches!(coordinator.next(), Heard::Closed) {
            break;
        }
    }
    session.metrics(MetricRow { step: 9, values: Vec::new() });
    let down = coordinator.opened();
    // That the group is formed is said in every stream: a run waits for it, and the first may have lost it.
    assert_eq!(coordinator.message(), ready);
    assert_eq!(coordinator.message(), worker_up::Message::Metrics(MetricRow { step: 9, values: Vec::new() }));
    assert!(session.check().is_ok() && !abort.is_aborted());
    drop(down);
}

#[test]
fn a_worker_of_an_older_generation_is_refused_and_one_without_a_coordinator_says_so() {
    let coordinator = Coordinator::start();
    let error = session::attach(coordinator.identity(1), "here:1".into()).err().unwrap();
    assert!(error.to_string().ends_with("refused: generation 1 is over"), "{error}");
    assert_eq!(error.exit_code(), 75);
    let error = session::attach(coordinator.identity(3), "here:1".into()).err().unwrap();
    assert!(error.to_string().ends_with("refused: protocol 9 is spoken here"), "{error}");
    assert_eq!(error.exit_code(), 2);
    // The trust in another coordinator's key: this one is told nothing.
    let other = Coordinator { address: coordinator.address.clone(), ..Coordinator::start() };
    let error = session::attach(other.identity(2), "here:1".into()).err().unwrap();
    assert!(error.to_string().contains("is not the coordinator that these credentials are for"), "{error}");
    assert!(error.is_transient() && error.exit_code() == 2, "a worker that has trained waits for its own");
    let nobody = Identity { coordinator: "127.0.0.1:1".into(), ..coordinator.identity(2) };
    let error = session::attach(nobody, "here:1".into()).err().unwrap();
    assert!(error.is_transient() && error.to_string().contains("127.0.0.1:1"), "{error}");
}
