//! `himpun bench collective`: an operation between local processes, as between workers of a run.

use std::io::{BufReader, stdin, stdout};
use std::process::Command;

use anyhow::Context as _;
use clap::Args;
use tools::bench::{CollectiveOptions, Operation, bench_collective, collective_rank};

use super::{megabytes, milliseconds, row, share_of_copy, show};
use crate::failure::{Exit, Failure};

/// What to time.
#[derive(Args)]
pub struct Arguments {
    /// Processes
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64))]
    world_size: usize,
    /// Bytes of the whole
    #[arg(long, value_name = "B", default_value_t = 45_000_000)]
    bytes: usize,
    #[arg(long, default_value = "all-reduce", help = format!("Operation: {}", Operation::names()))]
    op: Operation,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Be one of the processes, which the command itself starts
    #[arg(long, hide = true)]
    rank: Option<usize>,
}

/// Carries the command out.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let Arguments { world_size, bytes, op, json, rank } = arguments;
    let options = CollectiveOptions { operation: op, world_size, bytes };
    if let Some(rank) = rank {
        collective_rank(&options, rank, BufReader::new(stdin()), stdout())?;
        return Ok(Exit::DONE);
    }
    let program = std::env::current_exe().context("find this program's own file")?;
    let own_arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let report = bench_collective(&options, |rank| {
        let mut command = Command::new(&program);
        command.args(&own_arguments).arg("--rank").arg(rank.to_string());
        command
    })?;
    show(json, &report, || {
        vec![
            row(
                "operation",
                milliseconds(
                    report.operation_ms,
                    report.operation_ms_min,
                    report.operation_ms_max,
                    report.calls,
                ),
            ),
            row("speed", format!("{:.2} GB/s, {:.2} GB/s on the bus", report.gb_per_s, report.bus_gb_per_s)),
            row(
                "bandwidth",
                format!(
                    "{} of what {} threads copy in memory, {:.1} GB/s",
                    share_of_copy(report.share_of_copy),
                    report.world_size,
                    report.copy_gb_per_s
                ),
            ),
            row("whole", megabytes(report.bytes)),
            row("sent", format!("{} by rank 0 of {}", megabytes(report.bytes_sent), report.world_size)),
        ]
    });
    Ok(Exit::DONE)
}
