//! Processes that cannot outlive their agent.
//!
//! Linux can kill a child when its parent dies (`PR_SET_PDEATHSIG`), but by "parent" it means the
//! *thread* that forked. A runtime's threads come and go, so every worker is spawned from one thread that
//! lives as long as the [`Spawner`].

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};
use std::io;
use std::process::Stdio;
use std::sync::mpsc;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

/// Environment that workers inherit. None of Himpun's own: some name the secrets of whoever started the agent.
const INHERITED: [&str; 11] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "NO_COLOR",
];

struct Request {
    command: Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// The thread that workers are spawned from. Dropping it kills them all.
pub(crate) struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    /// Starts the thread. Must be called within a tokio runtime, which will watch the children.
    pub fn start() -> io::Result<Spawner> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let _entered = runtime.enter();
            for Request { mut command, reply } in inbox {
                // Whoever asked has gone: the child is dropped and, by `kill_on_drop`, killed.
                drop(reply.send(command.spawn()));
            }
        })?;
        Ok(Spawner { requests })
    }

    /// Runs `program arguments` as `himpun` in a process group of its own, with its outputs piped and `input` to read: only
    /// parent and child have that descriptor.
    pub async fn spawn(
        &self,
        program: &std::path::Path,
        arguments: &[String],
        input: &[u8],
    ) -> io::Result<Child> {
        let mut command = Command::new(program);
        command
            .arg0("himpun")
            .args(arguments)
            .env_clear()
            .envs(
                std::env::vars_os()
                    .filter(|(name, _)| name.to_str().is_some_and(|name| INHERITED.contains(&name))),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        die_with_parent(&mut command);
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the spawning thread has ended");
        self.requests.send(Request { command, reply }).map_err(|_| gone())?;
        let mut child = answer.await.map_err(|_| gone())??;
        let mut pipe = child.stdin.take().expect("the input is piped");
        // A pipe holds more than this at once; a child that has ended reads none of it, which its exit tells.
        if let Err(error) = pipe.write_all(input).await {
            tracing::debug!(%error, "a worker did not read its input");
        }
        Ok(child)
    }
}

#[expect(unsafe_code, reason = "code between fork and exec; the safe interface has none")]
fn die_with_parent(command: &mut Command) {
    let agent: Pid = getpid();
    let arm = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // An agent that died before the line above is not noticed by it.
        if getppid() == agent { Ok(()) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed; `arm` makes two system calls
    // and allocates nothing (both error values are plain codes).
    unsafe { command.pre_exec(arm) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::path::Path;
    use tokio::io::AsyncReadExt as _;

    fn shell(script: &str) -> [String; 2] {
        ["-c".into(), script.into()]
    }

    #[tokio::test]
    async fn children_die_with_the_thread_that_forked_them() {
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(Path::new("/bin/sh"), &shell("exec sleep 600"), b"").await.unwrap();
        assert!(child.try_wait().unwrap().is_none());
        drop(spawner);
        assert_eq!(child.wait().await.unwrap().signal(), Some(Signal::SIGKILL as i32));
    }

    #[tokio::test]
    async fn a_child_has_its_own_group_and_name_and_no_foreign_descriptors() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let spawner = Spawner::start().unwrap();
        let inode = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let script = "tr '\\0' ' ' < /proc/$$/cmdline; echo; cut -d' ' -f1,5 /proc/$$/stat; for fd in /proc/$$/fd/*; do readlink $fd || true; done";
        let mut child = spawner.spawn(Path::new("/bin/sh"), &shell(script), b"").await.unwrap();
        let pid = child.id().unwrap();
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
        assert!(child.wait().await.unwrap().success());
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].starts_with("himpun -c "), "{out}");
        assert_eq!(lines[1], format!("{pid} {pid}"));
        assert!(lines[2].starts_with("pipe:"), "{out}");
        // Nothing of this process: neither its listener nor the runtime's poller.
        assert!(!lines.contains(&inode.to_str().unwrap()), "{out}");
        assert!(!out.contains("eventpoll"), "{out}");
        drop(listener);
    }

    /// The environment belongs to a whole process, so that it is set for another one of this test.
    #[tokio::test]
    async fn a_child_has_the_environment_that_is_named_and_its_input() {
        if std::env::var_os("HIMPUN_TOKEN_FILE").is_none() {
            let name = "spawn::tests::a_child_has_the_environment_that_is_named_and_its_input";
            let again = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name])
                .env("HIMPUN_TOKEN_FILE", "/secret")
                .output()
                .unwrap();
            assert!(String::from_utf8_lossy(&again.stdout).contains("1 passed"), "{again:?}");
            return;
        }
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(Path::new("/bin/sh"), &shell("env; cat"), b"input\n").await.unwrap();
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
        let lines: Vec<&str> = out.lines().collect();
        let (input, variables) = lines.split_last().unwrap();
        assert_eq!(*input, "input");
        // The shell's own.
        let own = ["PWD", "OLDPWD", "SHLVL", "_"];
        for variable in variables {
            let (name, _) = variable.split_once('=').unwrap();
            assert!(INHERITED.contains(&name) || own.contains(&name), "{name}");
        }
        assert!(variables.iter().any(|variable| variable.starts_with("PATH=")), "{out}");
    }

    #[tokio::test]
    async fn a_missing_program_is_an_error() {
        let error = Spawner::start().unwrap().spawn(Path::new("/nonexistent"), &[], b"").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
