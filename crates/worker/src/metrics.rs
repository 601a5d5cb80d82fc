//! Rows of `metrics.jsonl`, in the order of their columns.

use proto::v1::{Counts, Metric, MetricRow, metric};
use std::time::Duration;

use crate::evaluation::Evaluated;

/// What one update, an evaluation, or both leave in `metrics.jsonl`. What does not apply is left out.
#[derive(Debug, Default)]
pub struct Row {
    /// Completed updates.
    pub step: u64,
    /// Passes over the data, in fractions.
    pub epoch: f64,
    /// Absent before the first update.
    pub update: Option<Update>,
    /// Present where the step was evaluated.
    pub evaluated: Option<Evaluated>,
}

/// The part of a row that an update leaves.
#[derive(Debug)]
pub struct Update {
    /// Mean over the global rows, in nats, of the batch before the update.
    pub loss: f64,
    /// What the objective gives when embeddings tell nothing.
    pub chance_loss: f64,
    /// The rate that the update used.
    pub learning_rate: f64,
    /// Since the last row.
    pub rates: Rates,
    /// Corrupt images met so far by any rank, each replaced by another.
    pub corrupt_images: u64,
    /// For each rank: rows it encoded in this step, bytes it sent since the start.
    pub traffic: Traffic,
}

/// What each rank did: its share is its own rows and no others.
#[derive(Debug)]
pub struct Traffic {
    /// Rows (views) encoded in this step, by rank.
    pub rows_encoded: Vec<u64>,
    /// Bytes sent to peers since the worker started, by rank.
    pub bytes_sent: Vec<u64>,
}

/// Throughput since the last row, evaluations and checkpoints left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    steps: u32,
    busy: Duration,
    waited: Duration,
}

impl Rates {
    /// Counts a step that took `busy`, of which it waited `waited` for its images.
    pub fn add(&mut self, busy: Duration, waited: Duration) {
        self.steps += 1;
        self.busy += busy;
        self.waited += waited;
    }

    /// Steps a second.
    fn steps_per_s(&self) -> f64 {
        f64::from(self.steps) / self.busy.as_secs_f64().max(1e-9)
    }

    fn mean_ms(&self, total: Duration) -> f64 {
        1e3 * total.as_secs_f64() / f64::from(self.steps.max(1))
    }
}

impl Row {
    /// The row as the wire carries it. `global_batch` is in images; each is seen in two views.
    pub fn into_proto(self, global_batch: usize) -> MetricRow {
        let mut values = vec![number("epoch", self.epoch)];
        if let Some(update) = self.update {
            let images_per_s = update.rates.steps_per_s() * global_batch as f64;
            values.extend([
                number("loss", update.loss),
                number("chance_loss", update.chance_loss),
                number("lr", update.learning_rate),
                number("images_per_s", images_per_s),
                number("views_per_s", 2.0 * images_per_s),
                number("step_ms", update.rates.mean_ms(update.rates.busy)),
                number("data_wait_ms", update.rates.mean_ms(update.rates.waited)),
                counts("rows_encoded", update.traffic.rows_encoded),
                counts("bytes_sent", update.traffic.bytes_sent),
            ]);
            if update.corrupt_images > 0 {
                values.push(count("corrupt_images", update.corrupt_images));
            }
        }
        if let Some(evaluated) = self.evaluated {
            values.extend([
                number("knn_top1", evaluated.top1),
                number("feature_std", evaluated.feature_std),
                number("effective_rank", evaluated.effective_rank),
            ]);
        }
        MetricRow { step: self.step, values }
    }
}

fn number(name: &str, value: f64) -> Metric {
    Metric { name: name.to_owned(), value: Some(metric::Value::Number(value)) }
}

fn count(name: &str, value: u64) -> Metric {
    Metric { name: name.to_owned(), value: Some(metric::Value::Count(value)) }
}

fn counts(name: &str, values: Vec<u64>) -> Metric {
    Metric { name: name.to_owned(), value: Some(metric::Value::Counts(Counts { values })) }
}
