//! The one binary. Parses, dispatches to one file per command, and turns what comes back into an exit code.
//!
//! `commands/train.rs` is where most users enter; `output.rs` is the only file that prints.

mod cli;
mod client;
mod commands;
mod failure;
mod follow;
mod layers;
mod logging;
mod output;
mod progress;
mod run_state;
mod signals;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = cli::Cli::parse().command;
    logging::start(&command);
    match command.run() {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::failure(&failure);
            failure.exit.into()
        }
    }
}
