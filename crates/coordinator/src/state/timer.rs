//! Checkpoints by time: `checkpoint.every_minutes`.
//!
//! They are asked for as an operator asks, so that all ranks take one after the same update.

use config::RunConfig;
use std::time::Duration;

use super::input::{Command, Operation};
use super::run::{Phase, Run};

/// An order for a checkpoint that nothing came of for this long was lost, with a connection, say: it is given again.
const LOST: Duration = Duration::from_secs(600);

/// Seconds in a minute.
const MINUTE: f64 = 60.0;

/// What the next checkpoint by time is measured from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Timer {
    /// Between two checkpoints; zero: none by time.
    pub every: Duration,
    /// When the last checkpoint was committed or asked for, or the group began to train.
    pub since: Duration,
    /// The step of that checkpoint, or the one that the group began from.
    pub step: u64,
}

impl Timer {
    /// The timer of a run with this configuration. One that is no configuration trains nothing, and is refused elsewhere.
    pub fn of(config_toml: &str) -> Timer {
        let minutes = RunConfig::from_toml(config_toml).map_or(0.0, |config| config.checkpoint.every_minutes);
        // More minutes than a duration holds never pass.
        let every = Duration::try_from_secs_f64(MINUTE * minutes).unwrap_or(Duration::MAX);
        Timer { every, since: Duration::ZERO, step: 0 }
    }

    /// Measures from `now`, at which the run has saved `step`, or started from it.
    pub fn restart(&mut self, now: Duration, step: u64) {
        (self.since, self.step) = (now, step);
    }
}

impl Run {
    /// Asks rank 0 for a checkpoint if one is due: the time is up, and there is a step to save. A pause takes none:
    /// its step is saved once training goes on, or by whoever asks.
    pub(super) fn ask_for_checkpoint(&mut self, incarnation: u64, now: Duration, out: &mut Vec<Command>) {
        let is_training = matches!(self.phase, Phase::Running { paused: false, stopping: false });
        let Timer { every, since, step } = self.timer;
        if !is_training || every.is_zero() || self.record.summary.step <= step {
            return;
        }
        let patience = if self.wanted.checkpoint { every.max(LOST) } else { every };
        if now.saturating_sub(since) < patience {
            return;
        }
        self.wanted.checkpoint = true;
        self.timer.since = now;
        out.extend(self.order(Operation::Checkpoint, "every_minutes", incarnation));
    }
}
