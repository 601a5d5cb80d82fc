//! What of a run is stored, and outlives the coordinator.

use proto::v1::{MetricRow, RunState, metric::Value};
use serde::{Deserialize, Serialize};

/// A run as the store holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Names the run.
    pub run_id: String,
    /// Its directory, absolute.
    pub run_dir: String,
    /// The resolved configuration.
    pub config_toml: String,
    /// Workers asked for; 0: every slot of the agents connected when the run starts.
    pub workers: u32,
    /// Compute threads a worker, where a resume must keep them; else the agents choose.
    pub threads: Option<u32>,
    /// The checkpoint it starts from.
    pub checkpoint_step: Option<u64>,
    /// Counts memberships; 0: none was dealt yet.
    pub generation: u64,
    /// Where it stands.
    pub stage: Stage,
    /// Why it ended; empty before.
    pub reason: String,
    /// Set once it has ended.
    pub exit_code: Option<i32>,
    /// Last numbers of its training.
    pub summary: Summary,
    /// Its data set is taken as it is now, whatever the checkpoint's list of images says.
    #[serde(default)]
    pub accept_changed_data: bool,
    /// Path of its newest checkpoint; empty: none.
    pub last_checkpoint: String,
}

/// As much of a run's state as matters after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// No workers were started.
    Queued,
    /// Workers were started and the run has not ended.
    Active,
    /// It reached its last step.
    Finished,
    /// It was stopped before.
    Stopped,
    /// It failed.
    Failed,
}

impl Stage {
    /// Whether nothing more happens to the run.
    pub fn has_ended(self) -> bool {
        matches!(self, Stage::Finished | Stage::Stopped | Stage::Failed)
    }

    /// The wire's name of a stage that has ended.
    pub fn ended_state(self) -> RunState {
        match self {
            Stage::Queued | Stage::Active => RunState::Unspecified,
            Stage::Finished => RunState::Finished,
            Stage::Stopped => RunState::Stopped,
            Stage::Failed => RunState::Failed,
        }
    }
}

/// Numbers of a run that a status shows, from its newest rows of metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Completed updates.
    pub step: u64,
    /// Updates of the whole run; 0: not known yet.
    pub total_steps: u64,
    /// Passes over the data.
    pub epoch: f64,
    /// Of the last logged step.
    pub loss: f64,
    /// What an encoder that knows nothing has.
    pub chance_loss: f64,
    /// Of the last evaluation.
    pub knn_top1: Option<f64>,
    /// Source images a second.
    pub images_per_s: f64,
    /// Augmented views a second.
    pub views_per_s: f64,
    /// Milliseconds an update.
    pub step_ms: f64,
}

impl Summary {
    /// Takes up what a row of metrics says.
    pub fn absorb(&mut self, row: &MetricRow) {
        self.step = self.step.max(row.step);
        for metric in &row.values {
            if let Some(Value::Number(number)) = metric.value {
                self.set(&metric.name, number);
            }
        }
    }

    /// Takes up one column of a row; columns that no status shows change nothing.
    pub fn set(&mut self, column: &str, number: f64) {
        match column {
            "epoch" => self.epoch = number,
            "loss" => self.loss = number,
            "chance_loss" => self.chance_loss = number,
            "knn_top1" => self.knn_top1 = Some(number),
            "images_per_s" => self.images_per_s = number,
            "views_per_s" => self.views_per_s = number,
            "step_ms" => self.step_ms = number,
            _ => {}
        }
    }

    /// Seconds to the last step at the present rate; 0 while the rate is not known.
    pub fn eta_seconds(&self) -> f64 {
        self.total_steps.saturating_sub(self.step) as f64 * self.step_ms / 1e3
    }
}
