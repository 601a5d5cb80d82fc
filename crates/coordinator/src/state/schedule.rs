//! Dealing free slots to queued runs.
//!
//! First come, first served: a run that waits for many slots is not overtaken by smaller ones, which could
//! keep it waiting for ever. One that needs more than all agents have waits for an agent, and holds up nobody.

use proto::v1::{StartWorkers, WorkerAssignment, WorkerId};
use std::collections::BTreeMap;
use std::time::Duration;

use super::agents::Agent;
use super::input::Command;
use super::record::Stage;
use super::run::{Member, Phase};
use super::{START_LIMIT, State};

/// A slot of an agent: `agents[agent]`, slot `slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    agent: usize,
    slot: u32,
}

/// Why a run cannot start.
struct Waits {
    /// One sentence.
    reason: String,
    /// Slots that become free are for this run.
    is_next: bool,
}

impl State {
    /// Starts queued runs as far as the free slots reach, and notes for the others what they wait for.
    pub(super) fn schedule(&mut self, now: Duration, out: &mut Vec<Command>) {
        let mut ahead: Option<String> = None;
        for index in 0..self.runs.len() {
            if self.runs[index].phase != Phase::Queued {
                continue;
            }
            let waits_for = match &ahead {
                Some(first) => format!("waiting for run {first}, which is ahead in the queue"),
                None => match pick(&self.agents, self.runs[index].record.workers) {
                    Ok(slots) => {
                        self.deal(index, &slots, now, out);
                        continue;
                    }
                    Err(Waits { reason, is_next }) => {
                        ahead = is_next.then(|| self.runs[index].record.run_id.clone());
                        reason
                    }
                },
            };
            let run = &mut self.runs[index];
            if run.waits_for != waits_for {
                run.waits_for = waits_for;
                out.push(run.state_note());
            }
        }
    }

    /// A new generation of a run: stored first, then announced.
    fn deal(&mut self, index: usize, slots: &[Slot], now: Duration, out: &mut Vec<Command>) {
        let incarnation = self.incarnation;
        let run = &mut self.runs[index];
        run.record.generation += 1;
        run.record.stage = Stage::Active;
        run.record.summary.step = run.first_step();
        let fence = run.fence(incarnation);
        run.phase = Phase::Starting { until: now + START_LIMIT };
        run.members.clear();
        let mut orders: BTreeMap<usize, Vec<WorkerAssignment>> = BTreeMap::new();
        for place in slots {
            let agent = &mut self.agents[place.agent];
            agent.taken.insert(place.slot);
            let (agent_id, slot) = (agent.hello.agent_id.clone(), place.slot);
            // No id holds the separator: no two workers of this coordinator have the same nonce.
            let nonce = format!("{}/{incarnation}/{}/{agent_id}/{slot}", fence.run_id, fence.generation);
            let secret = self.spawn_key.worker_secret(&nonce).to_vec();
            let worker = WorkerId { agent_id, slot, nonce };
            // An agent told nothing gives each worker its own cores, which is better than a mere number.
            let threads = run.record.threads.filter(|&threads| threads != agent.own_threads()).unwrap_or(0);
            let cores = Vec::new();
            let assignment = WorkerAssignment { worker: Some(worker.clone()), threads, cores, secret };
            orders.entry(place.agent).or_default().push(assignment);
            run.members.push(Member::new(worker, agent.hello.host.clone()));
        }
        out.push(Command::Persist(run.record.clone()));
        out.push(run.state_note());
        out.push(Command::OpenLogs {
            run_id: fence.run_id.clone(),
            generation: fence.generation,
            members: run
                .members
                .iter()
                .zip(0..)
                .map(|(member, rank)| (member.worker.clone(), rank))
                .collect(),
        });
        for (agent, workers) in orders {
            let agent_id = self.agents[agent].hello.agent_id.clone();
            out.push(Command::StartWorkers(agent_id, StartWorkers { fence: Some(fence.clone()), workers }));
        }
    }
}

/// The slots that a run of `workers` gets, in rank order; else what it waits for.
///
/// Ranks follow the agents in order of joining, then the slots: the same agents give the same ranks.
fn pick(agents: &[Agent], workers: u32) -> Result<Vec<Slot>, Waits> {
    let free: Vec<Slot> = agents
        .iter()
        .enumerate()
        .flat_map(|(index, agent)| agent.free_slots().map(move |slot| Slot { agent: index, slot }))
        .collect();
    let total: usize = agents.iter().map(|agent| agent.hello.slots as usize).sum();
    let needed = if workers == 0 { total } else { workers as usize };
    if needed == 0 {
        return Err(Waits { reason: "waiting for an agent".to_owned(), is_next: false });
    }
    if free.len() < needed {
        let is_next = total >= needed;
        let more = if is_next { "" } else { ", all agents together have fewer" };
        let reason = format!("waiting for slots: {} of {needed} slots free{more}", free.len());
        return Err(Waits { reason, is_next });
    }
    Ok(free[..needed].to_vec())
}
