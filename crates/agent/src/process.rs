//! One worker's life, from its spawn to the report of its end.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use proto::v1::{Fence, LogBatch, WorkerExited, WorkerId};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::lines::{Output, Tail};

/// How long an output may stay open after its worker has ended, if somebody inherited it.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// An order to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    /// Between SIGTERM and SIGKILL; zero: SIGKILL at once.
    pub grace: Duration,
}

/// Who a process is, as its reports say.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub fence: Fence,
    pub worker: WorkerId,
}

/// Where log lines go. Never waited for: a coordinator that does not listen must not block a worker's
/// output, and with it its training.
pub(crate) struct Logs {
    pub identity: Identity,
    pub batches: mpsc::Sender<LogBatch>,
    dropped: usize,
}

impl Logs {
    pub fn new(identity: Identity, batches: mpsc::Sender<LogBatch>) -> Self {
        Self { identity, batches, dropped: 0 }
    }

    fn send(&mut self, mut lines: Vec<String>) {
        if lines.is_empty() {
            return;
        }
        let n = lines.len();
        if self.dropped > 0 {
            lines.insert(0, format!("({} lines were not delivered)", self.dropped));
        }
        let Identity { fence, worker } = self.identity.clone();
        match self.batches.try_send(LogBatch { fence: Some(fence), worker: Some(worker), lines }) {
            Ok(()) => self.dropped = 0,
            Err(_) => self.dropped += n,
        }
    }
}

/// Follows `child` to its end: ships its output, obeys `stops`, and says how it ended.
pub(crate) async fn supervise(
    mut child: Child,
    mut logs: Logs,
    mut stops: mpsc::Receiver<Stop>,
) -> WorkerExited {
    let mut stdout = Output::new(child.stdout.take());
    let mut stderr = Output::new(child.stderr.take());
    let mut tail = Tail::default();
    let mut kill_at: Option<Instant> = None;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            Some(Stop { grace }) = stops.recv() => {
                if grace.is_zero() {
                    signal(&child, Signal::SIGKILL);
                } else {
                    signal(&child, Signal::SIGTERM);
                    let at = Instant::now() + grace;
                    kill_at = Some(kill_at.map_or(at, |earlier| earlier.min(at)));
                }
            }
            () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                tracing::warn!(worker = %logs.identity.worker, "worker did not end in time and is killed");
                signal(&child, Signal::SIGKILL);
                kill_at = None;
            }
            lines = stdout.read(), if stdout.is_open() => logs.send(lines),
            lines = stderr.read(), if stderr.is_open() => {
                tail.extend(&lines);
                logs.send(lines);
            }
        }
    };
    let last_words = async {
        while stdout.is_open() {
            logs.send(stdout.read().await);
        }
        while stderr.is_open() {
            let lines = stderr.read().await;
            tail.extend(&lines);
            logs.send(lines);
        }
    };
    if timeout(LAST_WORDS, last_words).await.is_err() {
        tracing::warn!("a process that the worker left behind holds its output open");
    }
    report(logs.identity, status, tail)
}

/// Signals the worker's whole group, as long as it exists: its number cannot have been taken by another.
fn signal(child: &Child, signal: Signal) {
    let Some(pid) = child.id() else { return };
    if let Err(error) = killpg(Pid::from_raw(pid as i32), signal) {
        tracing::warn!(pid, %signal, %error, "failed to signal the worker");
    }
}

fn report(identity: Identity, status: std::io::Result<ExitStatus>, tail: Tail) -> WorkerExited {
    let mut stderr_tail = tail.into_lines();
    let (code, signal) = match status {
        Ok(status) => (status.code(), status.signal()),
        Err(error) => {
            stderr_tail.push(format!("failed to learn how the worker ended: {error}"));
            (Some(1), None)
        }
    };
    WorkerExited { fence: Some(identity.fence), worker: Some(identity.worker), code, signal, stderr_tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn::Spawner;
    use std::path::Path;

    struct Running {
        // Kills the child if the test fails before its end.
        _spawner: Spawner,
        child: Child,
        logs: Logs,
        batches: mpsc::Receiver<LogBatch>,
    }

    async fn run(script: &str) -> Running {
        let spawner = Spawner::start().unwrap();
        let child = spawner.spawn(Path::new("/bin/sh"), &["-c".into(), script.into()], b"").await.unwrap();
        let identity = Identity {
            fence: Fence { run_id: "r".into(), incarnation: 1, generation: 1 },
            worker: WorkerId { agent_id: "a".into(), slot: 0, nonce: "n".into() },
        };
        let (sender, batches) = mpsc::channel(64);
        Running { _spawner: spawner, child, logs: Logs::new(identity, sender), batches }
    }

    #[track_caller]
    fn check(exited: &WorkerExited, code: Option<i32>, signal: Option<i32>, tail: &[&str]) {
        assert_eq!((exited.code, exited.signal), (code, signal), "{exited:?}");
        assert_eq!(exited.stderr_tail, tail);
    }

    #[tokio::test]
    async fn reports_the_code_and_the_last_lines() {
        let Running { child, logs, mut batches, _spawner } =
            run("echo out; echo one >&2; printf two >&2; exit 7").await;
        let exited = supervise(child, logs, mpsc::channel(1).1).await;
        check(&exited, Some(7), None, &["one", "two"]);
        let mut lines = Vec::new();
        while let Some(batch) = batches.recv().await {
            lines.extend(batch.lines);
        }
        lines.sort();
        assert_eq!(lines, ["one", "out", "two"]);
    }

    #[tokio::test]
    async fn reports_a_signal() {
        let Running { child, logs, _spawner, .. } = run("kill -SEGV $$").await;
        check(&supervise(child, logs, mpsc::channel(1).1).await, None, Some(Signal::SIGSEGV as i32), &[]);
    }

    #[tokio::test]
    async fn asks_first_and_kills_after_the_grace() {
        let Running { child, logs, mut batches, _spawner } =
            run("trap 'echo asked >&2' TERM; echo armed; while :; do sleep 1 & wait; done").await;
        let (stop, stops) = mpsc::channel(1);
        let end = tokio::spawn(supervise(child, logs, stops));
        assert_eq!(batches.recv().await.unwrap().lines, ["armed"]);
        stop.send(Stop { grace: Duration::from_secs(2) }).await.unwrap();
        check(&end.await.unwrap(), None, Some(Signal::SIGKILL as i32), &["asked"]);
    }

    #[tokio::test]
    async fn a_worker_that_obeys_is_not_killed() {
        let Running { child, logs, mut batches, _spawner } =
            run("trap 'exit 85' TERM; echo armed; while :; do sleep 1 & wait; done").await;
        let (stop, stops) = mpsc::channel(1);
        let end = tokio::spawn(supervise(child, logs, stops));
        assert_eq!(batches.recv().await.unwrap().lines, ["armed"]);
        stop.send(Stop { grace: Duration::from_secs(60) }).await.unwrap();
        check(&end.await.unwrap(), Some(85), None, &[]);
    }

    #[tokio::test]
    async fn nobody_listening_never_blocks_a_worker() {
        let Running { child, mut logs, mut batches, _spawner } =
            run("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 3").await;
        let (full, mut first) = mpsc::channel(1);
        logs.batches = full;
        check(&supervise(child, logs, mpsc::channel(1).1).await, Some(3), None, &[]);
        assert_eq!(first.recv().await.unwrap().lines[0], "line 0");
        assert!(batches.recv().await.is_none());
    }
}
