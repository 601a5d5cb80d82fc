//! The connections that this rank opens to the ranks below it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use crate::Error;
use crate::exchange::retrying;
use crate::handshake::{self, Hello, WELCOME_BYTES};

/// A connection that this rank opened and that has not been welcomed yet.
pub(crate) struct Dial {
    pub rank: usize,
    pub communicator: usize,
    pub stream: TcpStream,
    pub greeted: bool,
    pub answer: [u8; WELCOME_BYTES],
    pub received: usize,
}

impl Dial {
    /// True when the peer has welcomed this rank.
    pub(crate) fn advance(&mut self, hello: &Hello) -> Result<bool, Error> {
        let mut stream = &self.stream;
        if !self.greeted {
            let failure = stream.take_error().and_then(|error| error.map_or(Ok(()), Err));
            failure.map_err(lost(self.rank))?;
            // A new socket has room for a greeting.
            retrying(|| stream.write_all(&hello.encode())).map_err(lost(self.rank))?;
            self.greeted = true;
            return Ok(false);
        }
        match retrying(|| stream.read(&mut self.answer[self.received..])) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Ok(0) => return Err(lost(self.rank)(ErrorKind::UnexpectedEof.into())),
            Ok(count) => self.received += count,
            Err(source) => return Err(lost(self.rank)(source)),
        }
        if self.received < WELCOME_BYTES {
            return Ok(false);
        }
        let verdict = handshake::decode_answer(&self.answer);
        verdict.map_err(|refusal| Error::BadHandshake { rank: self.rank, refusal })?;
        Ok(true)
    }
}

pub(crate) fn resolve(rank: usize, peer: &str) -> Result<SocketAddr, Error> {
    let mut addresses = peer.to_socket_addrs().map_err(lost(rank))?;
    addresses.next().ok_or_else(|| lost(rank)(io::Error::new(ErrorKind::NotFound, "the name has no address")))
}

/// Begins to connect; the socket becomes writable when that has succeeded or failed.
pub(crate) fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(errno.into()),
    }
}

pub(crate) fn lost(rank: usize) -> impl Fn(io::Error) -> Error {
    move |source| Error::PeerLost { rank, source }
}
