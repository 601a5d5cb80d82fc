//! Bad peers, bad requests, and what a stranger finds on the port.

use crate::support::{Bench, FakeAgent, FakeWorker, assert_refused, hello, submission};
use coordinator::{Coordinator, Error, Identity, Options};
use identity::Role;
use proto::v1::*;
use proto::{PROTOCOL, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::StreamExt;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_is_refused_by_naming_both() {
    let bench = Bench::start().await;
    let theirs = PROTOCOL + 41;
    let both = format!("protocol {theirs}, this coordinator protocol {PROTOCOL}");
    let request = SubmitRunRequest { protocol: theirs, ..submission("run", 1) };
    let refusal = bench.submit(request).await.unwrap_err();
    assert_refused(&refusal, Code::FailedPrecondition, "protocol_mismatch", &both);
    let hello = AgentHello { protocol: theirs, ..hello("a", 1) };
    let refusal = refused_agent(&bench, hello).await;
    assert_refused(&refusal, Code::FailedPrecondition, "protocol_mismatch", &both);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impossible_run_is_refused_and_leaves_nothing() {
    let bench = Bench::start().await;
    let check = async |request: SubmitRunRequest, reason: &str, words: &str| {
        let refusal = bench.submit(request).await.unwrap_err();
        assert_refused(&refusal, Code::InvalidArgument, reason, words);
        assert!(!refusal.hint.is_empty(), "{refusal:?}");
        assert!(!bench.dir.path().join("runs").exists());
    };
    let config = |text: &str| SubmitRunRequest { config_toml: text.to_owned(), ..submission("run", 1) };
    check(config("[optimizer]\nlrr = 1\n"), "bad_config", "lrr").await;
    check(submission("run", 9), "bad_workers", "train.global_batch = 8").await;
    check(SubmitRunRequest { device: "cuda".to_owned(), ..submission("run", 1) }, "bad_device", "cuda").await;
    check(submission("../up", 1), "bad_run_id", "../up").await;
    let run_dir = "/dev/null/run".to_owned();
    check(SubmitRunRequest { run_dir, ..submission("run", 1) }, "bad_run_dir", "/dev/null/run").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_a_run_is_not_taken() {
    let bench = Bench::start().await;
    bench.submit(submission("run", 1)).await.unwrap();
    let again = bench.submit(submission("run", 1)).await.unwrap_err();
    assert_refused(&again, Code::FailedPrecondition, "run_active", "runs/run");
    bench.control().stop(StopRequest { run_id: "run".to_owned(), ..Default::default() }).await.unwrap();
    let run_dir = bench.run_dir("run").display().to_string();
    let same_dir = bench.submit(SubmitRunRequest { run_dir, ..submission("other", 1) }).await.unwrap_err();
    assert_refused(&same_dir, Code::AlreadyExists, "run_dir_occupied", "runs/run");
    let same_id = bench.submit(submission("run", 1)).await.unwrap_err();
    assert_refused(&same_id, Code::AlreadyExists, "run_exists", "run");
    let nowhere = bench.dir.path().join("nowhere").display().to_string();
    let resume = SubmitRunRequest { resume: true, run_dir: nowhere, ..submission("", 1) };
    assert_refused(&bench.submit(resume).await.unwrap_err(), Code::NotFound, "no_run", "nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_active_runs_directory_takes_nothing_from_it() {
    let bench = Bench::start().await;
    let (_agent, mut workers) = bench.running(1).await;
    let copy = bench.dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for name in ["config.toml", "events.jsonl"] {
        std::fs::copy(bench.run_dir("run").join(name), copy.join(name)).unwrap();
    }
    let resume = SubmitRunRequest { resume: true, run_dir: copy.display().to_string(), ..submission("", 1) };
    let refusal = bench.submit(resume).await.unwrap_err();
    assert_refused(&refusal, Code::AlreadyExists, "run_exists", "run");
    // The run still writes to its own directory and hears its orders.
    workers[0].metrics(1, 2.5).await;
    bench.control().pause(CommandRequest { run_id: "run".to_owned(), ..Default::default() }).await.unwrap();
    assert_eq!(workers[0].order().await, order::Kind::Pause);
    workers[0].say(worker_up::Message::Paused(Paused { paused: true, step: 1 })).await;
    bench.until("run", RunState::Paused).await;
    assert!(std::fs::read_to_string(bench.run_dir("run").join("metrics.jsonl")).unwrap().contains("2.5"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_workers_are_told_so() {
    let bench = Bench::start().await;
    let (agent, mut workers) = bench.running(1).await;
    let stale = Fence { generation: 0, ..workers[0].fence.clone() };
    let channel = workers[0].channel.clone();
    let refusal = FakeWorker::connect(channel, stale.clone(), workers[0].worker.clone()).await.unwrap_err();
    assert_refused(&refusal, Code::FailedPrecondition, "stale_fence", "generation 0");
    assert_eq!(refusal.current_generation, 1);

    // In the middle of a session as well: the message is refused and the stream ends.
    let finished = worker_up::Message::Finished(Finished { step: 1, stopped_early: false });
    let up = WorkerUp {
        fence: Some(stale.clone()),
        worker: Some(workers[0].worker.clone()),
        message: Some(finished),
    };
    workers[0].up.send(up).await.unwrap();
    assert_refused(
        &workers[0].next().await.unwrap_err(),
        Code::FailedPrecondition,
        "stale_fence",
        "generation 0",
    );

    // An agent that comes back with a worker of another membership is told to stop it.
    let mut agent = agent;
    let worker = Some(workers[0].worker.clone());
    agent.say(agent_up::Message::Started(WorkerStarted { fence: Some(stale.clone()), worker, pid: 1 })).await;
    let stop = loop {
        match agent.next().await {
            agent_down::Message::Stop(stop) if stop.fence == Some(stale.clone()) => break stop,
            // The run itself may end meanwhile: its only worker's session is over.
            _ => {}
        }
    };
    assert_eq!(stop.grace_ms, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_cannot_share_an_id() {
    let bench = Bench::start().await;
    let _first = bench.agent("node", 1).await;
    let refusal = refused_agent(&bench, hello("node", 1)).await;
    assert_refused(&refusal, Code::AlreadyExists, "agent_connected", "node");
    assert!(refusal.retryable, "the first may be gone without the coordinator knowing yet");
    let refusal = refused_agent(&bench, hello("../node", 1)).await;
    assert_refused(&refusal, Code::InvalidArgument, "bad_agent_id", "../node");
    for slots in [0, u32::MAX] {
        let refusal = refused_agent(&bench, hello("endless", slots)).await;
        assert_refused(&refusal, Code::InvalidArgument, "bad_slots", &format!("{slots} slots"));
    }
    for n in [0, 15, 17, 33, 4096] {
        let refusal = refused_agent(&bench, AgentHello { secret: vec![1; n], ..hello("b", 1) }).await;
        assert_refused(&refusal, Code::InvalidArgument, "", "secret of 16 bytes");
    }
}

async fn refused_agent(bench: &Bench, hello: AgentHello) -> Refusal {
    match FakeAgent::connect(bench.role(Role::Agent).await, hello.clone()).await {
        Ok(_) => panic!("admitted {hello:?}"),
        Err(refusal) => refusal,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_hurts_nobody() {
    let bench = Bench::start().await;
    let address = bench.running.address();
    for garbage in [
        vec![0xa5; 4096],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff".to_vec(),
    ] {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        // The server may close the connection before all of it is written.
        socket.write_all(&garbage).await.ok();
        socket.shutdown().await.ok();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.ok();
    }
    // An open connection that says nothing.
    let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let (_agent, _workers) = bench.running(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    let bench = Bench::start().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(bench.admin.clone());
    for service in ["", "himpun.v1.ControlService", "himpun.v1.CheckpointService"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::Serving, "{service}");
    }

    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    };
    let list = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = ServerReflectionClient::new(bench.admin.clone());
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let answer = answers.into_inner().next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["AgentService", "CheckpointService", "ControlService", "WorkerService"] {
        assert!(names.contains(&format!("himpun.v1.{name}")), "{name} in {names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_coordinator_does_not_start_with() {
    let bench = Bench::start().await;
    let start = async |bind: &str, dir: &std::path::Path| {
        let (bind, dir) = (bind.parse().unwrap(), dir.to_owned());
        let options = Options { bind, dir, identity: Identity::Ephemeral, allow_dirs: Vec::new() };
        match Coordinator::start(options).await {
            Ok(_) => panic!("started on {bind}"),
            Err(error) => error,
        }
    };
    let error = start("127.0.0.1:0", bench.dir.path()).await;
    assert!(matches!(error, Error::DirectoryInUse { .. }) && error.hint().is_some(), "{error}");
    let other = tempfile::tempdir().unwrap();
    let error = start(&bench.running.address().to_string(), other.path()).await;
    assert!(matches!(error, Error::Bind { .. }), "{error}");
}
