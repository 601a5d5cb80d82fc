//! Every operation against what it is defined to compute, over loopback sockets.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

mod support;

use std::fmt::Debug;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use collective::{AbortHandle, Communicator, Element, GradientReducer, Listener, Membership, Number, form};
use kernels::peers::Peers;
use kernels::split;
use support::on_ranks;

/// A value that tells which rank, and with signs and magnitudes at which the order of a sum matters.
trait Sample: Number + PartialEq + Debug {
    fn draw(random: &mut Random) -> Self;
}

impl Sample for f32 {
    fn draw(random: &mut Random) -> Self {
        (random.next() >> 40) as f32 * 10f32.powi(random.below(9) as i32) - 3e9
    }
}

impl Sample for f64 {
    fn draw(random: &mut Random) -> Self {
        (random.next() >> 11) as f64 * 10f64.powi(random.below(9) as i32) - 3e20
    }
}

impl Sample for u64 {
    fn draw(random: &mut Random) -> Self {
        random.next()
    }
}

impl Sample for u32 {
    fn draw(random: &mut Random) -> Self {
        random.next() as u32
    }
}

/// Deterministic numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// What `rank` contributes to the round `seed`.
fn contribution<T: Sample>(seed: u64, rank: usize, len: usize) -> Vec<T> {
    let mut random = Random(seed * 1000 + rank as u64);
    (0..len).map(|_| T::draw(&mut random)).collect()
}

fn sum_in_rank_order<T: Sample>(seed: u64, world_size: usize, len: usize) -> Vec<T> {
    let first = contribution(seed, 0, len);
    (1..world_size).fold(first, |sum, rank| {
        let other = contribution::<T>(seed, rank, len);
        sum.into_iter().zip(other).map(|(a, b)| a.plus(b)).collect()
    })
}

#[track_caller]
fn assert_same_bits<T: Element>(got: &[T], expected: &[T], what: &str) {
    assert!(bytemuck::cast_slice::<T, u8>(got) == bytemuck::cast_slice::<T, u8>(expected), "{what}");
}

/// Counts from 0 to 40 per rank, at least one of them 0 when `round` is even.
fn ragged_counts(round: u64, world_size: usize) -> Vec<usize> {
    let mut random = Random(round);
    let mut counts: Vec<usize> = (0..world_size).map(|_| random.below(41)).collect();
    if round.is_multiple_of(2) {
        counts[random.below(world_size)] = 0;
    }
    counts
}

fn check_operations<T: Sample>(communicator: &mut Communicator) {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    for round in 0..6 {
        let counts = ragged_counts(round, world_size);
        let total = counts.iter().sum();
        let whole: Vec<T> =
            (0..world_size).flat_map(|peer| contribution::<T>(round, peer, counts[peer])).collect();

        let mut gathered = contribution::<T>(99, 0, total);
        let local = contribution::<T>(round, rank, counts[rank]);
        communicator.all_gather_counts(&local, &counts, &mut gathered).unwrap();
        assert_same_bits(&gathered, &whole, "all_gather_counts");

        let mut share = contribution::<T>(99, 0, counts[rank]);
        communicator.reduce_scatter_sum(&contribution::<T>(round, rank, total), &counts, &mut share).unwrap();
        let sum = sum_in_rank_order::<T>(round, world_size, total);
        let begin: usize = counts[..rank].iter().sum();
        assert_same_bits(&share, &sum[begin..begin + counts[rank]], "reduce_scatter_sum");

        let mut parts = contribution::<T>(99, 0, world_size * counts[rank]);
        communicator.all_to_all(&contribution::<T>(round, rank, total), &counts, &mut parts).unwrap();
        let part = |peer| contribution::<T>(round, peer, total)[begin..begin + counts[rank]].to_vec();
        assert_same_bits(&parts, &(0..world_size).flat_map(part).collect::<Vec<T>>(), "all_to_all");
    }
    // On both sides of the size at which an all-reduce changes its way, and not divisible by the ranks.
    for len in [0, 1, 7, 1023, 4099, 50_021] {
        let mut values = contribution::<T>(7, rank, len);
        communicator.all_reduce_sum(&mut values).unwrap();
        assert_same_bits(&values, &sum_in_rank_order::<T>(7, world_size, len), "all_reduce_sum");

        let local = contribution::<T>(8, rank, len);
        let mut gathered = contribution::<T>(99, 0, world_size * len);
        communicator.all_gather(&local, &mut gathered).unwrap();
        let whole: Vec<T> = (0..world_size).flat_map(|peer| contribution::<T>(8, peer, len)).collect();
        assert_same_bits(&gathered, &whole, "all_gather");

        for root in 0..world_size {
            let mut values = contribution::<T>(9, rank, len);
            communicator.broadcast(&mut values, root).unwrap();
            assert_same_bits(&values, &contribution::<T>(9, root, len), "broadcast");
        }
    }
    communicator.barrier().unwrap();
}

