//! `himpun bench loss`: NT-Xent, forward and backward, of random embeddings.

use clap::Args;
use tools::bench::{LossOptions, bench_loss};

use super::{at_most_1024, megabytes, milliseconds, row, share_of_peak, show, threads};
use crate::failure::{Exit, Failure};

/// What to time.
#[derive(Args)]
pub struct Arguments {
    /// Views of the batch; two of each image
    #[arg(long, value_name = "ROWS")]
    batch: usize,
    /// Numbers in an embedding
    #[arg(long, value_name = "D", default_value_t = 128)]
    width: usize,
    /// Divides the similarities
    #[arg(long, value_name = "T", default_value_t = 0.5)]
    temperature: f64,
    /// Compute threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = at_most_1024())]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Carries the command out.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let Arguments { batch, width, temperature, json, .. } = arguments;
    let threads = threads(arguments.threads);
    let report = bench_loss(&LossOptions { batch, width, temperature, threads })?;
    show(json, &report, || {
        vec![
            row("loss", milliseconds(report.loss_ms, report.loss_ms_min, report.loss_ms_max, report.calls)),
            row("speed", format!("{:.0} views/s", report.rows_per_s)),
            row(
                "compute",
                share_of_peak(report.gflops, report.share_of_peak, report.threads, &report.kernel_path),
            ),
            row("as dense", format!("{:.1} GFLOP/s", report.dense_gflops)),
            row("memory", megabytes(report.peak_memory_bytes)),
            row("matrix", format!("{}, never stored", megabytes(report.similarity_bytes))),
        ]
    });
    Ok(Exit::DONE)
}
