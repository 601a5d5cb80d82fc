//! `himpun runs`: one line a run.

use clap::Args;
use proto::v1::{ListRunsRequest, RunStatus};
use serde_json::Value;

use crate::client::{Client, CoordinatorArgument, call};
use crate::failure::{Exit, Failure};
use crate::{output, run_state};

/// List the coordinator's runs
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    coordinator: CoordinatorArgument,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

/// Prints the runs, oldest first.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let mut client = Client::connect(&arguments.coordinator).await?;
    let runs = call(client.control.list_runs(ListRunsRequest {})).await?.runs;
    if arguments.json {
        output::json(&runs.iter().map(run_state::to_json).collect::<Vec<Value>>());
    } else if runs.is_empty() {
        output::note("no runs yet");
    } else {
        let mut rows = vec![["run", "state", "step", "loss", "kNN", "directory"].map(str::to_owned).to_vec()];
        rows.extend(runs.iter().map(row));
        output::data(&output::table(&rows));
    }
    Ok(Exit::DONE)
}

fn row(run: &RunStatus) -> Vec<String> {
    vec![
        run.run_id.clone(),
        run_state::name(run.state).to_owned(),
        format!("{}/{}", run.step, run.total_steps),
        if run.step > 0 { format!("{:.4}", run.loss) } else { "-".to_owned() },
        run.knn_top1.map_or("-".to_owned(), |top1| format!("{:.1} %", 100.0 * top1)),
        run.run_dir.clone(),
    ]
}
