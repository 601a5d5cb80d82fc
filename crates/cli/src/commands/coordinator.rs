//! `himpun coordinator`: serves runs, agents and workers until it is told to end.

use anyhow::{Context as _, anyhow};
use clap::Args;
use identity::Encryption;
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
    /// Show the certificate in this folder, as `himpun certs init` makes one, and take callers' certificates of the same
    /// authority, besides tokens
    #[arg(long, value_name = "DIR", conflicts_with = "insecure")]
    certs: Option<PathBuf>,
    /// Let operators name run directories below this one, too [default: only below --dir; whoever holds the coordinator's
    /// own token may name any]
    #[arg(long, value_name = "DIR")]
    allow_dir: Vec<PathBuf>,
    /// Do not encrypt connections: who controls the network can read and change what goes over it. Both ends still prove
    /// themselves, and no secret crosses the wire
    #[arg(long)]
    insecure: bool,
}

/// Serves until a signal asks it to end. The one line on stdout ends in the address.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let bind = address(&arguments.bind)?;
    let mut signals = signals::Signals::install()?;
    let encryption = if arguments.insecure { Encryption::None } else { Encryption::Tls };
    let identity = coordinator::Identity::Kept { encryption, certificates: arguments.certs };
    let allow_dirs = arguments.allow_dir;
    let options = coordinator::Options { bind, dir: arguments.dir, identity, allow_dirs };
    let mut running = coordinator::Coordinator::start(options).await?;
    running.notes().iter().for_each(|note| output::warning(note));
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
