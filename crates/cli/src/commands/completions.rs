//! `himpun completions`: what a shell needs to complete commands and options.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::{Exit, Failure};
use crate::output;

/// Print a completion script, for example: himpun completions bash > ~/.local/share/bash-completion/completions/himpun
#[derive(Args)]
pub struct Arguments {
    /// For which shell
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "himpun", &mut script);
    output::data(String::from_utf8_lossy(&script).trim_end());
    Ok(Exit::DONE)
}
