//! The collectives: which frames each of them exchanges, and the sums.

use std::net::TcpStream;
use std::ops::Range;

use kernels::peers::{PeerError, Peers};
use kernels::split;

use crate::exchange::{self, Lane, Transfer};
use crate::frame::{Header, Op};
use crate::{AbortHandle, Element, Error, Number};

/// Up to here an all-reduce is one exchange of whole buffers, beyond it two exchanges of shares.
///
/// Whole buffers cost `(W - 1) n` bytes and one latency, shares `2 (W - 1) / W n` and two.
const ONE_EXCHANGE_BYTES: usize = 16 << 10;

/// The largest share that is reduced at once where all ranks are on one host: what came from the peers is then still in the
/// cache when it is summed and sent on. Over a network each piece would cost two latencies.
const SHARE_BYTES_ON_ONE_HOST: usize = 256 << 10;

/// One rank's end of a group, as formed by [`crate::form`].
///
/// Every rank calls the same operations in the same order with the same lengths; a rank that does not is
/// found out by the headers. A rank waits for its peers as long as they live. After an error only [`Error::Failed`] follows: the streams are then anywhere.
#[derive(Debug)]
pub struct Communicator {
    mesh: Mesh,
    /// The most that an all-reduce sums at once on a rank.
    share_bytes: usize,
    /// What the peers sent to be summed, kept between calls. Of `u64`, so that it is aligned for any element.
    scratch: Vec<u64>,
}

/// The sockets and the place in the program that the headers state.
#[derive(Debug)]
struct Mesh {
    rank: usize,
    /// By rank; `None` at this rank's own place.
    links: Vec<Option<TcpStream>>,
    generation: u64,
    step: u64,
    sequence: u64,
    bytes_sent: u64,
    abort: AbortHandle,
    failed: bool,
    /// The exchange that is to fail, in a test of what a failure leaves behind.
    fails_at: Option<u64>,
}

impl Communicator {
    /// A group of one: every operation is a copy.
    pub fn alone() -> Self {
        Self::new(0, 0, vec![None], AbortHandle::alone(), true)
    }

    pub(crate) fn new(
        rank: usize,
        generation: u64,
        links: Vec<Option<TcpStream>>,
        abort: AbortHandle,
        on_one_host: bool,
    ) -> Self {
        let share_bytes = if on_one_host { SHARE_BYTES_ON_ONE_HOST } else { usize::MAX };
        let mesh = Mesh {
            rank,
            links,
            generation,
            step: 0,
            sequence: 0,
            bytes_sent: 0,
            abort,
            failed: false,
            fails_at: None,
        };
        Self { mesh, share_bytes, scratch: Vec::new() }
    }

    /// This rank's place, in `0..world_size`.
    pub fn rank(&self) -> usize {
        self.mesh.rank
    }

    /// How many ranks take part.
    pub fn world_size(&self) -> usize {
        self.mesh.links.len()
    }

    /// States the step in the headers of the operations that follow.
    pub fn set_step(&mut self, step: u64) {
        self.mesh.step = step;
    }

    /// Exchanges since the group was formed; the same on every rank between operations.
    pub fn sequence(&self) -> u64 {
        self.mesh.sequence
    }

    /// Lets the exchange of that sequence number fail before anything is sent, as if this rank were cut off: so that
    /// tests can see what a step leaves behind, wherever it fails.
    pub fn fail_at(&mut self, sequence: u64) {
        self.mesh.fails_at = Some(sequence);
    }

    /// Payload bytes that this rank has sent, headers not counted.
    pub fn bytes_sent(&self) -> u64 {
        self.mesh.bytes_sent
    }

    /// Ends this communicator's operations from another thread.
    pub fn abort_handle(&self) -> AbortHandle {
        self.mesh.abort.clone()
    }

    /// Gathers `local`, of one length on every rank, into `out` in rank order.
    ///
    /// Sends `(W - 1) * local.len()` elements.
    ///
    /// # Errors
    /// As every operation: see [`Error`].
    ///
    /// # Panics
    /// If `out` is not `world_size * local.len()` long.
    pub fn all_gather<T: Element>(&mut self, local: &[T], out: &mut [T]) -> Result<(), Error> {
        assert_eq!(out.len(), self.world_size() * local.len(), "length of an all-gather's output");
        let bounds = equal_bounds(self.world_size(), local.len());
        self.mesh.gather(Op::AllGather, local, &bounds, out)
    }

