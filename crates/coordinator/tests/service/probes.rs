//! What somebody on the network would try, first without credentials and then under the nearest wrong identity.

use crate::raw;
use crate::support::{
    Bench, DEADLINE, FakeAgent, FakeWorker, SHARD_BYTES, answer, assert_refused, collect, hello, save, shard,
    submission, tensors,
};
use coordinator::Identity;
use identity::Role;
use proto::Refusal;
use proto::v1::checkpoint_service_client::CheckpointServiceClient;
use proto::v1::control_service_client::ControlServiceClient;
use proto::v1::put_shard_message::Message;
use proto::v1::worker_service_client::WorkerServiceClient;
use proto::v1::*;
use tonic::Code;

const GET: GetShardRequest = GetShardRequest { fence: None, step: 5, shard: 1, images: false };

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_learns_and_changes_nothing() {
    let bench = Bench::start().await;
    let (_agent, mut workers) = bench.running(2).await;
    save(&workers, 5, &tensors(100)).await.unwrap();
    let stranger = raw::encrypted(&bench.address()).await;
    let refused = |refusal: Refusal| assert_refused(&refusal, Code::Unauthenticated, "unauthenticated", "");
    let mut control = ControlServiceClient::new(stranger.clone());
    refused(answer(control.get_status(GetStatusRequest { run_id: "run".to_owned() }).await).unwrap_err());
    let fence = Some(workers[0].fence.clone());
    let mut sync = CheckpointServiceClient::new(stranger.clone());
    let begin = BeginCheckpointRequest { fence: fence.clone(), step: 6, n_shards: 2, ..Default::default() };
    refused(answer(sync.begin(begin).await).unwrap_err());
    refused(answer(sync.get_shard(GetShardRequest { fence: fence.clone(), ..GET }).await).unwrap_err());
    let worker = Some(workers[0].worker.clone());
    let message = Some(worker_up::Message::Finished(Finished { step: 424_242, stopped_early: false }));
    let finished = WorkerUp { fence, worker, message };
    let session = WorkerServiceClient::new(stranger).session(tokio_stream::iter([finished])).await;
    refused(answer(session).unwrap_err());
    assert_goes_on(&bench, &mut workers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_by_the_word_of_rank_0_within_its_steps() {
    let bench = Bench::start().await;
    let finished = |step| worker_up::Message::Finished(Finished { step, stopped_early: false });
    let (_agent, mut workers) = bench.running(2).await;
    // Each of these costs its speaker the session, and nothing else: it is opened again.
    for (rank, step, code, reason) in
        [(1, 9, Code::PermissionDenied, "not_rank_0"), (0, 424_242, Code::InvalidArgument, "implausible")]
    {
        workers[rank].say(finished(step)).await;
        assert_refused(&workers[rank].next().await.unwrap_err(), code, reason, "run");
        let FakeWorker { channel, fence, worker, .. } = &workers[rank];
        let again = FakeWorker::connect(channel.clone(), fence.clone(), worker.clone()).await.unwrap();
        workers[rank] = again;
        assert_eq!(bench.status("run").await.state(), RunState::Running);
    }
    assert_goes_on(&bench, &mut workers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_belongs_to_its_worker() {
    let bench = Bench::start().await;
    let (_agent, mut workers) = bench.running(2).await;
    let (fence, victim) = (workers[0].fence.clone(), workers[0].worker.clone());
    for (role, code) in
        [(Some(Role::Agent), "wrong_role"), (Some(Role::Admin), "wrong_role"), (None, "not_yours")]
    {
        let channel = match role {
            Some(role) => bench.role(role).await,
            None => workers[1].channel.clone(),
        };
        let refusal = FakeWorker::open(channel, &fence, &victim).await.unwrap_err();
        assert_refused(&refusal, Code::PermissionDenied, code, "");
    }
    // Nor by a first message of its own and a second of the other.
    let second = WorkerUp { fence: Some(fence), worker: Some(victim), message: None };
    workers[1].up.send(second).await.unwrap();
    let refusal = workers[1].next().await.unwrap_err();
    assert_refused(&refusal, Code::PermissionDenied, "not_yours", "speaks for itself");
    let FakeWorker { channel, fence, worker, .. } = &workers[1];
    workers[1] = FakeWorker::connect(channel.clone(), fence.clone(), worker.clone()).await.unwrap();
    assert_goes_on(&bench, &mut workers).await;
}

/// The run is where it was, and rank 0 hears its orders in the session that it has.
async fn assert_goes_on(bench: &Bench, workers: &mut [FakeWorker]) {
    let status = bench.status("run").await;
    assert_eq!((status.state(), status.generation, status.step < 10), (RunState::Running, 1, true));
    let pause = CommandRequest { run_id: "run".to_owned(), ..Default::default() };
    answer(bench.control().pause(pause).await).unwrap();
    assert_eq!(workers[0].order().await, order::Kind::Pause);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_those_of_rank_0_within_its_steps() {
    let bench = Bench::start().await;
    let (_agent, workers) = bench.running(2).await;
    let good = [save(&workers, 4, &tensors(9)).await.unwrap(), save(&workers, 5, &tensors(9)).await.unwrap()];
    let refusal = workers[0].begin(10_000_000, 2).await.unwrap_err();
    assert_refused(&refusal, Code::InvalidArgument, "implausible", "step 10000000");
    assert_refused(
        &workers[1].begin(6, 2).await.unwrap_err(),
        Code::PermissionDenied,
        "not_rank_0",
        "rank 1",
    );
    for role in Role::ALL {
        let fence = Some(workers[0].fence.clone());
        let begin = BeginCheckpointRequest { fence, step: 6, n_shards: 2, ..Default::default() };
        let mut sync = CheckpointServiceClient::new(bench.role(role).await);
        let refusal = answer(sync.begin(begin).await).unwrap_err();
        assert_refused(&refusal, Code::PermissionDenied, "wrong_role", role.name());
    }
    let id = workers[0].begin(6, 2).await.unwrap().checkpoint_id;
    let mut theirs = shard(workers[0].fence.clone(), &id, 1, &tensors(9));
    let refusal = workers[0].put(theirs.clone()).await.unwrap_err();
    assert_refused(&refusal, Code::PermissionDenied, "not_yours", "rank 0 sends its own shard");
    let Message::Header(header) = &mut theirs[0] else { panic!("no header") };
    header.total_bytes = 2 * SHARD_BYTES + 1;
    let refusal = workers[1].put(theirs).await.unwrap_err();
    assert_refused(&refusal, Code::InvalidArgument, "too_large", "shard 1");
    // The header may lie: what follows is counted.
    let mut longer = shard(workers[0].fence.clone(), &id, 0, &[7; 250]);
    let Message::Header(header) = &mut longer[0] else { panic!("no header") };
    header.total_bytes = 150;
    assert_refused(&workers[0].put(longer).await.unwrap_err(), Code::DataLoss, "wrong_length", "the 150");
    let listed = ListCheckpointsRequest { run_id: "run".to_owned() };
    assert_eq!(answer(bench.control().list_checkpoints(listed).await).unwrap().checkpoints, good);
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_for_operators_and_workers() {
    let bench = Bench::start().await;
    let (_agent, workers) = bench.running(2).await;
    let bytes = tensors(1_000_000);
    save(&workers, 5, &bytes).await.unwrap();
    let get = GetShardRequest { fence: Some(workers[0].fence.clone()), ..GET };
    for role in [Role::Viewer, Role::Agent] {
        let mut sync = CheckpointServiceClient::new(bench.role(role).await);
        let refusal = answer(sync.get_shard(get.clone()).await).unwrap_err();
        assert_refused(&refusal, Code::PermissionDenied, "wrong_role", role.name());
        let manifest = GetCheckpointRequest { fence: get.fence.clone(), step: 5 };
        let refusal = answer(sync.get(manifest).await).unwrap_err();
        assert_refused(&refusal, Code::PermissionDenied, "wrong_role", role.name());
    }
    let mut sync = CheckpointServiceClient::new(bench.role(Role::Operator).await);
    let chunks = collect(answer(sync.get_shard(get).await).unwrap()).await;
    assert!(chunks.iter().flat_map(|chunk| &chunk.data).eq(&bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_upload_leaves_nothing() {
    let bench = Bench::start().await;
    let (agent, workers) = bench.running(1).await;
    let id = workers[0].begin(5, 1).await.unwrap().checkpoint_id;
    let (sender, messages) = tokio::sync::mpsc::channel(4);
    let mut sync = workers[0].checkpoints();
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let upload = tokio::spawn(async move { sync.put_shard(messages).await });
    for message in shard(workers[0].fence.clone(), &id, 0, &[7; 250]).into_iter().take(2) {
        sender.send(PutShardMessage { message: Some(message) }).await.unwrap();
    }
    // The worker is gone in the middle of its shard, and its connection with it.
    upload.abort();
    drop(sender);
    agent.exited(&workers[0], None, Some(9)).await;
    drop(workers);
    bench.until("run", RunState::Failed).await;
    let left = std::fs::read_dir(bench.run_dir("run").join("checkpoints")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_name_directories_that_are_theirs() {
    let [allowed, elsewhere] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let bench = Bench::with(Identity::Ephemeral, vec![allowed.path().to_owned()]).await;
    let mut operator = ControlServiceClient::new(bench.role(Role::Operator).await);
    let inside = |directory: &tempfile::TempDir, run_id: &str| SubmitRunRequest {
        run_dir: directory.path().join("deep/run").display().to_string(),
        ..submission(run_id, 1)
    };
    let refusal = answer(operator.submit_run(inside(&elsewhere, "a")).await).unwrap_err();
    assert_refused(&refusal, Code::PermissionDenied, "directory_not_allowed", "deep/run");
    let resume = SubmitRunRequest { resume: true, ..inside(&elsewhere, "") };
    let refusal = answer(operator.submit_run(resume).await).unwrap_err();
    assert_refused(&refusal, Code::PermissionDenied, "directory_not_allowed", "deep/run");
    assert!(!elsewhere.path().join("deep").exists());
    answer(operator.submit_run(inside(&allowed, "a")).await).unwrap();
    answer(operator.submit_run(submission("b", 1)).await).unwrap();
    bench.submit(inside(&elsewhere, "c")).await.unwrap();
}

/// Whoever may write in an allowed directory can replace a directory above a run by a link, whenever they like.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_stays_where_it_was_submitted() {
    let [allowed, elsewhere] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let bench = Bench::with(Identity::Ephemeral, vec![allowed.path().to_owned()]).await;
    let agent = bench.agent("node", 1).await;
    let mut operator = ControlServiceClient::new(bench.role(Role::Operator).await);
    let (above, target) = (allowed.path().join("deep"), elsewhere.path().join("target"));
    let run_dir = above.join("run").display().to_string();
    answer(operator.submit_run(SubmitRunRequest { run_dir, ..submission("run", 1) }).await).unwrap();
    let (_agent, workers) = bench.form(agent, 1).await;
    save(&workers, 5, &tensors(100)).await.unwrap();
    let open = workers[0].begin(6, 1).await.unwrap().checkpoint_id;

    std::fs::rename(&above, &target).unwrap();
    std::os::unix::fs::symlink(&target, &above).unwrap();
    // What is open stays what it was, wherever it was moved to.
    let messages = shard(workers[0].fence.clone(), &open, 0, &tensors(100));
    workers[0].put(messages).await.unwrap();
    let mut sync = CheckpointServiceClient::new(bench.role(Role::Operator).await);
    let fence = Some(workers[0].fence.clone());
    let run_id = "run".to_owned();
    let refusals = [
        workers[0].begin(7, 1).await.unwrap_err(),
        answer(sync.get(GetCheckpointRequest { fence: fence.clone(), step: 5 }).await).unwrap_err(),
        answer(sync.get_shard(GetShardRequest { fence, step: 5, shard: 0, images: false }).await)
            .unwrap_err(),
        answer(operator.list_checkpoints(ListCheckpointsRequest { run_id: run_id.clone() }).await)
            .unwrap_err(),
        answer(operator.verify_checkpoint(VerifyCheckpointRequest { run_id: run_id.clone(), step: 5 }).await)
            .unwrap_err(),
        answer(operator.tail_logs(TailLogsRequest { run_id, ..Default::default() }).await).unwrap_err(),
    ];
    for refusal in refusals {
        assert_refused(&refusal, Code::FailedPrecondition, "not_a_plain_file", "deep is a symbolic link");
    }
    let left = std::fs::read_dir(target.join("run/checkpoints")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["step-00000005"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_belongs_to_one_agent_process() {
    let bench = Bench::start().await;
    let (agent, mut workers) = bench.running(1).await;
    // Another process under the id of an agent that lives, with the right token.
    let channel = bench.role(Role::Agent).await;
    let Err(refusal) = FakeAgent::connect(channel.clone(), hello("node", 1)).await else {
        panic!("admitted")
    };
    assert_refused(&refusal, Code::AlreadyExists, "agent_connected", "node");
    // Nor does a worker, or an operator, get in as an agent.
    for channel in [workers[0].channel.clone(), bench.role(Role::Operator).await] {
        let Err(refusal) = FakeAgent::connect(channel, hello("b", 1)).await else { panic!("admitted") };
        assert_refused(&refusal, Code::PermissionDenied, "wrong_role", "is for an agent");
    }
    assert_goes_on(&bench, &mut workers).await;
    // The process itself comes back whenever it likes; what it had running is lost.
    let again = AgentHello { secret: agent.secret.clone(), ..hello("node", 1) };
    let Ok(mut again) = FakeAgent::connect(channel, again).await else { panic!("refused") };
    bench.until("run", RunState::Failed).await;
    // What the session before still says is not heard any more.
    again.next().await;
    bench.submit(submission("next", 1)).await.unwrap();
    let (_again, next) = bench.form(again, 1).await;
    agent.exited(&next[0], Some(1), None).await;
    tokio::time::timeout(DEADLINE, agent.up.closed()).await.expect("the old session ends");
    assert_eq!(bench.status("next").await.state(), RunState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_text_is_told_the_protocol_alone() {
    let bench = Bench::start().await;
    raw::check_clear_text(&bench.address(), "over TLS", &[]).await;
}
