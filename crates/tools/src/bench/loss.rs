//! `himpun bench loss`: NT-Xent, forward and backward, of random embeddings.

use collective::Communicator;
use kernels::{KernelPath, peak_flops};
use objectives::NtXent;
use serde::Serialize;
use trainer::Error;

use crate::bench::{Threads, noise, peak_memory, time};

/// What is measured.
#[derive(Clone, Debug)]
pub struct LossOptions {
    /// Rows (views) of the batch.
    pub batch: usize,
    /// Numbers in an embedding.
    pub width: usize,
    /// Divides the similarities.
    pub temperature: f64,
    /// What it is timed on.
    pub threads: Threads,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct LossReport {
    /// Median of the timed calls, forward and backward.
    pub loss_ms: f64,
    /// The shortest.
    pub loss_ms_min: f64,
    /// The longest.
    pub loss_ms_max: f64,
    /// Rows (views) a second.
    pub rows_per_s: f64,
    /// Billions of floating-point operations a second that matrix products make.
    pub gflops: f64,
    /// Of the multiply-add peak of the same threads.
    pub share_of_peak: f64,
    /// Billions of operations a second that a loss without symmetry would have to make to be as fast.
    pub dense_gflops: f64,
    /// Bytes that the dense similarity matrix would take.
    pub similarity_bytes: u64,
    /// Most memory that the process has held, embeddings and gradient included.
    pub peak_memory_bytes: u64,
    /// The loss, to see that it is one.
    pub loss: f64,
    /// The instructions of the kernels.
    pub kernel_path: String,
    /// Threads.
    pub threads: usize,
    /// The peak that `share_of_peak` refers to.
    pub peak_gflops: f64,
    /// Calls that were timed.
    pub calls: usize,
}

/// Times loss and gradient of one rank's batch.
///
/// # Errors
/// If the batch is not one of pairs.
pub fn bench_loss(options: &LossOptions) -> Result<LossReport, Error> {
    let LossOptions { batch, width, temperature, .. } = *options;
    check(options)?;
    let device = options.threads.on(KernelPath::detect()).open();
    let mut embeddings = noise(batch * width);
    embeddings.iter_mut().for_each(|value| *value -= 0.5);
    let nt_xent = NtXent::new(temperature);
    let mut communicator = Communicator::alone();
    let mut loss = 0.0;
    let timing = time(|| {
        let step = nt_xent.forward_backward(&device, &embeddings, &[batch], &mut communicator);
        loss = step?.loss;
        Ok::<(), Error>(())
    })?;
    // Before the peak is measured, which takes no memory worth mentioning.
    let peak_memory_bytes = peak_memory()?;
    let seconds = timing.median.as_secs_f64();
    let (m, d) = (batch as f64, width as f64);
    let peak = peak_flops(device.cpu());
    let flops = NtXent::flops(batch, width) / seconds;
    Ok(LossReport {
        loss_ms: 1e3 * seconds,
        loss_ms_min: 1e3 * timing.min.as_secs_f64(),
        loss_ms_max: 1e3 * timing.max.as_secs_f64(),
        rows_per_s: m / seconds,
        gflops: flops / 1e9,
        share_of_peak: flops / peak,
        dense_gflops: 6.0 * m * m * d / seconds / 1e9,
        similarity_bytes: (size_of::<f32>() * batch * batch) as u64,
        peak_memory_bytes,
        loss,
        kernel_path: device.cpu().path.to_string(),
        threads: device.cpu().threads(),
        peak_gflops: peak / 1e9,
        calls: timing.samples,
    })
}

fn check(options: &LossOptions) -> Result<(), Error> {
    let refuse =
        |key, value: String, reason: &str| Err(Error::Config { key, value, reason: reason.to_owned() });
    if options.batch < 4 || !options.batch.is_multiple_of(2) {
        let reason = "rows are views, two of each image: give an even number of at least 4";
        return refuse("--batch", options.batch.to_string(), reason);
    }
    if options.width == 0 {
        return refuse("--width", options.width.to_string(), "give at least one number");
    }
    if !(options.temperature > 0.0 && options.temperature.is_finite()) {
        return refuse("--temperature", options.temperature.to_string(), "give a number above 0");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(batch: usize) -> LossOptions {
        LossOptions { batch, width: 16, temperature: 0.5, threads: Threads::new(Some(1), &[]) }
    }

    #[test]
    fn figures_follow_from_each_other() {
        let report = bench_loss(&options(64)).unwrap();
        assert!((report.rows_per_s * report.loss_ms / 64e3 - 1.0).abs() < 1e-9, "{report:?}");
        assert!((report.gflops / report.peak_gflops / report.share_of_peak - 1.0).abs() < 1e-9, "{report:?}");
        assert!(report.share_of_peak > 0.0 && report.share_of_peak < 1.0, "{report:?}");
        assert!(report.loss_ms_min <= report.loss_ms && report.loss_ms <= report.loss_ms_max, "{report:?}");
        // Random rows are hardly told from each other: the loss is near that of chance, ln 63.
        assert!((report.loss - 63f64.ln()).abs() < 0.5, "{report:?}");
        assert_eq!(report.similarity_bytes, 64 * 64 * 4);
    }

    #[test]
    fn what_cannot_be_timed_is_refused() {
        let wrong = [
            LossOptions { batch: 5, ..options(4) },
            LossOptions { width: 0, ..options(4) },
            LossOptions { temperature: 0.0, ..options(4) },
            LossOptions { temperature: f64::NAN, ..options(4) },
        ];
        for options in wrong {
            assert_eq!(bench_loss(&options).unwrap_err().exit_code(), 2, "{options:?}");
        }
    }
}
