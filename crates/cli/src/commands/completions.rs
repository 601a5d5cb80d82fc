//! `himpun completions`: what a shell needs to complete commands and options.

use clap::Args;
use clap_complete::Shell;

use crate::failure::{Exit, Failure};
use crate::output;

/// Print a completion script, for example: himpun completions bash > ~/.local/share/bash-completion/completions/himpun
#[derive(Args)]
pub struct Arguments {
    /// For which shell
    shell: Shell,
}

/// Prints the script that completes `program`.
pub fn run(arguments: Arguments, mut program: clap::Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut program, "himpun", &mut script);
    output::data(String::from_utf8_lossy(&script).trim_end());
    Ok(Exit::DONE)
}
