//! Rows of `metrics.jsonl`, in the order of their columns.

use proto::v1::{Counts, Metric, MetricRow, metric};
use std::time::Duration;
use trainer::evaluation::Evaluated;

/// What one update, an evaluation, or both leave in `metrics.jsonl`. What does not apply is left out.
#[derive(Debug, Default)]
pub struct Row {
    /// Completed updates.
    pub step: u64,
    /// Passes over the data, in fractions.
    pub epoch: f64,
    /// Absent before the first update.
    pub update: Option<Update>,
    /// Corrupt images met so far by any rank, each replaced by another.
    pub corrupt_images: u64,
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
    /// What else the objective tells, by name: the age of the slots it has read, their drift, ...
    pub objective: Vec<(&'static str, f64)>,
    /// The rate that the update used.
    pub learning_rate: f64,
    /// Since the last row.
    pub rates: Rates,
    /// What each rank did.
    pub traffic: Traffic,
}

/// What each rank did: its share is its own rows and no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    pub fn steps_per_s(&self) -> f64 {
        f64::from(self.steps) / self.busy.as_secs_f64().max(1e-9)
    }

    fn mean_ms(&self, total: Duration) -> f64 {
        1e3 * total.as_secs_f64() / f64::from(self.steps.max(1))
    }
}

impl Row {
    /// The row as the wire carries it. `global_batch` is in images; each is seen in `views` views.
    pub fn into_proto(self, global_batch: usize, views: usize) -> MetricRow {
        let mut values = vec![number("epoch", self.epoch)];
        if let Some(update) = self.update {
            let images_per_s = update.rates.steps_per_s() * global_batch as f64;
            values.extend([
                number("loss", update.loss),
                number("chance_loss", update.chance_loss),
                number("lr", update.learning_rate),
                number("images_per_s", images_per_s),
                number("views_per_s", views as f64 * images_per_s),
                number("step_ms", update.rates.mean_ms(update.rates.busy)),
                number("data_wait_ms", update.rates.mean_ms(update.rates.waited)),
                counts("rows_encoded", update.traffic.rows_encoded),
                counts("bytes_sent", update.traffic.bytes_sent),
            ]);
            values.extend(update.objective.iter().map(|(name, value)| number(name, *value)));
        }
        if self.corrupt_images > 0 {
            values.push(count("corrupt_images", self.corrupt_images));
        }
        if let Some(evaluated) = self.evaluated {
            values.extend([
                number("knn_top1", evaluated.top1),
                count("knn_k", evaluated.k as u64),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(row: Row) -> Vec<String> {
        row.into_proto(8, 2).values.into_iter().map(|metric| metric.name).collect()
    }

    fn evaluated() -> Evaluated {
        Evaluated {
            top1: 0.5,
            n_queries: 2,
            n_bank: 2,
            k: 7,
            feature_std: 0.1,
            effective_rank: 3.0,
            caveats: Vec::new(),
            corrupt: Vec::new(),
            corrupt_test: Vec::new(),
        }
    }

    #[test]
    fn what_does_not_apply_is_left_out() {
        let row = Row { evaluated: Some(evaluated()), ..Row::default() };
        assert_eq!(names(row), ["epoch", "knn_top1", "knn_k", "feature_std", "effective_rank"]);
        let mut rates = Rates::default();
        rates.add(Duration::from_millis(300), Duration::from_millis(100));
        rates.add(Duration::from_millis(100), Duration::from_millis(20));
        let traffic = Traffic { rows_encoded: vec![8, 8], bytes_sent: vec![5, 6] };
        let objective = vec![("slot_age", 12.5)];
        let update = Update { loss: 2.0, chance_loss: 3.0, objective, learning_rate: 0.1, rates, traffic };
        let row = Row { step: 4, update: Some(update), corrupt_images: 1, ..Row::default() }.into_proto(8, 2);
        let value = |name: &str| {
            let metric = row.values.iter().find(|metric| metric.name == name);
            metric.unwrap_or_else(|| panic!("no {name}")).value.clone().unwrap()
        };
        assert_eq!(value("images_per_s"), metric::Value::Number(40.0));
        assert_eq!(value("views_per_s"), metric::Value::Number(80.0));
        assert_eq!(value("step_ms"), metric::Value::Number(200.0));
        assert_eq!(value("data_wait_ms"), metric::Value::Number(60.0));
        assert_eq!(value("rows_encoded"), metric::Value::Counts(Counts { values: vec![8, 8] }));
        assert_eq!(value("corrupt_images"), metric::Value::Count(1));
        assert_eq!(value("slot_age"), metric::Value::Number(12.5));
        assert_eq!(row.values.len(), 12);
    }
}
