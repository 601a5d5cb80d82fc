//! The coordinator as a whole: store, owner and server, started and ended together.

use proto::transport;
use proto::v1::agent_service_server::AgentServiceServer;
use proto::v1::checkpoint_service_server::CheckpointServiceServer;
use proto::v1::control_service_server::ControlServiceServer;
use proto::v1::worker_service_server::WorkerServiceServer;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

use crate::Error;
use crate::checkpoints::Checkpoints;
use crate::owner::Owner;
use crate::service::agent::Agents;
use crate::service::control::Control;
use crate::service::sync::CheckpointSync;
use crate::service::worker::Workers;
use crate::state::SpawnKey;
use crate::store::Store;

/// How often the state hears that time passed: leases and patience are seconds.
const TICK: Duration = Duration::from_millis(100);

/// How long peers have to read what is queued for them when the coordinator ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a coordinator is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0: the system chooses.
    pub bind: SocketAddr,
    /// The coordinator's memory, and `runs/` below it. One coordinator at a time.
    pub dir: PathBuf,
    /// Listen for other machines although connections are neither encrypted nor authenticated.
    pub insecure: bool,
}

/// The coordinator.
pub struct Coordinator;

/// A coordinator that serves. Dropped, it ends without a farewell.
pub struct Running {
    address: SocketAddr,
    owner: Owner,
    shutdown: CancellationToken,
    tasks: JoinSet<Result<(), Error>>,
}

impl Coordinator {
    /// Takes up the runs found in `options.dir` and serves from then on.
    ///
    /// # Errors
    /// If another coordinator uses the directory, or the address cannot be bound or must not be.
    pub async fn start(options: Options) -> Result<Running, Error> {
        if !options.bind.ip().is_loopback() && !options.insecure {
            return Err(Error::Unprotected { address: options.bind });
        }
        let bind_error = |source| Error::Bind { address: options.bind, source };
        let listener = TcpListener::bind(options.bind).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;

        // Both block on the disk, once, before anybody is served.
        let (store, recovered) = Store::open(&options.dir)?;
        let dir = std::path::absolute(&options.dir).map_err(|source| Error::Io {
            what: "find the path of",
            path: options.dir.clone(),
            source,
        })?;
        let incarnation = recovered.incarnation;
        let checkpoints = Checkpoints::default();
        let spawn_key = SpawnKey::new(*blake3::hash(&random()).as_bytes());
        let (owner, ended) = Owner::start(store, recovered, checkpoints.clone(), spawn_key)
            .map_err(|source| Error::Io { what: "start a thread for", path: dir.clone(), source })?;
        tracing::info!(%address, dir = %dir.display(), incarnation, "coordinator started");

        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(tick(owner.clone(), shutdown.clone()));
        let owner_shutdown = shutdown.clone();
        tasks.spawn(async move {
            match ended.await {
                Ok(Ok(())) if owner_shutdown.is_cancelled() => Ok(()),
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(Error::Ended("owner")),
            }
        });
        let services =
            Services { owner: owner.clone(), checkpoints, dir, incarnation, shutdown: shutdown.clone() };
        tasks.spawn(services.serve(listener));
        Ok(Running { address, owner, shutdown, tasks })
    }
}

impl Running {
    /// Where it listens; the port is the one that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Aborts the runs that are active, tells everybody, and ends.
    ///
    /// # Errors
    /// If a part of the coordinator fails on the way.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        self.shutdown.cancel();
        // An owner that is gone already has told why, below.
        let told = self.owner.shut_down().await;
        if let Err(error) = &told {
            tracing::debug!(%error, "the owner had ended before");
        }
        let all_ended = async {
            let mut outcome = Ok(());
            while let Some(ended) = self.tasks.join_next().await {
                outcome = outcome.and(flatten(ended));
            }
            outcome
        };
        match tokio::time::timeout(FAREWELL, all_ended).await {
            Ok(outcome) => outcome,
            Err(_) => {
                tracing::debug!("connections were still open at the end");
                Ok(())
            }
        }
    }

    /// Waits for the end of a coordinator that should not end by itself, and says why it did.
    ///
    /// # Errors
    /// Always: the store failed, the server failed, or a part ended unexpectedly.
    pub async fn wait(&mut self) -> Result<(), Error> {
        match self.tasks.join_next().await {
            Some(ended) => flatten(ended).and(Err(Error::Ended("server"))),
            None => Err(Error::Ended("server")),
        }
    }
}

/// 244 random bits.
fn random() -> Vec<u8> {
    [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::into_bytes).concat()
}

fn flatten(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|_| Err(Error::Ended("task")))
}

async fn tick(owner: Owner, shutdown: CancellationToken) -> Result<(), Error> {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = ticks.tick() => owner.tick(),
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Everything that is served on one port.
struct Services {
    owner: Owner,
    checkpoints: Checkpoints,
    dir: PathBuf,
    incarnation: u64,
    shutdown: CancellationToken,
}

impl Services {
    async fn serve(self, listener: TcpListener) -> Result<(), Error> {
        let Services { owner, checkpoints, dir, incarnation, shutdown } = self;
        let limit = transport::MAX_MESSAGE_BYTES;
        let control = Control { owner: owner.clone(), dir, incarnation, shutdown: shutdown.clone() };
        let control = ControlServiceServer::new(control).max_decoding_message_size(limit);
        let agents = Agents { owner: owner.clone(), shutdown: shutdown.clone() };
        let agents = AgentServiceServer::new(agents).max_decoding_message_size(limit);
        let workers = Workers { owner: owner.clone(), shutdown: shutdown.clone() };
        let workers = WorkerServiceServer::new(workers).max_decoding_message_size(limit);
        let sync = CheckpointServiceServer::new(CheckpointSync { owner, checkpoints })
            .max_decoding_message_size(limit);

        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ControlServiceServer<Control>>().await;
        health.set_serving::<AgentServiceServer<Agents>>().await;
        health.set_serving::<WorkerServiceServer<Workers>>().await;
        health.set_serving::<CheckpointServiceServer<CheckpointSync>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("our own descriptors are well formed");

        transport::server()
            .add_service(health_service)
            .add_service(reflection)
            .add_service(control)
            .add_service(agents)
            .add_service(workers)
            .add_service(sync)
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                shutdown.cancelled_owned(),
            )
            .await
            .map_err(Error::Serve)
    }
}
