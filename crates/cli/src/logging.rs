//! `tracing` on stderr: quiet where a person works, telling where a service runs.

use tracing_subscriber::EnvFilter;

use crate::cli::Command;

/// Starts logging for the command. `RUST_LOG` overrides what is shown.
pub fn start(command: &Command) {
    let default = match command {
        Command::Coordinator(_) | Command::Agent(_) | Command::Worker(_) => {
            "info,h2=warn,hyper=warn,tonic=warn,tower=warn"
        }
        // What a person has to know of a run arrives as its events.
        _ => "error",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
