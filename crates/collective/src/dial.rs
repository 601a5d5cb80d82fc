//! The connections that this rank opens to the ranks below it.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use ring::hmac;

use crate::Error;
use crate::handshake::{self, CHALLENGE_BYTES, HELLO_BYTES, Hello, WELCOME_BYTES};
use crate::partial::Partial;

/// A connection that this rank opened and that has not been welcomed yet.
pub(crate) struct Dial {
    pub rank: usize,
    pub communicator: usize,
    pub stream: TcpStream,
    hello: [u8; HELLO_BYTES],
    stage: Stage,
}

/// What a dial waits for.
enum Stage {
    Connection,
    Challenge(Partial<CHALLENGE_BYTES>),
    Welcome(Partial<WELCOME_BYTES>),
}

impl Dial {
    /// Begins to connect to the rank that `hello` is for.
    pub(crate) fn begin(address: SocketAddr, hello: &Hello) -> Result<Self, Error> {
        let rank = hello.dialled as usize;
        let stream = dial(address).map_err(lost(rank))?;
        let communicator = hello.communicator.into();
        Ok(Self { rank, communicator, stream, hello: hello.encode(), stage: Stage::Connection })
    }

    /// What `poll` is to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        if matches!(self.stage, Stage::Connection) { PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }

    /// True when the peer has proved its key and has welcomed this rank.
    pub(crate) fn advance(&mut self, key: &hmac::Key) -> Result<bool, Error> {
        let (rank, mut stream) = (self.rank, &self.stream);
        let refused = |refusal| Error::BadHandshake { rank, refusal };
        match &mut self.stage {
            Stage::Connection => {
                let failure = stream.take_error().and_then(|error| error.map_or(Ok(()), Err));
                failure.map_err(lost(rank))?;
                // A new socket has room for the whole handshake.
                stream.write_all(&self.hello).map_err(lost(rank))?;
                self.stage = Stage::Challenge(Partial::new());
            }
            Stage::Challenge(challenge) => {
                let complete = challenge.read_from(stream).map_err(lost(rank))?;
                // At once, since another version's answer may be shorter, and garbage may never end.
                handshake::check_beginning(challenge.received()).map_err(refused)?;
                if let Some(challenge) = complete {
                    let proof = handshake::prove(key, &self.hello, &challenge).map_err(refused)?;
                    stream.write_all(&proof).map_err(lost(rank))?;
                    self.stage = Stage::Welcome(Partial::new());
                }
            }
            Stage::Welcome(welcome) => {
                if let Some(welcome) = welcome.read_from(stream).map_err(lost(rank))? {
                    handshake::decode_welcome(&welcome).map_err(refused)?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

pub(crate) fn resolve(rank: usize, peer: &str) -> Result<SocketAddr, Error> {
    let mut addresses = peer.to_socket_addrs().map_err(lost(rank))?;
    addresses.next().ok_or_else(|| lost(rank)(io::Error::new(ErrorKind::NotFound, "the name has no address")))
}

/// Begins to connect; the socket becomes writable when that has succeeded or failed.
fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(errno.into()),
    }
}

fn lost(rank: usize) -> impl Fn(io::Error) -> Error {
    move |source| Error::PeerLost { rank, source }
}
