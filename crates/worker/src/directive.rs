//! Orders become decisions of the whole group.
//!
//! Only rank 0 hears the coordinator's orders. What it heard travels to every rank in a broadcast at
//! each step boundary, so that all ranks pause, stop or checkpoint after the same update, however late
//! an order reached rank 0.

use collective::Communicator;
use proto::v1::order::Kind;
use proto::v1::{Order, Phase};
use std::time::Duration;

use crate::Error;
use crate::session::Session;

/// How often a paused group tells itself that it is still paused, so that a rank that died or a lost
/// coordinator is noticed.
const PAUSE_BEAT: Duration = Duration::from_millis(500);

/// What the group does at a step boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directive {
    /// Take a checkpoint before the next step.
    pub checkpoint: bool,
    /// End before the next step, with a checkpoint.
    pub stop: bool,
    /// Make no step until told to.
    pub pause: bool,
}

/// Agrees on what to do before the next step. While the group is paused this returns only to take a
/// checkpoint or to stop, or once it is resumed; `paused` remembers the pause between calls.
///
/// # Errors
/// If a peer is lost or the group is aborted.
pub fn agree(
    session: &Session,
    communicator: &mut Communicator,
    paused: &mut bool,
    step: u64,
) -> Result<Directive, Error> {
    let leader = communicator.rank() == 0;
    loop {
        session.check()?;
        let mut directive = Directive { pause: *paused, ..Directive::default() };
        if leader {
            let orders = if *paused { session.wait_orders(PAUSE_BEAT) } else { session.orders() };
            directive.apply(&orders);
        }
        directive = directive.share(communicator)?;
        if directive.pause != *paused {
            *paused = directive.pause;
            if leader {
                session.paused(*paused, step);
            }
        }
        if !directive.pause || directive.checkpoint || directive.stop {
            return Ok(directive);
        }
        session.progress(Phase::Paused, step, communicator.sequence());
    }
}

impl Directive {
    fn apply(&mut self, orders: &[Order]) {
        for order in orders {
            match order.kind() {
                Kind::Pause => self.pause = true,
                Kind::Resume => self.pause = false,
                Kind::Stop => self.stop = true,
                Kind::Checkpoint => self.checkpoint = true,
                Kind::Unspecified => tracing::warn!("order of an unknown kind ignored"),
            }
        }
    }

    /// Rank 0's directive, on every rank.
    fn share(self, communicator: &mut Communicator) -> Result<Directive, Error> {
        let mut flags = [self.checkpoint, self.stop, self.pause].map(u8::from);
        communicator.broadcast(&mut flags, 0)?;
        let [checkpoint, stop, pause] = flags.map(|flag| flag != 0);
        Ok(Directive { checkpoint, stop, pause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(kinds: &[Kind]) -> Directive {
        let orders: Vec<Order> =
            kinds.iter().map(|&kind| Order { kind: kind.into(), ..Order::default() }).collect();
        let mut directive = Directive::default();
        directive.apply(&orders);
        directive
    }

    #[test]
    fn the_last_of_pause_and_resume_holds_and_nothing_else_is_lost() {
        let none = Directive::default();
        assert_eq!(heard(&[]), none);
        assert_eq!(heard(&[Kind::Pause, Kind::Resume]), none);
        assert_eq!(heard(&[Kind::Resume, Kind::Pause]), Directive { pause: true, ..none });
        assert_eq!(
            heard(&[Kind::Checkpoint, Kind::Pause, Kind::Stop, Kind::Checkpoint]),
            Directive { checkpoint: true, stop: true, pause: true }
        );
    }

    #[test]
    fn all_ranks_hear_what_rank_0_heard() {
        let group = collective::loopback(3, 1).unwrap();
        let directives: Vec<Directive> = std::thread::scope(|scope| {
            let ranks: Vec<_> = group
                .into_iter()
                .map(|mut communicators| {
                    scope.spawn(move || {
                        let mut communicator = communicators.remove(0);
                        // What another rank might have heard must not count.
                        let own = match communicator.rank() {
                            0 => heard(&[Kind::Pause, Kind::Checkpoint]),
                            _ => heard(&[Kind::Stop]),
                        };
                        own.share(&mut communicator).unwrap()
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert_eq!(directives, [heard(&[Kind::Pause, Kind::Checkpoint]); 3]);
    }
}
