//! `himpun bench step`: the trainer's own step, from images to updated weights.

use engine::models::{Arch, BatchNormScope, Head, ModelSpec, Stem, Vit};
use engine::network::{Network, NetworkOptions};
use engine::optim::{Optimizer, OptimizerKind, OptimizerSpec};
use kernels::{Convolution, KernelPath, peak_flops};
use objectives::{NtXent, Objective, TwoViews};
use serde::Serialize;
use trainer::Error;
use trainer::step::{StepBatch, Trainer};

use crate::bench::{Threads, noise, peak_memory, time};

/// Embedding width of the head.
const EMBEDDING: usize = 128;

/// What is measured.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// The backbone.
    pub arch: Arch,
    /// The entrance of a residual network; unset: CIFAR's below 64 pixels.
    pub stem: Option<Stem>,
    /// How convolutions are computed.
    pub convolution: Convolution,
    /// Instructions of the kernels; the machine must have them.
    pub kernel_path: KernelPath,
    /// Rows (views) of a step.
    pub batch: usize,
    /// Side of the images, in pixels.
    pub size: usize,
    /// What it is timed on.
    pub threads: Threads,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// Rows (views) a second.
    pub views_per_s: f64,
    /// Median of the timed steps.
    pub step_ms: f64,
    /// The shortest timed step.
    pub step_ms_min: f64,
    /// The longest.
    pub step_ms_max: f64,
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
pub fn bench_step(options: &StepOptions) -> Result<StepReport, Error> {
    let StepOptions { batch, size, .. } = *options;
    if batch < 4 || !batch.is_multiple_of(2) {
        let reason = "rows are views, two of each image: give an even number of at least 4".to_owned();
        return Err(Error::Config { key: "--batch", value: batch.to_string(), reason });
    }
    if size == 0 {
        let reason = "give at least one pixel".to_owned();
        return Err(Error::Config { key: "--size", value: size.to_string(), reason });
    }
    if let Arch::Vit(Vit { patch, .. }) = options.arch
        && (patch == 0 || !size.is_multiple_of(patch))
    {
        let reason = format!("patches of {patch} pixels do not tile it; give a multiple, or another --patch");
        return Err(Error::Config { key: "--size", value: size.to_string(), reason });
    }
    let (mut trainer, predicted) = trainer(options);
    let images = noise(batch * size * size * 3);
    let indices: Vec<usize> = (0..batch / 2).collect();
    let views =
        StepBatch { positions: &indices, indices: &indices, labels: &[], images: &images, jigsaw: &[] };
    let mut step = 0;
    let timing = time(|| {
        step += 1;
        trainer.step(step, &views, LEARNING_RATE)?;
        Ok::<(), Error>(())
    })?;
    let step = timing.median.as_secs_f64();
    let cpu = trainer.device.cpu();
    let peak = peak_flops(cpu);
    let flops = trainer.network.flops_per_row() * batch as f64 / step;
    Ok(StepReport {
        views_per_s: batch as f64 / step,
        step_ms: 1e3 * step,
        step_ms_min: 1e3 * timing.min.as_secs_f64(),
        step_ms_max: 1e3 * timing.max.as_secs_f64(),
        gflops: flops / 1e9,
        share_of_peak: flops / peak,
        peak_memory_bytes: peak_memory()?,
        predicted_memory_bytes: predicted as u64,
        kernel_path: cpu.path.to_string(),
        threads: cpu.threads(),
        peak_gflops: peak / 1e9,
        steps: timing.samples,
    })
}

/// Small enough that weights stay numbers over every step that is timed.
const LEARNING_RATE: f64 = 1e-3;

fn trainer(options: &StepOptions) -> (Trainer, usize) {
    let mut spec = ModelSpec {
        arch: options.arch,
        stem: options.stem.unwrap_or(if options.size < 64 { Stem::Cifar } else { Stem::Imagenet }),
        head: Head::Linear { out: EMBEDDING },
        batch_norm: BatchNormScope::Global,
        image_size: options.size,
        zero_init_residual: true,
        predictor: None,
        jigsaw: None,
    };
    spec.head = Head::Mlp { hidden: spec.feature_width(), out: EMBEDDING };
    let network_options =
        NetworkOptions { max_rows: options.batch, seed: 0, convolution: options.convolution };
    let on = options.threads.on(options.kernel_path);
    let device = on.open();
    let network = Network::new(&spec, network_options, &device);
    let kind = OptimizerKind::Sgd { momentum: 0.9 };
    let sgd = OptimizerSpec { kind, weight_decay: 1e-4, decay_all: false };
    let predicted = Network::<f32>::predicted_bytes(&spec, &network_options, &on)
        + network.parameters().values.len() * Optimizer::<f32>::bytes_per_parameter(kind);
    let optimizer = Optimizer::new(sgd, network.parameters());
    let objective = Objective::TwoViews(TwoViews::Simclr(NtXent::new(0.5)));
    let trainer = Trainer::alone(network, optimizer, objective, device, options.batch / 2);
    (trainer, predicted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(batch: usize) -> StepOptions {
        StepOptions {
            arch: Arch::ResNet20,
            stem: None,
            convolution: Convolution::Auto,
            kernel_path: KernelPath::detect(),
            batch,
            size: 8,
            threads: Threads::new(Some(1), &[]),
        }
    }

    #[test]
    fn figures_follow_from_each_other() {
        let report = bench_step(&options(4)).unwrap();
        assert!((report.views_per_s * report.step_ms / 4e3 - 1.0).abs() < 1e-9, "{report:?}");
        assert!(report.step_ms_min <= report.step_ms && report.step_ms <= report.step_ms_max, "{report:?}");
        assert!((report.gflops / report.peak_gflops / report.share_of_peak - 1.0).abs() < 1e-9, "{report:?}");
        assert!(report.share_of_peak > 0.0 && report.share_of_peak < 1.0, "{report:?}");
        assert!(report.peak_memory_bytes > report.predicted_memory_bytes, "{report:?}");
    }

    #[test]
    fn a_transformer_is_timed_in_patches_that_tile_its_images() {
        let vit = |patch| Arch::Vit(Vit { patch, ..Vit::new(24, 2, 3) });
        let report = bench_step(&StepOptions { arch: vit(4), ..options(4) }).unwrap();
        assert!(
            report.gflops > 0.0 && report.peak_memory_bytes > report.predicted_memory_bytes,
            "{report:?}"
        );
        let error = bench_step(&StepOptions { arch: vit(3), ..options(4) }).unwrap_err();
        assert!(error.to_string().starts_with("--size = 8: patches of 3 pixels"), "{error}");
    }

    #[test]
    fn an_odd_batch_is_refused() {
        assert_eq!(bench_step(&options(5)).unwrap_err().exit_code(), 2);
    }
}
