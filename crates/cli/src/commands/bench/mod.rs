//! `himpun bench`: how fast the parts of training are here. One file per part.
//!
//! Each prints one table, or with `--json` one object.

mod collective;
mod data;
mod loss;
mod step;

use clap::Subcommand;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;
use tools::bench::Threads;

use crate::failure::{Exit, Failure};
use crate::output;

/// Measure
#[derive(Subcommand)]
pub enum Command {
    /// Time the trainer's step (forward, loss, backward, update) on random images
    Step(step::Arguments),
    /// Time decoding and augmentation, on one thread and on all
    Data(data::Arguments),
    /// Time NT-Xent, forward and backward, on random embeddings
    Loss(loss::Arguments),
    /// Time an operation between processes of this machine
    Collective(collective::Arguments),
}

/// Carries the command out.
pub fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Step(arguments) => step::run(arguments),
        Command::Data(arguments) => data::run(arguments),
        Command::Loss(arguments) => loss::run(arguments),
        Command::Collective(arguments) => collective::run(arguments),
    }
}

/// Prints a report as JSON, or as the table that `rows` makes of it.
fn show(json: bool, report: &impl Serialize, rows: impl FnOnce() -> Vec<Vec<String>>) {
    if json {
        output::json(report);
    } else {
        output::data(&output::table(&rows()));
    }
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

/// Median, bounds and number of the timed calls.
fn milliseconds(median: f64, min: f64, max: f64, samples: usize) -> String {
    format!("{median:.1} ms ({min:.1} to {max:.1} in {samples} calls)")
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

fn share_of_peak(gflops: f64, share: f64, threads: usize, kernel_path: &str) -> String {
    format!("{gflops:.1} GFLOP/s, {:.1} % of the peak of {threads} threads ({kernel_path})", 100.0 * share)
}

/// So many threads, or one for each core that this process may use.
fn threads(wanted: Option<usize>) -> Threads {
    Threads::new(wanted, &agent::available_cores())
}

fn share_of_copy(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Reads a number of threads or processes.
fn at_most_1024() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1024)
}
