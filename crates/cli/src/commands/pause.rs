//! `himpun pause`: the run waits between two steps, its workers and their memory kept.

use clap::Args;

use crate::client::{Client, call, command};
use crate::commands::RunArguments;
use crate::failure::{Exit, Failure};
use crate::output;

/// Pause a run at its next step boundary; its workers stay
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: RunArguments,
}

/// Gives the order.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let mut client = Client::connect(&arguments.target.coordinator).await?;
    let run_id = client.status(&arguments.target.run).await?.run_id;
    call(client.control.pause(command(&run_id))).await?;
    output::note(&format!("run {run_id} will pause at its next step boundary"));
    Ok(Exit::DONE)
}
