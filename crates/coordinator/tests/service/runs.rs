//! Runs from their submission to their end.

use crate::support::{Bench, DEADLINE, assert_refused, collect, save, submission, tensors};
use proto::Refusal;
use proto::v1::*;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_run_from_submit_to_finish() {
    let bench = Bench::start().await;
    let answer = bench.submit(submission("run", 2)).await.unwrap();
    assert_eq!(
        (answer.run_id.as_str(), answer.run_dir.as_str()),
        ("run", bench.run_dir("run").to_str().unwrap())
    );
    assert!(bench.status("").await.reason.contains("0 of 2 slots"));
    let watched =
        bench.control().watch(WatchRequest { run_id: "run".to_owned(), since_seq: 0 }).await.unwrap();

    let agent = bench.agent("node", 2).await;
    let (agent, mut workers) = bench.form(agent, 2).await;
    agent.logs(&workers[1], &["hello", "there"]).await;
    for step in 1..=9 {
        workers[0].metrics(step, 1.0 / step as f64).await;
    }
    bench.control().pause(CommandRequest { run_id: "ru".to_owned(), ..Default::default() }).await.unwrap();
    assert_eq!(workers[0].order().await, order::Kind::Pause);
    workers[0].say(worker_up::Message::Paused(Paused { paused: true, step: 9 })).await;
    assert_eq!(bench.until("run", RunState::Paused).await.step, 9);
    bench.control().resume(CommandRequest { run_id: "run".to_owned(), ..Default::default() }).await.unwrap();
    assert_eq!(workers[0].order().await, order::Kind::Resume);
    workers[0].say(worker_up::Message::Paused(Paused { paused: false, step: 9 })).await;
    let taken = save(&workers, 9, b"weights").await.unwrap();

    workers[0].say(worker_up::Message::Finished(Finished { step: 9, stopped_early: false })).await;
    bench.until("run", RunState::Stopping).await;
    for worker in &mut workers {
        // A worker closes its side and waits for the coordinator to close its own.
        worker.up = tokio::sync::mpsc::channel(1).0;
        assert_eq!(worker.try_next().await.unwrap(), None);
    }
    for worker in &workers {
        agent.exited(worker, Some(0), None).await;
    }
    let done = bench.until("run", RunState::Finished).await;
    assert_eq!((done.exit_code, done.step, done.loss, done.total_steps), (Some(0), 9, 1.0 / 9.0, 9));
    assert_eq!(done.last_checkpoint, taken.path);

    let events = collect(watched.into_inner()).await;
    assert_eq!(
        events.iter().map(|event| event.seq).collect::<Vec<_>>(),
        (1..=events.len() as u64).collect::<Vec<_>>()
    );
    let rows = events.iter().filter(|event| matches!(event.kind, Some(event::Kind::Metrics(_)))).count();
    assert_eq!(rows, 9);
    assert!(matches!(&events.last().unwrap().kind, Some(event::Kind::Ended(end)) if end.exit_code == 0));
    // A watcher that comes back hears the rest only.
    let since_seq = events.len() as u64;
    let rest = bench.control().watch(WatchRequest { run_id: "run".to_owned(), since_seq }).await.unwrap();
    assert_eq!(collect(rest.into_inner()).await, events[events.len() - 1..]);

    let read = |name: &str| std::fs::read_to_string(bench.run_dir("run").join(name)).unwrap();
    assert_eq!(read("metrics.jsonl").lines().nth(2), Some("{\"step\":3,\"loss\":0.3333333333333333}"));
    assert_eq!(read("config.toml"), crate::support::CONFIG);
    assert!(read("events.jsonl").lines().last().unwrap().contains("\"kind\":\"ended\""));
    assert_eq!(read("logs/rank-1.gen-1.log"), "hello\nthere\n");
    let tail = TailLogsRequest { run_id: "run".to_owned(), rank: None, follow: true, lines: 1 };
    let lines = collect(bench.control().tail_logs(tail).await.unwrap().into_inner()).await;
    assert_eq!(lines, [LogLine { rank: 1, generation: 1, line: "there".to_owned() }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_are_followed_without_gap_or_repeat() {
    let bench = Bench::start().await;
    let (agent, workers) = bench.running(1).await;
    agent.logs(&workers[0], &["one"]).await;
    let request = TailLogsRequest { run_id: "run".to_owned(), rank: Some(0), follow: true, lines: 0 };
    let mut tail = bench.control().tail_logs(request).await.unwrap().into_inner();
    // "one" may have been written before or after the call; either way it comes once.
    assert_eq!(tail.message().await.unwrap().unwrap().line, "one");
    agent.logs(&workers[0], &["two", "three"]).await;
    agent.exited(&workers[0], None, Some(9)).await;
    drop(workers);
    let lines: Vec<_> = collect(tail).await.into_iter().map(|line| line.line).collect();
    assert_eq!(lines, ["two", "three"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_named_and_the_others_are_aborted() {
    let bench = Bench::start().await;
    let (agent, mut workers) = bench.running(2).await;
    let killed = workers.pop().unwrap();
    agent.exited(&killed, None, Some(9)).await;
    let fence = killed.fence.clone();
    drop(killed);
    let worker_down::Message::Abort(abort) = workers[0].next().await.unwrap() else { panic!("no abort") };
    assert!(abort.reason.contains("rank 1") && abort.reason.contains("SIGKILL"), "{}", abort.reason);
    let mut agent = agent;
    let agent_down::Message::Stop(stop) = agent.next().await else { panic!("no stop") };
    assert_eq!(stop.fence, Some(fence));
    agent.exited(&workers[0], Some(75), None).await;
    let failed = bench.until("run", RunState::Failed).await;
    assert_eq!(failed.exit_code, Some(1));
    assert!(failed.reason.contains("rank 1") && failed.reason.contains("SIGKILL"), "{}", failed.reason);

    let events =
        bench.control().watch(WatchRequest { run_id: "run".to_owned(), since_seq: 0 }).await.unwrap();
    let last = collect(events.into_inner()).await.pop().unwrap();
    let Some(event::Kind::Ended(ended)) = last.kind else { panic!("{last:?}") };
    assert_eq!((ended.exit_code, ended.log_tail), (1, vec!["last words".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_agent_is_named() {
    let bench = Bench::start().await;
    let (agent, _workers) = bench.running(1).await;
    drop(agent);
    let failed = bench.until("run", RunState::Failed).await;
    assert!(failed.reason.contains("agent node was lost"), "{}", failed.reason);
    assert_eq!(
        bench.control().get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner().agents,
        []
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_submission_is_the_same_run() {
    let bench = Bench::start().await;
    let request =
        SubmitRunRequest { idempotency_key: "k".to_owned(), run_id: String::new(), ..submission("", 1) };
    let first = bench.submit(request.clone()).await.unwrap();
    assert_eq!(bench.submit(request.clone()).await.unwrap(), first);
    let bench = bench.restart().await;
    assert_eq!(bench.submit(request).await.unwrap(), first);
    let runs = bench.control().list_runs(ListRunsRequest {}).await.unwrap().into_inner().runs;
    assert_eq!(runs.len(), 1);

    let (agent, mut workers) = {
        let agent = bench.agent("node", 1).await;
        bench.form(agent, 1).await
    };
    let stop =
        StopRequest { run_id: first.run_id.clone(), idempotency_key: "s".to_owned(), ..Default::default() };
    let once = bench.control().stop(stop.clone()).await.unwrap().into_inner();
    let twice = bench.control().stop(stop).await.unwrap().into_inner();
    assert_eq!(once.command_id, twice.command_id);
    assert_eq!(workers[0].order().await, order::Kind::Stop);
    workers[0].say(worker_up::Message::Finished(Finished { step: 1, stopped_early: true })).await;
    bench.until(&first.run_id, RunState::Stopping).await;
    agent.exited(&workers[0], Some(0), None).await;
    assert_eq!(bench.until(&first.run_id, RunState::Stopped).await.exit_code, Some(85));
    // One order, however often it was asked for: after it the stream has ended.
    assert_eq!(workers[0].try_next().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_fails_active_runs_keeps_queued_ones_and_counts_itself() {
    let bench = Bench::start().await;
    let (_agent, mut workers) = bench.running(1).await;
    workers[0].metrics(1, 2.5).await;
    bench.submit(submission("next", 1)).await.unwrap();
    let incarnation = |bench: &Bench| {
        let mut control = bench.control();
        async move { control.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner().incarnation }
    };
    assert_eq!(incarnation(&bench).await, 1);
    let bench = bench.restart().await;
    assert!(matches!(workers[0].next().await, Ok(worker_down::Message::Abort(_))));
    assert_eq!(incarnation(&bench).await, 2);
    let failed = bench.status("run").await;
    assert_eq!((failed.state(), failed.exit_code), (RunState::Failed, Some(1)));
    assert!(failed.reason.contains("coordinator"), "{}", failed.reason);

    // A watcher finds the end even though the coordinator that told of it is gone.
    let events =
        bench.control().watch(WatchRequest { run_id: "run".to_owned(), since_seq: 0 }).await.unwrap();
    let events = collect(events.into_inner()).await;
    assert!(
        matches!(&events.last().unwrap().kind, Some(event::Kind::Ended(end)) if end.exit_code == 1),
        "{events:?}"
    );

    assert_eq!(bench.status("next").await.state(), RunState::Queued);
    let agent = bench.agent("node", 1).await;
    let (_agent, workers) = bench.form(agent, 1).await;
    assert_eq!((workers[0].fence.run_id.as_str(), workers[0].fence.incarnation), ("next", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_from_its_newest_good_checkpoint() {
    let bench = Bench::start().await;
    let (agent, workers) = bench.running(1).await;
    for step in 1..=6 {
        workers[0].metrics(step, 2.5).await;
    }
    save(&workers, 4, &tensors(60)).await.unwrap();
    let newest = save(&workers, 6, &tensors(60)).await.unwrap();
    let active = SubmitRunRequest {
        resume: true,
        run_dir: bench.run_dir("run").display().to_string(),
        ..submission("", 1)
    };
    assert_refused(
        &bench.submit(active.clone()).await.unwrap_err(),
        Code::FailedPrecondition,
        "run_active",
        "active",
    );
    agent.exited(&workers[0], None, Some(9)).await;
    drop(workers);
    bench.until("run", RunState::Failed).await;

    let shard = std::fs::read_dir(&newest.path).unwrap().map(|entry| entry.unwrap().path());
    let shard = shard.into_iter().find(|path| path.extension().is_some_and(|e| e == "safetensors")).unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes.pop();
    std::fs::write(&shard, bytes).unwrap();
    let resumed = bench.submit(active).await.unwrap();
    assert_eq!(resumed.run_id, "run");
    let (_agent, workers) = bench.form(agent, 1).await;
    assert_eq!(workers[0].fence.generation, 2);
    let status = bench.status("run").await;
    assert_eq!((status.step, status.loss), (4, 2.5));
    let read = |name: &str| std::fs::read_to_string(bench.run_dir("run").join(name)).unwrap();
    assert_eq!(read("metrics.jsonl").lines().count(), 4, "rows after step 4 come again");
    let shard = shard.file_name().unwrap().to_str().unwrap();
    let warning = read("events.jsonl").lines().find(|line| line.contains(shard)).map(str::to_owned).unwrap();
    assert!(warning.contains("warn") && warning.contains("step-00000004"), "{warning}");
    assert!(bench.run_dir("run").join("logs/rank-0.gen-2.log").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_now_waits_for_the_commit() {
    let bench = Bench::start().await;
    let (agent, mut workers) = bench.running(1).await;
    workers[0].metrics(3, 2.5).await;
    let request = CheckpointNowRequest { run_id: "run".to_owned(), wait: true, ..Default::default() };
    let mut control = bench.control();
    let asked = request.clone();
    let waiting = tokio::spawn(async move { control.checkpoint_now(asked).await });
    assert_eq!(workers[0].order().await, order::Kind::Checkpoint);
    let taken = save(&workers, 3, b"weights").await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().checkpoint, Some(taken.clone()));
    // Nothing has happened since: the same checkpoint is the answer, and nothing is asked of the workers.
    let again = bench.control().checkpoint_now(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.checkpoint, Some(taken));

    workers[0].metrics(4, 2.5).await;
    bench.control().pause(CommandRequest { run_id: "run".to_owned(), ..Default::default() }).await.unwrap();
    assert_eq!(workers[0].order().await, order::Kind::Pause);
    let mut control = bench.control();
    let last = CheckpointNowRequest { idempotency_key: "last".to_owned(), ..request };
    let asked = last.clone();
    let waiting = tokio::spawn(async move { control.checkpoint_now(asked).await });
    assert_eq!(workers[0].order().await, order::Kind::Checkpoint);
    agent.exited(&workers[0], None, Some(9)).await;
    drop(workers);
    let refusal = Refusal::from(&waiting.await.unwrap().unwrap_err());
    assert_refused(&refusal, Code::FailedPrecondition, "run_ended", "ended before");
    // Repeated after the end, under the same key: nothing can come any more.
    let mut control = bench.control();
    let again = tokio::time::timeout(DEADLINE, control.checkpoint_now(last)).await.expect("an answer");
    assert_refused(
        &Refusal::from(&again.unwrap_err()),
        Code::FailedPrecondition,
        "run_ended",
        "ended before",
    );
}

/// JSON, as which a run is stored, has no such numbers: one of them must not keep the coordinator from starting again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_finite_is_no_value() {
    let bench = Bench::start().await;
    let (_agent, workers) = bench.running(1).await;
    for (step, loss) in [(1, 2.5), (2, f64::NAN), (3, f64::INFINITY)] {
        workers[0].metrics(step, loss).await;
    }
    let pause = worker_up::Message::Paused(Paused { paused: true, step: 3 });
    workers[0].say(pause).await;
    let paused = bench.until("run", RunState::Paused).await;
    assert_eq!((paused.step, paused.loss), (3, 2.5));
    let bench = bench.restart().await;
    assert_eq!(bench.status("run").await.state(), RunState::Failed);
}
