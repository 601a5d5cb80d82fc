//! Checkpoint sync, and what it refuses.

use crate::support::{
    Bench, FakeWorker, SHARD_BYTES, assert_refused, collect, save, shard, submission, tensors,
};
use proto::Refusal;
use proto::v1::put_shard_message::Message;
use proto::v1::*;
use tonic::Code;

async fn begin(workers: &[FakeWorker]) -> String {
    workers[0].begin(5, workers.len() as u32).await.unwrap().checkpoint_id
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_come_back_as_they_were_sent() {
    let bench = Bench::start().await;
    let (_agent, workers) = bench.running(2).await;
    let fence = workers[0].fence.clone();
    let id = begin(&workers).await;
    let bytes = tensors(750_000);
    workers[1].put(shard(fence.clone(), &id, 1, &bytes)).await.unwrap();
    let commit = CommitCheckpointRequest { fence: Some(fence.clone()), checkpoint_id: id.clone() };

    // Refused as long as a shard is missing, and there is nothing under the checkpoint's name.
    let early = workers[0].checkpoints().commit(commit.clone()).await.unwrap_err();
    assert_refused(&Refusal::from(&early), Code::FailedPrecondition, "shards_missing", "[0] of 2");
    assert!(!bench.run_dir("run").join("checkpoints/step-00000005").exists());

    let id = begin(&workers).await;
    workers[0].put(shard(fence.clone(), &id, 0, &tensors(0))).await.unwrap();
    workers[1].put(shard(fence.clone(), &id, 1, &bytes)).await.unwrap();
    let commit = CommitCheckpointRequest { checkpoint_id: id, ..commit };
    let info = workers[0].checkpoints().commit(commit).await.unwrap().into_inner();
    assert_eq!((info.step, info.bytes, info.world_size), (5, (bytes.len() + tensors(0).len()) as u64, 2));

    let get = GetCheckpointRequest { fence: Some(fence.clone()), step: 5 };
    let manifest = workers[0].checkpoints().get(get).await.unwrap().into_inner().manifest_json;
    let stored =
        std::fs::read_to_string(bench.run_dir("run").join("checkpoints/step-00000005/manifest.json"))
            .unwrap();
    assert_eq!(manifest, stored);
    let get = GetShardRequest { fence: Some(fence.clone()), step: 5, shard: 1, images: false };
    let chunks = collect(workers[0].checkpoints().get_shard(get.clone()).await.unwrap().into_inner()).await;
    assert_eq!(chunks.len(), 3);
    let mut received = Vec::new();
    for chunk in chunks {
        assert_eq!(chunk.offset, received.len() as u64);
        assert_eq!(chunk.crc32c, crc32c::crc32c(&chunk.data));
        received.extend_from_slice(&chunk.data);
    }
    assert!(received == bytes);
    let absent = GetShardRequest { shard: 2, ..get };
    let absent =
        workers[0].checkpoints().get_shard(absent).await.unwrap().into_inner().message().await.unwrap_err();
    assert_refused(&Refusal::from(&absent), Code::NotFound, "no_shard", "lacks shard 2");

    let verify = VerifyCheckpointRequest { run_id: "run".to_owned(), step: 5 };
    let verified = bench.control().verify_checkpoint(verify.clone()).await.unwrap().into_inner();
    assert_eq!((verified.checkpoint, verified.problems), (Some(info), vec![]));
    let missing = VerifyCheckpointRequest { step: 6, ..verify };
    let missing = bench.control().verify_checkpoint(missing).await.unwrap_err();
    assert_refused(&Refusal::from(&missing), Code::NotFound, "checkpoint_missing", "step 6");
}

/// The list of images travels once, with the first checkpoint that names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_images_is_asked_for_once_and_comes_back() {
    let bench = Bench::start().await;
    let (_agent, workers) = bench.running(1).await;
    let fence = workers[0].fence.clone();
    let list: Vec<u8> = (0..250).collect();
    let digest = checkpoint::digest(&list);
    let metadata_json = format!(r#"{{"images":{{"list":"{}"}}}}"#, checkpoint::hex(&digest));
    let begin = |step: u64| BeginCheckpointRequest {
        fence: Some(fence.clone()),
        step,
        n_shards: 1,
        metadata_json: metadata_json.clone(),
        images: Some(Digest { blake3: digest.to_vec() }),
    };
    let commit = |checkpoint_id: &str| CommitCheckpointRequest {
        fence: Some(fence.clone()),
        checkpoint_id: checkpoint_id.to_owned(),
    };
    let of_list = |id: &str| {
        let mut messages = shard(fence.clone(), id, 0, &list);
        let Message::Header(header) = &mut messages[0] else { panic!("no header") };
        header.images = true;
        messages
    };
    let begun = workers[0].checkpoints().begin(begin(5)).await.unwrap().into_inner();
    assert!(begun.wants_images);
    workers[0].put(shard(fence.clone(), &begun.checkpoint_id, 0, b"weights")).await.unwrap();
    let early = workers[0].checkpoints().commit(commit(&begun.checkpoint_id)).await.unwrap_err();
    assert_refused(
        &Refusal::from(&early),
        Code::FailedPrecondition,
        "shards_missing",
        "the list of images has not arrived",
    );

    let id = workers[0].checkpoints().begin(begin(5)).await.unwrap().into_inner().checkpoint_id;
    workers[0].put(of_list(&id)).await.unwrap();
    workers[0].put(shard(fence.clone(), &id, 0, b"weights")).await.unwrap();
    workers[0].checkpoints().commit(commit(&id)).await.unwrap();
    let again = workers[0].checkpoints().begin(begin(6)).await.unwrap().into_inner();
    assert!(!again.wants_images);
    let unwanted = workers[0].put(of_list(&again.checkpoint_id)).await.unwrap_err();
    assert_refused(&unwanted, Code::FailedPrecondition, "shard_refused", "the run has it");

    let get = GetShardRequest { fence: Some(fence.clone()), step: 5, images: true, ..Default::default() };
    let chunks = collect(workers[0].checkpoints().get_shard(get.clone()).await.unwrap().into_inner()).await;
    assert_eq!(chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect::<Vec<u8>>(), list);
    let file = format!("checkpoints/images-{}.list", checkpoint::hex(&digest));
    std::fs::remove_file(bench.run_dir("run").join(file)).unwrap();
    let gone =
        workers[0].checkpoints().get_shard(get).await.unwrap().into_inner().message().await.unwrap_err();
    assert_refused(&Refusal::from(&gone), Code::NotFound, "no_shard", "lacks the list of images");
}

/// What `damage` makes of a good stream is refused, and the shard can be sent again.
async fn check_damage(damage: impl FnOnce(&mut Vec<Message>), code: Code, reason: &str, words: &str) {
    let bench = Bench::start().await;
    let (_agent, workers) = bench.running(1).await;
    let fence = workers[0].fence.clone();
    let id = begin(&workers).await;
    let bytes: Vec<u8> = (0..250).collect();
    let mut messages = shard(fence.clone(), &id, 0, &bytes);
    damage(&mut messages);
    assert_refused(&workers[0].put(messages).await.unwrap_err(), code, reason, words);
    workers[0].put(shard(fence.clone(), &id, 0, &bytes)).await.unwrap();
    let commit = CommitCheckpointRequest { fence: Some(fence), checkpoint_id: id };
    workers[0].checkpoints().commit(commit).await.unwrap();
}

fn flip(message: &mut Message, fix_crc: bool) {
    let Message::Chunk(chunk) = message else { panic!("not a chunk") };
    let mut data = chunk.data.to_vec();
    data[7] ^= 1;
    chunk.data = data.into();
    if fix_crc {
        chunk.crc32c = crc32c::crc32c(&chunk.data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_the_way_is_refused() {
    check_damage(|m| flip(&mut m[2], false), Code::DataLoss, "damaged_chunk", "byte 100 of shard 0").await;
    check_damage(|m| flip(&mut m[2], true), Code::DataLoss, "damaged_shard", "shard 0").await;
    check_damage(|m| drop(m.remove(2)), Code::FailedPrecondition, "shard_refused", "byte 200 instead of 100")
        .await;
    check_damage(|m| drop(m.remove(3)), Code::DataLoss, "wrong_length", "200 bytes instead of the 250").await;
    check_damage(|m| m.truncate(3), Code::DataLoss, "shard_truncated", "before its trailer").await;
    let longer = |m: &mut Vec<Message>| {
        let Message::Header(header) = &mut m[0] else { panic!("no header") };
        header.total_bytes = 120;
    };
    check_damage(longer, Code::DataLoss, "wrong_length", "instead of the 120").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_fence_takes_no_checkpoint() {
    let bench = Bench::start().await;
    let (_agent, workers) = bench.running(1).await;
    let stale = Fence { generation: 0, ..workers[0].fence.clone() };
    let early =
        BeginCheckpointRequest { fence: Some(stale.clone()), step: 5, n_shards: 1, ..Default::default() };
    let refusal = Refusal::from(&workers[0].checkpoints().begin(early).await.unwrap_err());
    assert_refused(&refusal, Code::FailedPrecondition, "stale_fence", "generation 0");
    assert_eq!(refusal.current_generation, 1);

    // Nor one of more shards than the run has ranks.
    for n_shards in [2, u32::MAX] {
        let fence = Some(workers[0].fence.clone());
        let many = BeginCheckpointRequest { fence, step: 5, n_shards, ..Default::default() };
        let refusal = Refusal::from(&workers[0].checkpoints().begin(many).await.unwrap_err());
        assert_refused(&refusal, Code::InvalidArgument, "bad_n_shards", "by 1 ranks");
    }

    // Nor does one who begins well and is replaced meanwhile.
    let id = begin(&workers).await;
    let put = workers[0].put(shard(stale, &id, 0, b"late")).await.unwrap_err();
    assert_refused(&put, Code::FailedPrecondition, "stale_fence", "generation 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_checkpoint_is_gone_with_its_run_and_old_ones_are_retired() {
    let bench = Bench::start().await;
    let (agent, workers) = bench.running(1).await;
    let fence = workers[0].fence.clone();
    for step in 1..=3 {
        save(&workers, step, b"weights").await.unwrap();
    }
    let id = begin(&workers).await;
    let abort = AbortCheckpointRequest { fence: Some(fence.clone()), checkpoint_id: id.clone() };
    workers[0].checkpoints().abort(abort.clone()).await.unwrap();
    let again = workers[0].checkpoints().abort(abort).await.unwrap_err();
    assert_refused(&Refusal::from(&again), Code::FailedPrecondition, "checkpoint_not_open", &id);
    begin(&workers).await;
    agent.exited(&workers[0], None, Some(9)).await;
    drop(workers);
    bench.until("run", RunState::Failed).await;

    let names = std::fs::read_dir(bench.run_dir("run").join("checkpoints")).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["step-00000002", "step-00000003"]);
    let listed = ListCheckpointsRequest { run_id: "run".to_owned() };
    let listed = bench.control().list_checkpoints(listed).await.unwrap().into_inner().checkpoints;
    assert_eq!(listed.iter().map(|info| info.step).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_saved_is_not_sent_again_and_none_goes_back() {
    let bench = Bench::start().await;
    let (_agent, workers) = bench.running(1).await;
    let fence = workers[0].fence.clone();
    let saved = save(&workers, 5, b"weights").await.unwrap();
    let begin = async |step| {
        let fence = Some(fence.clone());
        let request = BeginCheckpointRequest { fence, step, n_shards: 1, ..Default::default() };
        let begun = workers[0].checkpoints().begin(request).await;
        begun.map(tonic::Response::into_inner).map_err(|status| Refusal::from(&status))
    };
    let stands = begin(5).await.unwrap();
    assert_eq!((stands.committed, stands.checkpoint_id.as_str()), (Some(saved), ""));
    let earlier = begin(4).await.unwrap_err();
    assert_refused(&earlier, Code::FailedPrecondition, "step_goes_back", "of step 5");
    let beyond = begin(10).await.unwrap_err();
    assert_refused(&beyond, Code::InvalidArgument, "implausible", "the last is 9");

    let begun = begin(6).await.unwrap();
    assert_eq!(begun.committed, None);
    let mut messages = shard(fence.clone(), &begun.checkpoint_id, 0, b"weights");
    let Message::Header(header) = &mut messages[0] else { panic!("no header") };
    header.total_bytes = 2 * SHARD_BYTES + 1;
    let large = workers[0].put(messages).await.unwrap_err();
    assert_refused(&large, Code::InvalidArgument, "too_large", "shard 0 would have 4194305 bytes");
}

#[tokio::test]
async fn what_a_killed_coordinator_left_of_a_checkpoint_is_removed_at_the_next_start() {
    let bench = Bench::start().await;
    // Nobody runs it yet: it is unfinished when the next coordinator starts.
    bench.submit(submission("run", 1)).await.unwrap();
    let checkpoints = bench.run_dir("run").join("checkpoints");
    let leftover = checkpoints.join(".step-00000007.gen-1.tmp");
    std::fs::create_dir_all(&leftover).unwrap();
    std::fs::write(leftover.join("shard"), [0; 4096]).unwrap();
    let bench = bench.restart().await;
    // Answered once the runs found were taken up.
    assert_eq!(bench.status("run").await.state(), RunState::Queued);
    assert_eq!(std::fs::read_dir(&checkpoints).unwrap().count(), 0);
}
