//! Builds the mesh: every rank dials the ranks below it and is dialled by those above.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use ring::hmac;

use crate::clock::Deadline;
use crate::dial::{Dial, resolve};
use crate::exchange::{poll_interruptible, ready, retrying};
use crate::handshake::{self, Hello};
use crate::stranger::{Heard, Stranger};
use crate::{AbortHandle, Communicator, Error, Refusal};

/// Strangers that may be connected at once without having proved who they are.
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

/// Who belongs together, and this rank's place among them. Not `Debug`, so that no log has the key.
#[derive(Clone)]
pub struct Membership {
    /// Secret of this generation, known to its ranks and the coordinator. It is never sent to a peer.
    pub key: [u8; 32],
    /// Which membership of the run.
    pub generation: u64,
    /// This rank.
    pub rank: usize,
    /// Every rank's listener as `host:port`, in rank order; this rank's own is not used.
    pub peers: Vec<String>,
}

/// The communicators of a rank in a run. They are several so that no operation waits for one of another kind.
#[derive(Debug)]
pub struct Group {
    /// Directives, agreement on checkpoints, evaluations: what the host has; always over TCP.
    pub control: Communicator,
    /// What a step gathers: embeddings, and the sums of batch norm. Small and bound by latency.
    pub activations: Communicator,
    /// The gradients of the parameters, beside the backward pass.
    pub gradients: Communicator,
}

/// Connects this rank with all others, `n_communicators` times over.
///
/// Returns when every rank that this one waits for has been heard, so that no rank gets ahead of a peer that
/// is missing. Both ends of a connection prove that they know the group's key. Connections to the listener that
/// are no peer's are dropped and change nothing. What is sent later is neither encrypted nor authenticated.
///
/// # Errors
/// A peer that is gone or refuses, `abort`, or `deadline`.
///
/// # Panics
/// If `membership.rank` is not below the number of peers, or no communicator is asked for.
pub fn form(
    listener: Listener,
    membership: Membership,
    n_communicators: usize,
    deadline: Duration,
    abort: &AbortHandle,
) -> Result<Vec<Communicator>, Error> {
    assert!(
        membership.rank < membership.peers.len(),
        "rank {} of {}",
        membership.rank,
        membership.peers.len()
    );
    assert!(n_communicators > 0, "a group forms at least one communicator");
    listener.listener.set_nonblocking(true).map_err(failed_to("set up a listener"))?;
    let mut forming = Forming::begin(&listener, &membership, n_communicators)?;
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
            let membership = Membership { key: [0; 32], generation: 0, rank, peers: peers.clone() };
            scope.spawn(move || {
                form(listener, membership, n_communicators, Duration::from_secs(60), &AbortHandle::new()?)
            })
        });
        // All ranks are started before any is waited for.
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().expect("forming does not panic")).collect()
    })
}

impl Group {
    const N_COMMUNICATORS: usize = 3;

    /// A group of one: every operation is a copy.
    pub fn alone() -> Group {
        Group {
            control: Communicator::alone(),
            activations: Communicator::alone(),
            gradients: Communicator::alone(),
        }
    }

    /// As [`form`].
    ///
    /// # Errors
    /// As [`form`].
    ///
    /// # Panics
    /// As [`form`].
    pub fn form(
        listener: Listener,
        membership: Membership,
        deadline: Duration,
        abort: &AbortHandle,
    ) -> Result<Group, Error> {
        form(listener, membership, Group::N_COMMUNICATORS, deadline, abort).map(Group::from_communicators)
    }

    /// As [`loopback`], by rank.
    ///
    /// # Errors
    /// If this machine is out of sockets.
    pub fn loopback(world_size: usize) -> Result<Vec<Group>, Error> {
        let ranks = loopback(world_size, Group::N_COMMUNICATORS)?;
        Ok(ranks.into_iter().map(Group::from_communicators).collect())
    }

    fn from_communicators(communicators: Vec<Communicator>) -> Group {
        let [control, activations, gradients] =
            communicators.try_into().expect("as many communicators as were asked for");
        Group { control, activations, gradients }
    }
}

/// The mesh while it is being built.
struct Forming<'a> {
    listener: &'a TcpListener,
    membership: &'a Membership,
    key: hmac::Key,
    /// `[communicator][rank]`.
    links: Vec<Vec<Option<TcpStream>>>,
    dials: Vec<Dial>,
    strangers: VecDeque<Stranger>,
}

impl<'a> Forming<'a> {
    fn begin(
        listener: &'a Listener,
        membership: &'a Membership,
        n_communicators: usize,
    ) -> Result<Self, Error> {
        let mut dials = Vec::new();
        for rank in 0..membership.rank {
            let address = resolve(rank, &membership.peers[rank])?;
            for communicator in 0..n_communicators {
                dials.push(Dial::begin(address, &hello(membership, n_communicators, rank, communicator)?)?);
            }
        }
        let no_links = || membership.peers.iter().map(|_| None).collect();
        Ok(Self {
            listener: &listener.listener,
            membership,
            key: hmac::Key::new(hmac::HMAC_SHA256, &membership.key),
            links: (0..n_communicators).map(|_| no_links()).collect(),
            dials,
            strangers: VecDeque::new(),
        })
    }