#[test]
fn operations_do_what_they_say_for_every_type_and_world_size() {
    for world_size in 1..=4 {
        on_ranks(world_size, |mut communicator| {
            check_operations::<f32>(&mut communicator);
            check_operations::<f64>(&mut communicator);
            check_operations::<u64>(&mut communicator);
            check_operations::<u32>(&mut communicator);
            let mut bytes = [communicator.rank() as u8; 3];
            communicator.broadcast(&mut bytes, communicator.world_size() - 1).unwrap();
            assert_eq!(bytes, [communicator.world_size() as u8 - 1; 3]);
        });
    }
}

#[test]
fn the_order_of_the_sum_shows_in_its_bits() {
    // Else the comparisons above could not tell rank order from any other.
    let forward = sum_in_rank_order::<f32>(7, 4, 1023);
    let backward = (0..3).rev().fold(contribution::<f32>(7, 3, 1023), |sum, rank| {
        sum.into_iter().zip(contribution::<f32>(7, rank, 1023)).map(|(a, b)| a + b).collect()
    });
    assert_ne!(forward, backward);
}

#[test]
fn a_group_of_one_needs_no_sockets() {
    let mut alone = Communicator::alone();
    check_operations::<f32>(&mut alone);
    assert_eq!((alone.rank(), alone.world_size(), alone.bytes_sent()), (0, 1, 0));
    alone.abort_handle().abort("enough");
    assert_eq!(alone.barrier().unwrap_err().to_string(), "aborted: enough");
}

#[test]
fn all_ranks_send_more_than_the_sockets_hold_at_once() {
    const LEN: usize = 4 << 20;
    let sums = on_ranks(4, |mut communicator| {
        let rank = communicator.rank();
        let mut values: Vec<f32> = (0..LEN).map(|i| (i % 251 * (rank + 1)) as f32).collect();
        communicator.all_reduce_sum(&mut values).unwrap();
        let mut gathered = vec![0f32; 4 * LEN / 4];
        communicator.all_gather(&values[rank * LEN / 4..(rank + 1) * LEN / 4], &mut gathered).unwrap();
        assert_same_bits(&gathered, &values, "shares of the sum");
        values
    });
    let expected: Vec<f32> = (0..LEN).map(|i| (i % 251 * 10) as f32).collect();
    for sum in sums {
        assert_same_bits(&sum, &expected, "sum of 16 MB");
    }
}

