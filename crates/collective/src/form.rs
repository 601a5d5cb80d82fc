//! Builds the mesh: every rank dials the ranks below it and is dialled by those above.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{setsockopt, sockopt};

use crate::clock::Deadline;
use crate::dial::{Dial, dial, lost, resolve};
use crate::exchange::{poll_interruptible, ready, retrying};
use crate::handshake::{self, HELLO_BYTES, Hello, WELCOME_BYTES};
use crate::{AbortHandle, Communicator, Error, Refusal};

/// Strangers that may be connected at once without having said anything; the longest silent one goes first.
const MAX_STRANGERS: usize = 256;

/// Where the ranks above this one will dial.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens at a free port of `host`.
    ///
    /// # Errors
    /// If this machine does not have that address.
    pub fn bind(host: IpAddr) -> Result<Self, Error> {
        let listener = TcpListener::bind((host, 0)).map_err(failed_to("listen for peers"))?;
        let address = listener.local_addr().map_err(failed_to("read a listener's address"))?;
        Ok(Self { listener, address })
    }

    /// The address, with the port the system gave.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Who belongs together, and this rank's place among them.
#[derive(Debug, Clone)]
pub struct Group {
    /// Digest of run, incarnation, configuration and binary: ranks that differ in it refuse each other.
    pub token: [u8; 32],
    /// Which membership of the run.
    pub generation: u64,
    /// This rank.
    pub rank: usize,
    /// Every rank's listener as `host:port`, in rank order; this rank's own is not used.
    pub peers: Vec<String>,
}

/// Connects this rank with all others, `n_communicators` times over.
///
/// Returns when every rank that this one waits for has been heard, so that no rank gets ahead of a peer that
/// is missing. Connections to the listener that are no peer's are dropped and change nothing.
///
/// # Errors
/// A peer that is gone or refuses, `abort`, or `deadline`.
///
/// # Panics
/// If `group.rank` is not below the number of peers, or no communicator is asked for.
pub fn form(
    listener: Listener,
    group: Group,
    n_communicators: usize,
    deadline: Duration,
    abort: &AbortHandle,
) -> Result<Vec<Communicator>, Error> {
    assert!(group.rank < group.peers.len(), "rank {} of {}", group.rank, group.peers.len());
    assert!(n_communicators > 0, "a group forms at least one communicator");
    listener.listener.set_nonblocking(true).map_err(failed_to("set up a listener"))?;
    let mut forming = Forming::begin(&listener, &group, n_communicators)?;
    let until = Deadline::after(deadline);
    while !forming.is_complete() {
        abort.check()?;
        if until.has_passed() {
            return Err(Error::Timeout { waiting_for: forming.missing(), after: deadline });
        }
        forming.wait(abort, until)?;
    }
    forming.into_communicators(abort)
}

/// Forms a group of `world_size` ranks within this process, over loopback: `[rank][communicator]`.
///
/// Each rank belongs in a thread of its own; its communicators share one abort handle.
///
/// # Errors
/// If this machine is out of sockets.
pub fn loopback(world_size: usize, n_communicators: usize) -> Result<Vec<Vec<Communicator>>, Error> {
    let listeners: Vec<Listener> =
        (0..world_size).map(|_| Listener::bind(IpAddr::from([127, 0, 0, 1]))).collect::<Result<_, _>>()?;
    let peers: Vec<String> = listeners.iter().map(|listener| listener.address().to_string()).collect();
    thread::scope(|scope| {
        let ranks = listeners.into_iter().enumerate().map(|(rank, listener)| {
            let group = Group { token: [0; 32], generation: 0, rank, peers: peers.clone() };
            scope.spawn(move || {
                form(listener, group, n_communicators, Duration::from_secs(60), &AbortHandle::new()?)
            })
        });
        // All ranks are started before any is waited for.
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().expect("forming does not panic")).collect()
    })
}

/// The mesh while it is being built.
struct Forming<'a> {
    listener: &'a TcpListener,
    group: &'a Group,
    /// `[communicator][rank]`.
    links: Vec<Vec<Option<TcpStream>>>,
    dials: Vec<Dial>,
    strangers: VecDeque<Stranger>,
}

/// A connection to the listener that has not yet said who it is.
struct Stranger {
    stream: TcpStream,
    hello: [u8; HELLO_BYTES],
    received: usize,
}

impl<'a> Forming<'a> {
    fn begin(listener: &'a Listener, group: &'a Group, n_communicators: usize) -> Result<Self, Error> {
        let mut dials = Vec::new();
        for rank in 0..group.rank {
            let address = resolve(rank, &group.peers[rank])?;
            for communicator in 0..n_communicators {
                let stream = dial(address).map_err(lost(rank))?;
                let answer = [0; WELCOME_BYTES];
                dials.push(Dial { rank, communicator, stream, greeted: false, answer, received: 0 });
            }
        }
        let no_links = || group.peers.iter().map(|_| None).collect();
        Ok(Self {
            listener: &listener.listener,
            group,
            links: (0..n_communicators).map(|_| no_links()).collect(),
            dials,
            strangers: VecDeque::new(),
        })
    }

    fn missing(&self) -> Vec<usize> {
        let rank = self.group.rank;
        let others = (0..self.group.peers.len()).filter(|&peer| peer != rank);
        others.filter(|&peer| self.links.iter().any(|links| links[peer].is_none())).collect()
    }

    fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }

    /// Waits for the sockets and takes one step with each that is ready.
    fn wait(&mut self, abort: &AbortHandle, until: Deadline) -> Result<(), Error> {
        let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.dials.iter().map(|dial| {
            let interest = if dial.greeted { PollFlags::POLLIN } else { PollFlags::POLLOUT };
            PollFd::new(dial.stream.as_fd(), interest)
        }));
        fds.extend(
            self.strangers.iter().map(|stranger| PollFd::new(stranger.stream.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(abort.signal().map(|signal| PollFd::new(signal, PollFlags::POLLIN)));
        poll_interruptible(&mut fds, until.poll_timeout())?;
        let mut is_ready = fds.iter().map(|fd| !ready(fd).is_empty()).collect::<Vec<_>>().into_iter();

        let knocking = is_ready.next() == Some(true);
        for mut dial in std::mem::take(&mut self.dials) {
            if is_ready.next() == Some(true) && dial.advance(&hello(self.group, self.links.len(), &dial))? {
                let place = &mut self.links[dial.communicator][dial.rank];
                *place = Some(dial.stream);
            } else {
                self.dials.push(dial);
            }
        }
        for stranger in std::mem::take(&mut self.strangers) {
            if is_ready.next() == Some(true) {
                self.hear(stranger)
            } else {
                self.strangers.push_back(stranger)
            }
        }
        if knocking { self.accept() } else { Ok(()) }
    }

    fn accept(&mut self) -> Result<(), Error> {
        loop {
            match retrying(|| self.listener.accept()) {
                Ok((stream, _)) => {
                    if self.strangers.len() == MAX_STRANGERS {
                        self.strangers.pop_front();
                    }
                    if stream.set_nonblocking(true).is_ok() {
                        // A peer has usually spoken by now, and then never stands in the queue of strangers.
                        self.hear(Stranger { stream, hello: [0; HELLO_BYTES], received: 0 });
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The stranger hung up before it was let in.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(source) => return Err(Error::Io { action: "accept a peer", source }),
            }
        }
    }

    /// Listens to a stranger, and makes it a peer or drops it.
    fn hear(&mut self, mut stranger: Stranger) {
        let mut stream = &stranger.stream;
        match retrying(|| stream.read(&mut stranger.hello[stranger.received..])) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return self.strangers.push_back(stranger),
            Ok(0) | Err(_) => return tracing::debug!("a connection closed before it said who it was"),
            Ok(count) => stranger.received += count,
        }
        if !handshake::may_be_hello(&stranger.hello[..stranger.received]) {
            let peer = stranger.stream.peer_addr().ok();
            return tracing::debug!(?peer, "dropped a connection that is no worker's");
        }
        if stranger.received < HELLO_BYTES {
            return self.strangers.push_back(stranger);
        }
        let admitted = self.admit(&stranger.hello);
        // Twenty bytes always fit into a new socket; if they cannot be sent, the peer is gone.
        let answer = handshake::encode_answer(admitted.map(|_| ()));
        let answered = retrying(|| stream.write(&answer)).is_ok_and(|count| count == WELCOME_BYTES);
        match admitted {
            Ok((communicator, rank)) if answered => self.links[communicator][rank] = Some(stranger.stream),
            Ok((_, rank)) => tracing::debug!(rank, "a peer closed its connection during the handshake"),
            Err(refusal) => {
                let peer = stranger.stream.peer_addr().ok();
                tracing::info!(?peer, %refusal, "refused a worker's connection");
            }
        }
    }

    /// Which communicator and rank a greeting is for.
    fn admit(&self, hello: &[u8; HELLO_BYTES]) -> Result<(usize, usize), Refusal> {
        let hello = Hello::decode(hello)?;
        let (rank, communicator) = (hello.rank as usize, hello.communicator as usize);
        let same_shape = hello.world_size as usize == self.group.peers.len()
            && hello.n_communicators as usize == self.links.len();
        if hello.token != self.group.token {
            Err(Refusal::Token)
        } else if hello.generation != self.group.generation {
            Err(Refusal::Generation)
        } else if !same_shape
            || rank <= self.group.rank
            || !self.links.get(communicator).and_then(|links| links.get(rank)).is_some_and(Option::is_none)
        {
            Err(Refusal::Place)
        } else {
            Ok((communicator, rank))
        }
    }

    fn into_communicators(self, abort: &AbortHandle) -> Result<Vec<Communicator>, Error> {
        let Group { rank, generation, ref peers, .. } = *self.group;
        // By what the coordinator told every rank alike, so that all do the same.
        let host = |peer: &str| peer.rsplit_once(':').map(|(host, _)| host.to_owned());
        let on_one_host = peers.iter().all(|peer| host(peer) == host(&peers[0]));
        let mut communicators = Vec::with_capacity(self.links.len());
        for links in self.links {
            for stream in links.iter().flatten() {
                prepare(stream).map_err(failed_to("set a socket's options"))?;
            }
            communicators.push(Communicator::new(rank, generation, links, abort.clone(), on_one_host));
        }
        Ok(communicators)
    }
}

fn hello(group: &Group, n_communicators: usize, dial: &Dial) -> Hello {
    let number = |value: usize| u32::try_from(value).expect("ranks and communicators are few");
    Hello {
        rank: number(group.rank),
        communicator: number(dial.communicator),
        n_communicators: number(n_communicators),
        world_size: number(group.peers.len()),
        generation: group.generation,
        token: group.token,
    }
}

/// Small frames leave at once, and a host that has gone silent is found out.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &20)?;
    // Ten minutes, since the kernel also gives up a peer that lives but reads nothing for that long, as one
    // that is stopped or evaluates does. The coordinator notices a lost host far earlier.
    setsockopt(stream, sockopt::TcpUserTimeout, &600_000)?;
    Ok(())
}

fn failed_to(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}
