//! `himpun bench collective`: an operation between processes of this machine, as between workers of a run.

use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use collective::{AbortHandle, Communicator, Listener, Membership, form};
use kernels::{Pool, split};
use serde::{Deserialize, Serialize};
use trainer::Error;

use crate::bench::{copy_rate, now, time_reported};

/// How long the processes may take to find each other.
const FORMING: Duration = Duration::from_secs(60);

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Everybody gets the sum.
    AllReduce,
    /// Everybody gets everybody's part.
    AllGather,
    /// Everybody gets a part of the sum.
    ReduceScatter,
    /// Everybody gets what rank 0 has.
    Broadcast,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct CollectiveOptions {
    /// Which operation.
    pub operation: Operation,
    /// Processes.
    pub world_size: usize,
    /// Bytes of the whole: what is reduced or sent, or gathered from all ranks.
    pub bytes: usize,
}

/// What was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectiveReport {
    /// Median of the timed operations, from barrier to barrier.
    pub operation_ms: f64,
    /// The shortest.
    pub operation_ms_min: f64,
    /// The longest.
    pub operation_ms_max: f64,
    /// Bytes of the whole.
    pub bytes: u64,
    /// Bytes of the whole, a second.
    pub gb_per_s: f64,
    /// Bytes that must leave and enter each rank, a second: comparable between operations and world sizes.
    pub bus_gb_per_s: f64,
    /// Payload bytes that rank 0 sent in one operation, barriers included.
    pub bytes_sent: u64,
    /// What the processes, each with one thread, copy together from place to place in memory; 1e9 bytes a second.
    pub copy_gb_per_s: f64,
    /// Share of that which the bytes on the bus of all ranks are. The system copies each of them in and out again.
    pub share_of_copy: f64,
    /// Processes.
    pub world_size: usize,
    /// Operations that were timed.
    pub calls: usize,
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, operation)| *operation).ok_or_else(|| format!("one of {}", Self::names()))
    }
}

impl Operation {
    const NAMES: [(&str, Operation); 4] = [
        ("all-reduce", Self::AllReduce),
        ("all-gather", Self::AllGather),
        ("reduce-scatter", Self::ReduceScatter),
        ("broadcast", Self::Broadcast),
    ];

    /// Every operation's name, for people.
    pub fn names() -> String {
        Self::NAMES.map(|(name, _)| name).join(", ")
    }

    /// Share of the whole that must leave or enter the busiest rank.
    fn bus_share(self, world_size: usize) -> f64 {
        let others = (world_size - 1) as f64 / world_size as f64;
        match self {
            Self::AllReduce => 2.0 * others,
            Self::AllGather | Self::ReduceScatter => others,
            Self::Broadcast => f64::from(u8::from(world_size > 1)),
        }
    }
}

/// Times an operation between processes, each of which runs what `rank` makes of its number: a program that calls
/// [`collective_rank`].
///
/// # Errors
/// If a process cannot be started or fails.
pub fn bench_collective(
    options: &CollectiveOptions,
    rank: impl Fn(usize) -> Command,
) -> Result<CollectiveReport, Error> {
    let mut ranks = Ranks(Vec::new());
    for number in 0..options.world_size {
        let child = rank(number).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        ranks.0.push(child.map_err(failed_to("start a process"))?);
    }
    let mut outputs = Vec::new();
    let mut addresses = Vec::new();
    for child in &mut ranks.0 {
        let mut output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        addresses.push(line(&mut output).map_err(failed_to("read a process's address"))?);
        outputs.push(output);
    }
    let addresses = addresses.join(" ");
    for child in &mut ranks.0 {
        let mut input = child.stdin.take().expect("its input is a pipe");
        writeln!(input, "{addresses}").map_err(failed_to("tell a process its peers' addresses"))?;
    }
    let report = line(&mut outputs[0]).map_err(failed_to("read a process's report"))?;
    serde_json::from_str(&report).map_err(|source| failed_to("read a process's report")(source.into()))
}

/// Processes that end with their owner, whatever they are doing.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended by itself cannot be killed, and that is well.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// One of the processes: says where it listens, hears where the others do, takes part, and reports if it is rank 0.
///
/// # Errors
/// If the group does not form, or a peer is lost.
pub fn collective_rank(
    options: &CollectiveOptions,
    rank: usize,
    mut input: impl BufRead,
    mut output: impl Write,
) -> Result<(), Error> {
    let listener = Listener::bind(IpAddr::from([127, 0, 0, 1]))?;
    writeln!(output, "{}", listener.address())
        .and_then(|()| output.flush())
        .map_err(failed_to("tell this process's address"))?;
    let addresses = line(&mut input).map_err(failed_to("read the peers' addresses"))?;
    let peers = addresses.split_whitespace().map(str::to_owned).collect();
    let membership = Membership { key: [0; 32], generation: 0, rank, peers };
    let abort = AbortHandle::new()?;
    let mut communicators = form(listener, membership, 1, FORMING, &abort)?;
    let mut communicator = communicators.pop().expect("one communicator was asked for");
    if let Some(report) = take_part(options, &mut communicator)? {
        let report =
            serde_json::to_string(&report).map_err(|source| failed_to("write a report")(source.into()))?;
        writeln!(output, "{report}").map_err(failed_to("write a report"))?;
    }
    Ok(())
}

