//! The agent against a coordinator that is only its ear and mouth: what it is told, what it reports.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Fixture, fence, is_alive, worker};
use proto::v1::{AgentUp, agent_up};
use std::path::Path;

#[tokio::test]
async fn workers_are_started_as_told_and_their_ends_reported() {
    let mut fixture = Fixture::new(false).await;
    let program = fixture.script("echo \"$@\"; echo 'disk on fire' >&2; exit 3");
    let agent = fixture.agent(&program, 2);
    let mut stream = fixture.stream().await;
    stream.start(7, 2).await;
    assert_eq!(stream.started().await.0, 0);
    let mut lines = Vec::new();
    for _ in 0..2 {
        // The second start may come after the first end.
        loop {
            match stream.report().await {
                agent_up::Message::Started(started) => assert_eq!(started.worker.unwrap().slot, 1),
                agent_up::Message::Logs(batch) => lines.extend(batch.lines),
                agent_up::Message::Exited(exited) => {
                    assert_eq!((exited.code, exited.signal, exited.fence), (Some(3), None, Some(fence(7))));
                    assert_eq!(exited.stderr_tail, ["disk on fire"]);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let arguments = |slot: u32, core: u32| {
        format!(
            "worker --coordinator {} --run r --incarnation 1 --generation 7 --agent-id a --slot {slot} --nonce 7-{slot} --threads 1 --cores {core} --share 2",
            fixture.address
        )
    };
    for expected in [arguments(0, 4), arguments(1, 5)] {
        assert!(lines.contains(&expected), "{expected} in {lines:#?}");
    }
    fixture.shutdown.cancel();
    assert_eq!(agent.await.unwrap().unwrap(), agent::Left::Nothing);
}

#[tokio::test]
async fn an_older_fence_starts_and_stops_nothing() {
    let mut fixture = Fixture::new(false).await;
    let program = fixture.script("echo up; while :; do sleep 1; done");
    let agent = fixture.agent(&program, 1);
    let mut stream = fixture.stream().await;
    stream.start(5, 1).await;
    let (_, pid) = stream.started().await;
    assert_eq!(stream.log_line().await, "up");
    stream.stop(4, 0).await;
    stream.start(4, 1).await;
    stream.stop(5, 60_000).await;
    // Had the older orders been obeyed, the end would be a SIGKILL, or a second worker's.
    let (exited, _) = stream.exited().await;
    assert_eq!((exited.signal, exited.worker), (Some(15), Some(worker(5, 0))));
    assert!(!is_alive(pid));
    fixture.shutdown.cancel();
    agent.await.unwrap().unwrap();
    while let Some(AgentUp { message }) = stream.up.message().await.unwrap() {
        assert!(matches!(message, Some(agent_up::Message::Heartbeat(_))), "{message:?}");
    }
}

#[tokio::test]
async fn a_lost_coordinator_ends_no_worker_and_hears_of_them_when_it_is_back() {
    let mut fixture = Fixture::new(false).await;
    let go = fixture.dir.path().join("go");
    let program =
        fixture.script(&format!("echo up; while [ ! -e {} ]; do sleep 0.05; done; exit 9", go.display()));
    let agent = fixture.agent(&program, 1);
    let mut stream = fixture.stream().await;
    stream.start(1, 1).await;
    let (_, pid) = stream.started().await;
    drop(stream);
    let mut stream = fixture.stream().await;
    assert_eq!(stream.started().await, (0, pid));
    assert!(is_alive(pid));
    std::fs::write(go, "").unwrap();
    assert_eq!(stream.exited().await.0.code, Some(9));
    fixture.shutdown.cancel();
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_agent_that_leaves_ends_its_workers_first() {
    let mut fixture = Fixture::new(false).await;
    let program =
        fixture.script("trap 'echo drained >&2; exit 85' TERM; echo up; while :; do sleep 1 & wait; done");
    let agent = fixture.agent(&program, 1);
    let mut stream = fixture.stream().await;
    stream.start(1, 1).await;
    let (_, pid) = stream.started().await;
    assert_eq!(stream.log_line().await, "up");
    fixture.shutdown.cancel();
    let (exited, _) = stream.exited().await;
    assert_eq!((exited.code, exited.stderr_tail), (Some(85), vec!["drained".to_owned()]));
    drop(stream);
    assert_eq!(agent.await.unwrap().unwrap(), agent::Left::Workers);
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_program_that_does_not_start_is_reported_as_an_end() {
    let mut fixture = Fixture::new(false).await;
    let agent = fixture.agent(Path::new("/nonexistent/himpun"), 1);
    let mut stream = fixture.stream().await;
    stream.start(1, 1).await;
    let (exited, _) = stream.exited().await;
    assert_eq!(exited.code, Some(127));
    assert!(exited.stderr_tail[0].contains("/nonexistent/himpun"), "{exited:?}");
    fixture.shutdown.cancel();
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_ends_the_agent() {
    let fixture = Fixture::new(true).await;
    let error = fixture.agent(Path::new("/bin/true"), 1).await.unwrap().unwrap_err();
    assert!(error.to_string().ends_with("protocol 1 is spoken here, not 9"), "{error}");
}