    /// Gathers `local`, of `counts[rank]` elements, into `out` in rank order; a count may be 0.
    ///
    /// Sends `(W - 1) * local.len()` elements.
    ///
    /// # Errors
    /// As every operation.
    ///
    /// # Panics
    /// If there is not one count per rank, or a length disagrees with the counts.
    pub fn all_gather_counts<T: Element>(
        &mut self,
        local: &[T],
        counts: &[usize],
        out: &mut [T],
    ) -> Result<(), Error> {
        let bounds = self.bounds(counts, out.len());
        assert_eq!(local.len(), counts[self.rank()], "this rank's count of an all-gather");
        self.mesh.gather(Op::AllGather, local, &bounds, out)
    }

    /// Replaces `values` by their sum over the ranks, added in rank order: the same bits on every rank.
    ///
    /// Sends `(W - 1) * n` elements if `n` is small and about `2 (W - 1) / W * n` if it is large.
    ///
    /// # Errors
    /// As every operation; `values` then mean nothing.
    pub fn all_reduce_sum<T: Number>(&mut self, values: &mut [T]) -> Result<(), Error> {
        if size_of_val(values) <= ONE_EXCHANGE_BYTES {
            let bounds = equal_bounds(self.world_size(), values.len());
            let gathered = typed(&mut self.scratch, self.mesh.links.len() * values.len());
            self.mesh.gather(Op::ReduceByGather, values, &bounds, gathered)?;
            sum_in_rank_order(gathered, values);
            return Ok(());
        }
        let piece = self.share_bytes.saturating_mul(self.world_size()) / size_of::<T>();
        values.chunks_mut(piece).try_for_each(|piece| self.all_reduce_in_shares(piece))
    }

    fn all_reduce_in_shares<T: Number>(&mut self, values: &mut [T]) -> Result<(), Error> {
        let world_size = self.world_size();
        let bounds: Vec<_> = (0..world_size).map(|rank| split(values.len(), world_size, rank)).collect();
        let own = bounds[self.rank()].clone();
        let shares = self.scatter(Op::ReduceByScatter, values, &bounds)?;
        sum_in_rank_order(shares, &mut values[own]);
        self.mesh.gather_in_place(Op::GatherReduced, &bounds, values)
    }

    /// Sums `values` over the ranks, in rank order, and leaves each rank its share: `counts[rank]` elements.
    ///
    /// Sends `n - counts[rank]` elements.
    ///
    /// # Errors
    /// As every operation.
    ///
    /// # Panics
    /// If there is not one count per rank, or a length disagrees with the counts.
    pub fn reduce_scatter_sum<T: Number>(
        &mut self,
        values: &[T],
        counts: &[usize],
        out: &mut [T],
    ) -> Result<(), Error> {
        let bounds = self.bounds(counts, values.len());
        assert_eq!(out.len(), counts[self.rank()], "this rank's count of a reduce-scatter");
        let shares = self.scatter(Op::ReduceScatter, values, &bounds)?;
        sum_in_rank_order(shares, out);
        Ok(())
    }

