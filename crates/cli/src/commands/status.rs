//! `himpun status`: one screen about one run.

use clap::Args;
use proto::v1::RunStatus;

use crate::client::Client;
use crate::commands::RunArguments;
use crate::failure::{Exit, Failure};
use crate::{output, progress, run_state};

/// Show the state of a run: where it is, why, and who takes part
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: RunArguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the run's state.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let mut client = Client::connect(&arguments.target.coordinator).await?;
    let status = client.status(&arguments.target.run).await?;
    if arguments.json {
        output::json(&run_state::to_json(&status));
    } else {
        output::data(&screen(&status));
    }
    Ok(Exit::DONE)
}

fn screen(status: &RunStatus) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(vec![name.to_owned(), value]);
    line("run", status.run_id.clone());
    line("directory", status.run_dir.clone());
    let reason = if status.reason.is_empty() { String::new() } else { format!(" ({})", status.reason) };
    line("state", format!("{}{reason}", run_state::name(status.state)));
    line("workers", format!("{}, generation {}", status.world_size, status.generation));
    if status.total_steps > 0 {
        let percent = 100.0 * status.step as f64 / status.total_steps as f64;
        line(
            "step",
            format!("{} of {} ({percent:.1} %), epoch {:.2}", status.step, status.total_steps, status.epoch),
        );
    }
    if status.step > 0 {
        line("loss", format!("{:.4} (chance {:.4})", status.loss, status.chance_loss));
        line("speed", format!("{:.1} images/s, {:.1} views/s", status.images_per_s, status.views_per_s));
    }
    if let Some(top1) = status.knn_top1 {
        line("kNN", format!("{:.1} %", 100.0 * top1));
    }
    if status.step > 0 && !run_state::is_over(status.state) {
        line("eta", progress::duration(status.eta_seconds.max(0.0).round() as u64));
    }
    if !status.last_checkpoint.is_empty() {
        line("checkpoint", status.last_checkpoint.clone());
    }
    if let Some(code) = status.exit_code {
        line("exit code", code.to_string());
    }
    let mut text = output::table(&lines);
    if !status.members.is_empty() {
        text.push_str("\n\n");
        text.push_str(&members(status));
    }
    text
}

fn members(status: &RunStatus) -> String {
    let mut rows = vec![["rank", "worker", "host", "pid", "phase", "step"].map(str::to_owned).to_vec()];
    rows.extend(status.members.iter().map(|member| {
        let progress = member.progress.unwrap_or_default();
        vec![
            member.rank.to_string(),
            member.worker.as_ref().map_or("-".to_owned(), ToString::to_string),
            member.host.clone(),
            member.pid.to_string(),
            run_state::phase(progress.phase).to_owned(),
            progress.step.to_string(),
        ]
    }));
    output::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Member, Progress, RunState, WorkerId};

    #[test]
    fn one_screen() {
        let member = Member {
            worker: Some(WorkerId { agent_id: "node-0".into(), slot: 1, nonce: "n".into() }),
            rank: 0,
            host: "node-0".into(),
            pid: 42,
            progress: Some(Progress { phase: 3, step: 5, collective_seq: 0, ns_in_phase: 0 }),
        };
        let status = RunStatus {
            run_id: "r1".into(),
            run_dir: "/runs/r1".into(),
            state: RunState::Running as i32,
            generation: 2,
            world_size: 1,
            step: 5,
            total_steps: 20,
            loss: 2.5,
            chance_loss: 3.25,
            images_per_s: 100.0,
            views_per_s: 200.0,
            eta_seconds: 75.0,
            members: vec![member],
            ..RunStatus::default()
        };
        assert_eq!(
            screen(&status),
            "run        r1\n\
             directory  /runs/r1\n\
             state      running\n\
             workers    1, generation 2\n\
             step       5 of 20 (25.0 %), epoch 0.00\n\
             loss       2.5000 (chance 3.2500)\n\
             speed      100.0 images/s, 200.0 views/s\n\
             eta        1m15s\n\n\
             rank  worker    host    pid  phase     step\n\
             0     node-0/1  node-0  42   training  5"
        );
    }
}
