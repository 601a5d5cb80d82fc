//! Sums gradients over the ranks while the backward pass still computes others.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use crate::{AbortHandle, Communicator, Error, Number};

/// Gradients that travel together: the places they belong to, in order, and their values one after the other.
pub type Bucket<T> = (Vec<Range<usize>>, Vec<T>);

/// A communicator with a thread of its own that all-reduces buckets in the order of their submission.
///
/// Every rank submits the same buckets in the same order. The thread starts on the cores of its creator.
#[derive(Debug)]
pub struct GradientReducer<T: Number = f32> {
    /// `None` only while the reducer is being dropped.
    requests: Option<Sender<Request<T>>>,
    finished: Receiver<Result<Vec<Bucket<T>>, Error>>,
    thread: Option<JoinHandle<()>>,
    bytes_sent: Arc<AtomicU64>,
    abort: AbortHandle,
    /// Buckets were submitted that `finish` has not asked for.
    pending: bool,
}

enum Request<T> {
    Step(u64),
    Reduce(Bucket<T>),
    Finish,
}

impl<T: Number> GradientReducer<T> {
    /// Gives `communicator` its thread.
    ///
    /// # Errors
    /// If the system starts no thread.
    pub fn new(communicator: Communicator) -> Result<Self, Error> {
        let (requests, inbox) = channel();
        let (outbox, finished) = channel();
        let abort = communicator.abort_handle();
        let bytes_sent = Arc::new(AtomicU64::new(communicator.bytes_sent()));
        let counter = bytes_sent.clone();
        let thread = thread::Builder::new()
            .name("reduce".to_owned())
            .spawn(move || reduce(communicator, &inbox, &outbox, &counter))
            .map_err(|source| Error::Io { action: "start a thread", source })?;
        Ok(Self {
            requests: Some(requests),
            finished,
            thread: Some(thread),
            bytes_sent,
            abort,
            pending: false,
        })
    }

    /// States the step in the headers of the buckets that follow.
    pub fn set_step(&mut self, step: u64) {
        self.send(Request::Step(step));
    }

    /// Begins to sum `values`, which belong to `ranges`, and returns at once.
    ///
    /// # Panics
    /// If there are not as many values as the ranges have places.
    pub fn submit(&mut self, ranges: Vec<Range<usize>>, values: Vec<T>) {
        assert_eq!(values.len(), ranges.iter().map(Range::len).sum::<usize>(), "values of a bucket");
        self.pending = true;
        self.send(Request::Reduce((ranges, values)));
    }

    /// Waits for all buckets since the last call, and returns them summed, in order of submission.
    ///
    /// # Errors
    /// The first that any of the buckets met; the others are then not summed.
    pub fn finish(&mut self) -> Result<Vec<Bucket<T>>, Error> {
        self.send(Request::Finish);
        self.pending = false;
        self.finished.recv().expect("the thread answers every request to finish")
    }

    /// Payload bytes sent by all buckets that `finish` has returned, and perhaps some of the next.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    fn send(&self, request: Request<T>) {
        let requests = self.requests.as_ref().expect("requests end only with the reducer");
        // The thread ends only after its inbox, so that it cannot be missing here, short of a panic in it.
        assert!(requests.send(request).is_ok(), "the reducer's thread has panicked");
    }
}

impl<T: Number> Drop for GradientReducer<T> {
    fn drop(&mut self) {
        if self.pending {
            // Whoever drops a reducer in the middle of a step has given the step up; without this, the
            // thread would wait for peers that may never send.
            self.abort.abort("the gradients of a step were given up");
        }
        drop(self.requests.take());
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Serves requests until the reducer is dropped.
fn reduce<T: Number>(
    mut communicator: Communicator,
    inbox: &Receiver<Request<T>>,
    outbox: &Sender<Result<Vec<Bucket<T>>, Error>>,
    bytes_sent: &AtomicU64,
) {
    let mut done = Ok(Vec::new());
    for request in inbox {
        match request {
            Request::Step(step) => communicator.set_step(step),
            Request::Reduce((ranges, mut values)) => {
                if let Ok(buckets) = &mut done {
                    match communicator.all_reduce_sum(&mut values) {
                        Ok(()) => buckets.push((ranges, values)),
                        Err(error) => done = Err(error),
                    }
                    bytes_sent.store(communicator.bytes_sent(), Ordering::Relaxed);
                }
            }
            Request::Finish => {
                let outcome = mem::replace(&mut done, Ok(Vec::new()));
                if outbox.send(outcome).is_err() {
                    // The reducer is being dropped.
                    return;
                }
            }
        }
    }
}
