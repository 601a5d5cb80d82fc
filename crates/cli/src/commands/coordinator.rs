//! `himpun coordinator`: serves runs, agents and workers until it is told to end.

use anyhow::{Context as _, anyhow};
use clap::Args;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;

use crate::client::DEFAULT_ADDRESS;
use crate::failure::{Exit, Failure};
use crate::{output, signals};

/// Start a coordinator: it deals ranks, keeps checkpoints, and is what the other commands talk to
#[derive(Args)]
pub struct Arguments {
    /// Listen here; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_ADDRESS)]
    bind: String,
    /// Keep state and runs here
    #[arg(long, value_name = "DIR", default_value = "himpun")]
    dir: PathBuf,
    /// Listen on an address that other machines reach, although nothing on the wire is encrypted or authenticated
    #[arg(long)]
    insecure: bool,
}

/// Serves until a signal asks it to end. The one line on stdout ends in the address.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let bind = address(&arguments.bind)?;
    let mut signals = signals::Signals::install()?;
    let options = coordinator::Options { bind, dir: arguments.dir, insecure: arguments.insecure };
    let mut running = coordinator::Coordinator::start(options).await?;
    output::data(&format!("himpun coordinator listens on {}", running.address()));
    tokio::select! {
        // It never ends by itself unless something failed.
        outcome = running.wait() => outcome?,
        _ = signals.next() => running.shutdown().await?,
    }
    Ok(Exit::DONE)
}

fn address(text: &str) -> Result<SocketAddr, Failure> {
    let wrong = |error: anyhow::Error| Failure::new(Exit::USAGE, error);
    let mut addresses =
        text.to_socket_addrs().with_context(|| format!("`{text}` is not host:port")).map_err(wrong)?;
    addresses.next().ok_or_else(|| wrong(anyhow!("`{text}` names no address")))
}
