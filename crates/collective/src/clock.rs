//! The room's one look at the clock.

use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// A moment until which to wait, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| now() + timeout))
    }

    pub(crate) fn has_passed(self) -> bool {
        self.0.is_some_and(|deadline| now() >= deadline)
    }

    /// How long `poll` may sleep.
    pub(crate) fn poll_timeout(self) -> PollTimeout {
        let Some(deadline) = self.0 else { return PollTimeout::NONE };
        // One millisecond more than what is left, since a fraction would be cut off and poll return early.
        let left = deadline.saturating_duration_since(now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }
}

#[expect(clippy::disallowed_methods, reason = "deadlines of sockets are real time")]
fn now() -> Instant {
    Instant::now()
}
