//! One per node: spawns and supervises workers.
//!
//! The agent keeps a session with the coordinator, starts a worker process for every assignment it is
//! sent, ships what the workers write, and reports how they end. It outlives its workers; they never
//! outlive it. A lost coordinator is no reason to end a worker: the group trains on without one until its
//! own `cluster.orphan_ttl`.
//!
//! It does not know the engine, nor what a run trains. Start with `session` (what is heard and said),
//! then `supervise` (which workers there are), `process` (one worker's life) and `spawn` (how a process
//! is made that cannot outlive its agent).

mod backoff;
mod cores;
mod error;
mod lines;
mod process;
mod session;
mod spawn;
mod supervise;

use identity::Access;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

pub use cores::available_cores;
pub use error::Error;

/// What an agent is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The coordinator, "host:port".
    pub coordinator: String,
    /// How this agent proves itself to it.
    pub access: Access,
    /// Names this agent among all others; the same again after a restart.
    pub agent_id: String,
    /// Name of the node, for people.
    pub host: String,
    /// Workers that may run here at once.
    pub slots: u32,
    /// Cores shared out among the slots, as [`available_cores`] gives them.
    pub cores: Vec<usize>,
    /// Where this node has data that the configuration names elsewhere, as `OLD=NEW`.
    pub data_roots: Vec<String>,
    /// The `himpun` binary that workers are started from.
    pub program: PathBuf,
}

/// What an agent left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// No worker ran here.
    Nothing,
    /// Workers were ended before they had ended by themselves: their runs failed.
    Workers,
}

/// Serves the coordinator until `shutdown`, then ends this agent's workers and returns.
///
/// # Errors
/// If the coordinator refuses this agent, or the node cannot spawn at all. An unreachable coordinator is
/// none: the agent keeps trying.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<Left, Error> {
    let (mut supervisor, mut logs) = supervise::Supervisor::new(&options)?;
    let outcome = session::serve(&options, &mut supervisor, &mut logs, &shutdown).await;
    supervisor.finish().await;
    outcome.map(|()| supervisor.left())
}
