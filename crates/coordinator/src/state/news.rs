//! Following the workers of a run, from their start to their end.

use proto::v1::{Assign, Fence, MemberChanged, Severity, WorkerId, event, worker_down};
use std::time::Duration;

use super::input::{Command, Exit, News, Refused, Report};
use super::record::Stage;
use super::run::{Member, Phase, Run, Verdict};
use super::{State, verdict};

impl State {
    pub(super) fn news(
        &mut self,
        fence: &Fence,
        worker: &WorkerId,
        news: News,
        now: Duration,
        out: &mut Vec<Command>,
    ) -> Result<(), Refused> {
        let incarnation = self.incarnation;
        let run = self.admitted_mut(fence)?;
        let rank = run.rank_of(worker)?;
        run.check(rank, &news)?;
        run.take_up(rank, news, now, incarnation, out);
        run.judge(incarnation, now, out);
        Ok(())
    }

    /// Takes up what agent `agent_id` says of a worker, given by its fence and id.
    pub(super) fn report(
        &mut self,
        agent_id: &str,
        (fence, worker): (&Fence, &WorkerId),
        report: Report,
        now: Duration,
        out: &mut Vec<Command>,
    ) -> Result<(), Refused> {
        let incarnation = self.incarnation;
        let run = self.admitted_mut(fence)?;
        let rank = run.rank_for(agent_id, worker)?;
        match report {
            Report::Started { pid } => {
                run.members[rank].pid = pid;
                out.push(run.member_note(rank, "started"));
            }
            Report::Exited { exit, stderr_tail } => run.has_exited(rank, exit, stderr_tail, now, out),
        }
        run.judge(incarnation, now, out);
        Ok(())
    }
}

impl Run {
    fn take_up(&mut self, rank: usize, news: News, now: Duration, incarnation: u64, out: &mut Vec<Command>) {
        let name = self.name_of(rank);
        let member = &mut self.members[rank];
        match news {
            News::Attached { data_address, pid } => {
                member.pid = pid;
                member.data_address = Some(data_address);
                self.assign_when_complete(incarnation, out);
            }
            News::Connected => {
                member.connected = true;
                match self.phase {
                    // A session that was opened again: what was said into the old one may be lost.
                    Phase::Forming if !member.ready => out.push(self.assign(rank, incarnation)),
                    Phase::Running { .. } if rank == 0 => self.repeat_orders(incarnation, out),
                    _ => self.assign_when_complete(incarnation, out),
                }
            }
            News::Disconnected => {
                member.connected = false;
                self.suspect(rank, now);
            }
            News::Beat(progress) => {
                member.progress = Some(progress);
                // Before the run's length is known, no step can be told from an impossible one.
                // And only rank 0 says where the group is.
                if rank == 0 && self.last_step().is_some() {
                    self.record.summary.step = self.record.summary.step.max(progress.step);
                }
            }
            // Said again in a session that was opened again.
            News::Ready { .. } if member.ready => {}
            News::Ready { step: _, total_steps, shard_bytes } => {
                member.ready = true;
                member.shard_bytes = shard_bytes;
                if rank == 0 {
                    self.record.summary.total_steps = total_steps;
                }
                self.run_when_ready(incarnation, now, out);
            }
            News::Metrics(row) => {
                self.record.summary.absorb(&row);
                out.push(Command::WriteMetrics(self.record.run_id.clone(), row));
            }
            News::Paused { paused, step } => self.paused(paused, step, out),
            News::Finished { step, stopped_early } => {
                self.finished(step, stopped_early, incarnation, now, out)
            }
            News::Notice { severity, text } => {
                let text = if rank == 0 { text } else { format!("{name}: {text}") };
                out.push(self.note(severity, text, None));
            }
            News::Failed(failure) => {
                let severity = if failure.peer { Severity::Info } else { Severity::Warn };
                let text = format!("{name} reports: {}", failure.error);
                member.failure = Some(failure);
                self.suspect(rank, now);
                // Of a run that is ending it only says that it was told to end.
                if !matches!(self.phase, Phase::Ending { .. }) {
                    out.push(self.note(severity, text, None));
                }
            }
        }
    }

