//! Rank 0 speaks for the group, and nobody for what the run cannot have come to.

use super::*;
use proto::v1::Progress;

fn row(step: u64) -> News {
    News::Metrics(MetricRow { step, values: Vec::new() })
}

fn paused(step: u64) -> News {
    News::Paused { paused: true, step }
}

fn finished(step: u64) -> News {
    News::Finished { step, stopped_early: false }
}

fn beat(step: u64) -> News {
    News::Beat(Progress { step, ..Progress::default() })
}

fn implausible(what: &str) -> Result<(), Refused> {
    Err(Refused::Implausible { run_id: "run".to_owned(), what: what.to_owned() })
}

fn not_ready(n_ready: usize) -> Result<(), Refused> {
    Err(Refused::NotReady { run_id: "run".to_owned(), n_ready, world_size: 2 })
}

/// Two ranks that are about to say that they are ready for a run of this start.
fn forming_from(checkpoint_step: Option<u64>) -> World {
    let mut world = World::new();
    world.join("a", 2);
    world.input(Input::Submitted(RunRecord { checkpoint_step, ..record("run", 2) }, None, Vec::new()));
    for rank in 0..2 {
        world.news(rank, News::Attached { data_address: format!("host:{rank}"), pid: 1 });
        world.news(rank, News::Connected);
    }
    world.commands.clear();
    world
}

fn ready_at(step: u64, total_steps: u64) -> News {
    News::Ready { step, total_steps, shard_bytes: 100 }
}

#[test]
fn another_rank_does_not_speak_for_the_group() {
    let mut world = World::running(&[1, 1]);
    for (news, what) in
        [(row(5), "a row of metrics"), (paused(5), "a pause"), (finished(9), "the end of training")]
    {
        let expected = Refused::NotTheLeader { run_id: "run".to_owned(), rank: 1, what };
        assert_eq!(world.try_news(1, news), Err(expected));
    }
    assert_eq!((world.run_state("run"), world.state.status("run").unwrap().step), (RunState::Running, 0));
    assert_eq!(world.commands, []);

    world.news(0, row(5));
    assert!(world.position(|c| matches!(c, Command::WriteMetrics(_, row) if row.step == 5)).is_some());
    world.news(0, paused(5));
    assert_eq!(world.run_state("run"), RunState::Paused);
    world.news(0, finished(9));
    assert_eq!(world.run_state("run"), RunState::Stopping);
}

#[test]
fn no_step_is_beyond_the_last() {
    let mut world = World::running(&[1, 1]);
    for news in [row(10), paused(10), beat(10)] {
        assert_eq!(world.try_news(0, news), implausible("step 10, where the last is 9"));
    }
    assert_eq!(world.try_news(1, beat(10)), implausible("step 10, where the last is 9"));
    assert_eq!(world.try_news(0, finished(424_242)), implausible("step 424242, where the last is 9"));
    assert_eq!((world.run_state("run"), world.state.status("run").unwrap().step), (RunState::Running, 0));

    // Where the group is, rank 0 says alone.
    world.news(1, beat(3));
    assert_eq!(world.state.status("run").unwrap().step, 0);
    world.news(0, beat(3));
    assert_eq!(world.state.status("run").unwrap().step, 3);
    for news in [row(9), paused(9), beat(9), finished(9)] {
        world.news(0, news);
    }
    assert!(world.reason("run").starts_with("finished with step 9"), "{}", world.reason("run"));
}

#[test]
fn a_run_does_not_end_before_the_step_that_it_has_come_to() {
    let mut world = World::running(&[1, 1]);
    world.reach(5);
    assert_eq!(world.try_news(0, finished(4)), implausible("its end after step 4, where it has come to 5"));
    assert_eq!(world.run_state("run"), RunState::Running);
    world.news(0, finished(5));
    assert!(world.reason("run").starts_with("finished with step 5"), "{}", world.reason("run"));
}

#[test]
fn a_rank_starts_where_the_run_does() {
    let mut world = forming_from(None);
    assert_eq!(world.try_news(0, ready_at(3, 9)), implausible("a start from step 3, where it begins from 0"));
    let mut world = forming_from(Some(40));
    assert_eq!(
        world.try_news(1, ready_at(0, 90)),
        implausible("a start from step 0, where it begins from 40")
    );
    for rank in 0..2 {
        world.news(rank, ready_at(40, 90));
    }
    let status = world.state.status("run").unwrap();
    assert_eq!((status.state(), status.step, status.total_steps), (RunState::Running, 40, 90));
}

#[test]
fn rank_0_says_how_long_the_run_is() {
    for order in [[0, 1], [1, 0]] {
        let mut world = forming_from(None);
        for rank in order {
            world.news(rank, ready_at(0, if rank == 0 { 9 } else { 1_000_000 }));
        }
        assert_eq!(world.state.status("run").unwrap().total_steps, 9);
        assert_eq!(world.try_news(0, row(10)), implausible("step 10, where the last is 9"));
    }
}

/// Its configuration was changed: it has nothing left to do.
#[test]
fn a_run_that_was_made_shorter_ends_where_it_stands() {
    let mut world = forming_from(Some(40));
    for rank in 0..2 {
        world.news(rank, ready_at(40, 9));
    }
    assert_eq!(world.try_news(0, finished(41)), implausible("step 41, where the last is 40"));
    world.news(0, finished(40));
    assert!(world.reason("run").starts_with("finished with step 40"), "{}", world.reason("run"));
}

#[test]
fn nothing_is_heard_of_training_before_rank_0_is_ready() {
    let mut world = forming_from(None);
    world.news(1, ready_at(0, 9));
    for news in [row(0), paused(0), finished(0)] {
        assert_eq!(world.try_news(0, news), not_ready(1));
    }
    // A session that was opened again begins with a sign of life, which counts for nothing yet.
    world.news(0, beat(424_242));
    assert_eq!(world.state.status("run").unwrap().step, 0);
    world.news(0, ready_at(0, 9));
    assert_eq!(world.run_state("run"), RunState::Running);
}

/// On another connection, another rank's word that it is ready may be later than rank 0's that there is nothing to do.
#[test]
fn an_end_before_all_are_ready_waits_for_them() {
    let mut world = forming_from(Some(9));
    world.news(0, ready_at(9, 9));
    world.news(0, finished(9));
    assert_eq!(world.run_state("run"), RunState::Forming);
    world.news(1, ready_at(9, 9));
    assert_eq!(world.run_state("run"), RunState::Stopping);
    assert!(world.reason("run").starts_with("finished with step 9"), "{}", world.reason("run"));
}
