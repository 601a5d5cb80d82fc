//! The collectives over sockets: which frames each of them exchanges, and the sums.

use std::net::TcpStream;
use std::ops::Range;

use kernels::split;

use crate::exchange::{self, Lane, Transfer};
use crate::frame::Op;
use crate::position::Position;
use crate::{Element, Error, Number};

/// Up to here an all-reduce is one exchange of whole buffers, beyond it two exchanges of shares.
///
/// Whole buffers cost `(W - 1) n` bytes and one latency, shares `2 (W - 1) / W n` and two.
const ONE_EXCHANGE_BYTES: usize = 16 << 10;

/// The largest share that is reduced at once where all ranks are on one host: what came from the peers is then still in the
/// cache when it is summed and sent on. Over a network each piece would cost two latencies.
const SHARE_BYTES_ON_ONE_HOST: usize = 256 << 10;

/// The transport of a group over TCP. `bounds` are the ranges of an array that belong to the ranks, in rank order.
#[derive(Debug)]
pub(crate) struct Tcp {
    mesh: Mesh,
    /// The most that an all-reduce sums at once on a rank.
    share_bytes: usize,
    /// What the peers sent to be summed, kept between calls. Of `u64`, so that it is aligned for any element.
    scratch: Vec<u64>,
}

/// A socket to each peer, by rank; `None` at this rank's own index.
#[derive(Debug)]
struct Mesh(Vec<Option<TcpStream>>);

impl Tcp {
    pub fn new(links: Vec<Option<TcpStream>>, on_one_host: bool) -> Tcp {
        let share_bytes = if on_one_host { SHARE_BYTES_ON_ONE_HOST } else { usize::MAX };
        Tcp { mesh: Mesh(links), share_bytes, scratch: Vec::new() }
    }

    pub fn all_gather<T: Element>(
        &self,
        position: &mut Position,
        local: &[T],
        bounds: &[Range<usize>],
        out: &mut [T],
    ) -> Result<(), Error> {
        self.mesh.gather(position, Op::AllGather, local, bounds, out)
    }

    pub fn all_reduce_sum<T: Number>(
        &mut self,
        position: &mut Position,
        values: &mut [T],
    ) -> Result<(), Error> {
        let world_size = position.world_size;
        if size_of_val(values) <= ONE_EXCHANGE_BYTES {
            let bounds = equal_bounds(world_size, values.len());
            let gathered = typed(&mut self.scratch, world_size * values.len());
            self.mesh.gather(position, Op::ReduceByGather, values, &bounds, gathered)?;
            sum_in_rank_order(gathered, values);
            return Ok(());
        }
        let piece = self.share_bytes.saturating_mul(world_size) / size_of::<T>();
        values.chunks_mut(piece).try_for_each(|piece| self.all_reduce_in_shares(position, piece))
    }

    fn all_reduce_in_shares<T: Number>(
        &mut self,
        position: &mut Position,
        values: &mut [T],
    ) -> Result<(), Error> {
        let world_size = position.world_size;
        let bounds: Vec<_> = (0..world_size).map(|rank| split(values.len(), world_size, rank)).collect();
        let own = bounds[position.rank].clone();
        let shares = typed(&mut self.scratch, world_size * own.len());
        self.mesh.scatter(position, Op::ReduceByScatter, values, &bounds, shares)?;
        sum_in_rank_order(shares, &mut values[own]);
        self.mesh.gather_in_place(position, Op::GatherReduced, &bounds, values)
    }

    pub fn reduce_scatter_sum<T: Number>(
        &mut self,
        position: &mut Position,
        values: &[T],
        bounds: &[Range<usize>],
        out: &mut [T],
    ) -> Result<(), Error> {
        let shares = typed(&mut self.scratch, position.world_size * out.len());
        self.mesh.scatter(position, Op::ReduceScatter, values, bounds, shares)?;
        sum_in_rank_order(shares, out);
        Ok(())
    }

    pub fn broadcast<T: Element>(
        &self,
        position: &mut Position,
        values: &mut [T],
        root: usize,
    ) -> Result<(), Error> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        let transfers = if root == position.rank {
            let bytes: &[u8] = bytes;
            let send = |rank| Transfer { rank, outgoing: Some(bytes), incoming: None };
            peers(position).map(send).collect()
        } else {
            vec![Transfer { rank: root, outgoing: None, incoming: Some(bytes) }]
        };
        self.mesh.exchange(position, Op::Broadcast, T::CODE, transfers)
    }

    pub fn barrier(&self, position: &mut Position) -> Result<(), Error> {
        let transfers =
            peers(position).map(|rank| Transfer { rank, outgoing: Some(&[]), incoming: Some(&mut []) });
        let transfers = transfers.collect();
        self.mesh.exchange(position, Op::Barrier, u8::CODE, transfers)
    }

    pub fn all_to_all<T: Element>(
        &self,
        position: &mut Position,
        values: &[T],
        bounds: &[Range<usize>],
        out: &mut [T],
    ) -> Result<(), Error> {
        self.mesh.scatter(position, Op::AllToAll, values, bounds, out)
    }
}

