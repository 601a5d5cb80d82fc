//! A coordinator that only tells each caller who it is, and strangers that hold a port.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use http::header::AUTHORIZATION;
use http::{Request, Response};
use identity::{Access, Channel, Credentials, Error, Guard, Peer, Rejected, Secret, WorkerSecret};
use proto::v1::{GetServerInfoRequest, ServerInfo};
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Service, ServiceExt as _};

/// What everything that a test waits for takes at most.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Of every worker of these coordinators.
pub const WORKER: WorkerSecret = Secret([7; 16]);

/// A coordinator on a port of its own, which ends with the runtime of its test.
pub struct Server {
    pub address: String,
    pub guard: Guard,
    /// The `authorization` of each call, in order.
    pub shown: Arc<Mutex<Vec<Option<String>>>>,
    rejected: tokio::sync::mpsc::UnboundedReceiver<Rejected>,
}

impl Server {
    pub async fn start(credentials: &Credentials, folder: Option<PathBuf>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let guard = Guard::new(credentials, folder, Arc::new(|_: &str| WORKER)).unwrap();
        let shown = Arc::<Mutex<_>>::default();
        let (sender, rejected) = tokio::sync::mpsc::unbounded_channel();
        let incoming = identity::incoming(
            listener,
            guard.clone(),
            move |rejection| drop(sender.send(rejection)),
            CancellationToken::new(),
        );
        let mirror = Mirror { guard: guard.clone(), shown: Arc::clone(&shown) };
        let served = proto::transport::server()
            .add_service(mirror)
            .add_service(Control("0.1.0", proto::PROTOCOL))
            .serve_with_incoming(incoming);
        tokio::spawn(async move { served.await.unwrap() });
        Server { address, guard, shown, rejected }
    }

    /// Why the next connection was rejected.
    pub async fn rejected(&mut self) -> String {
        within(self.rejected.recv()).await.unwrap().reason
    }
}

/// Answers each call with who the guard says that it is.
#[derive(Clone)]
struct Mirror {
    guard: Guard,
    shown: Arc<Mutex<Vec<Option<String>>>>,
}

impl NamedService for Mirror {
    const NAME: &'static str = "test.Mirror";
}

impl Service<Request<Body>> for Mirror {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let value = request.headers().get(AUTHORIZATION);
        let text = value.map(|value| value.to_str().unwrap().to_owned());
        self.shown.lock().unwrap().push(text);
        let peer = request.extensions().get::<Peer>().unwrap();
        let caller = match self.guard.identify(peer, value) {
            Ok(caller) => format!("{caller:?}"),
            Err(why) => why.to_owned(),
        };
        let answer = Response::builder().header("caller", caller).body(Body::empty()).unwrap();
        std::future::ready(Ok(answer))
    }
}

/// Tells everybody its version, as every coordinator does.
#[derive(Clone)]
pub struct Control(pub &'static str, pub u32);

impl NamedService for Control {
    const NAME: &'static str = "himpun.v1.ControlService";
}

impl Service<Request<Body>> for Control {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Control(version, protocol) = self.clone();
        assert_eq!(request.headers().get(AUTHORIZATION), None, "it is shown nothing");
        let answer = tower::service_fn(move |_: tonic::Request<GetServerInfoRequest>| async move {
            let info = ServerInfo { version: version.to_owned(), protocol, ..ServerInfo::default() };
            Ok::<_, tonic::Status>(tonic::Response::new(info))
        });
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(tonic_prost::ProstCodec::default()).unary(answer, request).await)
        })
    }
}

/// Who the server says that calls on this channel; nobody if the call fails.
pub async fn try_caller(channel: &Channel) -> Option<String> {
    let request = Request::post("/test.Mirror/Who").body(Body::empty()).unwrap();
    let mut channel = channel.clone();
    let answer = within(async { channel.ready().await.ok()?.call(request).await.ok() }).await?;
    Some(answer.headers()["caller"].to_str().unwrap().to_owned())
}

pub async fn caller(channel: &Channel) -> String {
    try_caller(channel).await.expect("the call succeeds")
}

/// Who the server says that a new connection of this access is.
pub async fn who(access: &Access, address: &str) -> Result<String, Error> {
    let connection = within(access.connect(address)).await?;
    Ok(caller(&connection.channel).await)
}

/// The error of an attempt that must fail.
#[track_caller]
pub fn error(result: Result<impl std::fmt::Debug, Error>) -> Error {
    match result {
        Ok(made) => panic!("{made:?} instead of an error"),
        Err(error) => error,
    }
}

pub async fn within<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work).await.expect("it happens in time")
}

/// Whoever holds a port: `answer` goes to each that connects, and all that they send is recorded.
pub struct Stranger {
    pub address: String,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Stranger {
    pub async fn start(answer: &'static [u8]) -> Stranger {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let recorded = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let recorded = Arc::clone(&recorded);
                tokio::spawn(async move {
                    tcp.write_all(answer).await.ok();
                    record(&mut tcp, &recorded).await;
                });
            }
        });
        Stranger { address, heard }
    }

    /// What it was told so far.
    pub fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

async fn record(tcp: &mut TcpStream, heard: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = tcp.read(&mut buffer).await {
        heard.lock().unwrap().extend_from_slice(&buffer[..n]);
    }
}

/// Whether any four bytes of `secret`, as they are or as digits, stand in `bytes`.
pub fn betrays(bytes: &[u8], secret: &[u8]) -> bool {
    let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = secret.windows(4).chain(digits.as_bytes().windows(8));
    parts.into_iter().any(|part| bytes.windows(part.len()).any(|window| window == part))
}
