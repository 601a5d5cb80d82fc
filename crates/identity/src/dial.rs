//! One connection of a client: TCP, then the server's proof, then the client's.

use rustls::pki_types::ServerName;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authority::Folder;
use crate::proof::{self, Proved};
use crate::{Access, Encryption, Error, Seal, Trust, tls};

/// How long a server may take to prove itself, from the first packet on.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// The name that is asked for where the key alone counts.
const ANY_NAME: &str = "himpun";

/// What carries the bytes.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, and the bytes of it that were read while it was opened.
pub(crate) struct Stream {
    io: Box<dyn Io>,
    ahead: Vec<u8>,
}

/// Connects, and returns once each side knows the other.
pub(crate) async fn open(access: &Access, address: &str) -> Result<(Stream, Seal), Error> {
    let unreachable = |source| Error::Unreachable { address: address.to_owned(), source };
    let opened = async {
        let tcp = TcpStream::connect(address).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        authenticate(access, address, tcp).await
    };
    tokio::time::timeout(DEADLINE, opened).await.unwrap_or_else(|_| {
        let source = io::Error::new(ErrorKind::TimedOut, "it says nothing");
        Err(Error::Unreachable { address: address.to_owned(), source })
    })
}

async fn authenticate(access: &Access, address: &str, tcp: TcpStream) -> Result<(Stream, Seal), Error> {
    let secret_and_claim = match access {
        Access::Token(file) if file.encryption == Encryption::None => {
            Some((&file.token.0[..], file.role.name().to_owned()))
        }
        Access::Worker { trust: Trust::Proof, nonce, secret } => {
            Some((&secret.0[..], format!("worker {nonce}")))
        }
        _ => None,
    };
    match secret_and_claim {
        Some((secret, claim)) => prove(address, tcp, &claim, secret).await,
        None => encrypt(access, address, tcp).await,
    }
}

async fn prove(
    address: &str,
    mut tcp: TcpStream,
    claim: &str,
    secret: &[u8],
) -> Result<(Stream, Seal), Error> {
    let address = address.to_owned();
    match proof::prove(&mut tcp, claim, secret).await {
        Ok(Proved::Both(seal)) => Ok((Stream { io: Box::new(tcp), ahead: Vec::new() }, seal)),
        Ok(Proved::ServerUnknown) => {
            Err(Error::Impostor { address, reason: "it does not know the token".to_owned() })
        }
        Ok(Proved::TurnedAway(reason)) => {
            Err(Error::Impostor { address, reason: format!("it says: {reason}") })
        }
        Ok(Proved::Refused(reason)) => Err(Error::Refused { address, reason }),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(Error::OtherProtocol(format!("what answers at {address} is no coordinator of this version")))
        }
        Err(source) => Err(Error::Unreachable { address, source }),
    }
}

async fn encrypt(access: &Access, address: &str, tcp: TcpStream) -> Result<(Stream, Seal), Error> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let (config, name) = match access {
        Access::Token(file) => (tls::client_of_key(file.fingerprint), ANY_NAME),
        Access::Worker { trust: Trust::Key(fingerprint), .. } => (tls::client_of_key(*fingerprint), ANY_NAME),
        Access::Certificates(path) => (Folder::new(path).client()?, host),
        Access::Worker { trust: Trust::Authority(pem), .. } => {
            let config = tls::client_of_authority(pem.as_bytes(), None);
            (
                config
                    .map_err(|source| Error::Unusable { path: "the agent's certificates".into(), source })?,
                host,
            )
        }
        Access::Worker { trust: Trust::Proof, .. } | Access::Home(_) => {
            unreachable!("proven without encryption, or resolved before")
        }
    };
    let failed = |error| explain(address, error);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| failed(io::Error::new(ErrorKind::InvalidInput, error)))?;
    let mut tls = TlsConnector::from(config).connect(name, tcp).await.map_err(failed)?;
    // The server begins HTTP/2 once it has looked at this client's certificate: an alert comes instead if it does not take it.
    let mut ahead = vec![0; 1024];
    let n = tls.read(&mut ahead).await.map_err(|error| match alert(&error) {
        Some(alert) => {
            let reason = format!("it does not take the certificate ({alert:?})");
            Error::Refused { address: address.to_owned(), reason }
        }
        // It has proven itself: it is being stopped.
        None => Error::Unreachable { address: address.to_owned(), source: error },
    })?;
    if n == 0 {
        let source = ErrorKind::UnexpectedEof.into();
        return Err(Error::Unreachable { address: address.to_owned(), source });
    }
    ahead.truncate(n);
    Ok((Stream { io: Box::new(tls), ahead }, Seal::ENCRYPTED))
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn alert(error: &io::Error) -> Option<rustls::AlertDescription> {
    match tls_error(error)? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// What an error of TLS means to the user, as long as the server has not proven itself.
fn explain(address: &str, error: io::Error) -> Error {
    let address = address.to_owned();
    match tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)) => {
            Error::Impostor { address, reason: "it has another key".to_owned() }
        }
        Some(rustls::Error::InvalidCertificate(reason)) => {
            Error::Impostor { address, reason: format!("its certificate is not good: {reason}") }
        }
        Some(rustls::Error::InvalidMessage(_)) => Error::OtherProtocol(format!(
            "what answers at {address} does not speak TLS: it is no coordinator of this version"
        )),
        Some(other) => Error::Impostor { address, reason: other.to_string() },
        None => Error::Unreachable { address, source: error },
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let n = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..n]);
        self.ahead.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
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
