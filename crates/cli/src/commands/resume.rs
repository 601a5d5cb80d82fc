//! `himpun resume`: a paused run goes on.

use clap::Args;

use crate::client::{Client, call, command};
use crate::commands::RunArguments;
use crate::failure::{Exit, Failure};
use crate::output;

/// Let a paused run go on (a run that has ended goes on with `train --resume` or `submit --resume`)
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: RunArguments,
}

/// Gives the order.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let mut client = Client::connect(&arguments.target.coordinator).await?;
    let run_id = client.status(&arguments.target.run).await?.run_id;
    call(client.control.resume(command(&run_id))).await?;
    output::note(&format!("run {run_id} goes on"));
    Ok(Exit::DONE)
}
