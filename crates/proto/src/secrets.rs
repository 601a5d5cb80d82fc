//! Messages that hold secrets, printed without them.

use std::fmt::{Debug, Formatter, Result};

use crate::v1::{AgentHello, Assign, WorkerAssignment};

impl Debug for AgentHello {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let AgentHello { protocol, version, agent_id, host, slots, device, cores, secret: _ } = self;
        let mut shown = f.debug_struct("AgentHello");
        shown
            .field("protocol", protocol)
            .field("version", version)
            .field("agent_id", agent_id)
            .field("host", host);
        shown.field("slots", slots).field("device", device).field("cores", cores).finish_non_exhaustive()
    }
}

impl Debug for WorkerAssignment {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let WorkerAssignment { worker, threads, cores, secret: _ } = self;
        let mut shown = f.debug_struct("WorkerAssignment");
        shown.field("worker", worker).field("threads", threads).field("cores", cores).finish_non_exhaustive()
    }
}

impl Debug for Assign {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Assign { rank, world_size, peers, checkpoint_step, accept_changed_data, group_key: _ } = self;
        let mut shown = f.debug_struct("Assign");
        shown.field("rank", rank).field("world_size", world_size).field("peers", peers);
        shown.field("checkpoint_step", checkpoint_step).field("accept_changed_data", accept_changed_data);
        shown.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{StartWorkers, worker_down};

    #[test]
    fn secrets_are_not_printed() {
        let secret = vec![199; 32];
        let assignment = WorkerAssignment { secret: secret.clone(), ..WorkerAssignment::default() };
        let start = StartWorkers { fence: None, workers: vec![assignment] };
        let assign = worker_down::Message::Assign(Assign { group_key: secret.clone(), ..Assign::default() });
        let hello = AgentHello { secret, agent_id: "node".to_owned(), ..AgentHello::default() };
        let printed = format!("{start:?} {assign:?} {hello:?}");
        assert!(!printed.contains("199"), "{printed}");
        assert!(printed.contains("node"), "{printed}");
    }
}