    fn has_exited(
        &mut self,
        rank: usize,
        exit: Exit,
        stderr_tail: Vec<String>,
        now: Duration,
        out: &mut Vec<Command>,
    ) {
        let member = &mut self.members[rank];
        member.exit = Some(exit);
        member.stderr_tail = stderr_tail;
        out.push(self.member_note(rank, &describe(exit)));
        let all_gone = self.members.iter().all(|member| member.exit.is_some());
        if exit != Exit::Code(0) || all_gone {
            self.suspect(rank, now);
        }
    }

    /// Ranks and addresses go out once every worker listens and can be told.
    fn assign_when_complete(&mut self, incarnation: u64, out: &mut Vec<Command>) {
        if !matches!(self.phase, Phase::Starting { .. }) || !self.members.iter().all(Member::has_attached) {
            return;
        }
        self.phase = Phase::Forming;
        out.extend((0..self.members.len()).map(|rank| self.assign(rank, incarnation)));
        out.push(self.state_note());
    }

    fn assign(&self, rank: usize, incarnation: u64) -> Command {
        let peers = self.members.iter().map(|member| member.data_address.clone());
        let assign = Assign {
            rank: rank as u32,
            world_size: self.members.len() as u32,
            peers: peers.collect::<Option<_>>().expect("ranks are dealt once all members have attached"),
            checkpoint_step: self.record.checkpoint_step,
            accept_changed_data: self.record.accept_changed_data,
            group_key: self.spawn_key.group_key(&self.fence(incarnation)).to_vec(),
        };
        self.to_worker(rank, incarnation, worker_down::Message::Assign(assign))
    }

    fn run_when_ready(&mut self, incarnation: u64, now: Duration, out: &mut Vec<Command>) {
        if self.phase == Phase::Forming && self.members.iter().all(|member| member.ready) {
            self.phase = Phase::Running { paused: false, stopping: false };
            self.timer.restart(now, self.record.summary.step);
            out.push(Command::Persist(self.record.clone()));
            out.push(self.state_note());
            self.give_pending(incarnation, now, out);
            if let Some((step, stopped_early)) = self.early_end.take() {
                self.finished(step, stopped_early, incarnation, now, out);
            }
        }
    }

    fn paused(&mut self, now_paused: bool, step: u64, out: &mut Vec<Command>) {
        self.record.summary.step = self.record.summary.step.max(step);
        if let Phase::Running { paused, .. } = &mut self.phase
            && *paused != now_paused
        {
            *paused = now_paused;
            out.push(self.state_note());
        }
    }

    fn finished(
        &mut self,
        step: u64,
        stopped_early: bool,
        incarnation: u64,
        now: Duration,
        out: &mut Vec<Command>,
    ) {
        if matches!(self.phase, Phase::Starting { .. } | Phase::Forming) {
            self.early_end = Some((step, stopped_early));
            return;
        }
        self.record.summary.step = step;
        let verdict = if stopped_early {
            verdict::stopped(format!("stopped after step {step}, as asked"))
        } else {
            let reason = format!("finished with step {step}");
            Verdict { stage: Stage::Finished, exit_code: 0, ..verdict::failed(reason) }
        };
        self.begin_end(verdict, incarnation, now, out);
    }

    fn member_note(&self, rank: usize, change: &str) -> Command {
        let kind = MemberChanged {
            worker: Some(self.members[rank].worker.clone()),
            rank: rank as u32,
            change: change.to_owned(),
        };
        self.note(Severity::Info, format!("{} {change}", self.name_of(rank)), Some(event::Kind::Member(kind)))
    }
}

fn describe(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exited with code {code}"),
        Exit::Signal(signal) => format!("was ended by {}", verdict::signal_name(signal)),
        Exit::AgentLost => "was lost with its agent".to_owned(),
    }
}