impl Mesh {
    fn gather<T: Element>(
        &self,
        position: &mut Position,
        op: Op,
        local: &[T],
        bounds: &[Range<usize>],
        out: &mut [T],
    ) -> Result<(), Error> {
        out[bounds[position.rank].clone()].copy_from_slice(local);
        self.gather_in_place(position, op, bounds, out)
    }

    /// Sends this rank's part of `values` to all peers and receives theirs.
    fn gather_in_place<T: Element>(
        &self,
        position: &mut Position,
        op: Op,
        bounds: &[Range<usize>],
        values: &mut [T],
    ) -> Result<(), Error> {
        let mut pieces = pieces(values, bounds);
        let own: &[u8] = bytemuck::cast_slice(pieces.remove(position.rank));
        let transfers = peers(position).zip(pieces).map(|(rank, piece)| Transfer {
            rank,
            outgoing: Some(own),
            incoming: Some(bytemuck::cast_slice_mut(piece)),
        });
        let transfers = transfers.collect();
        self.exchange(position, op, T::CODE, transfers)
    }

    /// Sends to each rank its share of `values`; `shares` are all ranks' values of this rank's share, rank after rank.
    fn scatter<T: Element>(
        &self,
        position: &mut Position,
        op: Op,
        values: &[T],
        bounds: &[Range<usize>],
        shares: &mut [T],
    ) -> Result<(), Error> {
        let own = bounds[position.rank].clone();
        let mut pieces = pieces(shares, &equal_bounds(bounds.len(), own.len()));
        pieces.remove(position.rank).copy_from_slice(&values[own]);
        let transfers = peers(position).zip(pieces).map(|(peer, piece)| Transfer {
            rank: peer,
            outgoing: Some(bytemuck::cast_slice(&values[bounds[peer].clone()])),
            incoming: Some(bytemuck::cast_slice_mut(piece)),
        });
        let transfers = transfers.collect();
        self.exchange(position, op, T::CODE, transfers)
    }

    fn exchange(
        &self,
        position: &mut Position,
        op: Op,
        element: u8,
        transfers: Vec<Transfer<'_>>,
    ) -> Result<(), Error> {
        let bytes: usize = transfers.iter().filter_map(|transfer| transfer.outgoing).map(<[u8]>::len).sum();
        position.enter()?;
        let header = position.header(op, element);
        let lanes = transfers.into_iter().map(|transfer| {
            let stream = self.0[transfer.rank].as_ref().expect("every peer has a link");
            Lane::new(transfer, stream, header)
        });
        let outcome = exchange::run(lanes.collect(), &position.abort);
        position.leave(bytes, outcome)
    }
}

fn peers(position: &Position) -> impl Iterator<Item = usize> + use<> {
    let rank = position.rank;
    (0..position.world_size).filter(move |&peer| peer != rank)
}

/// The bounds of an array of which each rank has `len` elements.
pub(crate) fn equal_bounds(world_size: usize, len: usize) -> Vec<Range<usize>> {
    (0..world_size).map(|rank| rank * len..(rank + 1) * len).collect()
}

/// Cuts `values` at `bounds`, which tile it.
fn pieces<'a, T>(mut values: &'a mut [T], bounds: &[Range<usize>]) -> Vec<&'a mut [T]> {
    let cut = |range: &Range<usize>| values.split_off_mut(..range.len()).expect("the bounds tile the values");
    bounds.iter().map(cut).collect()
}

/// The first `len` elements of the scratch buffer, which grows to hold them.
fn typed<T: Element>(scratch: &mut Vec<u64>, len: usize) -> &mut [T] {
    let words = (len * size_of::<T>()).div_ceil(size_of::<u64>());
    if scratch.len() < words {
        scratch.resize(words, 0);
    }
    &mut bytemuck::cast_slice_mut(scratch)[..len]
}

/// Sums `contributions`, one of `out.len()` values per rank, beginning with rank 0's.
fn sum_in_rank_order<T: Number>(contributions: &[T], out: &mut [T]) {
    if out.is_empty() {
        return;
    }
    let mut ranks = contributions.chunks_exact(out.len());
    out.copy_from_slice(ranks.next().expect("a group has at least one rank"));
    for values in ranks {
        for (sum, &value) in out.iter_mut().zip(values) {
            *sum = sum.plus(value);
        }
    }
}
