//! One file per command: its arguments, and what it does with them.

pub mod agent;
pub mod bench;
pub mod certs;
pub mod checkpoint;
pub mod completions;
pub mod coordinator;
pub mod data;
pub mod doctor;
pub mod embed;
pub mod eval;
pub mod export;
pub mod logs;
pub mod pause;
pub mod presets;
pub mod resume;
pub mod runs;
pub mod status;
pub mod stop;
pub mod submit;
pub mod train;
pub mod watch;
pub mod worker;

use anyhow::Context as _;
use clap::Args;
use std::future::Future;

use crate::client::CoordinatorArgument;
use crate::failure::{Exit, Failure};

/// Which run of which coordinator.
#[derive(Args, Clone, Debug)]
pub struct RunArguments {
    /// The run's id, or the beginning of it; the newest run if left out
    #[arg(value_name = "RUN", default_value = "", hide_default_value = true)]
    pub run: String,
    #[command(flatten)]
    coordinator: CoordinatorArgument,
}

/// Runs a command that speaks to others.
pub fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Runtime::new().context("start the threads that serve connections")?;
    let outcome = runtime.block_on(command);
    // A connection that does not close must not keep a finished command.
    runtime.shutdown_background();
    outcome
}
