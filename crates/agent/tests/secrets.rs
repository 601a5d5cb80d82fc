//! What a worker proves itself by, and what an agent makes of whoever holds its coordinator's port.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Ear, Fixture, PATIENCE, SECRET, Server, is_alive};
use identity::{Credentials, Guard, Role, Spawn, Trust};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

/// What a worker finds: its input, its command line, and its environment.
#[tokio::test]
async fn a_worker_reads_its_secret_and_nobody_else_can() {
    let mut fixture = Fixture::new(false).await;
    let script =
        "cat; echo; tr '\\0' ' ' </proc/$$/cmdline; echo; tr '\\0' '\\n' </proc/$$/environ; echo end";
    let program = fixture.script(script);
    let log = Log::default();
    // The agent's own thread, and its log.
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer({
        let log = log.clone();
        move || log.clone()
    });
    let _logging = tracing::subscriber::set_default(subscriber.finish());
    let agent = fixture.agent(&program, 1);
    let mut stream = fixture.stream().await;
    stream.start(1, 1).await;
    stream.started().await;
    let (exited, lines) = stream.exited().await;
    assert_eq!(exited.code, Some(0), "{lines:#?}");

    let spawn: Spawn = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(spawn.secret, SECRET);
    assert_eq!(spawn.trust, Trust::Key(fixture.credentials.access(Role::Agent).fingerprint));
    let seen = lines[1..].join("\n");
    assert!(seen.contains("--nonce 1-0") && seen.contains("PATH=") && seen.ends_with("end"), "{seen}");
    let token = fixture.credentials.access(Role::Agent).token.to_hex();
    fixture.shutdown.cancel();
    agent.await.unwrap().unwrap();
    let logged = log.text();
    assert!(logged.contains("worker started") && logged.contains("session opened"), "{logged}");
    for secret in [SECRET.to_hex(), token, "167, 167, 167".to_owned(), "\\xa7\\xa7".to_owned()] {
        assert!(!seen.contains(&secret), "{secret} in {seen}");
        assert!(!logged.contains(&secret), "{secret} in {logged}");
    }
}

/// All that is traced on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What holds a coordinator's port: another coordinator, or something that gives each the same answer.
struct Stranger {
    asked: mpsc::UnboundedReceiver<()>,
    _server: Server,
}

impl Stranger {
    fn start(listener: std::net::TcpListener, answer: Option<&'static [u8]>) -> Stranger {
        let (sender, asked) = mpsc::unbounded_channel();
        let server = Server::serve(listener, move |listener| async move {
            let Some(answer) = answer else {
                let other = Credentials::ephemeral().unwrap();
                let guard = Guard::new(&other, None, Arc::new(|_: &str| SECRET)).unwrap();
                let rejected = move |_| {
                    sender.send(()).ok();
                };
                let mut incoming = identity::incoming(listener, guard, rejected, CancellationToken::new());
                while incoming.next().await.is_some() {}
                return;
            };
            while let Ok((mut tcp, _)) = listener.accept().await {
                // What is sent before all was read may not arrive.
                let Ok(1..) = tcp.read(&mut [0; 4096]).await else { continue };
                tcp.write_all(answer).await.ok();
                tcp.shutdown().await.ok();
                sender.send(()).ok();
            }
        });
        Stranger { asked, _server: server }
    }
}

/// A fatal alert of TLS, as any server sends one that does not want a connection.
const ALERT: &[u8] = &[0x15, 3, 3, 0, 2, 2, 40];

#[tokio::test]
async fn workers_live_on_while_a_stranger_holds_the_port() {
    for answer in [Some(ALERT), Some(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]), None] {
        let mut fixture = Fixture::new(false).await;
        let go = fixture.dir.path().join("go");
        let program =
            fixture.script(&format!("echo up; while [ ! -e {} ]; do sleep 0.05; done; exit 9", go.display()));
        let agent = fixture.agent(&program, 1);
        let mut stream = fixture.stream().await;
        stream.start(1, 1).await;
        let (_, pid) = stream.started().await;
        let port = fixture.address;
        fixture.server = None;
        drop(stream);
        let mut stranger = Stranger::start(fixture.listen_again().await, answer);
        for _ in 0..2 {
            tokio::time::timeout(PATIENCE, stranger.asked.recv())
                .await
                .expect("the agent tries again")
                .unwrap();
        }
        assert!(!agent.is_finished() && is_alive(pid), "{answer:?}");
        drop(stranger);
        let listener = fixture.listen_again().await;
        assert_eq!(listener.local_addr().unwrap(), port);
        let ear = Ear { streams: fixture.sessions.clone(), refuse: false };
        fixture.server = Some(Server::start(listener, &fixture.credentials, ear));
        let mut stream = fixture.stream().await;
        assert_eq!(stream.started().await, (0, pid));
        std::fs::write(go, "").unwrap();
        assert_eq!(stream.exited().await.0.code, Some(9));
        fixture.shutdown.cancel();
        agent.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_agent_that_never_knew_its_coordinator_ends_at_a_strangers() {
    for answer in [None, Some(ALERT), Some(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..])] {
        let mut fixture = Fixture::new(false).await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        fixture.address = listener.local_addr().unwrap();
        let _stranger = Stranger::start(listener, answer);
        let agent = fixture.agent(Path::new("/bin/true"), 1);
        let error = tokio::time::timeout(PATIENCE, agent).await.unwrap().unwrap().unwrap_err();
        let agent::Error::Identity(error) = error else { panic!("{error:?}") };
        assert!(!error.is_refusal() && error.exit_code() == 2, "{error:?}");
    }
}
