//! Persistent threads that run one closure at a time, all together.
//!
//! A training step calls the pool some hundred times, so a call must cost about a microsecond: the
//! threads spin for a short while, and for a longer one offer their cores to others, before they park.
//! A pool with more threads than cores does neither, for it would only take the core from the thread
//! it waits for.

#![expect(unsafe_code, reason = "hands a closure on the caller's stack to threads that outlive it")]

use std::any::Any;
use std::cell::Cell;
use std::hint;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Rounds of `spin_loop` before a waiting thread offers its core to others: 50 to 100 microseconds.
const SPIN_ROUNDS: usize = 2048;

/// Offers before it parks: one to two milliseconds where nobody takes them. A virtual core that halts comes back late; a
/// step of ResNet-20 on two threads parks 4 times instead of 35.
const YIELD_ROUNDS: usize = 4096;

type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// A fixed set of threads; the caller is thread 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    pinned: usize,
    /// Held while a closure runs: the pool runs one at a time.
    turn: Mutex<()>,
}

struct Shared {
    spins: bool,
    /// Points at the closure of the call under way, on the caller's stack.
    job: AtomicPtr<Job<'static>>,
    /// Counts the calls; a change tells the workers that `job` is theirs to run.
    calls: AtomicUsize,
    /// Workers that have not yet returned from the closure.
    busy: AtomicUsize,
    stop: AtomicBool,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

thread_local! {
    static IN_POOL: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// Starts `threads - 1` threads, the caller being the first.
    ///
    /// Thread `i` is pinned to `cores[i]` where that is given, the calling thread included: threads
    /// it starts later inherit its core, so start those first.
    ///
    /// # Panics
    /// If `threads` is 0, or the system refuses to start a thread.
    pub fn new(threads: usize, cores: &[usize]) -> Self {
        assert!(threads > 0, "a pool has at least the calling thread");
        let usable = if cores.is_empty() {
            thread::available_parallelism().map_or(1, usize::from)
        } else {
            cores.len()
        };
        let shared = Arc::new(Shared {
            spins: threads <= usable,
            job: AtomicPtr::new(ptr::null_mut()),
            calls: AtomicUsize::new(0),
            busy: AtomicUsize::new(threads - 1),
            stop: AtomicBool::new(false),
            caller: Mutex::new(Some(thread::current())),
            panic: Mutex::new(None),
        });
        let pinned = Arc::new(AtomicUsize::new(0));
        let workers = (1..threads)
            .map(|index| {
                let (shared, pinned, core) = (shared.clone(), pinned.clone(), cores.get(index).copied());
                thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || {
                        pinned.fetch_add(usize::from(core.is_some_and(pin)), Ordering::Relaxed);
                        shared.done();
                        shared.work(index);
                    })
                    .expect("the system starts a kernel thread")
            })
            .collect();
        // The calling thread is pinned last: a new thread inherits its creator's core.
        pinned.fetch_add(usize::from(cores.first().copied().is_some_and(pin)), Ordering::Relaxed);
        shared.wait_for_workers();
        let pinned = pinned.load(Ordering::Relaxed);
        Self { shared, workers, pinned, turn: Mutex::new(()) }
    }

    /// Threads of the pool, the caller among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Threads that the system agreed to pin to their core.
    pub fn pinned(&self) -> usize {
        self.pinned
    }

    /// Runs `f(thread)` on every thread and returns when all have returned.
    ///
    /// # Panics
    /// If `f` panics on any thread, once all threads have returned; and if called from within a
    /// closure that a pool of several threads runs, which could never finish.
    pub fn run(&self, f: impl Fn(usize) + Sync) {
        if self.workers.is_empty() {
            return f(0);
        }
        assert!(!IN_POOL.get(), "Pool::run called from within Pool::run");
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        let mut job: Job<'_> = &f;
        *lock(&shared.caller) = Some(thread::current());
        shared.busy.store(self.workers.len(), Ordering::Relaxed);
        shared.job.store((&raw mut job).cast(), Ordering::Relaxed);
        shared.calls.fetch_add(1, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = guarded(job, 0);
        shared.wait_for_workers();
        let others = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = own.err().or(others) {
            panic::resume_unwind(payload);
        }
    }

    /// Moves each part to a thread and runs `f(index, part)` there: part `i` on thread
    /// `i % threads`, in order.
    ///
    /// A part usually holds the slices that one thread may write, so that nothing is shared.
    pub fn for_each_part<P: Send>(&self, parts: Vec<P>, f: impl Fn(usize, P) + Sync) {
        let threads = self.threads();
        let slots: Vec<Mutex<Option<P>>> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
        self.run(|thread| {
            for (index, slot) in slots.iter().enumerate().skip(thread).step_by(threads) {
                let part = lock(slot).take().expect("each part is taken once, by its own thread");
                f(index, part);
            }
        });
    }

    /// Splits `data`, rows of `width` elements, evenly over the threads and runs `f(first_row,
    /// rows)` on each.
    ///
    /// # Panics
    /// If `data` ends within a row.
    pub fn for_each_rows<T: Send>(&self, data: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        assert!(data.len().is_multiple_of(width), "{} elements in rows of {width}", data.len());
        let rows = data.len() / width.max(1);
        let mut rest = data;
        let parts = (0..self.threads())
            .map(|thread| {
                let range = split(rows, self.threads(), thread);
                (range.start, rest.split_off_mut(..range.len() * width).expect("the ranges tile the rows"))
            })
            .collect();
        self.for_each_part(parts, |_, (first, part)| f(first, part));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.calls.fetch_add(1, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of the closures it runs; it has none of its own.
            worker.join().expect("a kernel thread ends quietly");
        }
    }
}

impl Shared {
    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            wait_until(self.spins, || self.calls.load(Ordering::Acquire) != seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // `run` returns only when this worker is done, so exactly one call was added.
            seen = seen.wrapping_add(1);
            let job = self.job.load(Ordering::Relaxed);
            // SAFETY: the acquired `calls` makes the store of `job` visible. It points at a closure
            // reference on the stack of `Pool::run`, which does not return or unwind before `done`.
            let job = unsafe { *job };
            if let Err(payload) = guarded(job, thread) {
                lock(&self.panic).get_or_insert(payload);
            }
            self.done();
        }
    }

