//! The learning rate as a function of the update: linear warm-up, then a cosine, steps, or no change.

use std::f64::consts::PI;

/// What follows the warm-up.
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleKind {
    /// Half a cosine from the base rate to another one at the end of the run, without restart.
    Cosine {
        /// The rate at the end.
        final_lr: f64,
    },
    /// The base rate throughout.
    Constant,
    /// The base rate, multiplied once more at each milestone.
    Step {
        /// Updates after which the rate changes, ascending.
        milestones: Vec<u64>,
        /// What it is multiplied by.
        gamma: f64,
    },
}

/// A learning-rate schedule, evaluated per update.
#[derive(Debug, Clone, PartialEq)]
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
    /// The cosine is that of a run of `total_steps`; past its end the rate is `final_lr`. With milestones `[a, b]` the
    /// updates of index `a` and `b` are the first with the lower rates, also where they are within the warm-up's reach:
    /// that one climbs to `base_lr` all the same.
    pub fn lr(&self, update_idx: u64) -> f64 {
        if update_idx < self.warmup_steps {
            return self.base_lr * (update_idx + 1) as f64 / self.warmup_steps as f64;
        }
        match &self.kind {
            ScheduleKind::Constant => self.base_lr,
            ScheduleKind::Cosine { final_lr } if update_idx >= self.total_steps => *final_lr,
            ScheduleKind::Cosine { final_lr } => {
                let done = (update_idx - self.warmup_steps) as f64;
                let span = (self.total_steps - self.warmup_steps) as f64;
                final_lr + (self.base_lr - final_lr) * 0.5 * (1.0 + (PI * done / span).cos())
            }
            ScheduleKind::Step { milestones, gamma } => {
                let passed = milestones.iter().filter(|milestone| **milestone <= update_idx).count();
                self.base_lr * gamma.powi(passed as i32)
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

    const COSINE: ScheduleKind = ScheduleKind::Cosine { final_lr: 0.0 };

    #[test]
    fn warms_up_then_falls_along_the_cosine() {
        check(COSINE, 4, 0, 0.2);
        check(COSINE, 4, 3, 0.8);
        check(COSINE, 4, 4, 0.8);
        check(COSINE, 4, 8, 0.4);
        check(COSINE, 4, 6, 0.4 * (1.0 + 0.5_f64.sqrt()));
        check(COSINE, 4, 12, 0.0);
        check(COSINE, 0, 0, 0.8);
        check(COSINE, 12, 11, 0.8);
        check(COSINE, 12, 12, 0.0);
        check(ScheduleKind::Constant, 2, 0, 0.4);
        check(ScheduleKind::Constant, 2, 40, 0.8);
    }
    #[test]
    fn the_cosine_ends_at_its_final_rate() {
        let kind = ScheduleKind::Cosine { final_lr: 0.2 };
        check(kind.clone(), 4, 3, 0.8);
        check(kind.clone(), 4, 4, 0.8);
        check(kind.clone(), 4, 8, 0.5);
        check(kind.clone(), 4, 6, 0.2 + 0.3 * (1.0 + 0.5_f64.sqrt()));
        check(kind.clone(), 4, 12, 0.2);
        check(kind, 4, 900, 0.2);
    }

    #[test]
    fn steps_fall_at_their_milestones() {
        let kind = ScheduleKind::Step { milestones: vec![3, 7], gamma: 0.5 };
        for (update_idx, expected) in [(0, 0.4), (1, 0.8), (2, 0.8), (3, 0.4), (6, 0.4), (7, 0.2), (50, 0.2)]
        {
            check(kind.clone(), 2, update_idx, expected);
        }
        check(ScheduleKind::Step { milestones: vec![], gamma: 0.5 }, 2, 50, 0.8);
    }
}
