//! What the present members of a run may say and save.
//!
//! Rank 0 speaks for the group: the others' own words are that they live, are ready, or have failed. Nothing that a member
//! says takes a run beyond its last step.

use proto::v1::{Fence, WorkerId};

use super::State;
use super::input::{News, Refused};
use super::record::RunRecord;
use super::run::Run;

/// A shard may have this many times its predicted size.
const SHARD_MARGIN: u64 = 2;

/// A member of the present generation of a run.
#[derive(Debug)]
pub struct Admitted<'a> {
    /// Its run.
    pub record: &'a RunRecord,
    /// Its rank.
    pub rank: usize,
    /// Ranks of the run.
    pub world_size: usize,
}

/// A checkpoint that a run may take.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointPlan {
    /// The run's directory.
    pub run_dir: String,
    /// Its resolved configuration.
    pub config_toml: String,
    /// Its ranks, each of which writes a shard.
    pub world_size: usize,
    /// Most bytes of each rank's shard.
    pub shard_limits: Vec<u64>,
    /// The step is the last one that is saved: what is there may be what would be written.
    pub may_stand: bool,
}

impl State {
    /// The record and world size of the run that a fence belongs to.
    ///
    /// # Errors
    /// If the fence is of another membership than the present one.
    pub fn admit(&self, fence: &Fence) -> Result<(&RunRecord, usize), Refused> {
        let run = self.admitted(fence)?;
        Ok((&run.record, run.members.len()))
    }

    /// Finds the worker that has this nonce.
    ///
    /// # Errors
    /// If the fence is of another membership than the present one, or the worker no member of it.
    pub fn admit_member(&self, fence: &Fence, nonce: &str) -> Result<Admitted<'_>, Refused> {
        let run = self.admitted(fence)?;
        let rank = run.members.iter().position(|member| member.worker.nonce == nonce);
        let rank = rank.ok_or_else(|| run.not_a_member(nonce.to_owned()))?;
        Ok(Admitted { record: &run.record, rank, world_size: run.members.len() })
    }

    /// As [`State::admit_member`], for `what` rank 0 alone does.
    ///
    /// # Errors
    /// As [`State::admit_member`], or if it is another rank.
    pub fn admit_leader(
        &self,
        fence: &Fence,
        nonce: &str,
        what: &'static str,
    ) -> Result<Admitted<'_>, Refused> {
        let admitted = self.admit_member(fence, nonce)?;
        self.admitted(fence)?.check_leader(admitted.rank, what)?;
        Ok(admitted)
    }

    /// Decides on a checkpoint that the worker of this nonce begins.
    ///
    /// # Errors
    /// If the worker is not rank 0 of the present generation, if not all of that is ready, or if the run cannot have come to
    /// that step, or has a later one saved.
    pub fn admit_checkpoint(
        &self,
        fence: &Fence,
        nonce: &str,
        step: u64,
        n_shards: u32,
    ) -> Result<CheckpointPlan, Refused> {
        let Admitted { record, world_size, .. } = self.admit_leader(fence, nonce, "a checkpoint")?;
        let run = self.admitted(fence)?;
        if n_shards as usize != world_size {
            return Err(Refused::WrongShards { n_shards, world_size });
        }
        if run.members.iter().any(|member| !member.ready) {
            return Err(run.not_ready());
        }
        run.check_step(step)?;
        let saved = run.saved_step();
        if step < saved.unwrap_or(0) {
            let (run_id, saved) = (record.run_id.clone(), saved.unwrap_or(0));
            return Err(Refused::StepGoesBack { run_id, step, saved });
        }
        let limit = |shard_bytes: u64| shard_bytes.saturating_mul(SHARD_MARGIN);
        Ok(CheckpointPlan {
            run_dir: record.run_dir.clone(),
            config_toml: record.config_toml.clone(),
            world_size,
            shard_limits: run.members.iter().map(|member| limit(member.shard_bytes)).collect(),
            may_stand: saved == Some(step),
        })
    }

    /// The rank of one of this agent's workers, in its run's last generation: what it logged may come after its run's end.
    ///
    /// # Errors
    /// If there is no such worker, or another agent started it.
    pub fn rank(&self, agent_id: &str, fence: &Fence, worker: &WorkerId) -> Result<usize, Refused> {
        let run = self.runs.iter().find(|run| run.id() == fence.run_id);
        run.ok_or_else(|| Refused::UnknownRun(fence.run_id.clone()))?.rank_for(agent_id, worker)
    }

    fn admitted(&self, fence: &Fence) -> Result<&Run, Refused> {
        let run = self.runs.iter().find(|run| run.id() == fence.run_id);
        let run = run.ok_or_else(|| Refused::UnknownRun(fence.run_id.clone()))?;
        run.check_fence(fence, self.incarnation)?;
        Ok(run)
    }

    pub(super) fn admitted_mut(&mut self, fence: &Fence) -> Result<&mut Run, Refused> {
        let incarnation = self.incarnation;
        let run = self.runs.iter_mut().find(|run| run.id() == fence.run_id);
        let run = run.ok_or_else(|| Refused::UnknownRun(fence.run_id.clone()))?;
        run.check_fence(fence, incarnation)?;
        Ok(run)
    }
}

