//! How far a run is: a bar on a terminal, aligned lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use proto::v1::{Event, MetricRow, Severity, event, metric};
use serde_json::{Map, Value, json};
use std::io::IsTerminal as _;

use crate::output;

/// Plain lines come no more often than this, except for evaluations.
const LINE_EVERY_NS: u64 = 1_000_000_000;

/// How many of a known number are done: a bar on a terminal, nothing elsewhere.
pub struct Counter {
    bar: Option<ProgressBar>,
}

impl Counter {
    /// Begins at 0 of `total`.
    pub fn new(total: usize) -> Counter {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:16} {pos}/{len}  {eta} left");
            ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Counter { bar }
    }

    /// Shows that `done` are done.
    pub fn show(&self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What is shown of a run while it goes on, on stderr.
pub struct Progress {
    /// Absent where stderr is no terminal.
    bar: Option<ProgressBar>,
    /// The last step that the run will do, once it is known.
    end: Option<u64>,
    /// Never more steps than this, if set.
    stop_after: Option<u64>,
    /// Step and time of the first row: what the speed is measured from.
    first: Option<(u64, u64)>,
    /// Time of the last plain line.
    shown_ns: u64,
    knn_top1: Option<f64>,
    /// Whether every event is shown, or only those that a person should know.
    every_event: bool,
}

impl Progress {
    /// Shows a run of which only warnings are told besides its numbers.
    pub fn of_training(stop_after: Option<u64>) -> Progress {
        Progress::new(stop_after, false)
    }

    /// Shows a run with all its events.
    pub fn of_watching() -> Progress {
        Progress::new(None, true)
    }

    fn new(stop_after: Option<u64>, every_event: bool) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:16} {pos}/{len}  {msg}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, end: None, stop_after, first: None, shown_ns: 0, knn_top1: None, every_event }
    }

    /// Learns the length of the run.
    pub fn total_steps(&mut self, total: u64) {
        if total > 0 {
            let end = self.stop_after.map_or(total, |stop| stop.min(total));
            self.end = Some(end);
            if let Some(bar) = &self.bar {
                bar.set_length(end);
            }
        }
    }

    /// Shows what the event tells.
    pub fn event(&mut self, event: &Event) {
        if let Some(event::Kind::State(_)) = &event.kind {
            // What was paused or forming meanwhile says nothing about the speed.
            self.first = None;
        }
        match (&event.kind, Severity::try_from(event.severity)) {
            (Some(event::Kind::Metrics(row)), _) => self.row(row, event.time_ns),
            (_, Ok(Severity::Warn)) => self.line(&format!("warning: {}", event.text)),
            // The command itself reports how the run ended.
            (Some(event::Kind::Ended(_)), _) if !self.every_event => {}
            _ if self.every_event => self.line(&event.text),
            _ => {}
        }
    }

    /// Takes the bar away, so that what is printed next stands alone.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }

    fn row(&mut self, row: &MetricRow, time_ns: u64) {
        let evaluated = number(row, "knn_top1");
        self.knn_top1 = evaluated.or(self.knn_top1);
        let (first_step, first_ns) = *self.first.get_or_insert((row.step, time_ns));
        let eta =
            self.end.and_then(|end| eta_seconds(row.step, first_step, time_ns.saturating_sub(first_ns), end));
        match &self.bar {
            Some(bar) => {
                bar.set_position(row.step);
                bar.set_message(describe(&for_bar(row), self.knn_top1, eta));
            }
            None => {
                let due = time_ns.saturating_sub(self.shown_ns) >= LINE_EVERY_NS;
                if due || evaluated.is_some() || Some(row.step) == self.end {
                    self.shown_ns = time_ns;
                    let numbers = describe(row, self.knn_top1, eta);
                    let end = self.end.map_or(String::new(), |end| format!("/{end}"));
                    output::note(&format!("step {:>7}{end}  {numbers}", row.step));
                }
            }
        }
    }
}

