//! Events of one run, as many as a watcher may have missed, and a bell for those who wait for more.
//!
//! A watcher reads at its own pace and is never waited for: one that is slower than the run for longer
//! than the log reaches back misses events, and sees that by a gap in their numbers. What is written in
//! the run's `events.jsonl` and `metrics.jsonl` is complete.

use proto::v1::Event;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// Events kept for watchers; about 4 MiB of metrics.
const KEPT: usize = 8192;

/// Events kept of a run that has ended, once another is submitted.
const KEPT_OF_ENDED: usize = 256;

/// Shared by the owner, which appends, and the watchers, which read.
#[derive(Clone)]
pub(crate) struct EventLog {
    inner: Arc<Mutex<Inner>>,
    /// Rings at every change.
    bell: watch::Sender<()>,
}

struct Inner {
    /// Numbered without gaps.
    events: VecDeque<Event>,
    next_seq: u64,
    /// No event will follow, unless the run is resumed.
    closed: bool,
}

/// What a watcher finds.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    /// Events from the one asked for on; at least one.
    Events(Vec<Event>),
    /// Nothing yet.
    Wait,
    /// Nothing, and nothing will come.
    End,
}

impl EventLog {
    /// An empty log whose first event is number `next_seq`.
    pub fn new(next_seq: u64) -> EventLog {
        let inner = Inner { events: VecDeque::new(), next_seq, closed: false };
        EventLog { inner: Arc::new(Mutex::new(inner)), bell: watch::channel(()).0 }
    }

    /// The number of the event that comes next.
    pub fn next_seq(&self) -> u64 {
        self.lock().next_seq
    }

    /// Appends an event, which has the next number.
    pub fn push(&self, event: Event) {
        let mut inner = self.lock();
        inner.next_seq = event.seq + 1;
        inner.events.push_back(event);
        if inner.events.len() > KEPT {
            inner.events.pop_front();
        }
        drop(inner);
        self.bell.send_replace(());
    }

    /// Says that no event will follow.
    pub fn close(&self) {
        self.lock().closed = true;
        self.bell.send_replace(());
    }

    /// Keeps only the last events of a run that has ended: a coordinator sees many runs.
    pub fn forget_if_closed(&self) {
        let mut inner = self.lock();
        if inner.closed {
            let excess = inner.events.len().saturating_sub(KEPT_OF_ENDED);
            inner.events.drain(..excess);
            inner.events.shrink_to_fit();
        }
    }

    /// Up to `limit` events from number `seq` on, or from the oldest that is kept.
    pub fn read(&self, seq: u64, limit: usize) -> Next {
        let inner = self.lock();
        let first = inner.events.front().map_or(inner.next_seq, |event| event.seq);
        let skip = usize::try_from(seq.saturating_sub(first)).unwrap_or(usize::MAX);
        let events: Vec<Event> = inner.events.iter().skip(skip).take(limit).cloned().collect();
        match (events.is_empty(), inner.closed) {
            (false, _) => Next::Events(events),
            (true, false) => Next::Wait,
            (true, true) => Next::End,
        }
    }

    /// Hears of changes from now on.
    pub fn bell(&self) -> watch::Receiver<()> {
        self.bell.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64) -> Event {
        Event { seq, ..Event::default() }
    }

    #[track_caller]
    fn check(log: &EventLog, seq: u64, limit: usize, expected: &[u64]) {
        match log.read(seq, limit) {
            Next::Events(events) => {
                assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), expected)
            }
            other => panic!("{other:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_watcher_resumes_and_a_slow_one_sees_a_gap() {
        let log = EventLog::new(5);
        assert_eq!(log.read(0, 9), Next::Wait);
        for seq in 5..8 {
            log.push(event(seq));
        }
        check(&log, 0, 9, &[5, 6, 7]);
        check(&log, 6, 1, &[6]);
        assert_eq!(log.read(8, 9), Next::Wait);
        log.close();
        check(&log, 7, 9, &[7]);
        assert_eq!(log.read(8, 9), Next::End);

        for seq in 8..8 + KEPT as u64 {
            log.push(event(seq));
        }
        check(&log, 0, 2, &[8, 9]);
    }

    #[test]
    fn a_run_that_has_ended_keeps_its_last_events() {
        let log = EventLog::new(0);
        let n = 2 * KEPT_OF_ENDED as u64;
        (0..n).for_each(|seq| log.push(event(seq)));
        log.forget_if_closed();
        check(&log, 0, 1, &[0]);
        log.close();
        log.forget_if_closed();
        check(&log, 0, 1, &[n - KEPT_OF_ENDED as u64]);
        check(&log, n - 1, 9, &[n - 1]);
    }
}