impl Run {
    /// Refuses what only rank 0 may say, and steps that the run cannot have come to.
    pub(super) fn check(&self, rank: usize, news: &News) -> Result<(), Refused> {
        match news {
            News::Metrics(row) => {
                self.check_leader(rank, "a row of metrics")?;
                self.check_step(row.step)
            }
            News::Paused { step, .. } => {
                self.check_leader(rank, "a pause")?;
                self.check_step(*step)
            }
            News::Finished { step, .. } => {
                self.check_leader(rank, "the end of training")?;
                self.check_step(*step)?;
                self.check_end(*step)
            }
            // A stream that is opened again begins with one, before it is repeated that the rank is ready.
            News::Beat(progress) if self.last_step().is_some() => self.check_step(progress.step),
            News::Ready { step, .. } if !self.members[rank].ready => self.check_start(*step),
            _ => Ok(()),
        }
    }

    /// The step that this start of the run begins from.
    pub(super) fn first_step(&self) -> u64 {
        self.record.checkpoint_step.unwrap_or(0)
    }

    /// The last step that the run can come to, once rank 0 has said how long it is. One that was made shorter ends where it
    /// stands.
    pub(super) fn last_step(&self) -> Option<u64> {
        let leader = self.members.first()?;
        leader.ready.then(|| self.record.summary.total_steps.max(self.first_step()))
    }

    /// The last step that is saved: by this generation, or else the one that it came from.
    fn saved_step(&self) -> Option<u64> {
        self.checkpoint.as_ref().map(|info| info.step).or(self.record.checkpoint_step)
    }

    /// Refuses `what` from any other rank than 0.
    pub(super) fn check_leader(&self, rank: usize, what: &'static str) -> Result<(), Refused> {
        if rank == 0 {
            return Ok(());
        }
        Err(Refused::NotTheLeader { run_id: self.record.run_id.clone(), rank, what })
    }

    fn check_step(&self, step: u64) -> Result<(), Refused> {
        match self.last_step() {
            Some(last) if step <= last => Ok(()),
            Some(last) => Err(self.implausible(format!("step {step}, where the last is {last}"))),
            None => Err(self.not_ready()),
        }
    }

    fn check_start(&self, step: u64) -> Result<(), Refused> {
        let first = self.first_step();
        if step == first {
            return Ok(());
        }
        Err(self.implausible(format!("a start from step {step}, where it begins from {first}")))
    }

    fn check_end(&self, step: u64) -> Result<(), Refused> {
        let known = self.record.summary.step;
        if step >= known {
            return Ok(());
        }
        Err(self.implausible(format!("its end after step {step}, where it has come to {known}")))
    }

    /// Rank of a member that runs on this agent.
    pub(super) fn rank_for(&self, agent_id: &str, worker: &WorkerId) -> Result<usize, Refused> {
        let rank = self.rank_of(worker)?;
        if worker.agent_id == agent_id {
            return Ok(rank);
        }
        Err(Refused::NotYours {
            run_id: self.record.run_id.clone(),
            worker: worker.to_string(),
            agent_id: agent_id.to_owned(),
        })
    }

    fn implausible(&self, what: String) -> Refused {
        Refused::Implausible { run_id: self.record.run_id.clone(), what }
    }

    fn not_ready(&self) -> Refused {
        let n_ready = self.members.iter().filter(|member| member.ready).count();
        Refused::NotReady { run_id: self.record.run_id.clone(), n_ready, world_size: self.members.len() }
    }
}
