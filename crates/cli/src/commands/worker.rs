//! `himpun worker`: one process of a run, started by an agent and by nobody else.

use anyhow::Context as _;
use clap::Args;
use config::DataRoot;
use identity::Spawn;
use std::io::{IsTerminal as _, Read as _};

use crate::failure::{Exit, Failure};

/// More than what an agent hands on.
const MAX_INPUT: u64 = 1 << 20;

/// Train one rank's share of a run (started by agents)
#[derive(Args)]
pub struct Arguments {
    /// The coordinator, host:port
    #[arg(long)]
    coordinator: String,
    /// The run
    #[arg(long)]
    run: String,
    /// The coordinator's incarnation
    #[arg(long)]
    incarnation: u64,
    /// The run's membership
    #[arg(long)]
    generation: u64,
    /// The agent that started this process
    #[arg(long)]
    agent_id: String,
    /// The slot on the agent's node
    #[arg(long)]
    slot: u32,
    /// Names this process among all that ever held the slot
    #[arg(long)]
    nonce: String,
    /// Compute threads
    #[arg(long)]
    threads: usize,
    /// Cores to run on; none: any
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// Where this node has data that the configuration names elsewhere
    #[arg(long, value_name = "OLD=NEW")]
    data_root: Vec<DataRoot>,
    /// Workers that were started on this node together, which divide its memory
    #[arg(long, value_name = "N", default_value_t = 1)]
    share: u64,
}

/// Trains; the worker reports its own errors, because they go to the coordinator as well.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let Arguments { coordinator, run, incarnation, generation, agent_id, slot, nonce, threads, .. } =
        arguments;
    let Arguments { cores, data_root: data_roots, share, .. } = arguments;
    let spawn = spawn()?;
    let code = worker::run(worker::Options {
        coordinator,
        run_id: run,
        incarnation,
        generation,
        agent_id,
        slot,
        nonce,
        threads,
        cores,
        data_roots,
        spawn,
        share,
    });
    Ok(Exit::of_run(code))
}

/// What the agent handed on: nothing secret stands among the arguments or in the environment.
fn spawn() -> Result<Spawn, Failure> {
    let mut input = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin()
            .take(MAX_INPUT)
            .read_to_end(&mut input)
            .context("failed to read what the agent hands on")?;
    }
    serde_json::from_slice(&input).map_err(|_| {
        Failure::usage("a worker is started by an agent, which hands its secret on by its standard input")
    })
}
