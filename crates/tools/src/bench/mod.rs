//! `himpun bench`: how fast the trainer's own parts are on this machine.
//!
//! One module a part. All of them time what training calls, with [`time`], and report the median of the
//! calls and between which bounds they lay.

mod collective;
mod data;
mod loss;
mod step;

pub use collective::{CollectiveOptions, CollectiveReport, Operation, bench_collective, collective_rank};
pub use data::{DataOptions, DataPart, DataReport, bench_data};
pub use loss::{LossOptions, LossReport, bench_loss};
pub use step::{StepOptions, StepReport, bench_step};

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use kernels::{CpuOptions, DeviceOptions, KernelPath, Pool};
use trainer::Error;

/// Calls before the clock starts: pages are touched, clocks have risen.
const WARM_UP: usize = 2;

/// One call of a long action is warm-up enough.
const WARM_UP_PATIENCE: Duration = Duration::from_secs(1);

/// Calls that are timed at least, and at most.
const TIMED: RangeInclusive<usize> = 5..=200;

/// Timing goes on for about so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// The one place of this crate that reads the clock.
#[expect(clippy::disallowed_methods, reason = "the home of the clock in this crate")]
fn now() -> Instant {
    Instant::now()
}

/// How long the calls of one action took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Of the calls, the one in the middle.
    pub median: Duration,
    /// The shortest.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
    /// Calls that were timed.
    pub samples: usize,
}

impl Timing {
    /// Of at least one call.
    fn of(mut calls: Vec<Duration>) -> Self {
        calls.sort_unstable();
        let (min, max) = (calls[0], calls[calls.len() - 1]);
        Self { median: calls[calls.len() / 2], min, max, samples: calls.len() }
    }
}

/// Times an action, after some calls that are not timed.
///
/// # Errors
/// The first of the action's.
pub fn time<E>(mut action: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    time_reported(|| {
        let begun = now();
        action().map(|()| begun.elapsed())
    })
}

/// As [`time`], of an action that says itself how long the part of it took that matters.
///
/// # Errors
/// The first of the action's.
pub fn time_reported<E>(mut action: impl FnMut() -> Result<Duration, E>) -> Result<Timing, E> {
    let mut warming = Duration::ZERO;
    for _ in 0..WARM_UP {
        warming += action()?;
        if warming > WARM_UP_PATIENCE {
            break;
        }
    }
    let mut calls = Vec::new();
    while calls.len() < *TIMED.start()
        || (calls.len() < *TIMED.end() && calls.iter().sum::<Duration>() < PATIENCE)
    {
        calls.push(action()?);
    }
    Ok(Timing::of(calls))
}

/// The threads that a part is timed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Threads {
    count: usize,
    /// One for each, or none: wherever the system puts them.
    cores: Vec<usize>,
}

impl Threads {
    /// So many threads, or one for each of the `available` cores: as in a run, each on a core of its own where there
    /// are enough.
    pub fn new(wanted: Option<usize>, available: &[usize]) -> Threads {
        let count = wanted.unwrap_or(available.len()).max(1);
        Threads { count, cores: available.get(..count).unwrap_or_default().to_vec() }
    }

    fn on(&self, path: KernelPath) -> DeviceOptions {
        DeviceOptions::Cpu(CpuOptions { threads: self.count, cores: self.cores.clone(), path })
    }
}

/// Bytes of the buffer that is copied to see how fast memory is: beyond the caches.
const COPIED_BYTES: usize = 128 << 20;

/// Bytes that the pool's threads together copy in a second from one place in memory to another, at best.
fn copy_rate(pool: &Pool) -> f64 {
    let source = vec![1u8; COPIED_BYTES];
    let mut target = vec![0u8; COPIED_BYTES];
    let mut shortest = Duration::MAX;
    for _ in 0..*TIMED.start() {
        let begun = now();
        pool.for_each_rows(&mut target, 1, |first, part| {
            part.copy_from_slice(&source[first..][..part.len()])
        });
        shortest = shortest.min(begun.elapsed());
    }
    COPIED_BYTES as f64 / shortest.as_secs_f64()
}

/// Values in [0, 1) without a pattern: no part's time depends on them.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// `VmHWM` of this process: the most memory that it has held.
fn peak_memory() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|source| Error::System { what: "read this process's memory", source })?;
    parse_peak(&status).ok_or_else(|| Error::System {
        what: "read this process's memory",
        source: std::io::Error::other("no VmHWM in /proc/self/status"),
    })
}

fn parse_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_is_not_timed_and_five_calls_are() {
        let timing = |ms: u64| {
            let mut calls = 0;
            let timing = time_reported(|| {
                calls += 1;
                Ok::<_, ()>(Duration::from_millis(if calls <= WARM_UP { 400 } else { ms }))
            });
            timing.unwrap()
        };
        let [long, short] = [2000, 1].map(timing);
        assert_eq!((long.min, long.max), (Duration::from_secs(2), Duration::from_secs(2)));
        assert_eq!(short.max, Duration::from_millis(1));
        assert_eq!((long.samples, short.samples), (*TIMED.start(), *TIMED.end()));
    }

    #[test]
    fn threads_stay_on_cores_of_their_own_where_there_are_enough() {
        let threads = |wanted| {
            let Threads { count, cores } = Threads::new(wanted, &[2, 5, 7]);
            (count, cores)
        };
        assert_eq!(threads(None), (3, vec![2, 5, 7]));
        assert_eq!(threads(Some(2)), (2, vec![2, 5]));
        assert_eq!(threads(Some(4)), (4, vec![]));
        assert_eq!(Threads::new(None, &[]), Threads { count: 1, cores: vec![] });
    }

    #[test]
    fn an_error_ends_the_timing() {
        let mut calls = 0;
        let outcome = time(|| {
            calls += 1;
            if calls == 4 { Err("broken") } else { Ok(()) }
        });
        assert_eq!((outcome, calls), (Err("broken"), 4));
    }

    #[test]
    fn the_median_stands_between_the_bounds() {
        let timing = Timing::of([5, 1, 9, 4, 2].map(Duration::from_millis).to_vec());
        let [min, median, max] = [1, 4, 9].map(Duration::from_millis);
        assert_eq!(timing, Timing { median, min, max, samples: 5 });
    }

    #[test]
    fn the_peak_is_read_from_the_status() {
        assert_eq!(parse_peak("VmPeak:\t 9 kB\nVmHWM:\t   123 kB\nVmRSS: 1 kB\n"), Some(123 * 1024));
        assert_eq!(parse_peak("VmRSS: 1 kB\n"), None);
    }
}
