//! How long to wait before the next attempt to reach the coordinator.

use std::time::Duration;

const FLOOR: Duration = Duration::from_millis(100);
const CEILING: Duration = Duration::from_secs(5);

/// Full jitter over a doubling range, so that a thousand agents do not return in the same instant.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub fn failed(&mut self) -> Duration {
        let range = FLOOR.saturating_mul(1 << self.failures.min(10)).min(CEILING);
        self.failures += 1;
        // The low 32 bits of a version 4 identifier are random.
        let random = uuid::Uuid::new_v4().as_u128() as u32;
        FLOOR + range.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_longer_up_to_a_bound_and_starts_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..64).map(|_| backoff.failed()).collect();
        assert!(waits[0] <= 2 * FLOOR, "{:?}", waits[0]);
        assert!(waits.iter().all(|wait| (FLOOR..=FLOOR + CEILING).contains(wait)), "{waits:?}");
        // 57 draws from (0.1 s, 5.1 s): that none exceeds one second has probability 0.2^57.
        assert!(waits[7..].iter().any(|wait| *wait > Duration::from_secs(1)), "{waits:?}");
        backoff.succeeded();
        assert!(backoff.failed() <= 2 * FLOOR);
    }
}
