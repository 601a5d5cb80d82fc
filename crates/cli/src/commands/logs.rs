//! `himpun logs`: what the workers wrote.

use clap::Args;
use proto::v1::TailLogsRequest;

use crate::client::{Client, call};
use crate::commands::RunArguments;
use crate::failure::{Exit, Failure};
use crate::output;

/// Print the workers' log lines, each with its rank
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: RunArguments,
    /// Only this rank's lines
    #[arg(long)]
    rank: Option<u32>,
    /// Go on until the run ends
    #[arg(long, short)]
    follow: bool,
    /// The last so many lines of each worker; 0: all that is kept
    #[arg(long, short = 'n', default_value_t = 0, value_name = "N")]
    lines: u32,
}

/// Prints the lines as they come.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let mut client = Client::connect(&arguments.target.coordinator).await?;
    let request = TailLogsRequest {
        run_id: client.status(&arguments.target.run).await?.run_id,
        rank: arguments.rank,
        follow: arguments.follow,
        lines: arguments.lines,
    };
    let mut lines = call(client.control.tail_logs(request)).await?;
    while let Some(line) = lines.message().await? {
        output::data(&format!("[{}] {}", line.rank, line.line));
    }
    Ok(Exit::DONE)
}
