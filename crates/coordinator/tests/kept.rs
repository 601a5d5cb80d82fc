//! A coordinator whose identity outlives it: its audit, what its files tell, certificates, and a port without encryption.
//!
//! Such a coordinator enters itself in its user's home. The tests therefore run in a process of their own that has another one.

#![expect(
    clippy::unwrap_used,
    reason = "all of it is tests, and `allow-unwrap-in-tests` knows only functions that are marked so"
)]

#[allow(dead_code, reason = "the tests of the service use the rest")]
#[path = "service/raw.rs"]
mod raw;
#[allow(dead_code, reason = "the tests of the service use the rest")]
#[path = "service/support.rs"]
mod support;

use coordinator::Identity;
use identity::authority::{Authority, Holder};
use identity::{Access, Channel, Encryption, Role};
use proto::Refusal;
use proto::v1::control_service_client::ControlServiceClient;
use proto::v1::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{
    Bench, FakeAgent, answer, assert_refused, collect, hello, hex, private_directory, save, submission,
    tensors,
};
use tokio::io::AsyncWriteExt as _;
use tonic::Code;

const HOME: &str = "HIMPUN_CONFIG_DIR";

/// Runs the tests below.
#[test]
fn in_a_home_of_their_own() {
    let home = private_directory();
    let tests = std::env::current_exe().unwrap();
    let ran = Command::new(tests).arg("--ignored").env(HOME, home.path()).output().unwrap();
    let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(ran.status.success() && said.contains("3 passed"), "{said}");
}

async fn start(encryption: Encryption, certificates: Option<PathBuf>) -> Bench {
    assert!(
        std::env::var_os(HOME).is_some(),
        "these tests write into a home: they are run by the first test"
    );
    Bench::with(Identity::Kept { encryption, certificates }, Vec::new()).await
}

#[ignore = "run by `in_a_home_of_their_own`"]
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_names_every_call_and_no_file_a_secret() {
    let bench = start(Encryption::Tls, None).await;
    let (agent, mut workers) = bench.running(2).await;
    agent.logs(&workers[0], &["a line"]).await;
    workers[0].metrics(1, 2.5).await;
    let taken = save(&workers, 5, &tensors(100)).await.unwrap();
    assert_refused(&workers[1].begin(6, 2).await.unwrap_err(), Code::PermissionDenied, "not_rank_0", "");
    let mut viewer = ControlServiceClient::new(bench.role(Role::Viewer).await);
    answer(viewer.list_checkpoints(ListCheckpointsRequest { run_id: "run".to_owned() }).await).unwrap();
    answer(viewer.stop(StopRequest::default()).await).unwrap_err();
    let stranger = raw::encrypted(&bench.address()).await;
    for shown in [None, Some("Bearer 00"), Some("Worker run/1/1/node/0 00112233445566778899aabbccddeeff")] {
        let watch = ("/himpun.v1.ControlService/Watch", true);
        raw::call(&stranger, shown, watch, vec![Vec::new()]).await.unwrap_err();
        raw::call(&stranger, shown, ("/nothing/here", false), vec![Vec::new()]).await.unwrap_err();
    }
    let mut garbage = tokio::net::TcpStream::connect(bench.running.address()).await.unwrap();
    garbage.write_all(&[0xa5; 100]).await.unwrap();
    let watch = WatchRequest { run_id: "run".to_owned(), since_seq: 0 };
    let events = answer(bench.control().watch(watch).await).unwrap();
    workers[0].say(worker_up::Message::Finished(Finished { step: 9, stopped_early: false })).await;
    for worker in &mut workers {
        agent.exited(worker, Some(0), None).await;
    }
    let done = bench.until("run", RunState::Finished).await;
    let events = collect(events).await;

    let audit = until_audited(&bench, "connection").await;
    let nonce = &workers[0].worker.nonce;
    let [sessions, list, watch] =
        ["WorkerService/Session", "ControlService/ListCheckpoints", "ControlService/Watch"];
    for (who, role, what, outcome, n) in [
        ("admin", "admin", "ControlService/SubmitRun", "ok", 1),
        ("agent", "agent", "AgentService/Session", "ok", 1),
        (nonce, "worker", sessions, "ok", 1),
        (nonce, "worker", "CheckpointService/Commit", "ok", 1),
        (&workers[1].worker.nonce, "worker", "CheckpointService/Begin", "PermissionDenied: ", 1),
        ("viewer", "viewer", list, "ok", 1),
        ("viewer", "viewer", "ControlService/Stop", "PermissionDenied: ", 1),
        ("nobody", "nobody", watch, "Unauthenticated: ", 3),
        ("nobody", "nobody", "/nothing/here", "Unauthenticated: ", 3),
        ("nobody", "nobody", "connection", "it speaks neither TLS nor HTTP/2", 1),
        ("admin", "admin", watch, "ok", 1),
    ] {
        let is = |line: &&Value, field: &str, text: &str| line[field].as_str().unwrap() == text;
        let found = audit.iter().filter(|line| {
            is(line, "who", who)
                && is(line, "role", role)
                && line["what"].as_str().unwrap().ends_with(what)
                && line["outcome"].as_str().unwrap().starts_with(outcome)
        });
        assert_eq!(found.count(), n, "{who} ({role}) {what} {outcome} in {audit:#?}");
    }
    for line in &audit {
        let from = line["from"].as_str().unwrap();
        assert!(from.starts_with("127.0.0.1:") && line["time_ns"].as_u64().unwrap() > 0, "{line}");
        assert_eq!(line.as_object().unwrap().len(), 6, "{line}");
    }

    let mut secrets: Vec<Vec<u8>> = Role::ALL.map(|role| token(&bench, role)).to_vec();
    secrets.push(agent.secret.clone());
    secrets.extend(workers.iter().flat_map(|worker| [worker.secret.clone(), worker.group_key.clone()]));
    assert!(secrets.iter().all(|secret| secret.len() >= 16));
    let info = answer(bench.control().get_server_info(GetServerInfoRequest {}).await).unwrap();
    let manifest = std::fs::read_to_string(Path::new(&taken.path).join("manifest.json")).unwrap();
    let mut told =
        vec![("answers".into(), format!("{info:?}{done:?}{events:?}{taken:?}{manifest}").into_bytes())];
    add_files(bench.dir.path(), &mut told);
    assert!(told.len() > 8, "{:?}", told.iter().map(|(path, _)| path).collect::<Vec<_>>());
    for (path, bytes) in told {
        for secret in &secrets {
            let small = hex(secret);
            for shape in [secret.as_slice(), small.as_bytes(), small.to_uppercase().as_bytes()] {
                let found = bytes.windows(shape.len()).any(|window| window == shape);
                assert!(!found, "{} tells a secret", path.display());
            }
        }
    }
}

