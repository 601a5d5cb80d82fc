//! Every method of every service, called by everybody: what a role is refused changes nothing.

use crate::raw::{call, methods, path};
use crate::scene::{CALLERS, Scene};
use crate::support::{Bench, answer};
use prost_reflect::MethodDescriptor;
use proto::Refusal;
use proto::v1::{GetServerInfoRequest, GetStatusRequest, ListRunsRequest};
use std::collections::BTreeMap;
use std::path::Path;
use tonic::Code;

/// Which of [`CALLERS`] may call what (`x`). Written down here a second time: the coordinator's own table is what is tested.
#[rustfmt::skip]
const RULES: &[(&str, &str)] = &[
    // nobody, foreign, viewer, operator, agent, admin, rank 0, rank 1, other run, former as rank 0, former as itself
    ("ControlService/GetServerInfo",                "--xx-x-----"),
    ("ControlService/ListRuns",                     "--xx-x-----"),
    ("ControlService/GetStatus",                    "--xx-x-----"),
    ("ControlService/Watch",                        "--xx-x-----"),
    ("ControlService/TailLogs",                     "--xx-x-----"),
    ("ControlService/ListCheckpoints",              "--xx-x-----"),
    ("ControlService/VerifyCheckpoint",             "--xx-x-----"),
    ("ControlService/SubmitRun",                    "---x-x-----"),
    ("ControlService/Pause",                        "---x-x-----"),
    ("ControlService/Resume",                       "---x-x-----"),
    ("ControlService/Stop",                         "---x-x-----"),
    ("ControlService/CheckpointNow",                "---x-x-----"),
    ("AgentService/Session",                        "----xx-----"),
    ("WorkerService/Attach",                        "------x----"),
    ("WorkerService/Session",                       "------x----"),
    ("CheckpointService/Begin",                     "------x----"),
    ("CheckpointService/PutShard",                  "------x----"),
    ("CheckpointService/Commit",                    "------x----"),
    ("CheckpointService/Abort",                     "------x----"),
    ("CheckpointService/Get",                       "---x-xxx---"),
    ("CheckpointService/GetShard",                  "---x-xxx---"),
    ("Health/Check",                                "xxxxxxxxxxx"),
    ("Health/Watch",                                "--xxxxxxxxx"),
    ("v1alpha.ServerReflection/ServerReflectionInfo", "--xxxxxxxxx"),
    ("ServerReflection/ServerReflectionInfo",       "--xxxxxxxxx"),
];

