//! Agents and their slots.

use proto::v1::AgentHello;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often an agent says that it lives.
pub const HEARTBEAT: Duration = Duration::from_millis(500);

/// An agent without a sign of life for this long is lost, even if its connection stands.
pub const LEASE: Duration = Duration::from_secs(5);

/// A connected agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub hello: AgentHello,
    pub session: u64,
    pub last_beat: Duration,
    /// Slots whose worker has not ended, or is about to start.
    pub taken: BTreeSet<u32>,
}

impl Agent {
    pub fn new(hello: AgentHello, session: u64, now: Duration) -> Agent {
        Agent { hello, session, last_beat: now, taken: BTreeSet::new() }
    }

    pub fn is_overdue(&self, now: Duration) -> bool {
        now.saturating_sub(self.last_beat) > LEASE
    }

    pub fn free_slots(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.hello.slots).filter(|slot| !self.taken.contains(slot))
    }

    /// Threads that the agent gives each worker if it is not told how many.
    pub fn own_threads(&self) -> u32 {
        (self.hello.cores / self.hello.slots.max(1)).max(1)
    }
}
