//! The collectives, whatever carries them.

use std::net::TcpStream;
use std::ops::Range;

use kernels::peers::{PeerError, Peers};

use crate::position::Position;
use crate::tcp::{Tcp, equal_bounds};
use crate::{AbortHandle, Element, Error, Number};

/// One rank's end of a group, as formed by [`crate::form`].
///
/// Every rank calls the same operations in the same order with the same lengths; a rank that does not is
/// found out by the headers. A rank waits for its peers as long as they live. After an error only [`Error::Failed`] follows: the streams are then anywhere.
#[derive(Debug)]
pub struct Communicator {
    position: Position,
    transport: Transport,
}

/// What carries the values of a group from rank to rank.
#[derive(Debug)]
enum Transport {
    /// There is no other rank: every operation is a copy.
    Alone,
    /// A socket to each peer.
    Tcp(Tcp),
}

impl Communicator {
    /// A group of one: every operation is a copy.
    pub fn alone() -> Self {
        Self { position: Position::new(0, 1, 0, AbortHandle::alone()), transport: Transport::Alone }
    }

    /// - `links`: the socket to each peer, by rank; `None` at this rank's own index
    pub(crate) fn over_tcp(
        rank: usize,
        generation: u64,
        links: Vec<Option<TcpStream>>,
        abort: AbortHandle,
        on_one_host: bool,
    ) -> Self {
        let position = Position::new(rank, links.len(), generation, abort);
        Self { position, transport: Transport::Tcp(Tcp::new(links, on_one_host)) }
    }

    /// This rank's index, in `0..world_size`.
    pub fn rank(&self) -> usize {
        self.position.rank
    }

    /// How many ranks take part.
    pub fn world_size(&self) -> usize {
        self.position.world_size
    }

    /// States the step in the headers of the operations that follow.
    pub fn set_step(&mut self, step: u64) {
        self.position.step = step;
    }

    /// Exchanges since the group was formed; the same on every rank between operations.
    pub fn sequence(&self) -> u64 {
        self.position.sequence
    }

    /// Lets the exchange of that sequence number fail before anything is sent, as if this rank were cut off: so that
    /// tests can see what a step leaves behind, wherever it fails.
    pub fn fail_at(&mut self, sequence: u64) {
        self.position.fails_at = Some(sequence);
    }

    /// Payload bytes that this rank has sent, headers not counted.
    pub fn bytes_sent(&self) -> u64 {
        self.position.bytes_sent
    }

    /// Ends this communicator's operations from another thread.
    pub fn abort_handle(&self) -> AbortHandle {
        self.position.abort.clone()
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
        self.gather(local, &bounds, out)
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
        self.gather(local, &bounds, out)
    }

    fn gather<T: Element>(
        &mut self,
        local: &[T],
        bounds: &[Range<usize>],
        out: &mut [T],
    ) -> Result<(), Error> {
        let Self { position, transport } = self;
        match transport {
            Transport::Alone => copy(position, || out.copy_from_slice(local)),
            Transport::Tcp(tcp) => tcp.all_gather(position, local, bounds, out),
        }
    }

    /// Replaces `values` by their sum over the ranks, added in rank order: the same bits on every rank.
    ///
    /// Sends `(W - 1) * n` elements if `n` is small and about `2 (W - 1) / W * n` if it is large.
    ///
    /// # Errors
    /// As every operation; `values` then mean nothing.
    pub fn all_reduce_sum<T: Number>(&mut self, values: &mut [T]) -> Result<(), Error> {
        let Self { position, transport } = self;
        match transport {
            Transport::Alone => copy(position, || ()),
            Transport::Tcp(tcp) => tcp.all_reduce_sum(position, values),
        }
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
        let Self { position, transport } = self;
        match transport {
            Transport::Alone => copy(position, || out.copy_from_slice(values)),
            Transport::Tcp(tcp) => tcp.reduce_scatter_sum(position, values, &bounds, out),
        }
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
        let Self { position, transport } = self;
        match transport {
            Transport::Alone => copy(position, || ()),
            Transport::Tcp(tcp) => tcp.broadcast(position, values, root),
        }
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As every operation.
    pub fn barrier(&mut self) -> Result<(), Error> {
        let Self { position, transport } = self;
        match transport {
            Transport::Alone => copy(position, || ()),
            Transport::Tcp(tcp) => tcp.barrier(position),
        }
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
        let Self { position, transport } = self;
        match transport {
            Transport::Alone => copy(position, || out.copy_from_slice(values)),
            Transport::Tcp(tcp) => tcp.all_to_all(position, values, &bounds, out),
        }
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

impl Peers for Communicator {
    fn rank(&self) -> usize {
        self.position.rank
    }

    fn world_size(&self) -> usize {
        self.position.world_size
    }

    fn all_gather_f64(&mut self, local: &[f64]) -> Result<Vec<f64>, PeerError> {
        let mut out = vec![0.0; self.position.world_size * local.len()];
        self.all_gather(local, &mut out)?;
        Ok(out)
    }
}

/// The operation of a group of one, which counts as an exchange and fails as one.
fn copy(position: &mut Position, copy: impl FnOnce()) -> Result<(), Error> {
    position.enter()?;
    let outcome = position.abort.check().map(|()| copy());
    position.leave(0, outcome)
}
