//! Peers that die, abort or are at another place: a typed error, at once, and never a wrong sum.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

#[path = "support/dialer.rs"]
mod dialer;
mod support;

use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use collective::{AbortHandle, Communicator, Error, Field, GradientReducer, loopback};
use support::on_ranks;

/// More than two sockets hold, so that a rank that sends it alone blocks.
const LARGE: usize = 8 << 20;

/// Two ranks, each doing its own thing; returns how each ended.
#[track_caller]
fn two_ranks(
    first: impl Fn(&mut Communicator) -> Result<(), Error> + Sync,
    second: impl Fn(&mut Communicator) -> Result<(), Error> + Sync,
) -> [Error; 2] {
    // Neither side may close its sockets before the other has seen what it is to see.
    let both_done = Barrier::new(2);
    let outcomes = on_ranks(2, |mut communicator| {
        let outcome =
            if communicator.rank() == 0 { first(&mut communicator) } else { second(&mut communicator) };
        both_done.wait();
        outcome.unwrap_err()
    });
    outcomes.try_into().unwrap()
}

#[test]
fn a_rank_at_another_place_is_a_mismatch_on_both_sides() {
    #[track_caller]
    fn check(
        field: Field,
        values: [u64; 2],
        first: impl Fn(&mut Communicator) -> Result<(), Error> + Sync,
        second: impl Fn(&mut Communicator) -> Result<(), Error> + Sync,
    ) {
        for (rank, error) in two_ranks(first, second).into_iter().enumerate() {
            match error {
                Error::Mismatch { rank: peer, field: named, expected, got } => {
                    assert_eq!(
                        (peer, named, expected, got),
                        (1 - rank, field, values[rank], values[1 - rank])
                    );
                }
                other => panic!("rank {rank}: {other:?}"),
            }
        }
    }
    let at_step = |step| {
        move |communicator: &mut Communicator| {
            communicator.set_step(step);
            communicator.all_reduce_sum(&mut [1f32; 4])
        }
    };
    check(Field::Step, [11, 12], at_step(11), at_step(12));
    // A rank that is late by one barrier, all of whose other fields agree.
    check(
        Field::Operation,
        [7, 1],
        |communicator| communicator.barrier(),
        |communicator| communicator.all_gather::<u8>(&[], &mut []),
    );
    check(
        Field::Element,
        [1, 4],
        |communicator| communicator.all_reduce_sum(&mut [1f32; 4]),
        |communicator| communicator.all_reduce_sum(&mut [1u32; 4]),
    );
    check(
        Field::Length,
        [16, 20],
        |communicator| communicator.all_reduce_sum(&mut [1f32; 4]),
        |communicator| communicator.all_reduce_sum(&mut [1f32; 5]),
    );
}

#[test]
fn a_rank_that_skipped_an_exchange_is_a_mismatch_of_the_sequence() {
    // A broadcast that only its root believes in leaves the root one exchange ahead.
    let errors = two_ranks(
        |communicator| {
            communicator.broadcast(&mut [0u8; 0], 0)?;
            communicator.barrier()
        },
        |communicator| communicator.barrier(),
    );
    // Rank 0 meets the barrier of sequence 0 where it is at 1; rank 1 meets the broadcast.
    let [Error::Mismatch { field: first, .. }, Error::Mismatch { field: second, .. }] = errors else {
        panic!("{errors:?}");
    };
    assert_eq!((first, second), (Field::Sequence, Field::Operation));
}

#[test]
fn after_an_error_a_communicator_is_of_no_more_use() {
    on_ranks(2, |mut communicator| {
        communicator.set_step(communicator.rank() as u64);
        assert!(matches!(communicator.barrier(), Err(Error::Mismatch { .. })));
        communicator.set_step(0);
        assert!(matches!(communicator.barrier(), Err(Error::Failed)));
    });
}

