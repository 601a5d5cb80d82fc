//! `himpun bench step`: how fast the trainer's own step is here.

use clap::{Args, Subcommand, ValueEnum};
use engine::kernels::{Convolution, KernelPath};
use engine::models::{Arch, Stem};
use worker::bench::{self, BenchOptions, BenchReport};

use crate::failure::{Exit, Failure};
use crate::layers::Device;
use crate::output;

/// Measure
#[derive(Subcommand)]
pub enum Command {
    /// Time the trainer's step (forward, loss, backward, update) on random images
    Step(Arguments),
}

/// What to time.
#[derive(Args)]
pub struct Arguments {
    /// Backbone: resnet18, resnet34, resnet50 or resnet20
    #[arg(long)]
    arch: Arch,
    /// What to compute on
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Precision of activations
    #[arg(long, value_enum, default_value_t)]
    dtype: Dtype,
    /// Convolution algorithm: auto or direct
    #[arg(long, default_value = "auto")]
    convolution: config::Convolution,
    /// Instructions of the kernels [default: the fastest of this machine]
    #[arg(long, value_enum, value_name = "PATH")]
    kernel_path: Option<Instructions>,
    /// How images enter the net: cifar or imagenet [default: cifar below 64 pixels]
    #[arg(long)]
    stem: Option<Stem>,
    /// Views of a step; two of each image
    #[arg(long, value_name = "ROWS")]
    batch: usize,
    /// Side of the views, in pixels
    #[arg(long, value_name = "PX")]
    size: usize,
    /// Compute threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Dtype {
    #[default]
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Instructions {
    Avx512,
    Avx2,
    Portable,
    Reference,
}

impl Instructions {
    fn kernel_path(self) -> Result<KernelPath, Failure> {
        let path = match self {
            Self::Avx512 => KernelPath::Avx512,
            Self::Avx2 => KernelPath::Avx2,
            Self::Portable => KernelPath::Portable,
            Self::Reference => KernelPath::Reference,
        };
        if path.is_available() {
            return Ok(path);
        }
        let fastest = KernelPath::detect();
        Err(Failure::usage(format!("--kernel-path {path}: this machine lacks the instructions"))
            .hint(format!("the fastest it has is {fastest}")))
    }
}

/// Carries the command out.
pub fn run(command: Command) -> Result<Exit, Failure> {
    let Command::Step(arguments) = command;
    arguments.device.name()?;
    if arguments.dtype == Dtype::Bf16 {
        return Err(Failure::usage("--dtype bf16 needs CUDA, and this version has no CUDA device support")
            .hint("use --dtype f32"));
    }
    let report = bench::bench_step(&BenchOptions {
        arch: arguments.arch,
        stem: arguments.stem,
        convolution: match arguments.convolution {
            config::Convolution::Auto => Convolution::Auto,
            config::Convolution::Direct => Convolution::Direct,
        },
        kernel_path: arguments.kernel_path.map_or(Ok(KernelPath::detect()), Instructions::kernel_path)?,
        batch: arguments.batch,
        size: arguments.size,
        threads: arguments.threads,
    })?;
    if arguments.json {
        output::json(&report);
    } else {
        let row = |name: &str, value: String| vec![name.to_owned(), value];
        output::data(&output::table(&[
            row("speed", format!("{:.1} views/s, {:.1} ms a step", report.views_per_s, report.step_ms)),
            row("compute", compute(&report)),
            row("memory", format!("{:.0} MB", report.peak_memory_bytes as f64 / 1e6)),
            row("predicted", format!("{:.0} MB", report.predicted_memory_bytes as f64 / 1e6)),
        ]));
    }
    Ok(Exit::DONE)
}

fn compute(report: &BenchReport) -> String {
    format!(
        "{:.1} GFLOP/s, {:.1} % of the peak of {} threads ({})",
        report.gflops,
        100.0 * report.share_of_peak,
        report.threads,
        report.kernel_path
    )
}
