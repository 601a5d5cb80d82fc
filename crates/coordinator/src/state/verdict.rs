//! How a run that is in trouble ends, and who is to blame.
//!
//! When a worker dies, every peer fails as well, a few milliseconds later and often first on the wire. What
//! counts is the cause: a worker's own failure, else how a process ended (its agent's word), else a lost
//! agent. What others saw of it counts only when nothing better came within [`GRACE`].

use std::time::Duration;

use super::input::Exit;
use super::record::Stage;
use super::run::{Member, Run, Verdict};

/// How long a cause may take to arrive after its consequences: the agent waits for a process's last output.
pub const GRACE: Duration = Duration::from_secs(3);

/// Exit code of a process that could not go on for a reason outside itself (`CONTRACT.md`).
const TRY_AGAIN: i32 = 75;

/// Exit code of a run that was stopped before its last step (`CONTRACT.md`).
const STOPPED: i32 = 85;

impl Run {
    /// Forgets what has cleared up, so that the next sign of trouble gets all of [`GRACE`].
    pub(super) fn clear_suspicions(&mut self) {
        if self.members.iter().all(is_complete) {
            return;
        }
        let members = &self.members;
        self.suspects.retain(|&rank| is_suspicious(&members[rank as usize]));
        if self.suspects.is_empty() {
            self.troubled = None;
        }
    }

    /// What to blame, once that can be told; nothing while all is well or a better report may come.
    pub(super) fn cause(&self, now: Duration) -> Option<Verdict> {
        let patience_is_over = now.saturating_sub(self.troubled?) >= GRACE;
        let ranks = || self.suspects.iter().map(|&rank| (rank as usize, &self.members[rank as usize]));

        if let Some((rank, member)) = ranks().find(|(_, member)| has_own_failure(member)) {
            return (is_complete(member) || patience_is_over).then(|| self.own_failure(rank));
        }
        if let Some((rank, member)) = ranks().find(|(_, member)| ended_badly(member)) {
            // Its last message may still be on the way: the session closes after it.
            return (!member.connected || patience_is_over).then(|| self.bad_end(rank));
        }
        if let Some((rank, _)) = ranks().find(|(_, member)| member.exit == Some(Exit::AgentLost)) {
            return Some(self.lost_agent(rank));
        }
        let all_gone = self.members.iter().all(is_complete);
        if all_gone && self.members.iter().all(|member| member.exit == Some(Exit::Code(0))) {
            return Some(failed("all workers ended before the run did".to_owned()));
        }
        let (rank, _) = ranks().find(|(_, member)| is_suspicious(member))?;
        (patience_is_over || all_gone).then(|| self.hearsay(rank))
    }

    fn own_failure(&self, rank: usize) -> Verdict {
        let member = &self.members[rank];
        let failure = member.failure.as_ref().expect("the caller found a failure");
        let exit_code = contract_code(failure.exit_code);
        Verdict {
            exit_code,
            hint: failure.hint.clone(),
            log_tail: member.stderr_tail.clone(),
            ..failed(format!("{} failed: {}", self.name_of(rank), failure.error))
        }
    }

    fn bad_end(&self, rank: usize) -> Verdict {
        let member = &self.members[rank];
        let (how, hint) = match member.exit {
            Some(Exit::Signal(9)) => (
                "was killed by SIGKILL".to_owned(),
                format!(
                    "the system kills a process when memory runs out: see its log; {}",
                    self.how_to_go_on()
                ),
            ),
            Some(Exit::Signal(signal)) => {
                (format!("was killed by {}", signal_name(signal)), self.how_to_go_on())
            }
            Some(Exit::Code(code)) => {
                (format!("exited with code {code}"), "see the last lines of its log".to_owned())
            }
            Some(Exit::AgentLost) | None => unreachable!("the caller found a bad end"),
        };
        let exit_code = if let Some(Exit::Code(code)) = member.exit { contract_code(code) } else { 1 };
        Verdict {
            exit_code,
            hint,
            log_tail: member.stderr_tail.clone(),
            ..failed(format!("{} {how}", self.name_of(rank)))
        }
    }

    fn lost_agent(&self, rank: usize) -> Verdict {
        let agent_id = &self.members[rank].worker.agent_id;
        Verdict {
            hint: format!("start the agent again; {}", self.how_to_go_on()),
            ..failed(format!("agent {agent_id} was lost, and {} with it", self.name_of(rank)))
        }
    }

    /// How to go on with this run.
    pub(super) fn how_to_go_on(&self) -> String {
        how_to_go_on(&self.record.run_dir, &self.record.last_checkpoint)
    }

    /// Nobody named the cause: what the first of the others said.
    fn hearsay(&self, rank: usize) -> Verdict {
        let member = &self.members[rank];
        let what = match (&member.failure, member.exit) {
            (Some(failure), _) => format!("lost a peer: {}", failure.error),
            (None, Some(Exit::Code(code))) => format!("exited with code {code}"),
            (None, _) => "lost its connection to the coordinator".to_owned(),
        };
        Verdict { log_tail: member.stderr_tail.clone(), ..failed(format!("{} {what}", self.name_of(rank))) }
    }
}

/// The checkpoint that a run goes on from and the command that does it; where `last_checkpoint` is empty, why there is none.
pub fn how_to_go_on(run_dir: &str, last_checkpoint: &str) -> String {
    if last_checkpoint.is_empty() {
        return "nothing was saved before: checkpoint.every (steps) and checkpoint.every_minutes say how often a \
                checkpoint is taken"
            .to_owned();
    }
    format!("go on from {last_checkpoint} with `himpun train --resume {run_dir}`, or `submit` on a cluster")
}

/// A failed run, with nothing but a reason.
pub(super) fn failed(reason: String) -> Verdict {
    Verdict { stage: Stage::Failed, exit_code: 1, reason, hint: String::new(), log_tail: Vec::new() }
}

/// A run that ended early because somebody wanted it to.
pub(super) fn stopped(reason: String) -> Verdict {
    Verdict { stage: Stage::Stopped, exit_code: STOPPED, ..failed(reason) }
}

fn has_own_failure(member: &Member) -> bool {
    member.failure.as_ref().is_some_and(|failure| !failure.peer)
}

/// Ended in a way that needs no other cause.
fn ended_badly(member: &Member) -> bool {
    let saw_a_peer_fail = member.failure.as_ref().is_some_and(|failure| failure.peer);
    match member.exit {
        Some(Exit::Signal(_)) => true,
        Some(Exit::Code(code)) => code != 0 && code != TRY_AGAIN && !saw_a_peer_fail,
        Some(Exit::AgentLost) | None => false,
    }
}

/// Still looks wrong. A worker that closed its session and exited with 0 did its part, while others may
/// have to finish theirs; one that lost its session may have opened another.
fn is_suspicious(member: &Member) -> bool {
    member.failure.is_some()
        || if let Some(exit) = member.exit { exit != Exit::Code(0) } else { !member.connected }
}

/// The contract's codes pass; any other would mean something else to a script.
fn contract_code(code: i32) -> i32 {
    if [2, 3, TRY_AGAIN].contains(&code) { code } else { 1 }
}

/// Nothing more will be heard of it.
fn is_complete(member: &Member) -> bool {
    member.exit.is_some() && !member.connected
}

/// "SIGKILL" for 9.
pub(super) fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("signal {signal}"),
    }
}