/// Rank 0 times and says when it is over, and the others follow.
fn take_part(
    options: &CollectiveOptions,
    communicator: &mut Communicator,
) -> Result<Option<CollectiveReport>, collective::Error> {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let len = options.bytes / size_of::<f32>();
    let mut values = vec![1f32; len];
    let counts: Vec<usize> = (0..world_size).map(|rank| split(len, world_size, rank).len()).collect();
    let mut share = vec![1f32; counts[rank]];
    let mut call = |communicator: &mut Communicator| -> Result<Duration, collective::Error> {
        communicator.barrier()?;
        let begun = now();
        match options.operation {
            Operation::AllReduce => communicator.all_reduce_sum(&mut values)?,
            Operation::AllGather => communicator.all_gather_counts(&share, &counts, &mut values)?,
            Operation::ReduceScatter => communicator.reduce_scatter_sum(&values, &counts, &mut share)?,
            Operation::Broadcast => communicator.broadcast(&mut values, 0)?,
        }
        communicator.barrier()?;
        Ok(begun.elapsed())
    };
    if rank > 0 {
        let mut goes_on = [0u8];
        loop {
            communicator.broadcast(&mut goes_on, 0)?;
            if goes_on == [0] {
                return Ok(None);
            }
            call(communicator)?;
        }
    }
    let mut bytes_sent = 0;
    let timing = time_reported(|| {
        communicator.broadcast(&mut [1u8], 0)?;
        let before = communicator.bytes_sent();
        let elapsed = call(communicator)?;
        bytes_sent = communicator.bytes_sent() - before;
        Ok::<_, collective::Error>(elapsed)
    })?;
    communicator.broadcast(&mut [0u8], 0)?;
    let seconds = timing.median.as_secs_f64();
    let bytes = (len * size_of::<f32>()) as u64;
    let bus = options.operation.bus_share(world_size) * bytes as f64 / seconds;
    let copied = copy_rate(&Pool::new(world_size, &[]));
    Ok(Some(CollectiveReport {
        operation_ms: 1e3 * seconds,
        operation_ms_min: 1e3 * timing.min.as_secs_f64(),
        operation_ms_max: 1e3 * timing.max.as_secs_f64(),
        bytes,
        gb_per_s: bytes as f64 / seconds / 1e9,
        bus_gb_per_s: bus / 1e9,
        bytes_sent,
        copy_gb_per_s: copied / 1e9,
        share_of_copy: bus * world_size as f64 / copied,
        world_size,
        calls: timing.samples,
    }))
}

/// A line without its end; an error if there is none.
fn line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other process has ended"));
    }
    Ok(line.trim_end().to_owned())
}

fn failed_to(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_timed_by_rank_0_and_followed_by_the_others() {
        for text in ["all-reduce", "all-gather", "reduce-scatter", "broadcast"] {
            let operation = text.parse().unwrap();
            let options = CollectiveOptions { operation, world_size: 3, bytes: 40_001 };
            let reports = std::thread::scope(|scope| {
                let ranks = collective::loopback(3, 1)
                    .unwrap()
                    .into_iter()
                    .flatten()
                    .map(|mut rank| scope.spawn(move || take_part(&options, &mut rank).unwrap()));
                let ranks: Vec<_> = ranks.collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
            });
            assert!(reports[1].is_none() && reports[2].is_none(), "{text}");
            let report = reports[0].as_ref().unwrap();
            assert_eq!((report.bytes, report.world_size), (40_000, 3), "{text}");
            let bus = report.gb_per_s * operation.bus_share(3);
            assert!((report.bus_gb_per_s / bus - 1.0).abs() < 1e-9, "{text}: {report:?}");
            assert!(report.bytes_sent > 0, "{text}: {report:?}");
            let share = 3.0 * report.bus_gb_per_s / report.copy_gb_per_s;
            assert!((report.share_of_copy / share - 1.0).abs() < 1e-9, "{text}: {report:?}");
        }
        assert!("all-to-all".parse::<Operation>().is_err());
    }
}
