//! The one place of this crate that reads the clock: for rates and time-outs, never for results.

use std::time::Instant;

/// The present instant.
#[expect(clippy::disallowed_methods, reason = "the home of the clock in this crate")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
