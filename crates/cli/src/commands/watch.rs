//! `himpun watch`: a run's events as they happen.

use clap::Args;
use proto::v1::{Event, Severity, event};
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::commands::RunArguments;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{follow, output, run_state};

/// Follow a run until it ends; the run goes on when this is interrupted
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: RunArguments,
    /// Print one JSON object for each event
    #[arg(long)]
    json: bool,
}

/// Shows events until the run ends.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let mut client = Client::connect(&arguments.target.coordinator).await?;
    let run_id = client.status(&arguments.target.run).await?.run_id;
    if arguments.json {
        let mut events = follow::Events::open(&mut client, &run_id).await?;
        while let Some(event) = events.next().await? {
            output::json(&to_json(&event));
        }
    } else {
        follow::to_end(&mut client, &run_id, &mut Progress::of_watching()).await?;
    }
    Ok(Exit::DONE)
}

fn to_json(event: &Event) -> Value {
    let mut object = Map::new();
    let severity = match Severity::try_from(event.severity) {
        Ok(Severity::Error) => "error",
        Ok(Severity::Warn) => "warn",
        _ => "info",
    };
    let common = json!({
        "seq": event.seq,
        "time_ns": event.time_ns,
        "generation": event.generation,
        "severity": severity,
        "text": event.text,
    });
    let (kind, detail) = match &event.kind {
        None => ("notice", json!({})),
        Some(event::Kind::State(state)) => {
            ("state", json!({ "state": run_state::name(state.state), "reason": state.reason }))
        }
        Some(event::Kind::Metrics(row)) => ("metrics", crate::progress::row_to_json(row)),
        Some(event::Kind::Member(member)) => (
            "member",
            json!({
                "rank": member.rank,
                "worker": member.worker.as_ref().map(ToString::to_string),
                "change": member.change,
            }),
        ),
        Some(event::Kind::Checkpoint(checkpoint)) => (
            "checkpoint",
            json!({ "step": checkpoint.step, "path": checkpoint.path, "bytes": checkpoint.bytes }),
        ),
        Some(event::Kind::Command(command)) => {
            ("command", json!({ "command": command.command, "actor": command.actor }))
        }
        Some(event::Kind::Ended(ended)) => (
            "ended",
            json!({
                "state": run_state::name(ended.state),
                "exit_code": ended.exit_code,
                "error": ended.error,
                "hint": ended.hint,
                "log_tail": ended.log_tail,
            }),
        ),
    };
    object.insert("kind".to_owned(), Value::String(kind.to_owned()));
    for part in [common, detail] {
        if let Value::Object(part) = part {
            object.extend(part);
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Metric, MetricRow, metric};

    #[test]
    fn a_row_of_metrics_is_one_flat_object() {
        let metrics = MetricRow {
            step: 4,
            values: vec![Metric { name: "loss".into(), value: Some(metric::Value::Number(0.5)) }],
        };
        let event = Event {
            seq: 9,
            time_ns: 1,
            generation: 2,
            severity: 1,
            text: "step 4".into(),
            kind: Some(event::Kind::Metrics(metrics)),
        };
        assert_eq!(
            to_json(&event).to_string(),
            r#"{"kind":"metrics","seq":9,"time_ns":1,"generation":2,"severity":"info","text":"step 4","step":4,"loss":0.5}"#
        );
    }
}
