//! `himpun bench step`: how fast the trainer's own step is on this machine.

use collective::Communicator;
use engine::kernels::{Convolution, KernelPath, Pool, peak_flops};
use engine::models::{Arch, BatchNormScope, Head, ModelSpec, Stem};
use engine::network::{Network, NetworkOptions};
use engine::optim::{Optimizer, OptimizerKind, OptimizerSpec};
use objectives::{NtXent, Objective};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

use crate::step::Trainer;
use crate::{Error, clock};

/// Steps before the clock starts: pages are touched, clocks have risen.
const WARM_UP: u64 = 2;

/// Steps that are timed at least, and at most.
const TIMED: std::ops::RangeInclusive<usize> = 5..=200;

/// Timing goes on for about so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Embedding width of the head.
const EMBEDDING: usize = 128;

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The backbone.
    pub arch: Arch,
    /// Its entrance; unset: CIFAR's below 64 pixels.
    pub stem: Option<Stem>,
    /// How convolutions are computed.
    pub convolution: Convolution,
    /// Instructions of the kernels; the machine must have them.
    pub kernel_path: KernelPath,
    /// Rows (views) of a step.
    pub batch: usize,
    /// Side of the images, in pixels.
    pub size: usize,
    /// Threads; unset: one for each core.
    pub threads: Option<usize>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Rows (views) a second.
    pub views_per_s: f64,
    /// Median of the timed steps.
    pub step_ms: f64,
    /// Billions of floating-point operations a second, counted as direct convolutions.
    pub gflops: f64,
    /// Of the multiply-add peak of the same threads.
    pub share_of_peak: f64,
    /// Most memory that the process has held.
    pub peak_memory_bytes: u64,
    /// What network and optimizer were predicted to take.
    pub predicted_memory_bytes: u64,
    /// The instructions of the kernels.
    pub kernel_path: String,
    /// Threads.
    pub threads: usize,
    /// The peak that `share_of_peak` refers to.
    pub peak_gflops: f64,
    /// Steps that were timed.
    pub steps: usize,
}

/// Times the training step of one worker on images of noise.
///
/// # Errors
/// If the batch is not one of pairs, or a step fails.
pub fn bench_step(options: &BenchOptions) -> Result<BenchReport, Error> {
    let BenchOptions { batch, size, .. } = *options;
    if batch < 4 || !batch.is_multiple_of(2) {
        let reason = "rows are views, two of each image: give an even number of at least 4".to_owned();
        return Err(Error::Config { key: "--batch", value: batch.to_string(), reason });
    }
    if size == 0 {
        let reason = "give at least one pixel".to_owned();
        return Err(Error::Config { key: "--size", value: size.to_string(), reason });
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Arc::new(Pool::new(options.threads.unwrap_or(cores).max(1), &[]));
    let (mut trainer, predicted) = trainer(options, &pool);
    let images = noise(batch * size * size * 3);
    for step in 0..WARM_UP {
        trainer.step(step, &images, LEARNING_RATE)?;
    }
    let mut times = Vec::new();
    while times.len() < *TIMED.start()
        || (times.len() < *TIMED.end() && times.iter().sum::<Duration>() < PATIENCE)
    {
        let begun = clock::now();
        trainer.step(WARM_UP + times.len() as u64, &images, LEARNING_RATE)?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let step = times[times.len() / 2].as_secs_f64();
    let path = trainer.network.kernel_path();
    let peak = peak_flops(&pool, path);
    let flops = trainer.network.flops_per_row() * batch as f64 / step;
    Ok(BenchReport {
        views_per_s: batch as f64 / step,
        step_ms: 1e3 * step,
        gflops: flops / 1e9,
        share_of_peak: flops / peak,
        peak_memory_bytes: peak_memory()?,
        predicted_memory_bytes: predicted as u64,
        kernel_path: path.to_string(),
        threads: pool.threads(),
        peak_gflops: peak / 1e9,
        steps: times.len(),
    })
}

/// Small enough that weights stay numbers over every step that is timed.
const LEARNING_RATE: f64 = 1e-3;

fn trainer(options: &BenchOptions, pool: &Arc<Pool>) -> (Trainer, usize) {
    let mut spec = ModelSpec {
        arch: options.arch,
        stem: options.stem.unwrap_or(if options.size < 64 { Stem::Cifar } else { Stem::Imagenet }),
        head: Head::Linear { out: EMBEDDING },
        batch_norm: BatchNormScope::Global,
        image_size: options.size,
        zero_init_residual: true,
    };
    spec.head = Head::Mlp { hidden: spec.feature_width(), out: EMBEDDING };
    let network_options = NetworkOptions {
        max_rows: options.batch,
        seed: 0,
        kernel_path: options.kernel_path,
        convolution: options.convolution,
    };
    let network = Network::new(&spec, network_options, Arc::clone(pool));
    let kind = OptimizerKind::Sgd { momentum: 0.9 };
    let sgd = OptimizerSpec { kind, weight_decay: 1e-4, decay_all: false };
    let predicted = Network::<f32>::predicted_bytes(&spec, &network_options, pool.threads())
        + network.parameters().values.len() * Optimizer::<f32>::bytes_per_parameter(kind);
    let trainer = Trainer {
        optimizer: Optimizer::new(sgd, network.parameters()),
        objective: Objective::Simclr(NtXent::new(0.5)),
        communicator: Communicator::alone(),
        gradients: None,
        pool: Arc::clone(pool),
        rows: vec![options.batch],
        network,
    };
    (trainer, predicted)
}

/// Values in [0, 1) that look like no image: the step's time does not depend on them.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// `VmHWM` of this process.
fn peak_memory() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|source| Error::System { what: "read this process's memory", source })?;
    parse_peak(&status).ok_or_else(|| Error::System {
        what: "read this process's memory",
        source: std::io::Error::other("no VmHWM in /proc/self/status"),
    })
}

fn parse_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(batch: usize) -> BenchOptions {
        BenchOptions {
            arch: Arch::ResNet20,
            stem: None,
            convolution: Convolution::Auto,
            kernel_path: KernelPath::detect(),
            batch,
            size: 8,
            threads: Some(1),
        }
    }

    #[test]
    fn figures_follow_from_each_other() {
        let report = bench_step(&options(4)).unwrap();
        assert!((report.views_per_s * report.step_ms / 4e3 - 1.0).abs() < 1e-9, "{report:?}");
        assert!((report.gflops / report.peak_gflops / report.share_of_peak - 1.0).abs() < 1e-9, "{report:?}");
        assert!(report.share_of_peak > 0.0 && report.share_of_peak < 1.0, "{report:?}");
        assert!(report.peak_memory_bytes > report.predicted_memory_bytes, "{report:?}");
    }

    #[test]
    fn an_odd_batch_is_refused() {
        assert_eq!(bench_step(&options(5)).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_peak_is_read_from_the_status() {
        assert_eq!(parse_peak("VmPeak:\t 9 kB\nVmHWM:\t   123 kB\nVmRSS: 1 kB\n"), Some(123 * 1024));
        assert_eq!(parse_peak("VmRSS: 1 kB\n"), None);
    }
}
