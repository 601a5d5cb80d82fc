//! Orders become decisions of the whole group.
//!
//! Only rank 0 hears the coordinator's orders. What it heard travels to every rank in a broadcast at
//! each step boundary, so that all ranks pause, stop or checkpoint after the same update, however late
//! an order reached rank 0.

use collective::Communicator;
use proto::v1::order::Kind;
use std::time::Duration;

use crate::session::Session;
use crate::Error;

/// How often a paused group tells itself that it is still paused: a rank that died is noticed, and an
/// operation's deadline never passes while nothing is wrong.
const PAUSE_BEAT: Duration = Duration::from_secs(1);

/// What the group does at a step boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directive {
    /// Take a checkpoint before the next step.
    pub checkpoint: bool,
    /// End before the next step, with a checkpoint.
    pub stop: bool,
    pause: bool,
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
        let mut directive = Directive { pause: *paused, ..Directive::default() };
        if leader {
            let orders = if *paused { session.wait_orders(PAUSE_BEAT) } else { session.orders() };
            for order in orders {
                directive.apply(order.kind());
            }
        }
        directive = exchange(communicator, directive)?;
        if directive.pause != *paused {
            *paused = directive.pause;
            if leader {
                session.paused(*paused, step)?;
            }
        }
        if !directive.pause || directive.checkpoint || directive.stop {
            return Ok(directive);
        }
    }
}

impl Directive {
    fn apply(&mut self, order: Kind) {
        match order {
            Kind::Pause => self.pause = true,
            Kind::Resume => self.pause = false,
            Kind::Stop => self.stop = true,
            Kind::Checkpoint => self.checkpoint = true,
            Kind::Unspecified => tracing::warn!("order of an unknown kind ignored"),
        }
    }
}

fn exchange(communicator: &mut Communicator, directive: Directive) -> Result<Directive, Error> {
    let mut flags = [u8::from(directive.checkpoint), u8::from(directive.stop), u8::from(directive.pause)];
    communicator.broadcast(&mut flags, 0).map_err(Error::Collective)?;
    let [checkpoint, stop, pause] = flags.map(|flag| flag != 0);
    Ok(Directive { checkpoint, stop, pause })
}
