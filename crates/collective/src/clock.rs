//! The room's one look at the clock.

use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// A moment until which to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        Self(now() + timeout)
    }

    pub(crate) fn has_passed(self) -> bool {
        now() >= self.0
    }

    /// How long `poll` may sleep.
    pub(crate) fn poll_timeout(self) -> PollTimeout {
        // One millisecond more than what is left, since a fraction would be cut off and poll return early.
        let left = self.0.saturating_duration_since(now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }
}

#[expect(clippy::disallowed_methods, reason = "deadlines of sockets are real time")]
fn now() -> Instant {
    Instant::now()
}
