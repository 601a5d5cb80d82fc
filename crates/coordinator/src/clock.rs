//! The one place that reads clocks; decisions get the time passed in.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time since the coordinator started: never goes back, whatever happens to the machine's clock.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the crate's one home of the monotonic clock")]
    pub fn start() -> Clock {
        Clock { started: Instant::now() }
    }

    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Nanoseconds since the Unix epoch, for people and files; 0 on a machine whose clock stands before it.
pub(crate) fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
