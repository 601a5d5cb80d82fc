//! What the training thread and the session's thread know of each other.

use collective::AbortHandle;
use proto::v1::{Phase, Progress, Ready};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::Error;
use crate::clock;

pub(super) struct Shared {
    /// Where the training thread is: written there, read by heartbeats. A heartbeat that mixes two places
    /// harms nobody.
    phase: AtomicI32,
    step: AtomicU64,
    collective_seq: AtomicU64,
    phase_since_ns: AtomicU64,
    born: Instant,
    /// Messages not yet handed to the stream.
    waiting: AtomicUsize,
    dropped_rows: AtomicU64,
    /// That the group is formed: said again in every new stream, because the run waits for it.
    ready: OnceLock<Ready>,
    /// Why the session is over.
    end: OnceLock<Error>,
    /// Frees the training thread from a collective that will not end.
    abort: AbortHandle,
}

impl Shared {
    pub fn new(abort: AbortHandle) -> Shared {
        Shared {
            phase: AtomicI32::new(Phase::Starting.into()),
            step: AtomicU64::new(0),
            collective_seq: AtomicU64::new(0),
            phase_since_ns: AtomicU64::new(0),
            born: clock::now(),
            waiting: AtomicUsize::new(0),
            dropped_rows: AtomicU64::new(0),
            ready: OnceLock::new(),
            end: OnceLock::new(),
            abort,
        }
    }

    pub fn progress(&self, phase: Phase, step: u64, collective_seq: u64) {
        let phase = i32::from(phase);
        if self.phase.swap(phase, Ordering::Relaxed) != phase {
            self.phase_since_ns.store(self.age_ns(), Ordering::Relaxed);
        }
        self.step.store(step, Ordering::Relaxed);
        self.collective_seq.store(collective_seq, Ordering::Relaxed);
    }

    pub fn to_proto(&self) -> Progress {
        Progress {
            phase: self.phase.load(Ordering::Relaxed),
            step: self.step.load(Ordering::Relaxed),
            collective_seq: self.collective_seq.load(Ordering::Relaxed),
            ns_in_phase: self.age_ns().saturating_sub(self.phase_since_ns.load(Ordering::Relaxed)),
        }
    }

    fn age_ns(&self) -> u64 {
        self.born.elapsed().as_nanos() as u64
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn count_waiting(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_taken(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn count_dropped_row(&self) {
        self.dropped_rows.fetch_add(1, Ordering::Relaxed);
    }

    /// Rows dropped since the last call.
    pub fn take_dropped_rows(&self) -> u64 {
        self.dropped_rows.swap(0, Ordering::Relaxed)
    }

    /// Remembers what is said once.
    pub fn set_ready(&self, ready: Ready) {
        self.ready.set(ready).expect("a group is formed once");
    }

    pub fn ready(&self) -> Option<Ready> {
        self.ready.get().copied()
    }

    /// Ends the session and the group with it. The first reason stays.
    pub fn finish(&self, error: Error) {
        let reason = error.to_string();
        if self.end.set(error).is_ok() {
            self.abort.abort(reason);
        }
    }

    /// Ends the session alone: when the run has ended, the last collective of a slower rank must not be
    /// broken, and whoever would go on notices at the next step.
    pub fn finish_quietly(&self, error: Error) {
        // If it is over already, for whatever reason, that one stays.
        self.end.set(error).ok();
    }

    pub fn is_over(&self) -> bool {
        self.end.get().is_some()
    }

    pub fn end(&self) -> Option<Error> {
        self.end.get().cloned()
    }
}