/// The row without what hardly changes: beside a bar there is room for 80 columns in all.
fn for_bar(row: &MetricRow) -> MetricRow {
    let values = row.values.iter().filter(|metric| !["chance_loss", "lr"].contains(&metric.name.as_str()));
    MetricRow { step: row.step, values: values.cloned().collect() }
}

/// A row's numbers in fixed columns; what it does not hold is left out.
fn describe(row: &MetricRow, knn_top1: Option<f64>, eta: Option<u64>) -> String {
    let mut columns = Vec::new();
    if let Some(loss) = number(row, "loss") {
        let chance =
            number(row, "chance_loss").map_or(String::new(), |chance| format!(" (chance {chance:.3})"));
        columns.push(format!("loss {loss:>7.4}{chance}"));
    }
    if let Some(lr) = number(row, "lr") {
        columns.push(format!("lr {lr:<9.3e}"));
    }
    if let Some(rate) = number(row, "images_per_s") {
        columns.push(format!("{rate:>7.0} images/s"));
    }
    if let Some(top1) = knn_top1 {
        columns.push(format!("kNN {:>5.1} %", 100.0 * top1));
    }
    if let Some(seconds) = eta {
        columns.push(format!("eta {}", duration(seconds)));
    }
    columns.join("  ")
}

/// The number of that name in the row.
pub fn number(row: &MetricRow, name: &str) -> Option<f64> {
    row.values.iter().find(|metric| metric.name == name).and_then(|metric| match metric.value {
        Some(metric::Value::Number(number)) => Some(number),
        _ => None,
    })
}

/// A row as `metrics.jsonl` has it.
pub fn row_to_json(row: &MetricRow) -> Value {
    let mut object = Map::from_iter([("step".to_owned(), json!(row.step))]);
    for metric in &row.values {
        let value = match &metric.value {
            Some(metric::Value::Number(number)) => json!(number),
            Some(metric::Value::Count(count)) => json!(count),
            Some(metric::Value::Counts(counts)) => json!(counts.values),
            None => continue,
        };
        object.insert(metric.name.clone(), value);
    }
    Value::Object(object)
}

fn eta_seconds(step: u64, first_step: u64, elapsed_ns: u64, end: u64) -> Option<u64> {
    let done = step.checked_sub(first_step).filter(|done| *done > 0)?;
    let left = end.saturating_sub(step);
    Some((elapsed_ns as f64 * 1e-9 / done as f64 * left as f64).round() as u64)
}

/// Seconds as `1h02m`, `3m04s` or `5s`.
pub fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::Metric;

    fn row(values: &[(&str, f64)]) -> MetricRow {
        let metric = |(name, value): &(&str, f64)| Metric {
            name: (*name).to_owned(),
            value: Some(metric::Value::Number(*value)),
        };
        MetricRow { step: 3, values: values.iter().map(metric).collect() }
    }

    #[test]
    fn a_row_is_described_by_what_it_holds() {
        let full = row(&[("loss", 4.5), ("chance_loss", 6.2364), ("lr", 0.3), ("images_per_s", 512.4)]);
        assert_eq!(
            describe(&full, Some(0.5), Some(64)),
            "loss  4.5000 (chance 6.236)  lr 3.000e-1       512 images/s  kNN  50.0 %  eta 1m04s"
        );
        assert_eq!(
            describe(&for_bar(&full), Some(0.5), Some(64)),
            "loss  4.5000      512 images/s  kNN  50.0 %  eta 1m04s"
        );
        assert_eq!(describe(&row(&[("knn_top1", 0.25)]), Some(0.25), None), "kNN  25.0 %");
    }

    #[test]
    fn the_time_left_follows_the_steps_done() {
        assert_eq!(eta_seconds(3, 1, 4_000_000_000, 10), Some(14));
        assert_eq!(eta_seconds(1, 1, 0, 10), None);
        assert_eq!(eta_seconds(10, 1, 9_000_000_000, 10), Some(0));
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(
            (duration(5).as_str(), duration(184).as_str(), duration(3720).as_str()),
            ("5s", "3m04s", "1h02m")
        );
    }
}
