//! The connections of a server, each once its client has said how it speaks.
//!
//! The first byte tells: TLS, a proof without encryption, or clear HTTP/2, to which a guard answers by a refusal that names the
//! versions. Handshakes are made beside each other, so that a silent client delays nobody.

use rustls::pki_types::CertificateDer;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::dial::Io;
use crate::{Encryption, Guard, Seal, proof};

/// How long a client may take until it is known how it speaks, and then again until it begins HTTP/2, whose keepalive notices a
/// silent one from there on.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes at a time; for one more the oldest is given up, so that silent clients keep nobody out.
const AT_ONCE: usize = 256;

/// Before the next attempt where the system has no descriptor left for a connection.
const PAUSE: Duration = Duration::from_millis(50);

/// The first byte of a TLS record that holds a handshake.
const TLS: u8 = 0x16;

/// The first byte of HTTP/2's preface.
const HTTP2: u8 = b'P';

/// The bytes of it.
const PREFACE: usize = 24;

/// How often the certificate of an open connection is looked at again: a session may last for weeks.
const RECHECK: Duration = Duration::from_secs(5);

/// A connection that can be served.
pub struct Connected {
    io: Box<dyn Io>,
    peer: Peer,
    /// Until HTTP/2's preface is here: the bytes that lack, and their deadline.
    beginning: Option<(usize, Pin<Box<Sleep>>)>,
    /// Ends once the certificate of the other end does not count any more, and the connection with it.
    lapse: Option<AbortOnDropHandle<()>>,
}

/// What is known of a connection's other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// How secrets travel on the connection.
    pub seal: Seal,
    pub(crate) proven: Proven,
}

/// What the other end has shown.
#[derive(Clone, Debug)]
pub(crate) enum Proven {
    /// Nothing, within TLS: requests may bring a token.
    Nothing,
    /// Nothing, and in the clear.
    ClearText,
    /// That it knows the secret of this claim.
    Claim(String),
    /// A certificate that the authority stood for when the connection was opened, and the key of it.
    Certificate(Arc<[CertificateDer<'static>]>),
}

/// A connection that came to nothing, for the audit.
#[derive(Debug)]
pub struct Rejected {
    /// Where it came from.
    pub address: SocketAddr,
    /// Why.
    pub reason: String,
}

/// Serves `listener` until `shutdown`; what is rejected goes to `rejected`.
pub fn incoming(
    listener: TcpListener,
    guard: Guard,
    rejected: impl Fn(Rejected) + Send + Sync + 'static,
    shutdown: CancellationToken,
) -> ReceiverStream<io::Result<Connected>> {
    let (sender, stream) = mpsc::channel(16);
    let rejected = Arc::new(rejected);
    tokio::spawn(async move {
        let mut opening: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (guard, sender, rejected) = (guard.clone(), sender.clone(), Arc::clone(&rejected));
            opening.retain(|handshake| !handshake.is_finished());
            if opening.len() == AT_ONCE
                && let Some(oldest) = opening.pop_front()
            {
                oldest.abort();
            }
            let handshake = tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, open(tcp, address, &guard)).await {
                    // A server that has ended takes no more connections.
                    Ok(Ok(connected)) => drop(sender.send(Ok(connected)).await),
                    Ok(Err(reason)) => rejected(Rejected { address, reason }),
                    Err(_) => {
                        rejected(Rejected { address, reason: "it said nothing for too long".to_owned() })
                    }
                }
            });
            opening.push_back(handshake.abort_handle());
        }
    });
    ReceiverStream::new(stream)
}

async fn open(mut tcp: TcpStream, address: SocketAddr, guard: &Guard) -> Result<Connected, String> {
    let failed = |error: io::Error| error.to_string();
    tcp.set_nodelay(true).map_err(failed)?;
    let mut first = [0];
    if tcp.peek(&mut first).await.map_err(failed)? == 0 {
        return Err("it closed before it said anything".to_owned());
    }
    let connected = |io: Box<dyn Io>, proven, seal| {
        let peer = Peer { address, seal, proven };
        let lapse = matches!(peer.proven, Proven::Certificate(_))
            .then(|| AbortOnDropHandle::new(tokio::spawn(until_lapsed(guard.clone(), peer.clone()))));
        let beginning = Some((PREFACE, Box::pin(tokio::time::sleep(HANDSHAKE))));
        Connected { io, peer, beginning, lapse }
    };
    match (first[0], guard.encryption()) {
        (HTTP2, _) => Ok(connected(Box::new(tcp), Proven::ClearText, Seal::ENCRYPTED)),
        (TLS, Encryption::Tls) => {
            let tls = TlsAcceptor::from(guard.config()).accept(tcp).await.map_err(failed)?;
            let shown = tls.get_ref().1.peer_certificates();
            let proven = shown.map_or(Proven::Nothing, |chain| Proven::Certificate(chain.into()));
            Ok(connected(Box::new(tls), proven, Seal::ENCRYPTED))
        }
        (byte, Encryption::None) if byte == proof::MAGIC[0] => {
            let checked = proof::check(&mut tcp, |claim| guard.secret_of(claim)).await.map_err(failed)?;
            let (claim, seal) = checked?;
            Ok(connected(Box::new(tcp), Proven::Claim(claim), seal))
        }
        (byte, Encryption::Tls) if byte == proof::MAGIC[0] => {
            let why = "this coordinator encrypts its connections, the token file says that it does not";
            proof::turn_away(&mut tcp, why).await.map_err(failed)?;
            Err("it did not encrypt".to_owned())
        }
        (TLS, Encryption::None) => Err("it encrypts, and this coordinator does not".to_owned()),
        _ => Err("it speaks neither TLS nor HTTP/2".to_owned()),
    }
}

/// Returns once what the peer has shown does not count any more.
async fn until_lapsed(guard: Guard, peer: Peer) {
    let mut ticks = tokio::time::interval(RECHECK);
    loop {
        ticks.tick().await;
        if let Err(why) = guard.identify(&peer, None) {
            tracing::info!(from = %peer.address, "a connection is cut: it has shown {why}");
            return;
        }
    }
}

impl tonic::transport::server::Connected for Connected {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connected {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(lapse) = &mut self.lapse
            && Pin::new(lapse).poll(context).is_ready()
        {
            self.lapse = None;
            return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if let Some((lacking, deadline)) = &mut self.beginning {
            *lacking = lacking.saturating_sub(buffer.filled().len() - before);
            if *lacking == 0 {
                self.beginning = None;
            } else if read.is_pending() && deadline.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Connected {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