#[test]
fn abort_from_another_thread_wakes_every_blocked_operation() {
    type Operation = fn(&mut Communicator) -> Result<(), Error>;
    let operations: [Operation; 5] = [
        |communicator| communicator.barrier(),
        |communicator| communicator.all_reduce_sum(&mut vec![0f32; LARGE / 4]),
        |communicator| communicator.all_gather(&vec![0u8; LARGE], &mut vec![0u8; 2 * LARGE]),
        |communicator| communicator.broadcast(&mut [0f64; 8], 1),
        |communicator| communicator.broadcast(&mut vec![0u8; LARGE], 0),
    ];
    for operation in operations {
        let mut group = loopback(2, 2).unwrap();
        // Rank 1 stays silent, but alive.
        let _silent = group.pop().unwrap();
        let mut rank_0 = group.pop().unwrap();
        let handle = rank_0[0].abort_handle();
        let (blocked, is_blocked) = channel();
        let keep_open = blocked.clone();
        let waiting = thread::spawn(move || {
            blocked.send(()).unwrap();
            let outcome = operation(&mut rank_0[0]);
            // The other communicators of the rank end with it.
            let other = rank_0[1].barrier();
            (outcome.unwrap_err().to_string(), other.unwrap_err().to_string())
        });
        is_blocked.recv().unwrap();
        // Time to block in. The outcome is the same without, but then the wake-up is not what is tested.
        assert!(is_blocked.recv_timeout(Duration::from_millis(30)).is_err());
        handle.abort("rank 3 was killed");
        handle.abort("a second reason changes nothing");
        drop(keep_open);
        let expected = "aborted: rank 3 was killed".to_owned();
        assert_eq!(waiting.join().unwrap(), (expected.clone(), expected));
        assert!(handle.is_aborted());
    }
}

#[test]
fn a_peer_that_dies_in_the_middle_is_named() {
    let outcomes = on_ranks(3, |mut communicator| {
        communicator.barrier().unwrap();
        if communicator.rank() == 1 {
            // Dropping it closes its sockets, as the death of its process does.
            return None;
        }
        Some(communicator.all_reduce_sum(&mut vec![1f32; LARGE / 4]).unwrap_err())
    });
    assert!(outcomes[1].is_none());
    for rank in [0, 2] {
        // Ranks 0 and 2 wait for rank 1; the one that noticed it first may then be gone for the other.
        match &outcomes[rank] {
            Some(Error::PeerLost { rank: lost, .. }) => assert!(*lost == 1 || *lost == 2 - rank),
            other => panic!("rank {rank}: {other:?}"),
        }
    }
    assert!(outcomes.iter().flatten().any(|error| error.to_string() == "rank 1 is gone"));
}

#[test]
fn bytes_that_are_no_frame_are_refused() {
    use std::io::Write;
    use std::net::TcpStream;
    // A peer that shakes hands properly and then sends something else.
    let listener = collective::Listener::bind([127, 0, 0, 1].into()).unwrap();
    let address = listener.address();
    let peer = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let hello = dialer::hello(1, 1, 0);
        let challenge = dialer::greet(&stream, &hello);
        let welcome: [u8; 20] = dialer::ask(&stream, &dialer::proof(&[7; 32], &hello, &challenge));
        assert_eq!(dialer::verdict(&welcome), dialer::WELCOME);
        stream.write_all(&[0x55; 4096]).unwrap();
        stream
    });
    let group = collective::Membership {
        key: [7; 32],
        generation: 2,
        rank: 0,
        peers: vec![address.to_string(), "127.0.0.1:1".to_owned()],
    };
    let abort = AbortHandle::new().unwrap();
    let mut group = collective::form(listener, group, 1, Duration::from_secs(20), &abort).unwrap();
    assert_eq!(group[0].barrier().unwrap_err().to_string(), "rank 1 sent a damaged frame");
    drop(peer.join().unwrap());
}

#[test]
fn a_reducer_reports_the_first_error_and_is_dropped_without_waiting() {
    let mut group = loopback(2, 2).unwrap();
    drop(group.pop());
    let mut rank_0 = group.pop().unwrap();
    let mut reducer = GradientReducer::new(rank_0.pop().unwrap()).unwrap();
    reducer.submit(vec![0..1, 1..3], vec![1f32; 3]);
    reducer.submit(vec![3..4, 4..6], vec![1f32; 3]);
    assert!(matches!(reducer.finish(), Err(Error::PeerLost { rank: 1, .. })));
    reducer.submit(vec![0..1, 1..3], vec![1f32; 3]);
    assert!(matches!(reducer.finish(), Err(Error::Failed)));

    // A peer that lives and never sends must not keep a rank from giving up a step.
    let mut group = loopback(2, 1).unwrap();
    let _silent = group.pop();
    let communicator = group.pop().unwrap().pop().unwrap();
    let handle = communicator.abort_handle();
    let mut reducer = GradientReducer::new(communicator).unwrap();
    reducer.submit(vec![0..1, 1..3], vec![1f32; 3]);
    drop(reducer);
    assert!(handle.is_aborted());
}
