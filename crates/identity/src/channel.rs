//! Opens connections to a coordinator that has proven itself.

use http::header::AUTHORIZATION;
use http::{HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use proto::transport;
use proto::v1::GetServerInfoRequest;
use proto::v1::control_service_client::ControlServiceClient;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::transport::channel::ResponseFuture;
use tower::Service;

use crate::dial::{self, Stream};
use crate::error::plain;
use crate::{Access, Encryption, Error, Seal, Trust};

/// A connection to the coordinator, for any of its clients. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: tonic::transport::Channel,
    authorization: Option<HeaderValue>,
}

/// A channel, and how secrets travel in it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// For clients.
    pub channel: Channel,
    /// Of the connection that was opened last: a channel opens another when one breaks.
    seal: Arc<Mutex<Seal>>,
}

impl Connection {
    /// How secrets travel.
    pub fn seal(&self) -> Seal {
        self.seal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Access {
    /// Connects to the coordinator at `address` ("host:port"), which proves itself before anything is said.
    ///
    /// # Errors
    /// If nothing answers there, or not the coordinator that this access is for, or it refuses this client.
    pub async fn connect(&self, address: &str) -> Result<Connection, Error> {
        let access = match self.resolve(address) {
            // Without credentials it can still be told whether a coordinator is there, and of which version.
            Err(missing @ Error::NoCredentials { .. }) => {
                return Err(knock(address).await.unwrap_or(missing));
            }
            access => access?,
        };
        let (endpoint, connector, connection) = access.prepare(address)?;
        let failure = Arc::clone(&connector.failure);
        let inner = match endpoint.connect_with_connector(connector).await {
            Ok(inner) => inner,
            Err(error) => {
                let own = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
                return Err(match own {
                    Some(own) if has_hung_up(&own) => probe(address).await.unwrap_or(own),
                    Some(own) => own,
                    None => {
                        Error::Unreachable { address: address.to_owned(), source: io::Error::other(error) }
                    }
                });
            }
        };
        Ok(Connection { channel: Channel { inner, ..connection.channel }, ..connection })
    }

    /// As [`Access::connect`], at the first call.
    ///
    /// # Errors
    /// If `address` is no host and port.
    pub fn connect_lazy(&self, address: &str) -> Result<Connection, Error> {
        let (_, _, connection) = self.resolve(address)?.prepare(address)?;
        Ok(connection)
    }

    fn prepare(&self, address: &str) -> Result<(Endpoint, Connector, Connection), Error> {
        let endpoint = transport::endpoint(address).map_err(|error| Error::Unreachable {
            address: address.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, error),
        })?;
        // What is longer than the deadline of `dial`, which knows what it waits for.
        let endpoint = endpoint.connect_timeout(2 * dial::DEADLINE);
        let seal = Arc::new(Mutex::new(Seal::ENCRYPTED));
        let connector = Connector {
            access: self.clone(),
            address: address.to_owned(),
            seal: Arc::clone(&seal),
            failure: Arc::default(),
        };
        let channel = Channel {
            inner: endpoint.connect_with_connector_lazy(connector.clone()),
            authorization: self.authorization(),
        };
        Ok((endpoint, connector, Connection { channel, seal }))
    }

    /// What shows who this is inside TLS. Without TLS the connection itself is proven, and with certificates too.
    fn authorization(&self) -> Option<HeaderValue> {
        let text = match self {
            Access::Token(file) if file.encryption == Encryption::Tls => {
                format!("Bearer {}", file.token.to_hex())
            }
            Access::Worker { trust, nonce, secret } if *trust != Trust::Proof => {
                format!("Worker {nonce} {}", secret.to_hex())
            }
            _ => return None,
        };
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> ResponseFuture {
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        self.inner.call(request)
    }
}

/// Opens the connections of a channel.
#[derive(Clone)]
struct Connector {
    access: Access,
    address: String,
    seal: Arc<Mutex<Seal>>,
    /// Why the last attempt failed: the transport keeps the text alone.
    failure: Arc<Mutex<Option<Error>>>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Connector { access, address, seal, failure } = self.clone();
        Box::pin(async move {
            let (stream, opened) = dial::open(&access, &address).await.map_err(|error| {
                let text = proto::one_line(&error);
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                io::Error::other(text)
            })?;
            *seal.lock().unwrap_or_else(PoisonError::into_inner) = opened;
            Ok(TokioIo::new(stream))
        })
    }
}

/// Whether that is how a coordinator that speaks otherwise ends a connection; one that is being stopped does so as well.
fn has_hung_up(error: &Error) -> bool {
    match error {
        Error::OtherProtocol(_) => true,
        Error::Unreachable { source, .. } => {
            matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
        }
        _ => false,
    }
}

/// What keeps anybody from being served at `address`, with credentials or without: nothing answers, or an older version.
async fn knock(address: &str) -> Option<Error> {
    let connected = tokio::time::timeout(dial::DEADLINE, tokio::net::TcpStream::connect(address)).await;
    match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Err(source) => Some(Error::Unreachable { address: address.to_owned(), source }),
        Ok(_) => probe(address).await.filter(|error| matches!(error, Error::OtherProtocol(_))),
    }
}

/// Asks what speaks otherwise for its version, which every coordinator tells everybody. It is shown nothing, and what it says is
/// believed as little as that it is a coordinator.
async fn probe(address: &str) -> Option<Error> {
    let asked = async {
        let channel = transport::endpoint(address).ok()?.connect().await.ok()?;
        Some(ControlServiceClient::new(channel).get_server_info(GetServerInfoRequest {}).await)
    };
    let answer = tokio::time::timeout(dial::DEADLINE, asked).await.ok()??;
    let stranger = |reason| Error::Impostor { address: address.to_owned(), reason };
    match answer.map(tonic::Response::into_inner) {
        Ok(server) if server.protocol == proto::PROTOCOL => {
            Some(stranger("it does not encrypt its connections".to_owned()))
        }
        Ok(server) => Some(Error::OtherProtocol(format!(
            "the coordinator at {address} (himpun {}) speaks protocol {}, this himpun {} speaks {}",
            plain(&server.version),
            server.protocol,
            env!("CARGO_PKG_VERSION"),
            proto::PROTOCOL
        ))),
        Err(status) => {
            let refusal = proto::Refusal::from(&status);
            (!refusal.reason.is_empty()).then(|| stranger(format!("it says: {}", plain(&refusal.message))))
        }
    }
}
