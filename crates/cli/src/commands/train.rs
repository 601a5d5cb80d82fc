//! `himpun train`: coordinator, agent and workers on this machine, by the protocol of a cluster.

use anyhow::{Context as _, anyhow};
use clap::Args;
use config::RunConfig;
use data::Limits;
use identity::Role;
use proto::v1::{RunEnded, RunStatus, SubmitRunRequest};
use serde_json::{Map, Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use trainer::images::{Images, Past};
use trainer::plan::{self, Plan};

use crate::client::{Client, call, idempotency_key};
use crate::commands::{agent::host_name, block_on, stop};
use crate::failure::{Exit, Failure};
use crate::layers::{self, Device, LayerArguments};
use crate::progress::Progress;
use crate::signals::Signals;
use crate::{follow, output};

/// Workers on a CPU unless said otherwise: two, so that the gathering is real.
const WORKERS: u32 = 2;

/// Train on this machine; without arguments, the quickstart on built-in images
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    layers: LayerArguments,
    /// How many worker processes share the cores [default: 2, or as many as the resumed run had]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    /// What they compute on
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// The run's directory [default: runs/RUN_ID]
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
    /// End stdout with one JSON object about the run
    #[arg(long)]
    json: bool,
}

/// A run that can start: whatever is wrong with what the user gave was found before.
struct Job {
    config: RunConfig,
    run_dir: PathBuf,
    /// Chosen by the coordinator, from the run's own files, where a run is resumed.
    run_id: String,
    workers: u32,
    device: &'static str,
    resume: bool,
    accept_changed_data: bool,
}

/// Trains to the end, or until a signal.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let job = Job::prepare(&arguments)?;
    block_on(async {
        let mut signals = Signals::install()?;
        let mut machine = Machine::start(job.workers).await?;
        let outcome = machine.train(&job, &mut signals).await;
        if outcome.is_ok() {
            machine.shutdown().await?;
        }
        // Otherwise the workers end with this process, at once.
        let (ended, status) = outcome?;
        let exit = follow::outcome(ended)?;
        report(&status, arguments.json);
        Ok(exit)
    })
}

impl Job {
    fn prepare(arguments: &Arguments) -> Result<Job, Failure> {
        let device = arguments.device.name()?;
        let job = match &arguments.resume {
            Some(run_dir) => Job {
                config: arguments.layers.resume(run_dir)?,
                run_dir: absolute(run_dir)?,
                run_id: String::new(),
                workers: arguments.workers.or_else(|| layers::world_size_of(run_dir)).unwrap_or(WORKERS),
                device,
                resume: true,
                accept_changed_data: arguments.accept_changed_data,
            },
            None => {
                // Workers of this command never outlive it, so they need not wait for another coordinator.
                let config = arguments.layers.resolve(Duration::ZERO)?;
                let run_id = new_run_id(arguments.layers.preset.as_deref());
                let run_dir = absolute(arguments.out.as_deref().unwrap_or(&Path::new("runs").join(&run_id)))?;
                refuse_existing(&run_dir)?;
                let workers = arguments.workers.unwrap_or(WORKERS);
                Job { config, run_dir, run_id, workers, device, resume: false, accept_changed_data: false }
            }
        };
        // What would end the workers at once is found before there is a directory or a process to clean up.
        let past = match job.resume {
            true => Past::of_run(&job.run_dir, job.accept_changed_data)?,
            false => None,
        };
        let memory_bytes = data::memory::available() / u64::from(job.workers);
        let limits = Limits { memory_bytes, ..plan::limits(&job.config) };
        let images = Images::open(&job.config, limits, past.as_ref()).map_err(|error| {
            let hint = if job.resume { error.hint_on_resume() } else { error.hint() };
            Failure { hint, ..error.into() }
        })?;
        let plan = Plan::of(&job.config, images, 0, job.workers as usize)?;
        let opened = [Some(&plan.dataset), plan.test.as_ref()].into_iter().flatten();
        opened.flat_map(|dataset| dataset.notes()).for_each(|note| output::warning(note));
        Ok(job)
    }

    fn request(&self) -> SubmitRunRequest {
        SubmitRunRequest {
            protocol: proto::PROTOCOL,
            config_toml: self.config.to_toml(),
            workers: self.workers,
            run_dir: self.run_dir.to_string_lossy().into_owned(),
            resume: self.resume,
            idempotency_key: idempotency_key(),
            device: self.device.to_owned(),
            run_id: self.run_id.clone(),
            accept_changed_data: self.accept_changed_data,
        }
    }
}

/// A cluster of one machine: coordinator and agent in this process, workers as its children.
struct Machine {
    client: Client,
    coordinator: coordinator::Running,
    agent: JoinHandle<Result<agent::Left, agent::Error>>,
    end_agent: CancellationToken,
    /// The coordinator's own state, of no use after this process; removed when dropped.
    _state: tempfile::TempDir,
}

impl Machine {
    async fn start(workers: u32) -> Result<Machine, Failure> {
        let state = tempfile::tempdir().context("failed to make a directory for the coordinator")?;
        let bind = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        // Nobody else has to find it: its secrets live as long as this process, and need no home.
        let identity = coordinator::Identity::Ephemeral;
        let dir = state.path().to_owned();
        let options = coordinator::Options { bind, dir, identity, allow_dirs: Vec::new() };
        let coordinator = coordinator::Coordinator::start(options).await?;
        let address = coordinator.address().to_string();
        let host = host_name()?;
        let options = agent::Options {
            coordinator: address.clone(),
            access: coordinator.access(Role::Agent),
            agent_id: host.clone(),
            host,
            slots: workers,
            cores: agent::available_cores(),
            data_roots: Vec::new(),
            program: std::env::current_exe().context("failed to find this program's own file")?,
        };
        let end_agent = CancellationToken::new();
        let agent = tokio::spawn(agent::run(options, end_agent.clone()));
        let client = Client::connect_as(&address, &coordinator.access(Role::Admin)).await?;
        Ok(Machine { client, coordinator, agent, end_agent, _state: state })
    }