fn token(bench: &Bench, role: Role) -> Vec<u8> {
    match bench.running.access(role) {
        Access::Token(file) => file.token.0.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// The audit, once it has a line of `what`: a rejected connection is noted by itself.
async fn until_audited(bench: &Bench, what: &str) -> Vec<Value> {
    let read = async {
        loop {
            let text = std::fs::read_to_string(bench.dir.path().join("audit.jsonl")).unwrap();
            let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            if lines.iter().any(|line| line["what"] == what) {
                return lines;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(support::DEADLINE, read).await.expect("a line of the audit")
}

/// Every file but the credentials themselves.
fn add_files(directory: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("credentials") {
            continue;
        }
        match path.is_dir() {
            true => add_files(&path, found),
            false => found.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
}

#[ignore = "run by `in_a_home_of_their_own`"]
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_one_agent_is_for_its_id_alone() {
    let directory = private_directory();
    let authority = Authority::open_or_make(directory.path()).unwrap();
    let issue = |holder: &Holder| {
        authority.issue(holder).unwrap();
        directory.path().join(holder.name())
    };
    let certificates = issue(&Holder::Coordinator(vec!["127.0.0.1".to_owned()]));
    let of_node = issue(&Holder::Agent(Some("node".to_owned())));
    let of_any = issue(&Holder::Agent(None));
    let of_operator = issue(&Holder::Operator);
    let of_viewer = issue(&Holder::Viewer);
    let bench = start(Encryption::Tls, Some(certificates)).await;

    let node = by(&bench, of_node).await;
    let refusal = refused_agent(node.clone(), "another").await;
    assert_refused(
        &refusal,
        Code::PermissionDenied,
        "not_yours",
        "agent node does not speak for agent another",
    );
    let agent = FakeAgent::connect(node.clone(), hello("node", 1)).await.unwrap();
    let any = by(&bench, of_any).await;
    let refusal = refused_agent(any.clone(), "node").await;
    assert_refused(&refusal, Code::AlreadyExists, "agent_connected", "node");
    drop(FakeAgent::connect(any, hello("another", 1)).await.unwrap());
    for (folder, is_admitted) in [(of_operator, true), (of_viewer, false)] {
        let mut control = ControlServiceClient::new(by(&bench, folder).await);
        let submitted = answer(control.submit_run(submission("run", 9)).await).unwrap_err();
        let reason = if is_admitted { "bad_workers" } else { "wrong_role" };
        assert_eq!(submitted.reason, reason, "{submitted:?}");
    }

    // On the connection that stands, too.
    authority.revoke("agent-node").unwrap();
    drop(agent);
    let refusal = refused_agent(node, "node").await;
    assert_refused(&refusal, Code::Unauthenticated, "unauthenticated", "revoked");
}

async fn by(bench: &Bench, folder: PathBuf) -> Channel {
    Access::Certificates(folder).connect(&bench.address()).await.unwrap().channel
}

async fn refused_agent(channel: Channel, id: &str) -> Refusal {
    match FakeAgent::connect(channel, hello(id, 1)).await {
        Ok(_) => panic!("{id} is admitted"),
        Err(refusal) => refusal,
    }
}

#[ignore = "run by `in_a_home_of_their_own`"]
#[tokio::test(flavor = "multi_thread")]
async fn without_encryption_a_connection_is_proven_all_the_same() {
    let bench = start(Encryption::None, None).await;
    raw::check_clear_text(&bench.address(), "after a proof of its token", &["Health/Check"]).await;
    let mut viewer = ControlServiceClient::new(bench.role(Role::Viewer).await);
    answer(viewer.list_runs(ListRunsRequest {}).await).unwrap();
    let refusal = answer(viewer.submit_run(submission("run", 1)).await).unwrap_err();
    assert_refused(&refusal, Code::PermissionDenied, "wrong_role", "role `viewer`");
    // The token of another coordinator proves nothing, and its holder hears that this is not the one.
    let other = start(Encryption::None, None).await;
    let error = other.running.access(Role::Admin).connect(&bench.address()).await.unwrap_err();
    assert!(matches!(error, identity::Error::Impostor { .. }), "{error}");
    // Nor does a role that is claimed in a header.
    let shown = format!("Bearer {}", hex(&token(&bench, Role::Admin)));
    let clear = raw::clear(&bench.address()).await;
    let info = ("/himpun.v1.ControlService/GetServerInfo", false);
    let refusal = raw::call(&clear, Some(&shown), info, vec![Vec::new()]).await.unwrap_err();
    assert_refused(&refusal, Code::FailedPrecondition, "protocol_mismatch", "");
}
