//! SIGINT, SIGTERM and SIGHUP as something to wait for.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// The signals that ask a process to end. Once installed, they no longer end it by themselves.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Absent where whoever started the process had it ignored.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Takes the signals over; a hang-up that was inherited as ignored, as `nohup` leaves it, stays ignored.
    pub fn install() -> Result<Signals, Failure> {
        let install = |kind| signal(kind).context("failed to take over signals");
        let hang_up = SignalKind::hangup();
        // A system that does not say so ignores nothing.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Ok(Signals {
            hang_up: (!is_ignored(&status, hang_up)).then(|| install(hang_up)).transpose()?,
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one and returns its number.
    pub async fn next(&mut self) -> i32 {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = hang_up => SignalKind::hangup().as_raw_value(),
        }
    }
}

/// Whether a process with this `/proc/PID/status` ignores a signal: bit `n - 1` of the mask is signal `n`'s.
fn is_ignored(status: &str, kind: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_the_mask() {
        let of =
            |mask: &str, kind| is_ignored(&format!("Name:\thimpun\nSigIgn:\t{mask}\nSigCgt:\t0\n"), kind);
        // As `trap "" HUP` leaves it, and as a program does that ignores SIGPIPE alone.
        assert!(of("0000000000000001", SignalKind::hangup()));
        assert!(!of("0000000000001000", SignalKind::hangup()));
        assert!(
            of("0000000000001001", SignalKind::hangup()) && !of("0000000000000001", SignalKind::interrupt())
        );
        assert!(!is_ignored("", SignalKind::hangup()));
    }
}