    /// Gives every rank the values of `root`.
    ///
    /// `root` sends `(W - 1) * n` elements, the others none.
    ///
    /// # Errors
    /// As every operation.
    ///
    /// # Panics
    /// If there is no rank `root`.
    pub fn broadcast<T: Element>(&mut self, values: &mut [T], root: usize) -> Result<(), Error> {
        assert!(root < self.world_size(), "root {root} of {} ranks", self.world_size());
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        let transfers = if root == self.rank() {
            let bytes: &[u8] = bytes;
            let send = |rank| Transfer { rank, outgoing: Some(bytes), incoming: None };
            self.mesh.peers().map(send).collect()
        } else {
            vec![Transfer { rank: root, outgoing: None, incoming: Some(bytes) }]
        };
        self.mesh.exchange(Op::Broadcast, T::CODE, transfers)
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As every operation.
    pub fn barrier(&mut self) -> Result<(), Error> {
        let transfers =
            self.mesh.peers().map(|rank| Transfer { rank, outgoing: Some(&[]), incoming: Some(&mut []) });
        let transfers = transfers.collect();
        self.mesh.exchange(Op::Barrier, u8::CODE, transfers)
    }

    /// Sends to each rank its part of `values`, `counts[rank]` elements, and receives this rank's part of everybody's
    /// into `out`, in rank order.
    ///
    /// Sends `n - counts[rank]` elements.
    ///
    /// # Errors
    /// As every operation.
    ///
    /// # Panics
    /// If there is not one count per rank, or a length disagrees with the counts.
    pub fn all_to_all<T: Element>(
        &mut self,
        values: &[T],
        counts: &[usize],
        out: &mut [T],
    ) -> Result<(), Error> {
        let bounds = self.bounds(counts, values.len());
        assert_eq!(out.len(), self.world_size() * counts[self.rank()], "length of an all-to-all's output");
        self.mesh.scatter(Op::AllToAll, values, &bounds, out)
    }

    /// As [`Communicator::all_to_all`], into the scratch buffer.
    fn scatter<T: Number>(&mut self, op: Op, values: &[T], bounds: &[Range<usize>]) -> Result<&[T], Error> {
        let shares = typed(&mut self.scratch, bounds.len() * bounds[self.mesh.rank].len());
        self.mesh.scatter(op, values, bounds, shares)?;
        Ok(shares)
    }

    #[track_caller]
    fn bounds(&self, counts: &[usize], len: usize) -> Vec<Range<usize>> {
        assert_eq!(counts.len(), self.world_size(), "one count per rank");
        assert_eq!(counts.iter().sum::<usize>(), len, "length of the whole");
        let ends = counts.iter().scan(0, |end, &count| {
            *end += count;
            Some(*end - count..*end)
        });
        ends.collect()
    }
}

impl Mesh {
    fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.links.len()).filter(move |&peer| peer != rank)
    }

    fn gather<T: Element>(
        &mut self,
        op: Op,
        local: &[T],
        bounds: &[Range<usize>],
        out: &mut [T],
    ) -> Result<(), Error> {
        out[bounds[self.rank].clone()].copy_from_slice(local);
        self.gather_in_place(op, bounds, out)
    }

    /// Sends this rank's part of `values` to all peers and receives theirs.
    fn gather_in_place<T: Element>(
        &mut self,
        op: Op,
        bounds: &[Range<usize>],
        values: &mut [T],
    ) -> Result<(), Error> {
        let mut pieces = pieces(values, bounds);
        let own: &[u8] = bytemuck::cast_slice(pieces.remove(self.rank));
        let transfers = self.peers().zip(pieces).map(|(rank, piece)| Transfer {
            rank,
            outgoing: Some(own),
            incoming: Some(bytemuck::cast_slice_mut(piece)),
        });
        let transfers = transfers.collect();
        self.exchange(op, T::CODE, transfers)
    }

    /// Sends to each rank its share of `values`; `shares` are all ranks' values of this rank's share, rank after rank.
    fn scatter<T: Element>(
        &mut self,
        op: Op,
        values: &[T],
        bounds: &[Range<usize>],
        shares: &mut [T],
    ) -> Result<(), Error> {
        let own = bounds[self.rank].clone();
        let mut pieces = pieces(shares, &equal_bounds(bounds.len(), own.len()));
        pieces.remove(self.rank).copy_from_slice(&values[own]);
        let transfers = self.peers().zip(pieces).map(|(peer, piece)| Transfer {
            rank: peer,
            outgoing: Some(bytemuck::cast_slice(&values[bounds[peer].clone()])),
            incoming: Some(bytemuck::cast_slice_mut(piece)),
        });
        let transfers = transfers.collect();
        self.exchange(op, T::CODE, transfers)
    }

    fn exchange(&mut self, op: Op, element: u8, transfers: Vec<Transfer<'_>>) -> Result<(), Error> {
        if self.failed {
            self.abort.check()?;
            return Err(Error::Failed);
        }
        if self.fails_at == Some(self.sequence) {
            self.failed = true;
            let source = std::io::Error::other("this exchange was told to fail");
            return Err(Error::PeerLost { rank: self.rank, source });
        }
        let header = Header {
            op: op as u8,
            element,
            generation: self.generation,
            step: self.step,
            sequence: self.sequence,
            payload_bytes: 0,
        };
        let bytes: usize = transfers.iter().filter_map(|transfer| transfer.outgoing).map(<[u8]>::len).sum();
        let lanes = transfers.into_iter().map(|transfer| {
            let stream = self.links[transfer.rank].as_ref().expect("every peer has a link");
            Lane::new(transfer, stream, header)
        });
        let outcome = exchange::run(lanes.collect(), &self.abort);
        self.failed = outcome.is_err();
        self.sequence += 1;
        self.bytes_sent += bytes as u64;
        outcome
    }
}

impl Peers for Communicator {
    fn rank(&self) -> usize {
        self.mesh.rank
    }

    fn world_size(&self) -> usize {
        self.mesh.links.len()
    }

    fn all_gather_f64(&mut self, local: &[f64]) -> Result<Vec<f64>, PeerError> {
        let mut out = vec![0.0; self.mesh.links.len() * local.len()];
        self.all_gather(local, &mut out)?;
        Ok(out)
    }
}

fn equal_bounds(parts: usize, len: usize) -> Vec<Range<usize>> {
    (0..parts).map(|part| part * len..(part + 1) * len).collect()
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
