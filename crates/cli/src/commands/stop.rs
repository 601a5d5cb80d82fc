//! `himpun stop`: the run ends with a checkpoint.

use clap::Args;
use proto::v1::StopRequest;

use crate::client::{Client, actor, call, idempotency_key};
use crate::commands::RunArguments;
use crate::failure::{Exit, Failure};
use crate::output;

/// End a run at its next step boundary, with a checkpoint from which it can go on
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: RunArguments,
    /// Kill the workers at once; what was learned since the last checkpoint is lost
    #[arg(long)]
    kill: bool,
}

/// Gives the order.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let mut client = Client::connect(&arguments.target.coordinator).await?;
    let run_id = client.status(&arguments.target.run).await?.run_id;
    call(client.control.stop(request(&run_id, arguments.kill))).await?;
    let how =
        if arguments.kill { "was killed" } else { "will stop at its next step boundary, with a checkpoint" };
    output::note(&format!("run {run_id} {how}"));
    Ok(Exit::DONE)
}

/// The order to stop.
pub fn request(run_id: &str, kill: bool) -> StopRequest {
    StopRequest { run_id: run_id.to_owned(), idempotency_key: idempotency_key(), actor: actor(), kill }
}