    fn done(&self) {
        // Cloned before the count falls: after that the caller may be gone.
        let caller = lock(&self.caller).clone();
        if self.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            caller.expect("the caller left its handle").unpark();
        }
    }

    fn wait_for_workers(&self) {
        wait_until(self.spins, || self.busy.load(Ordering::Acquire) == 0);
    }
}

/// The `index`-th of `parts` nearly equal ranges that tile `0..len`.
pub fn split(len: usize, parts: usize, index: usize) -> Range<usize> {
    len * index / parts..len * (index + 1) / parts
}

fn guarded(job: Job<'_>, thread: usize) -> thread::Result<()> {
    IN_POOL.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| job(thread)));
    IN_POOL.set(false);
    result
}

fn wait_until(spins: bool, done: impl Fn() -> bool) {
    if spins {
        for _ in 0..SPIN_ROUNDS {
            if done() {
                return;
            }
            hint::spin_loop();
        }
        for _ in 0..YIELD_ROUNDS {
            if done() {
                return;
            }
            thread::yield_now();
        }
    }
    while !done() {
        thread::park();
    }
}

/// A panic never happens while one of these locks is held, but a poisoned lock would hide the panic
/// that a closure raised, so poison is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pins the calling thread to `core`; false if the system refuses.
#[cfg(target_os = "linux")]
fn pin(core: usize) -> bool {
    let mut cores = nix::sched::CpuSet::new();
    cores.set(core).is_ok() && nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cores).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn pin(_core: usize) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{Pool, split};

    #[test]
    fn ranges_tile() {
        for (len, parts) in [(0, 1), (1, 3), (7, 3), (8, 4), (3, 8)] {
            let joined: Vec<usize> = (0..parts).flat_map(|index| split(len, parts, index)).collect();
            assert_eq!(joined, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_thread_runs_every_closure_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads, &[]);
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..500 {
                pool.run(|thread| {
                    counts[thread].fetch_add(1, Ordering::Relaxed);
                });
            }
            for count in counts {
                assert_eq!(count.into_inner(), 500);
            }
        }
    }

    #[test]
    fn parts_are_written_by_their_thread() {
        let pool = Pool::new(3, &[]);
        let mut data = vec![0; 10];
        pool.for_each_rows(&mut data, 2, |first, rows| {
            for (offset, value) in rows.iter_mut().enumerate() {
                *value = 2 * first + offset;
            }
        });
        assert_eq!(data, (0..10).collect::<Vec<_>>());
        let sum = AtomicUsize::new(0);
        pool.for_each_part(vec![1, 2, 3, 4, 5], |index, part| {
            sum.fetch_add(index * part, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 2 + 2 * 3 + 3 * 4 + 4 * 5);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3, &[]);
        for culprit in [0, 1, 2] {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(|thread| assert_ne!(thread, culprit, "thread {culprit} gives up"));
            }));
            let message = result.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains("gives up"), "{message}");
            let runs = AtomicUsize::new(0);
            pool.run(|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), 3);
        }
    }

    #[test]
    fn a_nested_call_panics_instead_of_hanging() {
        let pool = Pool::new(2, &[]);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(|_| pool.run(|_| {}));
        }));
        assert!(result.is_err());
        pool.run(|_| {});
    }

    #[test]
    fn two_callers_take_turns() {
        let pool = Pool::new(2, &[]);
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 3 * 100 * 2);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_are_pinned_where_asked() {
        // A thread of its own, because the pool pins its creator.
        std::thread::spawn(|| {
            let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
            let core = (0..nix::sched::CpuSet::count()).find(|&core| allowed.is_set(core).unwrap()).unwrap();
            let pool = Pool::new(2, &[core, core]);
            assert_eq!(pool.pinned(), 2);
            let mut expected = nix::sched::CpuSet::new();
            expected.set(core).unwrap();
            pool.run(|_| {
                let cores = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
                assert_eq!(cores, expected);
            });
            // A core that does not exist is refused, and the pool still works.
            let pool = Pool::new(2, &[core, nix::sched::CpuSet::count() - 1]);
            assert_eq!(pool.pinned(), 1);
            pool.run(|_| {});
        })
        .join()
        .unwrap();
    }
}
