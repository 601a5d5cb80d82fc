//! `himpun submit`: hands a run to a coordinator.

use anyhow::Context as _;
use clap::Args;
use proto::v1::SubmitRunRequest;
use serde_json::json;
use std::path::PathBuf;

use crate::client::{Client, CoordinatorArgument, call, idempotency_key};
use crate::failure::{Exit, Failure};
use crate::layers::{self, Device, LayerArguments};
use crate::progress::Progress;
use crate::{follow, output};

/// Hand a run to a coordinator, whose agents train it
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    layers: LayerArguments,
    #[command(flatten)]
    coordinator: CoordinatorArgument,
    /// How many workers; 0: every slot of the agents connected when the run starts [default: 0, or as many as the
    /// resumed run had]
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// What the workers compute on
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// The run's directory, on the coordinator's machine [default: runs/RUN_ID below the coordinator's]
    #[arg(long, value_name = "RUN_DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Continue the run in this directory from its newest good checkpoint. What can be given with it: --workers, --device,
    /// --data where its data set has moved, and --set of its length (run.steps, run.epochs, run.stop_after), of when it
    /// evaluates, saves and writes metrics, of checkpoint.keep, eval.data and eval.k
    #[arg(long, value_name = "RUN_DIR", conflicts_with_all = ["preset", "config"])]
    resume: Option<PathBuf>,
    /// Continue with the data set as it is now, although it is another than the run's
    #[arg(long, requires = "resume")]
    accept_changed_data: bool,
    /// Follow the run to its end, and end with its exit code
    #[arg(long)]
    wait: bool,
    /// Print one JSON object with the run's id and directory
    #[arg(long)]
    json: bool,
}

/// Submits, and waits if asked to.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let request = request(&arguments)?;
    let mut client = Client::connect(&arguments.coordinator).await?;
    let submitted = call(client.control.submit_run(request)).await?;
    if arguments.json {
        output::json(&json!({ "run_id": submitted.run_id, "run_dir": submitted.run_dir }));
    } else {
        output::data(&submitted.run_id);
        output::note(&format!("its directory is {}", submitted.run_dir));
    }
    if !arguments.wait {
        return Ok(Exit::DONE);
    }
    follow::outcome(follow::to_end(&mut client, &submitted.run_id, &mut Progress::of_watching()).await?)
}

fn request(arguments: &Arguments) -> Result<SubmitRunRequest, Failure> {
    let device = arguments.device.name()?.to_owned();
    let (config, run_dir) = match &arguments.resume {
        Some(run_dir) => (arguments.layers.resume(run_dir)?, Some(run_dir)),
        None => (arguments.layers.resolve(config::ORPHAN_TTL)?, arguments.out.as_ref()),
    };
    let run_dir = match run_dir {
        Some(path) => std::path::absolute(path).context("failed to make the run's directory absolute")?,
        None => PathBuf::new(),
    };
    let resumed = arguments.resume.as_deref().and_then(layers::world_size_of);
    let workers = arguments.workers.or(resumed).unwrap_or(0);
    Ok(SubmitRunRequest {
        protocol: proto::PROTOCOL,
        config_toml: config.to_toml(),
        workers,
        run_dir: run_dir.to_string_lossy().into_owned(),
        resume: arguments.resume.is_some(),
        idempotency_key: idempotency_key(),
        device,
        run_id: String::new(),
        accept_changed_data: arguments.accept_changed_data,
    })
}
