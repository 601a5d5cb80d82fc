//! The learning rate as a function of the update: linear warm-up, then cosine to zero or constant.

use std::f64::consts::PI;

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleKind {
    /// Half a cosine from the base rate to 0 at the end of the run, without restart.
    Cosine,
    /// The base rate throughout.
    Constant,
}

/// A learning-rate schedule, evaluated per update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// What follows the warm-up.
    pub kind: ScheduleKind,
    /// The rate at the end of the warm-up.
    pub base_lr: f64,
    /// Updates over which the rate climbs linearly to `base_lr`.
    pub warmup_steps: u64,
    /// Updates of the whole run, warm-up included.
    pub total_steps: u64,
}

impl Schedule {
    /// Returns the rate of the update with index `update_idx`, counted from 0.
    ///
    /// The first update already moves (`base_lr / warmup_steps`), the last one of the warm-up uses `base_lr`.
    /// The cosine is that of a run of `total_steps`; past its end the rate is 0.
    pub fn lr(&self, update_idx: u64) -> f64 {
        if update_idx < self.warmup_steps {
            return self.base_lr * (update_idx + 1) as f64 / self.warmup_steps as f64;
        }
        match self.kind {
            ScheduleKind::Constant => self.base_lr,
            ScheduleKind::Cosine if update_idx >= self.total_steps => 0.0,
            ScheduleKind::Cosine => {
                let done = (update_idx - self.warmup_steps) as f64;
                let span = (self.total_steps - self.warmup_steps) as f64;
                self.base_lr * 0.5 * (1.0 + (PI * done / span).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: ScheduleKind, warmup_steps: u64, update_idx: u64, expected: f64) {
        let schedule = Schedule { kind, base_lr: 0.8, warmup_steps, total_steps: 12 };
        let lr = schedule.lr(update_idx);
        assert!((lr - expected).abs() < 1e-15, "{lr} instead of {expected}");
    }

    #[test]
    fn warms_up_then_falls_along_the_cosine() {
        check(ScheduleKind::Cosine, 4, 0, 0.2);
        check(ScheduleKind::Cosine, 4, 3, 0.8);
        check(ScheduleKind::Cosine, 4, 4, 0.8);
        check(ScheduleKind::Cosine, 4, 8, 0.4);
        check(ScheduleKind::Cosine, 4, 6, 0.4 * (1.0 + 0.5_f64.sqrt()));
        check(ScheduleKind::Cosine, 4, 12, 0.0);
        check(ScheduleKind::Cosine, 0, 0, 0.8);
        check(ScheduleKind::Cosine, 12, 11, 0.8);
        check(ScheduleKind::Cosine, 12, 12, 0.0);
        check(ScheduleKind::Constant, 2, 0, 0.4);
        check(ScheduleKind::Constant, 2, 40, 0.8);
    }
}
