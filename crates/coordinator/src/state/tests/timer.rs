//! Checkpoints by time.

use super::*;
use crate::state::timer::Timer;

/// A run of two ranks with a checkpoint every 60 s.
fn with_a_minute() -> World {
    let mut world = World::new();
    world.join("a", 2);
    let config_toml = "[checkpoint]\nevery_minutes = 1\n".to_owned();
    world.input(Input::Submitted(
        RunRecord { config_toml, checkpoint_step: Some(7), ..record("run", 2) },
        None,
        Vec::new(),
    ));
    // Waiting for the group counts for nothing.
    world.wait(100 * SECOND);
    for rank in 0..2 {
        world.news(rank, News::Attached { data_address: format!("host:{rank}"), pid: 1 });
        world.news(rank, News::Connected);
    }
    for rank in 0..2 {
        world.news(rank, News::Ready { step: 7, total_steps: 999, shard_bytes: 0 });
    }
    world.commands.clear();
    world
}

#[test]
fn a_checkpoint_is_asked_for_when_the_minutes_are_over() {
    let mut world = with_a_minute();
    let asked = [(0, Kind::Checkpoint)];
    world.reach(8);
    world.wait(59 * SECOND);
    assert_eq!(world.orders(), []);
    world.wait(2 * SECOND);
    assert_eq!(world.orders(), asked, "of rank 0 alone, which takes the others along");
    // While it is outstanding it is not asked for again, but repeated in a session that was opened again.
    world.reach(30);
    world.wait(120 * SECOND);
    assert_eq!(world.orders(), asked);
    world.news(0, News::Disconnected);
    world.news(0, News::Connected);
    assert_eq!(world.orders(), [asked, asked].concat());

    // Time and steps count from the commit; an operator's checkpoint counts as well.
    world.commands.clear();
    world.commit(31);
    world.reach(40);
    world.wait(50 * SECOND);
    world.commit(40);
    world.reach(41);
    world.wait(59 * SECOND);
    assert_eq!(world.orders(), []);
    world.wait(2 * SECOND);
    assert_eq!(world.orders(), asked);
}

#[test]
fn the_same_step_is_not_saved_again() {
    let mut world = with_a_minute();
    world.wait(300 * SECOND);
    assert_eq!(world.orders(), [], "no step was made since the group began");
    world.reach(8);
    world.wait(SECOND);
    world.commit(8);
    world.commands.clear();
    world.wait(300 * SECOND);
    assert_eq!(world.orders(), []);

    // A pause saves nothing; what was done before it is saved once it is over.
    world.reach(9);
    world.news(0, News::Paused { paused: true, step: 9 });
    world.wait(300 * SECOND);
    assert_eq!(world.orders(), []);
    world.news(0, News::Paused { paused: false, step: 9 });
    world.wait(SECOND);
    assert_eq!(world.orders(), [(0, Kind::Checkpoint)]);
    // A run that is stopping saves its last step by itself.
    world.commit(9);
    world.reach(10);
    world.order(Operation::Stop).unwrap();
    world.commands.clear();
    world.wait(300 * SECOND);
    assert_eq!(world.orders(), []);
}

#[test]
fn an_order_that_nothing_came_of_is_given_again() {
    let mut world = with_a_minute();
    world.reach(8);
    world.wait(61 * SECOND);
    world.wait(598 * SECOND);
    assert_eq!(world.orders().len(), 1);
    world.wait(3 * SECOND);
    assert_eq!(world.orders(), [(0, Kind::Checkpoint); 2]);
}

#[test]
fn no_minutes_no_checkpoints_and_time_that_nobody_listened_does_not_count() {
    let mut world = with_a_minute();
    world.reach(8);
    world.now += 600 * SECOND;
    world.input(Input::Tick);
    assert_eq!(world.orders(), []);
    world.wait(61 * SECOND);
    assert_eq!(world.orders(), [(0, Kind::Checkpoint)]);

    let timer = |text: &str| Timer::of(text).every;
    assert_eq!(timer("[checkpoint]\nevery = 5\n"), Duration::ZERO);
    assert_eq!(timer("[checkpoint]\nevery_minutes = 0.01\n"), Duration::from_millis(600));
    // As versions without the key stored it.
    assert_eq!(timer("[checkpoint]\nevery = 0\nkeep = 3\n"), Duration::from_secs(600));
    let mut never = World::running(&[1]);
    never.state.runs[0].timer.every = Duration::ZERO;
    never.reach(8);
    never.wait(1200 * SECOND);
    assert_eq!(never.orders(), []);
}
