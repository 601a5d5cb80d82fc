//! The coordinator as a whole: store, owner and server, started and ended together.

use identity::authority::Folder;
use identity::{Access, Credentials, Encryption, Guard, Rejected, Role, Secret, keyring};
use proto::transport;
use proto::v1::agent_service_server::AgentServiceServer;
use proto::v1::checkpoint_service_server::CheckpointServiceServer;
use proto::v1::control_service_server::ControlServiceServer;
use proto::v1::worker_service_server::WorkerServiceServer;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::audit::{self, Audit};
use crate::checkpoints::Checkpoints;
use crate::owner::Owner;
use crate::service::agent::Agents;
use crate::service::control::Control;
use crate::service::gate::Gatekeeper;
use crate::service::places::Places;
use crate::service::sync::CheckpointSync;
use crate::service::worker::Workers;
use crate::state::SpawnKey;
use crate::store::Store;

/// How often the state hears that time passed: leases and patience are seconds.
const TICK: Duration = Duration::from_millis(100);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// How long peers have to read what is queued for them when the coordinator ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Largest message of health and reflection, which hold a name and repeat it in their refusals.
const NAME_BYTES: usize = 4096;

/// How a coordinator is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0: the system chooses.
    pub bind: SocketAddr,
    /// The coordinator's memory, and `runs/` below it. One coordinator at a time.
    pub dir: PathBuf,
    /// By what it proves itself, and knows its callers.
    pub identity: Identity,
    /// Below which operators that do not hold the coordinator's own token may name run directories, besides `dir`.
    pub allow_dirs: Vec<PathBuf>,
}

/// What a coordinator and its callers prove themselves by.
#[derive(Clone, Debug)]
pub enum Identity {
    /// By what lies in `dir/credentials`, made at the first start and entered in the user's home.
    Kept {
        /// Whether connections are encrypted; they are proven either way.
        encryption: Encryption,
        /// A folder of certificates to show, and to take callers' by, besides tokens.
        certificates: Option<PathBuf>,
    },
    /// By secrets that nobody but this process and its children has.
    Ephemeral,
}

/// The coordinator.
pub struct Coordinator;

/// A coordinator that serves. Dropped, it ends without a farewell.
pub struct Running {
    address: SocketAddr,
    owner: Owner,
    credentials: Credentials,
    entries: Option<keyring::Entries>,
    notes: Vec<String>,
    shutdown: CancellationToken,
    tasks: JoinSet<Result<(), Error>>,
}

impl Coordinator {
    /// Takes up the runs found in `options.dir` and serves from then on.
    ///
    /// # Errors
    /// If another coordinator uses the directory, the address cannot be bound, or credentials are not private.
    pub async fn start(options: Options) -> Result<Running, Error> {
        let bind_error = |source| Error::Bind { address: options.bind, source };
        let socket = bind(options.bind).map_err(bind_error)?;
        let address = socket.local_addr().map_err(bind_error)?;

        // All of this blocks on the disk, once, before anybody is served.
        let (store, recovered) = Store::open(&options.dir)?;
        let dir = std::path::absolute(&options.dir).map_err(|source| Error::Io {
            what: "find the path of",
            path: options.dir.clone(),
            source,
        })?;
        let spawn_key = SpawnKey::new(identity::random());
        let Identified { credentials, guard, audit } = identify(&options.identity, &dir, spawn_key.clone())?;
        let (entries, notes) = match options.identity {
            Identity::Ephemeral => (None, Vec::new()),
            Identity::Kept { .. } => enter(address, &credentials)?,
        };
        // Not before: who reaches the port finds the entry as well.
        let listener = socket.listen(BACKLOG).map_err(bind_error)?;
        let incarnation = recovered.incarnation;
        let checkpoints = Checkpoints::default();
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
        let places = Places { dir, allowed: options.allow_dirs };
        let keeper = Gatekeeper { guard, audit };
        let services = Services {
            owner: owner.clone(),
            checkpoints,
            places,
            incarnation,
            keeper,
            shutdown: shutdown.clone(),
        };
        tasks.spawn(services.serve(listener));
        Ok(Running { address, owner, credentials, entries, notes, shutdown, tasks })
    }
}