    /// Submits the job and follows it to its end. The first signal stops the run with a checkpoint, the second
    /// kills it.
    async fn train(&mut self, job: &Job, signals: &mut Signals) -> Result<(RunEnded, RunStatus), Failure> {
        let submitted = call(self.client.control.submit_run(job.request())).await?;
        output::note(&format!("run {} in {}, {} workers", submitted.run_id, submitted.run_dir, job.workers));
        let mut orders = self.client.clone();
        let mut progress = Progress::of_training(job.config.run.stop_after);
        let following = follow::to_end(&mut self.client, &submitted.run_id, &mut progress);
        tokio::pin!(following);
        let mut stopping = false;
        let ended = loop {
            tokio::select! {
                ended = &mut following => break ended?,
                outcome = &mut self.agent => return Err(agent_ended(outcome)),
                // Its disk is full, say: nobody would tell of the run's end.
                Err(error) = self.coordinator.wait() => return Err(error.into()),
                number = signals.next() => {
                    if stopping {
                        // The workers end with this process.
                        let killed = Failure::new(Exit::by_signal(number), anyhow!("killed by a second signal"));
                        return Err(killed.hint(how_to_go_on(&job.run_dir)));
                    }
                    stopping = true;
                    output::note("stopping at the next step boundary, with a checkpoint; a second signal kills at once");
                    let stopped = call(orders.control.stop(stop::request(&submitted.run_id, false))).await;
                    if let Err(failure) = stopped {
                        output::warning(&format!("{:#}", failure.error));
                    }
                }
            }
        };
        let status = orders.status(&submitted.run_id).await?;
        Ok((ended, status))
    }

    /// Ends the agent, which ends its workers first, and then the coordinator.
    async fn shutdown(self) -> Result<(), Failure> {
        self.end_agent.cancel();
        self.agent.await.context("the agent ended badly")??;
        Ok(self.coordinator.shutdown().await?)
    }
}

fn agent_ended(outcome: Result<Result<agent::Left, agent::Error>, tokio::task::JoinError>) -> Failure {
    match outcome {
        Ok(Ok(_)) => anyhow!("the agent ended before the run").into(),
        Ok(Err(error)) => error.into(),
        Err(error) => anyhow!(error).context("the agent ended before the run").into(),
    }
}

/// A name that tells what is trained, and a part that no other run has.
fn new_run_id(preset: Option<&str>) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{}-{}", preset.unwrap_or("run"), &random[..8])
}

fn refuse_existing(run_dir: &Path) -> Result<(), Failure> {
    let is_empty = std::fs::read_dir(run_dir).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty || !run_dir.exists() {
        return Ok(());
    }
    let path = run_dir.display();
    let hint = match layers::newest_checkpoint(run_dir) {
        Some(_) => format!("{}, or choose another directory with --out", how_to_go_on(run_dir)),
        None => "choose another directory with --out".to_owned(),
    };
    Err(Failure::usage(format!("{path} exists already")).hint(hint))
}

/// The checkpoint that the run in this directory goes on from and how, or why there is none.
fn how_to_go_on(run_dir: &Path) -> String {
    let newest = layers::newest_checkpoint(run_dir).map(|newest| newest.path).unwrap_or_default();
    coordinator::state::how_to_go_on(&run_dir.to_string_lossy(), &newest.to_string_lossy())
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    Ok(std::path::absolute(path).with_context(|| format!("failed to make {} absolute", path.display()))?)
}

/// What the run came to: one JSON object, or a few lines.
fn report(status: &RunStatus, as_json: bool) {
    let summary = summary(status);
    if as_json {
        output::json(&summary);
    } else {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let rows: Vec<Vec<String>> =
            summary.iter().map(|(key, value)| vec![key.clone(), text(value)]).collect();
        output::data(&output::table(&rows));
    }
}

fn summary(status: &RunStatus) -> Map<String, Value> {
    let rows = metrics(Path::new(&status.run_dir));
    let last = |name: &str| rows.iter().rev().find_map(|row| row.get(name).cloned());
    let mut summary = Map::new();
    let mut put = |key: &str, value: Value| summary.insert(key.to_owned(), value);
    put("run_id", json!(status.run_id));
    put("run_dir", json!(status.run_dir));
    put("steps", json!(status.step));
    let numbers = [
        ("loss", last("loss")),
        ("knn_top1", last("knn_top1")),
        ("knn_k", last("knn_k")),
        ("images_per_s", median(&rows, "images_per_s").map(Value::from)),
        ("views_per_s", median(&rows, "views_per_s").map(Value::from)),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            put(key, number);
        }
    }
    put("world_size", json!(status.world_size));
    if !status.last_checkpoint.is_empty() {
        put("checkpoint", json!(status.last_checkpoint));
    }
    summary
}

/// The run's rows; a line that does not parse is the unfinished end of a run that was killed before.
fn metrics(run_dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The middle of a column: the first steps, and those beside an evaluation, are slower than the rest.
fn median(rows: &[Value], name: &str) -> Option<f64> {
    let mut values: Vec<f64> = rows.iter().filter_map(|row| row.get(name)?.as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
