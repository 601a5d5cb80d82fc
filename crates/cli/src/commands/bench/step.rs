//! `himpun bench step`: forward, loss, backward and update on random images.

use clap::{Args, ValueEnum};
use engine::models::{Arch, Stem, Vit};
use kernels::{Convolution, KernelPath};
use tools::bench::{StepOptions, bench_step};

use super::{at_most_1024, megabytes, milliseconds, row, share_of_peak, show, threads};
use crate::failure::{Exit, Failure};
use crate::layers::Device;

/// What to time.
#[derive(Args)]
pub struct Arguments {
    #[arg(long, help = format!("Backbone: {}", config::Arch::forms()))]
    arch: Arch,
    /// What to compute on
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Precision of activations
    #[arg(long, value_enum, default_value_t)]
    dtype: Dtype,
    #[arg(long, default_value = "auto", help = format!("Convolution algorithm: {}", config::Convolution::NAMES.join(" or ")))]
    convolution: config::Convolution,
    /// Instructions of the kernels [default: the fastest of this machine]
    #[arg(long, value_enum, value_name = "PATH")]
    kernel_path: Option<Instructions>,
    #[arg(long, help = format!("How images enter the net: {} [default: cifar below 64 pixels]", config::Stem::NAMES.join(" or ")))]
    stem: Option<Stem>,
    /// Side of a transformer's patches, in pixels [default: 16]
    #[arg(long, value_name = "PX")]
    patch: Option<usize>,
    /// Views of a step; two of each image
    #[arg(long, value_name = "ROWS")]
    batch: usize,
    /// Side of the views, in pixels
    #[arg(long, value_name = "PX")]
    size: usize,
    /// Compute threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = at_most_1024())]
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
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    arguments.device.name()?;
    if arguments.dtype == Dtype::Bf16 {
        return Err(Failure::usage("--dtype bf16 needs CUDA, and this version has no CUDA device support")
            .hint("use --dtype f32"));
    }
    let arch = match (arguments.arch, arguments.patch) {
        (Arch::Vit(vit), Some(patch)) => Arch::Vit(Vit { patch, ..vit }),
        (arch, None) => arch,
        (arch, Some(_)) => {
            return Err(Failure::usage(format!("--patch is of transformers, and {arch} is none"))
                .hint("leave it out, or give a transformer, --arch vit-s16"));
        }
    };
    if let (Arch::Vit(_), Some(_)) = (arch, arguments.stem) {
        return Err(Failure::usage(format!("--stem is of residual networks, and {arch} is none"))
            .hint("leave it out; --patch says how images enter a transformer"));
    }
    let report = bench_step(&StepOptions {
        arch,
        stem: arguments.stem,
        convolution: match arguments.convolution {
            config::Convolution::Auto => Convolution::Auto,
            config::Convolution::Direct => Convolution::Direct,
        },
        kernel_path: arguments.kernel_path.map_or(Ok(KernelPath::detect()), Instructions::kernel_path)?,
        batch: arguments.batch,
        size: arguments.size,
        threads: threads(arguments.threads),
    })?;
    show(arguments.json, &report, || {
        vec![
            row("speed", format!("{:.1} views/s", report.views_per_s)),
            row("step", milliseconds(report.step_ms, report.step_ms_min, report.step_ms_max, report.steps)),
            row(
                "compute",
                share_of_peak(report.gflops, report.share_of_peak, report.threads, &report.kernel_path),
            ),
            row("memory", megabytes(report.peak_memory_bytes)),
            row("predicted", megabytes(report.predicted_memory_bytes)),
        ]
    });
    Ok(Exit::DONE)
}
