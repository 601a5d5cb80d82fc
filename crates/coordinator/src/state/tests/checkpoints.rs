//! Which checkpoints a run takes, and from whom.

use super::*;

fn nonce(world: &World, rank: usize) -> String {
    world.worker(rank).nonce
}

#[track_caller]
fn admit(world: &World, step: u64) -> Result<CheckpointPlan, Refused> {
    world.state.admit_checkpoint(&world.fence(), &nonce(world, 0), step, 2)
}

fn goes_back(step: u64, saved: u64) -> Result<CheckpointPlan, Refused> {
    Err(Refused::StepGoesBack { run_id: "run".to_owned(), step, saved })
}

/// Two ranks, of shards of 100 and 50 bytes, that go on from a checkpoint of this step.
fn resumed_from(step: u64) -> World {
    let mut world = World::new();
    world.join("a", 1);
    world.join("b", 1);
    let resumed = RunRecord { checkpoint_step: Some(step), ..record("run", 2) };
    world.input(Input::Submitted(resumed, None, Vec::new()));
    for rank in 0..2 {
        world.news(rank, News::Attached { data_address: format!("host:{rank}"), pid: 1 });
        world.news(rank, News::Connected);
    }
    for (rank, shard_bytes) in [(0, 100), (1, 50)] {
        world.news(rank, News::Ready { step, total_steps: 9, shard_bytes });
    }
    world
}

#[test]
fn a_checkpoint_is_of_rank_0_and_of_the_present_generation() {
    let world = World::running(&[1, 1]);
    let expected = CheckpointPlan {
        run_dir: "/runs/run".to_owned(),
        config_toml: String::new(),
        world_size: 2,
        shard_limits: vec![200, 200],
        may_stand: false,
    };
    assert_eq!(admit(&world, 5), Ok(expected));
    let begin = |fence: &Fence, nonce: &str| world.state.admit_checkpoint(fence, nonce, 5, 2).unwrap_err();
    let what = "a checkpoint";
    assert_eq!(
        begin(&world.fence(), &nonce(&world, 1)),
        Refused::NotTheLeader { run_id: "run".to_owned(), rank: 1, what }
    );
    assert!(matches!(begin(&world.fence(), "run/7/0/a/0"), Refused::NotAMember { .. }));
    let former = Fence { generation: 0, ..world.fence() };
    assert!(matches!(begin(&former, &nonce(&world, 0)), Refused::Stale { .. }));
}

#[test]
fn members_are_known_by_their_nonces() {
    let world = World::running(&[1, 2]);
    for rank in 0..3 {
        let admitted = world.state.admit_member(&world.fence(), &nonce(&world, rank)).unwrap();
        assert_eq!((admitted.rank, admitted.world_size), (rank, 3));
        assert_eq!(admitted.record.run_id, "run");
    }
    let lead = |rank| world.state.admit_leader(&world.fence(), &nonce(&world, rank), "a commit");
    assert_eq!(lead(0).unwrap().rank, 0);
    let refused = lead(2).unwrap_err();
    assert_eq!(refused, Refused::NotTheLeader { run_id: "run".to_owned(), rank: 2, what: "a commit" });
}

#[test]
fn every_rank_writes_a_shard_of_at_most_twice_what_it_predicted() {
    let mut world = resumed_from(3);
    assert_eq!(admit(&world, 3).unwrap().shard_limits, [200, 100]);
    for n_shards in [0, 1, 3] {
        let refused = world.state.admit_checkpoint(&world.fence(), &nonce(&world, 0), 4, n_shards);
        assert_eq!(refused, Err(Refused::WrongShards { n_shards, world_size: 2 }));
    }
    // What a rank says again changes nothing.
    world.news(1, News::Ready { step: 3, total_steps: 9, shard_bytes: u64::MAX });
    assert_eq!(admit(&world, 3).unwrap().shard_limits, [200, 100]);
}

#[test]
fn no_checkpoint_is_begun_before_all_are_ready() {
    let mut world = World::forming(&[1, 1]);
    for n_ready in 0..2 {
        let expected = Refused::NotReady { run_id: "run".to_owned(), n_ready, world_size: 2 };
        assert_eq!(admit(&world, 0), Err(expected));
        world.news(n_ready, ready());
    }
    assert!(!admit(&world, 0).unwrap().may_stand);
}

#[test]
fn steps_do_not_go_back() {
    let mut world = World::running(&[1, 1]);
    for step in [0, 5, 9] {
        assert!(!admit(&world, step).unwrap().may_stand, "nothing is saved yet");
    }
    world.commit(5);
    assert_eq!(admit(&world, 4), goes_back(4, 5));
    assert!(admit(&world, 5).unwrap().may_stand);
    assert!(!admit(&world, 6).unwrap().may_stand);
    let beyond = "step 10, where the last is 9".to_owned();
    assert_eq!(admit(&world, 10), Err(Refused::Implausible { run_id: "run".to_owned(), what: beyond }));
}

#[test]
fn a_run_saves_nothing_from_before_its_start() {
    let mut world = resumed_from(3);
    assert_eq!(admit(&world, 2), goes_back(2, 3));
    assert!(admit(&world, 3).unwrap().may_stand);
    world.commit(7);
    assert_eq!(admit(&world, 3), goes_back(3, 7));
    assert!(admit(&world, 7).unwrap().may_stand);
}

/// Whoever waits is answered, and nothing else has happened: no event, and no file.
#[test]
fn a_checkpoint_that_stands_answers_those_who_wait() {
    let mut world = resumed_from(3);
    world.order(Operation::Checkpoint).unwrap();
    world.commands.clear();
    let info = CheckpointInfo { step: 3, path: "/c".to_owned(), ..CheckpointInfo::default() };
    world.input(Input::CheckpointStands { fence: world.fence(), info: info.clone() });
    assert_eq!(world.commands, [Command::CheckpointTaken("run".to_owned(), info.clone())]);
    assert_eq!(world.state.fresh_checkpoint("run"), Some(&info));
    // It counts as answered when rank 0's session is opened again.
    world.commands.clear();
    world.news(0, News::Disconnected);
    world.news(0, News::Connected);
    assert_eq!(world.orders(), []);

    let stale = Fence { generation: 0, ..world.fence() };
    let refused = world.try_input(Input::CheckpointStands { fence: stale, info });
    assert!(matches!(refused, Err(Refused::Stale { .. })));
}
