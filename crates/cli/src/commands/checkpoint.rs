//! `himpun checkpoint now|list|verify`.

use anyhow::anyhow;
use checkpoint::Directory;
use clap::{Args, Subcommand};
use proto::v1::{CheckpointInfo, CheckpointNowRequest, ListCheckpointsRequest, VerifyCheckpointRequest};
use serde_json::{Value, json};
use std::path::Path;

use crate::client::{Client, actor, call, idempotency_key};
use crate::commands::RunArguments;
use crate::failure::{Exit, Failure};
use crate::output;

/// Take, list and verify checkpoints
#[derive(Subcommand)]
pub enum Command {
    /// Take a checkpoint at the next step boundary, and wait until it is on disk
    Now(Arguments),
    /// List checkpoints: of a coordinator's run, or of a run's directory without one
    List(Arguments),
    /// Compare every digest: of a coordinator's run, or of a run's or a checkpoint's directory without one
    Verify(VerifyArguments),
}

/// Which run, and how to print.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: RunArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which checkpoints of which run, and how to print.
#[derive(Args)]
pub struct VerifyArguments {
    #[command(flatten)]
    common: Arguments,
    /// Only the checkpoint of this step
    #[arg(long)]
    step: Option<u64>,
}

/// What is known of a checkpoint, wherever it was asked.
struct Checkpoint {
    step: u64,
    path: String,
    bytes: u64,
    world_size: u32,
}

/// Carries the command out.
pub async fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Now(arguments) => now(arguments).await,
        Command::List(arguments) => list(arguments).await,
        Command::Verify(arguments) => verify(arguments).await,
    }
}

async fn now(arguments: Arguments) -> Result<Exit, Failure> {
    let (mut client, run_id) = connect(&arguments.target).await?;
    let request =
        CheckpointNowRequest { run_id, idempotency_key: idempotency_key(), actor: actor(), wait: true };
    // No deadline: how long it takes depends on the model and the disk.
    let taken = client.control.checkpoint_now(request).await?.into_inner().checkpoint;
    let taken: Checkpoint =
        taken.ok_or_else(|| anyhow!("the coordinator did not say which checkpoint it took"))?.into();
    if arguments.json {
        output::json(&taken.to_json());
    } else {
        output::data(&taken.path);
    }
    Ok(Exit::DONE)
}

async fn list(arguments: Arguments) -> Result<Exit, Failure> {
    let checkpoints = match local(&arguments.target)? {
        Some(run_dir) => {
            let (found, problems) = checkpoint::list(&Directory::open(run_dir)?)?;
            problems.iter().for_each(|problem| output::warning(&problem.to_string()));
            found.into_iter().map(Checkpoint::from).collect()
        }
        None => {
            let (mut client, run_id) = connect(&arguments.target).await?;
            remote_list(&mut client, &run_id).await?
        }
    };
    if arguments.json {
        output::json(&checkpoints.iter().map(Checkpoint::to_json).collect::<Vec<Value>>());
    } else if checkpoints.is_empty() {
        output::note("no checkpoints yet");
    } else {
        let mut rows = vec![["step", "MB", "workers", "directory"].map(str::to_owned).to_vec()];
        rows.extend(checkpoints.iter().map(Checkpoint::row));
        output::data(&output::table(&rows));
    }
    Ok(Exit::DONE)
}

async fn verify(arguments: VerifyArguments) -> Result<Exit, Failure> {
    let VerifyArguments { common, step } = arguments;
    let verified = match local(&common.target)? {
        Some(run_dir) => verify_local(run_dir, step)?,
        None => verify_remote(&common.target, step).await?,
    };
    if verified.is_empty() {
        return Err(
            Failure::usage("no such checkpoint").hint("`himpun checkpoint list` shows which there are")
        );
    }
    let problems: usize = verified.iter().map(|(_, problems)| problems.len()).sum();
    if common.json {
        let entry = |(path, problems): &(String, Vec<String>)| json!({ "path": path, "problems": problems });
        output::json(&verified.iter().map(entry).collect::<Vec<Value>>());
    } else {
        for (path, problems) in &verified {
            output::data(&format!("{path}: {}", if problems.is_empty() { "good" } else { "damaged" }));
            problems.iter().for_each(|problem| output::data(&format!("  {problem}")));
        }
    }
    if problems > 0 {
        return Err(Failure::new(Exit::CORRUPT, anyhow!("{problems} files do not hold what was written"))
            .hint("`--resume` uses the newest checkpoint that is good"));
    }
    Ok(Exit::DONE)
}

