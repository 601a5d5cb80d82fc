//! `himpun agent`: runs a node's workers.

use anyhow::Context as _;
use clap::Args;
use config::DataRoot;
use identity::Role;
use tokio_util::sync::CancellationToken;

use crate::client::CoordinatorArgument;
use crate::failure::{Exit, Failure};
use crate::signals;

/// Join a coordinator as a node: spawn and supervise its workers here
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    coordinator: CoordinatorArgument,
    /// This agent's name among all others, the same after a restart [default: the host's name]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Workers that may run here at once; they share the cores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    slots: u32,
    /// Read what a run's configuration names below OLD below NEW: for data that this node has elsewhere
    #[arg(long, value_name = "OLD=NEW")]
    data_root: Vec<DataRoot>,
}

/// Serves until a signal asks it to end, then ends its workers and itself. A run that was cut short is to be tried again.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let host = host_name()?;
    let access = arguments.coordinator.access(Role::Agent)?;
    let options = agent::Options {
        access,
        coordinator: arguments.coordinator.coordinator,
        agent_id: arguments.id.unwrap_or_else(|| host.clone()),
        host,
        slots: arguments.slots,
        cores: agent::available_cores(),
        data_roots: arguments.data_root.iter().map(DataRoot::to_string).collect(),
        program: std::env::current_exe().context("failed to find this program's own file")?,
    };
    let mut signals = signals::Signals::install()?;
    let shutdown = CancellationToken::new();
    let serving = agent::run(options, shutdown.clone());
    tokio::pin!(serving);
    let left = tokio::select! {
        outcome = &mut serving => outcome?,
        _ = signals.next() => {
            shutdown.cancel();
            serving.await?
        }
    };
    Ok(match left {
        agent::Left::Nothing => Exit::DONE,
        agent::Left::Workers => Exit::TRY_AGAIN,
    })
}

/// The name of this machine.
pub fn host_name() -> Result<String, Failure> {
    let name = nix::unistd::gethostname().context("failed to read the host's name")?;
    Ok(name.to_string_lossy().into_owned())
}
