//! Opens connections to a coordinator that has proven itself.

use http::header::AUTHORIZATION;
use http::{HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use proto::transport;
use proto::v1::GetServerInfoRequest;
use proto::v1::control_service_client::ControlServiceClient;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::transport::channel::ResponseFuture;
use tower::Service;

use crate::dial::{self, Stream};
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
                return Err(match knock(address).await {
                    Some(error) => error,
                    None => missing,
                });
            }
            access => access?,
        };
        let (endpoint, connector, connection) = access.prepare(address)?;
        let inner = match endpoint.connect_with_connector(connector).await {
            Ok(inner) => inner,
            Err(error) => {
                return Err(match explain(address, error) {
                    Error::OtherProtocol(_) => probe(address).await,
                    error => error,
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
        let (_, _, connection) = self.prepare(address)?;
        Ok(connection)
    }

    fn prepare(&self, address: &str) -> Result<(Endpoint, Connector, Connection), Error> {
        let endpoint = transport::endpoint(address).map_err(|error| Error::Unreachable {
            address: address.to_owned(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, error),
        })?;
        let seal = Arc::new(Mutex::new(Seal::ENCRYPTED));
        let connector =
            Connector { access: self.clone(), address: address.to_owned(), seal: Arc::clone(&seal) };
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
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Stream>, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Connector { access, address, seal } = self.clone();
        Box::pin(async move {
            let (stream, opened) = dial::open(&access, &address).await?;
            *seal.lock().unwrap_or_else(PoisonError::into_inner) = opened;
            Ok(TokioIo::new(stream))
        })
    }
}

/// The error of our own that is at the bottom of one of the transport's.
fn explain(address: &str, error: tonic::transport::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(found) = cause {
        if let Some(own) = found.downcast_ref::<Error>() {
            return own.duplicate();
        }
        cause = found.source();
    }
    Error::Unreachable { address: address.to_owned(), source: std::io::Error::other(error) }
}

/// What keeps anybody from being served at `address`, with credentials or without: nothing answers, or an older version.
async fn knock(address: &str) -> Option<Error> {
    match tokio::net::TcpStream::connect(address).await {
        Err(source) => Some(Error::Unreachable { address: address.to_owned(), source }),
        Ok(_) => match probe(address).await {
            error @ Error::OtherProtocol(_) => Some(error),
            _ => None,
        },
    }
}

/// Asks what does not speak TLS for its version: an older coordinator tells it to everybody. It is shown nothing.
async fn probe(address: &str) -> Error {
    let stranger = |reason: String| Error::Impostor { address: address.to_owned(), reason };
    let asked = async {
        let endpoint = transport::endpoint(address).map_err(|error| proto::one_line(&error))?;
        let channel = endpoint.connect().await.map_err(|error| proto::one_line(&error))?;
        let answer = ControlServiceClient::new(channel).get_server_info(GetServerInfoRequest {}).await;
        Ok::<_, String>(answer.map_err(|status| proto::Refusal::from(&status)))
    };
    match tokio::time::timeout(transport::CALL_DEADLINE, asked).await {
        Ok(Ok(Ok(server))) => {
            let server = server.into_inner();
            Error::OtherProtocol(format!(
                "the coordinator at {address} (himpun {}) speaks protocol {}, this himpun {} speaks {}",
                server.version,
                server.protocol,
                env!("CARGO_PKG_VERSION"),
                proto::PROTOCOL
            ))
        }
        Ok(Ok(Err(refusal))) if !refusal.reason.is_empty() => stranger(refusal.message),
        Ok(Ok(Err(_)) | Err(_)) | Err(_) => stranger("it does not speak TLS".to_owned()),
    }
}
