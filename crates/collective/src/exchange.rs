//! Moves the frames of one exchange: to and from all peers at once, on the calling thread.
//!
//! Sockets do not block; `poll` waits for whichever is ready. A rank therefore reads while it writes, and
//! all ranks may send more than the sockets hold without waiting for each other in a circle.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::frame::{HEADER_BYTES, Header};
use crate::{AbortHandle, Error};

/// What one exchange does with one peer.
pub(crate) struct Transfer<'a> {
    pub rank: usize,
    pub outgoing: Option<&'a [u8]>,
    pub incoming: Option<&'a mut [u8]>,
}

/// A transfer under way.
pub(crate) struct Lane<'a> {
    rank: usize,
    stream: &'a TcpStream,
    outgoing: Option<Outgoing<'a>>,
    incoming: Option<Incoming<'a>>,
    writable: bool,
    readable: bool,
}

struct Outgoing<'a> {
    header: [u8; HEADER_BYTES],
    payload: &'a [u8],
    /// Bytes of header and payload that the socket has taken.
    sent: usize,
}

struct Incoming<'a> {
    expected: Header,
    header: [u8; HEADER_BYTES],
    payload: &'a mut [u8],
    /// Bytes of header and payload that have arrived.
    received: usize,
}

impl<'a> Lane<'a> {
    /// `header` is this exchange's, without the length.
    pub(crate) fn new(transfer: Transfer<'a>, stream: &'a TcpStream, header: Header) -> Self {
        let with_len = |len: usize| Header { payload_bytes: len as u64, ..header };
        Self {
            rank: transfer.rank,
            stream,
            outgoing: transfer.outgoing.map(|payload| Outgoing {
                header: with_len(payload.len()).encode(),
                payload,
                sent: 0,
            }),
            incoming: transfer.incoming.map(|payload| Incoming {
                expected: with_len(payload.len()),
                header: [0; HEADER_BYTES],
                payload,
                received: 0,
            }),
            // The first attempt is made without asking.
            writable: true,
            readable: true,
        }
    }

    fn is_done(&self) -> bool {
        self.outgoing.is_none() && self.incoming.is_none()
    }

    fn advance(&mut self) -> Result<(), Error> {
        while self.writable
            && let Some(outgoing) = &mut self.outgoing
        {
            match outgoing.write_some(self.stream) {
                Ok(true) => self.outgoing = None,
                Ok(false) => {}
                Err(source) if source.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(source) => return Err(Error::PeerLost { rank: self.rank, source }),
            }
        }
        while self.readable
            && let Some(incoming) = &mut self.incoming
        {
            match incoming.read_some(self.stream) {
                Ok(count) => {
                    if incoming.is_complete_after(count, self.rank)? {
                        self.incoming = None;
                    }
                }
                Err(source) if source.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(source) => return Err(Error::PeerLost { rank: self.rank, source }),
            }
        }
        Ok(())
    }

    fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLOUT, self.outgoing.is_some());
        flags.set(PollFlags::POLLIN, self.incoming.is_some());
        flags
    }
}

impl Outgoing<'_> {
    /// True when the last byte is gone.
    fn write_some(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        let count = retrying(|| {
            if self.sent < HEADER_BYTES {
                // Header and beginning of the payload in one packet.
                stream.write_vectored(&[IoSlice::new(&self.header[self.sent..]), IoSlice::new(self.payload)])
            } else {
                stream.write(&self.payload[self.sent - HEADER_BYTES..])
            }
        })?;
        self.sent += count;
        Ok(self.sent == HEADER_BYTES + self.payload.len())
    }
}

impl Incoming<'_> {
    fn read_some(&mut self, mut stream: &TcpStream) -> io::Result<usize> {
        let count = retrying(|| {
            if self.received < HEADER_BYTES {
                // The payload's room is offered before the header is checked, which saves a system call per
                // frame; if the header is wrong, the operation fails and its output means nothing.
                let header = IoSliceMut::new(&mut self.header[self.received..]);
                stream.read_vectored(&mut [header, IoSliceMut::new(self.payload)])
            } else {
                stream.read(&mut self.payload[self.received - HEADER_BYTES..])
            }
        })?;
        if count == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection was closed"));
        }
        Ok(count)
    }

    /// Takes note of `count` more bytes, and checks the header when it is complete.
    fn is_complete_after(&mut self, count: usize, rank: usize) -> Result<bool, Error> {
        let had_header = self.received >= HEADER_BYTES;
        self.received += count;
        if !had_header && self.received >= HEADER_BYTES {
            let header = Header::decode(&self.header).ok_or(Error::BadFrame { rank })?;
            self.expected.check(rank, &header)?;
        }
        Ok(self.received == HEADER_BYTES + self.payload.len())
    }
}

/// Completes all lanes, or fails as soon as one of them cannot be completed.
pub(crate) fn run(mut lanes: Vec<Lane<'_>>, abort: &AbortHandle) -> Result<(), Error> {
    loop {
        abort.check()?;
        for lane in &mut lanes {
            lane.advance()?;
        }
        lanes.retain(|lane| !lane.is_done());
        if lanes.is_empty() {
            return Ok(());
        }
        wait(&mut lanes, abort)?;
    }
}

fn wait(lanes: &mut [Lane<'_>], abort: &AbortHandle) -> Result<(), Error> {
    let mut fds: Vec<PollFd<'_>> =
        lanes.iter().map(|lane| PollFd::new(lane.stream.as_fd(), lane.interest())).collect();
    fds.extend(abort.signal().map(|signal| PollFd::new(signal, PollFlags::POLLIN)));
    poll_interruptible(&mut fds, PollTimeout::NONE)?;
    let ready: Vec<PollFlags> = fds.iter().map(ready).collect();
    for (lane, ready) in lanes.iter_mut().zip(ready) {
        lane.writable |= ready.contains(PollFlags::POLLOUT);
        lane.readable |= ready.contains(PollFlags::POLLIN);
    }
    Ok(())
}

/// What `poll` reported, errors and hang-ups as readiness: the next read or write then says what it is.
pub(crate) fn ready(fd: &PollFd<'_>) -> PollFlags {
    let flags = fd.revents().unwrap_or(PollFlags::empty());
    if flags.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
        flags | PollFlags::POLLIN | PollFlags::POLLOUT
    } else {
        flags
    }
}

/// Waits until one of `fds` is ready, the time is over, or a signal comes.
pub(crate) fn poll_interruptible(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> Result<(), Error> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(Error::Io { action: "wait for sockets", source: errno.into() }),
    }
}

pub(crate) fn retrying<R>(mut attempt: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