#[tokio::test(flavor = "multi_thread")]
async fn everybody_reaches_what_is_theirs_and_changes_nothing_else() {
    let scene = Scene::start().await;
    let methods = methods();
    let named: Vec<&str> = RULES.iter().map(|(name, _)| *name).collect();
    for (name, _) in &methods {
        assert!(named.contains(&name.as_str()), "{name} has no line in the table of this test");
    }
    assert_eq!(methods.len(), named.len());
    let before = digest(&scene.bench).await;
    let rules = |admitted: char| {
        let methods = &methods;
        RULES.iter().flat_map(move |(name, rule)| {
            let (_, method) = methods.iter().find(|(found, _)| found == name).expect("a line of a method");
            let callers =
                (0..CALLERS.len()).filter(move |caller| rule.as_bytes()[*caller] as char == admitted);
            callers.map(move |caller| (*name, method, caller))
        })
    };
    for (name, method, caller) in rules('-') {
        let as_itself = caller == CALLERS.len() - 1;
        let speaker = if as_itself { &scene.former } else { &scene.workers[0] };
        let outcome = ask(&scene, method, caller, scene.messages_of(name, speaker)).await;
        let Err(refusal) = outcome else { panic!("{name} is open to {}", CALLERS[caller]) };
        assert!(is_refusal(&refusal, caller), "{name} by {}: {refusal:?}", CALLERS[caller]);
    }
    assert_eq!(digest(&scene.bench).await, before);

    for (name, method, caller) in rules('x') {
        // What would change something is called with nothing in it.
        let is_read = |rule: &str| rule.starts_with("--xx-") || rule.ends_with("xxx---");
        let is_read =
            name.starts_with("Agent") || RULES.iter().any(|(of, rule)| of == &name && is_read(rule));
        let messages = if is_read { scene.messages(name) } else { vec![Vec::new()] };
        match ask(&scene, method, caller, messages).await {
            Ok(_) => {}
            Err(refusal) => {
                assert!(
                    !is_read && !is_refusal(&refusal, caller),
                    "{name} by {}: {refusal:?}",
                    CALLERS[caller]
                )
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_says_nothing_of_another_agents_workers() {
    use crate::support::{FakeAgent, hello};
    use identity::Role;
    use proto::v1::{LogBatch, WorkerExited, WorkerStarted, agent_up};
    let scene = Scene::start().await;
    let before = digest(&scene.bench).await;
    let victim = &scene.workers[0];
    let (fence, worker) = (Some(victim.fence.clone()), Some(victim.worker.clone()));
    let exited =
        WorkerExited { fence, worker, code: Some(1), signal: None, stderr_tail: vec!["lies".to_owned()] };
    let WorkerExited { fence, worker, .. } = exited.clone();
    let started = WorkerStarted { fence, worker, pid: 666 };
    let WorkerExited { fence, worker, .. } = exited.clone();
    let logs = LogBatch { fence, worker, lines: vec!["lies".to_owned()] };
    let lies = [
        agent_up::Message::Exited(exited),
        agent_up::Message::Started(started),
        agent_up::Message::Logs(logs),
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let is_dropped = matches!(lie, agent_up::Message::Logs(_));
        let channel = scene.bench.role(Role::Agent).await;
        let mut agent = FakeAgent::connect(channel, hello(&format!("liar-{number}"), 1)).await.unwrap();
        agent.next().await;
        agent.say(lie).await;
        // Lines alone are dropped without a word.
        if is_dropped {
            agent.up = tokio::sync::mpsc::channel(1).0;
        }
        // The session of a liar ends.
        while let Ok(Some(_)) = agent.try_next().await {}
        assert_eq!(digest(&scene.bench).await, before);
    }
}

async fn ask(
    scene: &Scene,
    method: &MethodDescriptor,
    caller: usize,
    messages: Vec<Vec<u8>>,
) -> Result<Option<Vec<u8>>, Refusal> {
    let (path, is_stream) = path(method);
    call(&scene.channel, scene.authorization(caller).as_deref(), (&path, is_stream), messages).await
}

fn is_refusal(refusal: &Refusal, caller: usize) -> bool {
    match (refusal.code, refusal.reason.as_str()) {
        (Code::Unauthenticated, _) => caller < 2,
        (Code::PermissionDenied, _) => caller >= 2,
        // A worker that is what it says, and not of the run that it speaks of.
        (Code::FailedPrecondition, "not_a_member" | "stale_fence") => caller > 7,
        _ => false,
    }
}

/// All that the coordinator holds, in memory and on the disk, but what changes by itself: the progress that heartbeats report,
/// the audit, and the pages of the database.
async fn digest(bench: &Bench) -> BTreeMap<String, String> {
    let mut control = bench.control();
    let info = answer(control.get_server_info(GetServerInfoRequest {}).await).unwrap();
    let mut found = BTreeMap::from([("server".to_owned(), format!("{info:?}"))]);
    for run in answer(control.list_runs(ListRunsRequest {}).await).unwrap().runs {
        let request = GetStatusRequest { run_id: run.run_id };
        let mut status = answer(control.get_status(request).await).unwrap();
        status.members.iter_mut().for_each(|member| member.progress = None);
        found.insert(format!("run {}", status.run_id), format!("{status:?}"));
    }
    add_files(bench.dir.path(), &mut found);
    found
}

fn add_files(directory: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        if path.is_dir() {
            found.insert(name, "directory".to_owned());
            add_files(&path, found);
        } else if !name.ends_with("audit.jsonl") && !name.ends_with(".redb") {
            found.insert(name, blake3::hash(&std::fs::read(&path).unwrap()).to_string());
        }
    }
}
