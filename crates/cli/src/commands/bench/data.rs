//! `himpun bench data`: decoding and augmentation.

use clap::Args;
use clap::builder::RangedU64ValueParser;
use tools::bench::{DataOptions, DataPart, bench_data};

use super::{at_most_1024, megabytes, share_of_copy, show, threads};
use crate::failure::{Exit, Failure};
use crate::layers::{LimitArguments, SOURCES};

/// What to time.
#[derive(Args)]
pub struct Arguments {
    #[arg(long, value_name = "PATH", default_value = "builtin", help = SOURCES)]
    data: String,
    /// Side of the views, in pixels
    #[arg(long, value_name = "PX", default_value_t = 32, value_parser = RangedU64ValueParser::<usize>::new().range(8..=1024))]
    size: usize,
    /// Augmentation pipeline, as of data.augment
    #[arg(long, value_name = "NAME", default_value = "simclr-cifar")]
    augment: config::Augment,
    /// Threads that are timed together [default: one a core]
    #[arg(long, value_name = "N", value_parser = at_most_1024())]
    threads: Option<usize>,
    #[command(flatten)]
    limits: LimitArguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Carries the command out.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let report = bench_data(&DataOptions {
        source: arguments.data,
        size: arguments.size,
        augment: arguments.augment.to_string(),
        threads: threads(arguments.threads),
        limits: arguments.limits.limits(),
    })?;
    show(arguments.json, &report, || {
        let titles = ["what", "views/s", "images/s", "bytes", "MB/s", "of copying", "median", "spread"]
            .map(str::to_owned)
            .to_vec();
        vec![
            titles,
            cells("decode", &report.decode),
            cells("augment", &report.augment),
            cells("both", &report.total),
            cells(&format!("both, {} threads", report.threads), &report.all_threads),
        ]
    });
    Ok(Exit::DONE)
}

fn cells(name: &str, part: &DataPart) -> Vec<String> {
    vec![
        name.to_owned(),
        format!("{:.0}", part.views_per_s),
        format!("{:.0}", part.images_per_s),
        megabytes(part.bytes as u64),
        format!("{:.1}", part.megabytes_per_s),
        share_of_copy(part.share_of_copy),
        format!("{:.2} ms", part.ms),
        format!("{:.2} to {:.2} ms in {} calls", part.ms_min, part.ms_max, part.samples),
    ]
}
