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

/// Deterministic numbers (SplitMix64), the same on every rank that asks with the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
