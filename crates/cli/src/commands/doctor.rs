//! `himpun doctor`: what this machine offers, and what would stop a run on it.

use clap::Args;
use kernels::{CpuOptions, KernelPath, peak_flops};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::failure::{Exit, Failure};
use crate::output;

/// Files that a worker of a large group has open at once: sockets to its peers, images, shards.
const FILES_WANTED: u64 = 1024;

/// Less than this, and a checkpoint may not fit.
const DISK_WANTED: u64 = 1 << 30;

/// Look at this machine: cores, instructions, memory, network, disk
#[derive(Args)]
pub struct Arguments {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
struct Finding {
    what: &'static str,
    value: String,
    /// What is wrong with it, and how to put it right.
    problem: Option<String>,
}

/// Prints what was found; fails if something would stop a run.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let cores = agent::available_cores();
    let findings = [
        found("cores", format!("{} ({})", cores.len().max(1), core_list(&cores))),
        kernels(),
        peak(&cores),
        memory(),
        loopback(),
        open_files(),
        disk(),
    ];
    let problems = findings.iter().filter(|finding| finding.problem.is_some()).count();
    if arguments.json {
        let entry = |finding: &Finding| json!({ "what": finding.what, "value": finding.value, "ok": finding.problem.is_none(), "problem": finding.problem });
        output::json(&findings.iter().map(entry).collect::<Vec<Value>>());
    } else {
        let row = |finding: &Finding| {
            let mark = if finding.problem.is_some() { "!" } else { " " };
            let problem = finding.problem.as_ref().map_or(String::new(), |problem| format!(" - {problem}"));
            vec![mark.to_owned(), finding.what.to_owned(), format!("{}{problem}", finding.value)]
        };
        output::data(&output::table(&findings.iter().map(row).collect::<Vec<_>>()));
    }
    if problems > 0 {
        return Err(Failure::usage(format!("{problems} of {} checks failed", findings.len())));
    }
    Ok(Exit::DONE)
}

fn found(what: &'static str, value: String) -> Finding {
    Finding { what, value, problem: None }
}

fn core_list(cores: &[usize]) -> String {
    if cores.is_empty() {
        return "the system does not say which".to_owned();
    }
    cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn kernels() -> Finding {
    let available: Vec<String> =
        KernelPath::ALL.into_iter().filter(|path| path.is_available()).map(|path| path.to_string()).collect();
    found("kernels", format!("{} (of {})", KernelPath::detect(), available.join(", ")))
}

/// Fused multiply-adds of all cores at once, the bound of every kernel.
fn peak(cores: &[usize]) -> Finding {
    let cpu = CpuOptions { threads: cores.len(), cores: cores.to_vec(), path: KernelPath::detect() }.open();
    let flops = peak_flops(&cpu);
    found("FMA peak", format!("{:.0} GFLOP/s in f32, measured on all cores", flops * 1e-9))
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    match (kib("MemAvailable"), kib("MemTotal")) {
        (Some(available), Some(total)) => found(
            "memory",
            format!("{:.1} GB available of {:.1}", available as f64 / 1e6, total as f64 / 1e6),
        ),
        _ => found("memory", "the system does not say".to_owned()),
    }
}

/// Workers of one machine reach each other through the loopback interface, on ports that the system chooses.
fn loopback() -> Finding {
    let finding = found("loopback", "127.0.0.1 carries data, free ports are there".to_owned());
    match send_to_self() {
        Ok(()) => finding,
        Err(error) => Finding {
            value: "unusable".to_owned(),
            problem: Some(format!("{error}; workers on this machine cannot reach each other")),
            ..finding
        },
    }
}

fn send_to_self() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sender = TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_secs(2))?;
    let (mut receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    sender.write_all(b"himpun")?;
    let mut bytes = [0; 6];
    receiver.read_exact(&mut bytes)
}

fn open_files() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) => Finding {
            problem: (soft < FILES_WANTED)
                .then(|| format!("raise it to {FILES_WANTED}: ulimit -n {FILES_WANTED}")),
            ..found("open files", format!("{soft} (at most {hard})"))
        },
        Err(error) => found("open files", format!("unknown: {error}")),
    }
}

fn disk() -> Finding {
    match nix::sys::statvfs::statvfs(".") {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            Finding {
                problem: (free < DISK_WANTED).then(|| "a checkpoint may not fit".to_owned()),
                ..found("disk", format!("{:.1} GB free here", free as f64 / 1e9))
            }
        }
        Err(error) => found("disk", format!("unknown: {error}")),
    }
}