    fn missing(&self) -> Vec<usize> {
        let rank = self.membership.rank;
        let others = (0..self.membership.peers.len()).filter(|&peer| peer != rank);
        others.filter(|&peer| self.links.iter().any(|links| links[peer].is_none())).collect()
    }

    fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }

    /// Waits for the sockets and takes one step with each that is ready.
    fn wait(&mut self, abort: &AbortHandle, until: Deadline) -> Result<(), Error> {
        let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.dials.iter().map(|dial| PollFd::new(dial.stream.as_fd(), dial.interest())));
        fds.extend(
            self.strangers.iter().map(|stranger| PollFd::new(stranger.stream.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(abort.signal().map(|signal| PollFd::new(signal, PollFlags::POLLIN)));
        poll_interruptible(&mut fds, until.poll_timeout())?;
        let mut is_ready = fds.iter().map(|fd| !ready(fd).is_empty()).collect::<Vec<_>>().into_iter();

        let knocking = is_ready.next() == Some(true);
        for mut dial in std::mem::take(&mut self.dials) {
            if is_ready.next() == Some(true) && dial.advance(&self.key)? {
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
                        self.drop_a_stranger();
                    }
                    if stream.set_nonblocking(true).is_ok() {
                        // A peer has usually sent its `Hello` by now, and is challenged at once.
                        self.hear(Stranger::new(stream)?);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The stranger hung up before it was let in.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(source) => return Err(Error::Io { action: "accept a peer", source }),
            }
        }
    }

    /// Drops the one that has been connected for longest, silent ones first: a peer waits unproved for no longer
    /// than a round trip, in which others may connect and say nothing.
    fn drop_a_stranger(&mut self) {
        let silent = self.strangers.iter().position(|stranger| !stranger.is_challenged());
        self.strangers.remove(silent.unwrap_or(0));
    }

    /// Listens to a stranger, and makes it a peer, waits for more or drops it.
    fn hear(&mut self, mut stranger: Stranger) {
        let peer = stranger.stream.peer_addr().ok();
        match stranger.advance(&self.key, |hello| self.admit(hello)) {
            Ok(Heard::Unfinished) => self.strangers.push_back(stranger),
            Ok(Heard::Proved { communicator, rank }) => {
                self.links[communicator][rank] = Some(stranger.stream);
            }
            Ok(Heard::Refused(Refusal::NotAWorker)) => {
                tracing::debug!(?peer, "dropped a connection that is no worker's");
            }
            Ok(Heard::Refused(refusal)) => tracing::info!(?peer, %refusal, "refused a worker's connection"),
            Err(error) => tracing::debug!(?peer, %error, "a connection closed during the handshake"),
        }
    }

    /// The communicator and rank that a `Hello` claims, if it belongs here and nobody has proved that claim yet.
    fn admit(&self, hello: &Hello) -> Result<(usize, usize), Refusal> {
        let (rank, communicator) = (hello.rank as usize, usize::from(hello.communicator));
        let same_shape = hello.world_size as usize == self.membership.peers.len()
            && usize::from(hello.n_communicators) == self.links.len();
        if hello.generation != self.membership.generation {
            Err(Refusal::Generation)
        } else if !same_shape
            || hello.dialled as usize != self.membership.rank
            || rank <= self.membership.rank
            || !self.links.get(communicator).and_then(|links| links.get(rank)).is_some_and(Option::is_none)
        {
            Err(Refusal::Place)
        } else {
            Ok((communicator, rank))
        }
    }

    fn into_communicators(self, abort: &AbortHandle) -> Result<Vec<Communicator>, Error> {
        let Membership { rank, generation, ref peers, .. } = *self.membership;
        // By what the coordinator told every rank alike, so that all do the same.
        let host = |peer: &str| peer.rsplit_once(':').map(|(host, _)| host.to_owned());
        let on_one_host = peers.iter().all(|peer| host(peer) == host(&peers[0]));
        let mut communicators = Vec::with_capacity(self.links.len());
        for links in self.links {
            for stream in links.iter().flatten() {
                prepare(stream).map_err(failed_to("set a socket's options"))?;
            }
            communicators.push(Communicator::over_tcp(rank, generation, links, abort.clone(), on_one_host));
        }
        Ok(communicators)
    }
}

fn hello(
    membership: &Membership,
    n_communicators: usize,
    dialled: usize,
    communicator: usize,
) -> Result<Hello, Error> {
    let rank = |value: usize| u32::try_from(value).expect("ranks are few");
    let number = |value: usize| u16::try_from(value).expect("communicators are few");
    Ok(Hello {
        rank: rank(membership.rank),
        dialled: rank(dialled),
        communicator: number(communicator),
        n_communicators: number(n_communicators),
        world_size: rank(membership.peers.len()),
        generation: membership.generation,
        nonce: handshake::nonce()?,
    })
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