/// As [`on_ranks`], each rank at an address of its own, so that they seem to be on several hosts.
#[track_caller]
fn on_hosts<R: Send>(world_size: usize, body: impl Fn(Communicator) -> R + Sync) -> Vec<R> {
    let host = |rank: usize| IpAddr::from([127, 0, 0, 1 + rank as u8]);
    let listeners: Vec<_> = (0..world_size).map(|rank| Listener::bind(host(rank)).unwrap()).collect();
    let peers: Vec<_> = listeners.iter().map(|listener| listener.address().to_string()).collect();
    thread::scope(|scope| {
        let ranks: Vec<_> = listeners
            .into_iter()
            .enumerate()
            .map(|(rank, listener)| {
                let group = Membership { key: [0; 32], generation: 0, rank, peers: peers.clone() };
                scope.spawn(|| {
                    let abort = AbortHandle::new().unwrap();
                    body(form(listener, group, 1, Duration::from_secs(60), &abort).unwrap().pop().unwrap())
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn a_long_buffer_is_reduced_piece_by_piece_on_one_host_and_at_once_over_several() {
    const LEN: usize = 700_001;
    let reduce = |mut communicator: Communicator| {
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        let mut values = contribution::<f32>(7, rank, LEN);
        communicator.all_reduce_sum(&mut values).unwrap();
        assert_same_bits(&values, &sum_in_rank_order::<f32>(7, world_size, LEN), "a long sum");
        (communicator.sequence(), communicator.bytes_sent())
    };
    for world_size in [2, 3] {
        let pieces = (4 * LEN).div_ceil(world_size * 256 * 1024) as u64;
        for (rank, (exchanges, bytes)) in on_ranks(world_size, reduce).into_iter().enumerate() {
            assert_eq!(exchanges, 2 * pieces);
            // Every rank is sent all but its own share, and sends its own to all others.
            let whole = 4 * LEN as u64;
            assert!(
                bytes.abs_diff(2 * (world_size as u64 - 1) * whole / world_size as u64) < 16 * pieces,
                "{rank}"
            );
        }
        assert!(on_hosts(world_size, reduce).into_iter().all(|(exchanges, _)| exchanges == 2));
    }
}

#[test]
fn bytes_sent_are_the_formulas() {
    for world_size in 1..=4 {
        on_ranks(world_size, |mut communicator| {
            let (w, rank) = (world_size as u64, communicator.rank());
            let mut before = 0;
            let mut sent = |communicator: &Communicator| {
                let difference = communicator.bytes_sent() - before;
                before = communicator.bytes_sent();
                difference
            };
            communicator.all_gather(&[1u32; 10], &mut vec![0; 10 * world_size]).unwrap();
            assert_eq!(sent(&communicator), (w - 1) * 40);

            communicator.all_reduce_sum(&mut [1f32; 100]).unwrap();
            assert_eq!(sent(&communicator), (w - 1) * 400, "small: whole buffers");

            communicator.all_reduce_sum(&mut vec![1f32; 60_000]).unwrap();
            assert_eq!(sent(&communicator), 2 * (w - 1) * 240_000 / w, "large: shares, there and back");

            let counts: Vec<usize> =
                (0..world_size).map(|rank| split(1001, world_size, rank).len()).collect();
            communicator
                .reduce_scatter_sum(&vec![1f64; 1001], &counts, &mut vec![0.0; counts[rank]])
                .unwrap();
            assert_eq!(sent(&communicator), 8 * (1001 - counts[rank] as u64));

            let mut parts = vec![0; world_size * counts[rank]];
            communicator.all_to_all(&[1u8; 1001], &counts, &mut parts).unwrap();
            assert_eq!(sent(&communicator), 1001 - counts[rank] as u64);

            communicator.broadcast(&mut [0u8; 77], 0).unwrap();
            assert_eq!(sent(&communicator), if rank == 0 { (w - 1) * 77 } else { 0 });

            communicator.barrier().unwrap();
            assert_eq!(sent(&communicator), 0);
            // An all-reduce of shares is two exchanges.
            assert_eq!(communicator.sequence(), 8);
        });
    }
}

#[test]
fn batch_norm_sees_a_communicator_as_its_peers() {
    let gathered = on_ranks(3, |mut communicator| {
        let peers: &mut dyn Peers = &mut communicator;
        let local = [peers.rank() as f64, peers.world_size() as f64];
        peers.all_gather_f64(&local).unwrap()
    });
    assert_eq!(gathered, vec![vec![0.0, 3.0, 1.0, 3.0, 2.0, 3.0]; 3]);
}

#[test]
fn a_reducer_returns_summed_buckets_in_order_of_submission() {
    for world_size in 1..=3 {
        on_ranks(world_size, |communicator| {
            let rank = communicator.rank();
            let mut reducer = GradientReducer::<f32>::new(communicator).unwrap();
            for step in 0..3 {
                reducer.set_step(step);
                let lens = [30_000, 3, 0, 5000];
                for (bucket, &len) in lens.iter().enumerate() {
                    let ranges = vec![bucket * 100_000..bucket * 100_000 + len / 3, 7..7 + len - len / 3];
                    reducer.submit(ranges, contribution(bucket as u64, rank, len));
                }
                let buckets = reducer.finish().unwrap();
                assert_eq!(buckets.len(), lens.len());
                for (bucket, (ranges, values)) in buckets.iter().enumerate() {
                    let expected = sum_in_rank_order(bucket as u64, world_size, lens[bucket]);
                    assert_same_bits(values, &expected, "a bucket's sum");
                    assert_eq!(ranges[0].start, bucket * 100_000);
                }
                assert!(reducer.finish().unwrap().is_empty());
            }
            let shares: u64 = [30_000u64, 5000].iter().map(|len| 4 * (len - len / world_size as u64)).sum();
            if world_size == 2 {
                assert_eq!(reducer.bytes_sent(), 3 * (2 * shares + 12));
            }
        });
    }
}
