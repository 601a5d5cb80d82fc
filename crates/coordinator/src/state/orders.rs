//! What operators ask of a run.

use proto::v1::{CommandEvent, Severity, event};
use std::time::Duration;

use super::input::{Command, IdempotencyKey, Operation, Refused};
use super::run::{Phase, Run};
use super::{State, verdict};

/// An operator's command.
pub(super) struct Ordered {
    pub run_id: String,
    pub operation: Operation,
    pub actor: String,
    pub command_id: String,
    pub key: Option<IdempotencyKey>,
}

impl State {
    pub(super) fn ordered(
        &mut self,
        ordered: Ordered,
        now: Duration,
        out: &mut Vec<Command>,
    ) -> Result<(), Refused> {
        let incarnation = self.incarnation;
        let Ordered { run_id, operation, actor, command_id, key } = ordered;
        let run = self.runs.iter_mut().find(|run| run.id() == run_id).ok_or(Refused::UnknownRun(run_id))?;
        run.check_order(operation)?;

        let event = CommandEvent { command: operation.name().to_owned(), actor: actor.clone() };
        let by = if actor.is_empty() { String::new() } else { format!(" by {actor}") };
        let text = format!("{} asked for{by}", operation.name());
        out.push(run.note(Severity::Info, text, Some(event::Kind::Command(event))));
        if let Some(key) = key {
            out.push(Command::Remember(key.clone(), command_id.clone()));
            self.answers.insert(key, command_id.clone());
        }
        run.carry_out(operation, command_id, incarnation, now, out);
        Ok(())
    }
}

impl Run {
    fn check_order(&self, operation: Operation) -> Result<(), Refused> {
        match self.phase {
            Phase::Ended => Err(self.has_ended()),
            Phase::Queued if !matches!(operation, Operation::Stop | Operation::Kill) => {
                Err(self.not_started())
            }
            Phase::Ending { .. }
                if matches!(operation, Operation::Pause | Operation::Resume | Operation::Checkpoint) =>
            {
                Err(Refused::Ended { run_id: self.record.run_id.clone(), outcome: self.reason() })
            }
            _ => Ok(()),
        }
    }

    fn carry_out(
        &mut self,
        operation: Operation,
        command_id: String,
        incarnation: u64,
        now: Duration,
        out: &mut Vec<Command>,
    ) {
        match (&mut self.phase, operation) {
            (Phase::Queued, _) => {
                self.end(verdict::stopped("stopped before it started".to_owned()), out);
            }
            (_, Operation::Kill) => {
                self.begin_end(verdict::failed("killed, as asked".to_owned()), incarnation, now, out);
                self.stop_workers(incarnation, Duration::ZERO, "killed, as asked", out);
            }
            (Phase::Running { stopping, .. }, _) => {
                match operation {
                    Operation::Stop => {
                        *stopping = true;
                        out.push(self.state_note());
                    }
                    Operation::Pause => self.wanted.pause = true,
                    Operation::Resume => self.wanted.pause = false,
                    Operation::Checkpoint => self.wanted.checkpoint = true,
                    Operation::Kill => unreachable!("carried out above"),
                }
                out.extend(self.order(operation, &command_id, incarnation));
            }
            (Phase::Starting { .. } | Phase::Forming, _) => self.pending.push((operation, command_id)),
            // A stop of a run that is ending already.
            (Phase::Ending { .. } | Phase::Ended, _) => {}
        }
    }

    /// Repeats what was asked of the group and has not shown yet: rank 0 may not have heard it when its
    /// session broke.
    pub(super) fn repeat_orders(&self, incarnation: u64, out: &mut Vec<Command>) {
        let Phase::Running { paused, stopping } = self.phase else { return };
        let pause = if self.wanted.pause { Operation::Pause } else { Operation::Resume };
        let repeated = [
            (self.wanted.pause != paused, pause),
            (self.wanted.checkpoint, Operation::Checkpoint),
            (stopping, Operation::Stop),
        ];
        for (_, operation) in repeated.into_iter().filter(|(due, _)| *due) {
            out.extend(self.order(operation, "repeated", incarnation));
        }
    }

    /// Orders that came before the group was formed.
    pub(super) fn give_pending(&mut self, incarnation: u64, now: Duration, out: &mut Vec<Command>) {
        for (operation, command_id) in std::mem::take(&mut self.pending) {
            self.carry_out(operation, command_id, incarnation, now, out);
        }
    }
}
