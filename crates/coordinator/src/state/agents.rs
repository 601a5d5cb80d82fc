//! Agents, their slots, and the processes that their ids belong to.

use proto::v1::AgentHello;
use std::collections::BTreeSet;
use std::time::Duration;

use super::State;
use super::input::{Command, Parting, Refused};

/// How often an agent says that it lives.
pub const HEARTBEAT: Duration = Duration::from_millis(500);

/// An agent without a sign of life for this long is lost, even if its connection stands.
pub const LEASE: Duration = Duration::from_secs(5);

/// A connected agent.
#[derive(Debug)]
pub(super) struct Agent {
    /// Without its secret.
    pub hello: AgentHello,
    pub session: u64,
    pub binding: Binding,
    /// Slots whose worker has not ended, or is about to start.
    pub taken: BTreeSet<u32>,
}

/// An agent id and the process that it belongs to while the lease lasts.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    pub agent_id: String,
    /// Digest of the process's secret; digests are compared in a time that does not depend on them.
    pub secret: blake3::Hash,
    pub last_beat: Duration,
}

impl Binding {
    pub fn has_expired(&self, now: Duration) -> bool {
        now.saturating_sub(self.last_beat) > LEASE
    }
}

impl Agent {
    pub fn new(mut hello: AgentHello, session: u64, now: Duration) -> Agent {
        let secret = blake3::hash(&std::mem::take(&mut hello.secret));
        let binding = Binding { agent_id: hello.agent_id.clone(), secret, last_beat: now };
        Agent { hello, session, binding, taken: BTreeSet::new() }
    }

    pub fn is_overdue(&self, now: Duration) -> bool {
        self.binding.has_expired(now)
    }

    pub fn free_slots(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.hello.slots).filter(|slot| !self.taken.contains(slot))
    }

    /// Threads that the agent gives each worker if it is not told how many.
    pub fn own_threads(&self) -> u32 {
        (self.hello.cores / self.hello.slots.max(1)).max(1)
    }
}

impl State {
    /// Takes an agent in. A process that comes back replaces its old session at once, whether that has ended or not; any
    /// other waits until the lease of the one before is over.
    pub(super) fn agent_joined(
        &mut self,
        hello: AgentHello,
        session: u64,
        now: Duration,
        out: &mut Vec<Command>,
    ) -> Result<(), Refused> {
        let joining = Agent::new(hello, session, now);
        let agent_id = joining.hello.agent_id.clone();
        let of_id = |binding: &&Binding| binding.agent_id == agent_id;
        let holder = self.agents.iter().map(|agent| &agent.binding).chain(&self.departed).find(of_id);
        if holder.is_some_and(|holder| !holder.has_expired(now) && holder.secret != joining.binding.secret) {
            return Err(Refused::AgentConnected(agent_id));
        }
        if let Some(old) = self.agent_mut(&agent_id).map(|agent| agent.session) {
            self.agent_lost(&agent_id, old, &Parting::Broken("it connected anew".to_owned()), now, out);
        }
        self.departed.retain(|departed| departed.agent_id != agent_id);
        self.agents.push(joining);
        Ok(())
    }

    /// Keeps the id of an agent that is gone for its process, unless that gave it up itself.
    pub(super) fn agent_left(&mut self, agent: Agent, parting: &Parting) {
        if *parting != Parting::Closed {
            self.departed.push(agent.binding);
        }
    }

    pub(super) fn agent_mut(&mut self, agent_id: &str) -> Option<&mut Agent> {
        self.agents.iter_mut().find(|agent| agent.hello.agent_id == agent_id)
    }
}
