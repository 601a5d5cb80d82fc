//! From the command line to the last step: what `himpun worker` does.

use ::identity::{Access, Spawn};
use collective::AbortHandle;
use config::{DataRoot, RunConfig};
use kernels::{CpuOptions, DeviceOptions, KernelPath};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use proto::v1::{Failed, Fence, Phase, WorkerId};

use crate::session::{self, Identity, Session};
use crate::train::{Resources, Start};
use crate::{Error, group, train};

/// What an agent starts a worker with.
#[derive(Debug)]
pub struct Options {
    /// The coordinator, "host:port".
    pub coordinator: String,
    /// The run.
    pub run_id: String,
    /// The coordinator's incarnation.
    pub incarnation: u64,
    /// The run's membership.
    pub generation: u64,
    /// The agent that started it.
    pub agent_id: String,
    /// The device slot on that agent's node.
    pub slot: u32,
    /// Tells this process from its predecessors.
    pub nonce: String,
    /// Compute threads.
    pub threads: usize,
    /// Cores it may run on; empty: any.
    pub cores: Vec<usize>,
    /// Where this node has what the configuration names elsewhere.
    pub data_roots: Vec<DataRoot>,
    /// What it knows the coordinator by, and proves itself by.
    pub spawn: Spawn,
    /// Workers that were started on this node together, at least 1: each may take its part of the memory.
    pub share: u64,
}

/// Runs a worker to its end and returns the process's exit code.
pub fn run(options: Options) -> i32 {
    match work(options) {
        Ok(()) => 0,
        Err(error) if error.is_peer() => {
            // The cause is in another process, whose own report names it.
            tracing::warn!("worker ends: {}", proto::one_line(&error));
            error.exit_code()
        }
        Err(error) => {
            tracing::error!("worker failed: {}", proto::one_line(&error));
            error.exit_code()
        }
    }
}

fn work(options: Options) -> Result<(), Error> {
    let Options { coordinator, run_id, incarnation, generation, agent_id, slot, nonce, threads, .. } =
        options;
    let Options { cores, data_roots, share, spawn: Spawn { trust, secret }, .. } = options;
    // Measured before a group forms, so that no worker of this node has taken its part yet.
    let data_bytes = data::memory::available() / share.max(1);
    // Every thread of this process stays on its cores; those of the pool are each pinned to one.
    confine(&cores)?;
    let fence = Fence { run_id, incarnation, generation };
    let listener = group::listen(&coordinator)?;
    let access = Access::Worker { trust, nonce: nonce.clone(), secret };
    let identity = Identity { coordinator, fence, worker: WorkerId { agent_id, slot, nonce }, access };
    let attached = session::attach(identity, listener.address().to_string())?;
    let mut config = RunConfig::from_toml(&attached.config_toml)?;
    let credentials = group::credentials(&config)?;
    config::relocate(&mut config, &data_roots);
    let abort = AbortHandle::new()?;
    let (session, assign) = attached.open(abort.clone(), config.cluster.orphan_ttl)?;

    session.progress(Phase::Forming, 0, 0);
    let resumed = assign.checkpoint_step.is_some();
    let outcome = group::form(listener, session.fence(), &assign, credentials, &abort).and_then(|group| {
        let cpu = CpuOptions { threads, cores, path: KernelPath::detect() };
        let resources = Resources { device: DeviceOptions::Cpu(cpu), data_bytes };
        let start =
            Start { checkpoint: assign.checkpoint_step, accept_changed_data: assign.accept_changed_data };
        train::train(&session, &config, &resources, group, start)
    });
    if let Err(error) = &outcome {
        let hint = if resumed { error.hint_on_resume() } else { error.hint() };
        report(&session, error, hint);
    }
    session.close();
    outcome
}

fn report(session: &Session, error: &Error, hint: Option<String>) {
    session.failed(Failed {
        exit_code: error.exit_code(),
        error: proto::one_line(error),
        hint: hint.unwrap_or_default(),
        peer: error.is_peer(),
    });
}

fn confine(cores: &[usize]) -> Result<(), trainer::Error> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    let outcome = cores
        .iter()
        .try_for_each(|&core| set.set(core))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    outcome.map_err(|errno| trainer::Error::System {
        what: "keep to the cores of this worker",
        source: errno.into(),
    })
}