/// Takes the address; nobody is served there before it is listened at.
fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A coordinator that is started again does not wait for the connections of the one before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// What a coordinator knows itself and its callers by.
struct Identified {
    credentials: Credentials,
    guard: Guard,
    audit: Audit,
}

fn identify(identity: &Identity, dir: &Path, spawn_key: SpawnKey) -> Result<Identified, Error> {
    let workers = Arc::new(move |nonce: &str| Secret(spawn_key.worker_secret(nonce)));
    match identity {
        Identity::Ephemeral => {
            let credentials = Credentials::ephemeral()?;
            let guard = Guard::new(&credentials, None, workers)?;
            Ok(Identified { credentials, guard, audit: Audit::none() })
        }
        Identity::Kept { encryption, certificates } => {
            let shown =
                certificates.as_deref().map(|folder| Folder::new(folder).fingerprint()).transpose()?;
            let credentials = Credentials::open(dir, *encryption, shown)?;
            let guard = Guard::new(&credentials, certificates.clone(), workers)?;
            Ok(Identified { credentials, guard, audit: Audit::open(dir)? })
        }
    }
}

/// Enters the coordinator in its user's home. Without one it serves all the same, and says which file to copy.
fn enter(
    address: SocketAddr,
    credentials: &Credentials,
) -> Result<(Option<keyring::Entries>, Vec<String>), Error> {
    match keyring::enter(address, &credentials.access(Role::Admin)) {
        Ok(entries) => Ok((Some(entries), Vec::new())),
        Err(error @ (identity::Error::Io { .. } | identity::Error::NoHome)) => {
            let file = credentials.file(Role::Admin).unwrap_or_default();
            let note = format!(
                "{}: commands and agents need --token-file {} or a copy of it",
                proto::one_line(&error),
                file.display()
            );
            Ok((None, vec![note]))
        }
        Err(error) => Err(error.into()),
    }
}

impl Running {
    /// Where it listens; the port is the one that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client of this process proves itself by in a role.
    pub fn access(&self, role: Role) -> Access {
        Access::Token(self.credentials.access(role))
    }

    /// What whoever started it should know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Aborts the runs that are active, tells everybody, and ends.
    ///
    /// # Errors
    /// If a part of the coordinator fails on the way.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        self.shutdown.cancel();
        if let Some(entries) = &self.entries {
            entries.remove();
        }
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
    places: Places,
    incarnation: u64,
    keeper: Gatekeeper,
    shutdown: CancellationToken,
}

impl Services {
    async fn serve(self, listener: TcpListener) -> Result<(), Error> {
        let Services { owner, checkpoints, places, incarnation, keeper, shutdown } = self;
        let limit = transport::MAX_MESSAGE_BYTES;
        let control = Control {
            owner: owner.clone(),
            places: Arc::new(places),
            incarnation,
            shutdown: shutdown.clone(),
        };
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
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let well_formed = "our own descriptors are well formed";

        let audit = keeper.audit.clone();
        let rejected = move |Rejected { address: from, reason }| {
            let (who, role, what) = ("nobody", "nobody", "connection");
            audit.write(&audit::Entry { who, role, from, what, outcome: &reason });
        };
        let incoming = identity::incoming(listener, keeper.guard.clone(), rejected, shutdown.clone());
        transport::server()
            .layer(keeper)
            .add_service(health_service.max_decoding_message_size(NAME_BYTES))
            .add_service(reflection().build_v1().expect(well_formed).max_decoding_message_size(NAME_BYTES))
            // Many clients know the older name of the same service only.
            .add_service(
                reflection().build_v1alpha().expect(well_formed).max_decoding_message_size(NAME_BYTES),
            )
            .add_service(control)
            .add_service(agents)
            .add_service(workers)
            .add_service(sync)
            .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
            .await
            .map_err(Error::Serve)
    }
}
