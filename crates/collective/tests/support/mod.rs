//! A group within one process: real sockets, one thread a rank.

use std::thread;

use collective::{Communicator, loopback};

/// Runs `body` on every rank and returns what each returned, in rank order.
#[track_caller]
pub fn on_ranks<R: Send>(world_size: usize, body: impl Fn(Communicator) -> R + Sync) -> Vec<R> {
    let group = loopback(world_size, 1).unwrap();
    thread::scope(|scope| {
        let ranks: Vec<_> = group
            .into_iter()
            .map(|mut communicators| {
                let communicator = communicators.pop().unwrap();
                scope.spawn(|| body(communicator))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