/// Each checkpoint's path and what is wrong with it.
fn verify_local(run_dir: &Path, step: Option<u64>) -> Result<Vec<(String, Vec<String>)>, Failure> {
    let problems_of =
        |dir: &Path| checkpoint::verify(dir).iter().map(ToString::to_string).collect::<Vec<String>>();
    if step.is_none() && run_dir.join(checkpoint::MANIFEST_FILE).exists() {
        return Ok(vec![(run_dir.display().to_string(), problems_of(run_dir))]);
    }
    let (found, broken) = checkpoint::list(&Directory::open(run_dir)?)?;
    let mut verified: Vec<(String, Vec<String>)> = found
        .iter()
        .filter(|info| step.is_none_or(|step| step == info.step))
        .map(|info| (info.path.display().to_string(), problems_of(&info.path)))
        .collect();
    // A manifest that cannot be read does not say which step it is of.
    if !broken.is_empty() && step.is_none() {
        verified.push((run_dir.display().to_string(), broken.iter().map(ToString::to_string).collect()));
    }
    Ok(verified)
}

async fn verify_remote(
    target: &RunArguments,
    step: Option<u64>,
) -> Result<Vec<(String, Vec<String>)>, Failure> {
    let (mut client, run_id) = connect(target).await?;
    let steps = match step {
        Some(step) => vec![step],
        None => remote_list(&mut client, &run_id).await?.iter().map(|checkpoint| checkpoint.step).collect(),
    };
    let mut verified = Vec::new();
    for step in steps {
        // No deadline: every byte is read.
        let request = VerifyCheckpointRequest { run_id: run_id.clone(), step };
        let answer = client.control.verify_checkpoint(request).await?.into_inner();
        let path = answer.checkpoint.map_or(format!("step {step}"), |info| info.path);
        verified.push((path, answer.problems));
    }
    Ok(verified)
}

async fn remote_list(client: &mut Client, run_id: &str) -> Result<Vec<Checkpoint>, Failure> {
    let request = ListCheckpointsRequest { run_id: run_id.to_owned() };
    let answer = call(client.control.list_checkpoints(request)).await?;
    Ok(answer.checkpoints.into_iter().map(Checkpoint::from).collect())
}

async fn connect(target: &RunArguments) -> Result<(Client, String), Failure> {
    let mut client = Client::connect(&target.coordinator).await?;
    let run_id = client.status(&target.run).await?.run_id;
    Ok((client, run_id))
}

/// The run's directory, if that is what was named.
fn local(target: &RunArguments) -> Result<Option<&Path>, Failure> {
    let path = Path::new(&target.run);
    if path.is_dir() {
        return Ok(Some(path));
    }
    // No id holds a slash: asking a coordinator for a mistyped path would only hide the mistake.
    match target.run.contains('/') {
        true => Err(Failure::usage(format!("there is no directory {}", path.display()))),
        false => Ok(None),
    }
}

impl Checkpoint {
    fn to_json(&self) -> Value {
        json!({ "step": self.step, "path": self.path, "bytes": self.bytes, "world_size": self.world_size })
    }

    fn row(&self) -> Vec<String> {
        let megabytes = format!("{:.1}", self.bytes as f64 / 1e6);
        vec![self.step.to_string(), megabytes, self.world_size.to_string(), self.path.clone()]
    }
}

impl From<CheckpointInfo> for Checkpoint {
    fn from(info: CheckpointInfo) -> Checkpoint {
        Checkpoint { step: info.step, path: info.path, bytes: info.bytes, world_size: info.world_size }
    }
}

impl From<checkpoint::CheckpointInfo> for Checkpoint {
    fn from(info: checkpoint::CheckpointInfo) -> Checkpoint {
        let path = info.path.display().to_string();
        Checkpoint { step: info.step, path, bytes: info.bytes, world_size: info.world_size }
    }
}
