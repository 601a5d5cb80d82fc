//! Every two parts of a whole meet once, on many threads, and both may change.
//!
//! The similarity matrix is symmetric, so that a tile computed once serves the rows of both its sides. Two
//! threads must then never hold the same rows: as in a tournament, there are rounds in which every part has
//! one meeting. They depend on the number of parts alone, and so does the order in which anything is added to
//! a part; the threads only share the meetings of a round.

use kernels::Pool;

/// Calls `meet` with every two different parts and their places, `meetings - 1` of them for each part.
///
/// # Panics
/// If the number of parts is odd.
pub(crate) fn for_each_pair<P: Send>(
    pool: &Pool,
    parts: &mut [P],
    meet: impl Fn((usize, &mut P), (usize, &mut P)) + Sync,
) {
    let n = parts.len();
    assert!(n.is_multiple_of(2), "{n} parts, of which one would be left over in every round");
    for round in 1..n {
        let mut free: Vec<Option<&mut P>> = parts.iter_mut().map(Some).collect();
        let mut take = |part: usize| (part, free[part].take().expect("a part has one meeting a round"));
        let meetings = pairs(n, round).map(|(a, b)| (take(a), take(b))).collect();
        pool.for_each_part(meetings, |_, (a, b)| meet(a, b));
    }
}

/// The meetings of a round, by the circle method: the last part stays, the others move on by one place a round
/// around the circle, and those that stand opposite each other meet.
fn pairs(n: usize, round: usize) -> impl Iterator<Item = (usize, usize)> {
    let circle = n - 1;
    let opposite = move |k: usize| ((round + k) % circle, (round + circle - k) % circle);
    std::iter::once((round % circle, circle)).chain((1..n / 2).map(opposite))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn everybody_meets_everybody_once_and_nobody_twice_in_a_round() {
        for n in [2, 4, 10, 16] {
            let mut all = BTreeSet::new();
            for round in 1..n {
                let round: Vec<_> = pairs(n, round).collect();
                let players: BTreeSet<usize> = round.iter().flat_map(|&(a, b)| [a, b]).collect();
                assert_eq!((round.len(), players.len()), (n / 2, n), "{round:?}");
                all.extend(round.into_iter().map(|(a, b)| (a.min(b), a.max(b))));
            }
            assert_eq!(all.len(), n * (n - 1) / 2);
        }
    }

    #[test]
    fn parts_meet_in_the_same_order_on_any_number_of_threads() {
        let meetings = |threads| {
            let mut parts = vec![Vec::new(); 8];
            for_each_pair(&Pool::new(threads, &[]), &mut parts, |(a, of_a), (b, of_b)| {
                of_a.push(b);
                of_b.push(a);
            });
            parts
        };
        let alone = meetings(1);
        assert!(alone.iter().all(|met| met.len() == 7), "{alone:?}");
        assert_eq!(meetings(3), alone);
    }
}
