//! Which commands there are.

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::commands::{
    agent, bench, block_on, certs, checkpoint, completions, coordinator, data, doctor, embed, eval, export,
    logs, pause, presets, resume, runs, status, stop, submit, train, watch, worker,
};
use crate::failure::{Exit, Failure};

/// Trains image encoders by contrastive learning across many workers.
#[derive(Parser)]
#[command(name = "himpun", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands, in the order of the help.
#[derive(Subcommand)]
pub enum Command {
    Train(train::Arguments),
    Coordinator(coordinator::Arguments),
    Agent(agent::Arguments),
    #[command(hide = true)]
    Worker(worker::Arguments),
    Submit(submit::Arguments),
    Runs(runs::Arguments),
    Status(status::Arguments),
    Watch(watch::Arguments),
    Logs(logs::Arguments),
    Pause(pause::Arguments),
    Resume(resume::Arguments),
    Stop(stop::Arguments),
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    #[command(subcommand)]
    Certs(certs::Command),
    #[command(subcommand)]
    Eval(eval::Command),
    Embed(embed::Arguments),
    Export(export::Arguments),
    Presets(presets::Arguments),
    #[command(subcommand)]
    Data(data::Command),
    #[command(subcommand)]
    Bench(bench::Command),
    Doctor(doctor::Arguments),
    Completions(completions::Arguments),
}

impl Command {
    /// Carries the command out.
    pub fn run(self) -> Result<Exit, Failure> {
        match self {
            Command::Train(arguments) => train::run(arguments),
            Command::Coordinator(arguments) => block_on(coordinator::run(arguments)),
            Command::Agent(arguments) => block_on(agent::run(arguments)),
            Command::Worker(arguments) => worker::run(arguments),
            Command::Submit(arguments) => block_on(submit::run(arguments)),
            Command::Runs(arguments) => block_on(runs::run(arguments)),
            Command::Status(arguments) => block_on(status::run(arguments)),
            Command::Watch(arguments) => block_on(watch::run(arguments)),
            Command::Logs(arguments) => block_on(logs::run(arguments)),
            Command::Pause(arguments) => block_on(pause::run(arguments)),
            Command::Resume(arguments) => block_on(resume::run(arguments)),
            Command::Stop(arguments) => block_on(stop::run(arguments)),
            Command::Checkpoint(command) => block_on(checkpoint::run(command)),
            Command::Certs(command) => certs::run(command),
            Command::Eval(command) => eval::run(command),
            Command::Embed(arguments) => embed::run(arguments),
            Command::Export(arguments) => export::run(arguments),
            Command::Presets(arguments) => presets::run(arguments),
            Command::Data(command) => data::run(command),
            Command::Bench(command) => bench::run(command),
            Command::Doctor(arguments) => doctor::run(arguments),
            Command::Completions(arguments) => completions::run(arguments, Cli::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The help of an option of a command.
    #[track_caller]
    fn help(path: &[&str], option: &str) -> String {
        let mut command = &Cli::command();
        for name in path {
            command = command.find_subcommand(name).expect("a command");
        }
        let found = command.get_arguments().find(|argument| argument.get_long() == Some(option));
        found.expect("an option").get_help().expect("a help").to_string()
    }

    #[test]
    fn helps_name_every_value() {
        let formats = help(&["export"], "format");
        for (name, format) in ::checkpoint::export::Format::NAMES {
            assert!(formats.contains(&format!("`{name}`: {}", format.about())), "{formats}");
        }
        assert!(help(&["bench", "step"], "arch").contains("vit-b16, vit-<width>-<depth>-<heads>"));
        assert!(help(&["bench", "step"], "convolution").ends_with("auto or direct"));
        assert!(help(&["bench", "collective"], "op").contains("reduce-scatter"));
    }

    #[test]
    fn options_that_hints_name_exist() {
        let command = Cli::command();
        for name in ["train", "submit"] {
            let command = command.find_subcommand(name).expect("a command");
            for flag in config::FLAGS {
                let option = flag.strip_prefix("--").expect("two dashes");
                let mut arguments = command.get_arguments();
                assert!(arguments.any(|argument| argument.get_long() == Some(option)), "{name} {flag}");
            }
        }
    }
}
