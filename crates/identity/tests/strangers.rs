//! Whoever holds the port before the coordinator, or stands between the two.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Server, Stranger, betrays, error, try_caller, who, within};
use identity::{Access, Credentials, Encryption, Error, Role, Trust};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const SECRET: identity::WorkerSecret = identity::Secret([0xa7; 16]);

/// Every way to reach the coordinator of these credentials by a secret, with the secret.
fn accesses(encryption: Encryption) -> [(Access, Vec<u8>); 2] {
    let directory = tempfile::tempdir().unwrap();
    let file = Credentials::open(directory.path(), encryption, None).unwrap().access(Role::Operator);
    let token = (Access::Token(file.clone()), file.token.0.to_vec());
    let trust = token.0.trust("127.0.0.1:1").unwrap();
    assert_eq!(trust == Trust::Proof, encryption == Encryption::None);
    let worker = Access::Worker { trust, nonce: "n-1".to_owned(), secret: SECRET };
    [token, (worker, SECRET.0.to_vec())]
}

#[track_caller]
fn check(error: &Error, kind: &str, text: &str) {
    let found = match error {
        Error::Impostor { .. } => "impostor",
        Error::OtherProtocol(_) => "other protocol",
        Error::Unreachable { .. } => "unreachable",
        _ => "another",
    };
    let said = proto::one_line(error);
    assert_eq!(found, kind, "{said}");
    assert!(said.contains(text), "{said}");
}

/// A fake proof: a nonce and an HMAC of nothing.
const FORGED: &[u8] = &[1; 65];

/// A fatal alert of TLS, as any server sends one that does not want a connection.
const ALERT: &[u8] = &[0x15, 3, 3, 0, 2, 2, 40];

#[tokio::test]
async fn a_stranger_gets_no_byte_of_a_secret() {
    use Encryption::{None, Tls};
    let mut cases = JoinSet::new();
    for (answer, encryption, kind, text) in [
        (&b""[..], Tls, "unreachable", "it says nothing"),
        (b"", None, "unreachable", "it says nothing"),
        (FORGED, Tls, "other protocol", "does not speak TLS"),
        (FORGED, None, "impostor", "it does not know the token"),
        (ALERT, Tls, "impostor", "HandshakeFailure"),
        (ALERT, None, "other protocol", "no coordinator of this version"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Tls, "other protocol", "does not speak TLS"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None, "other protocol", "no coordinator of this version"),
        (b"\0\x0bgo\x1b[2J away", None, "impostor", "it says: go[2J away"),
    ] {
        for (access, secret) in accesses(encryption) {
            cases.spawn(async move {
                let stranger = Stranger::start(answer).await;
                let error = error(who(&access, &stranger.address).await);
                check(&error, kind, text);
                assert_eq!(error.exit_code(), if kind == "unreachable" { 75 } else { 2 });
                let heard = stranger.heard();
                assert!(!betrays(&heard, &secret), "{} bytes to {answer:?}", heard.len());
                assert!(!heard.is_empty(), "it did say something");
            });
        }
    }
    while let Some(case) = within(cases.join_next()).await {
        case.unwrap();
    }
}

#[test]
fn a_betrayed_secret_would_be_seen() {
    let hex = SECRET.to_hex();
    assert!(betrays(&[&b"x"[..], &SECRET.0[3..8]].concat(), &SECRET.0));
    assert!(betrays(format!("Bearer {}", &hex[..10]).as_bytes(), &SECRET.0));
    assert!(!betrays(b"Bearer 0123456789abcdef", &SECRET.0));
}

/// Serves TLS with one certificate, whether its key is the certificate's or not.
#[derive(Debug)]
struct Copied(Arc<CertifiedKey>);

impl ResolvesServerCert for Copied {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[tokio::test]
async fn a_copy_of_the_certificate_does_not_make_a_coordinator() {
    let directory = tempfile::tempdir().unwrap();
    let credentials = Credentials::open(directory.path(), Encryption::Tls, None).unwrap();
    let pem = std::fs::read(directory.path().join("credentials/certificate.pem")).unwrap();
    let own_key = std::fs::read(directory.path().join("credentials/key.pem")).unwrap();
    let other_key = rcgen::KeyPair::generate().unwrap().serialize_pem().into_bytes();
    for (key, is_taken) in [(own_key, true), (other_key, false)] {
        let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
        let key = ring::sign::any_ecdsa_type(&key).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&pem).unwrap()];
        let resolver = Arc::new(Copied(Arc::new(CertifiedKey::new(chain, key))));
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let served = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut tls = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await?;
            // HTTP/2's settings.
            tls.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
            tls.read_u8().await
        });
        let connected = within(Access::Token(credentials.access(Role::Operator)).connect(&address)).await;
        assert_eq!(connected.is_ok(), is_taken, "{connected:?}");
        if let Err(error) = connected {
            check(&error, "impostor", "BadSignature");
            // Not a byte inside the encryption.
            assert!(within(served).await.unwrap().is_err());
        }
    }
}

/// Neither before it is known how a client speaks, nor behind it.
#[tokio::test]
async fn a_client_that_falls_silent_holds_no_connection() {
    let mut cases = JoinSet::new();
    for encryption in [Encryption::Tls, Encryption::None] {
        let directory = tempfile::tempdir().unwrap();
        let credentials = Credentials::open(directory.path(), encryption, None).unwrap();
        let server = Server::start(&credentials, None).await;
        for begun in [&b""[..], b"P", b"PRI * HTTP/2.0", &[0x16, 3, 1], b"himpun\xf0\x02"] {
            let address = server.address.clone();
            cases.spawn(async move {
                let mut tcp = TcpStream::connect(address).await.unwrap();
                tcp.write_all(begun).await.unwrap();
                // Its end, of whatever kind.
                tcp.read_to_end(&mut Vec::new()).await.ok();
            });
        }
    }
    while let Some(case) = within(cases.join_next()).await {
        case.unwrap();
    }
}

/// Stands before `server` and flips a bit of the `n`th byte that passes in one direction.
async fn flipping(server: String, up: bool, n: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(server).await.unwrap();
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::spawn(copy(from_client, to_server, up.then_some(n)));
        tokio::spawn(copy(from_server, to_client, (!up).then_some(n)));
    });
    address
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    flip: Option<usize>,
) {
    let (mut buffer, mut passed) = ([0; 4096], 0);
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if let Some(at) = flip.and_then(|at| at.checked_sub(passed)).filter(|at| *at < n) {
            buffer[at] ^= 0x10;
        }
        passed += n;
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

/// The first record up holds 5 + 4 bytes of headers and the client's hello; the first down the server's, and after 127 + 6 bytes
/// all is encrypted. Two bytes of a clear record's header name an old version, and nobody reads them.
#[tokio::test]
async fn a_byte_that_is_changed_on_the_way_is_never_a_success() {
    let directory = tempfile::tempdir().unwrap();
    let credentials = Credentials::open(directory.path(), Encryption::Tls, None).unwrap();
    let server = Server::start(&credentials, None).await;
    let access = Access::Token(credentials.access(Role::Operator));
    // None flipped: the way through the middle is good.
    let address = flipping(server.address.clone(), true, usize::MAX).await;
    assert!(who(&access, &address).await.unwrap().contains("Operator"));
    server.shown.lock().unwrap().clear();

    let ups = (9..190).step_by(7).chain([0, 280, 330, 390, 450]).map(|n| (true, n));
    let downs = (9..120).step_by(7).chain((140..640).step_by(31)).chain([0]).map(|n| (false, n));
    let mut cases = JoinSet::new();
    for (up, n) in ups.chain(downs) {
        let (server, access) = (server.address.clone(), access.clone());
        cases.spawn(async move {
            let address = flipping(server, up, n).await;
            let known = match within(access.connect(&address)).await {
                Ok(connection) => try_caller(&connection.channel).await,
                Err(_) => None,
            };
            (up, n, known)
        });
    }
    while let Some(case) = within(cases.join_next()).await {
        let (up, n, known) = case.unwrap();
        assert_eq!(known, None, "byte {n}, up: {up}");
    }
    assert_eq!(*server.shown.lock().unwrap(), [], "no call came through");
}

#[tokio::test]
async fn silent_clients_keep_nobody_out() {
    let credentials = Credentials::ephemeral().unwrap();
    let server = Server::start(&credentials, None).await;
    let mut silent = Vec::new();
    // More than handshakes are made at a time.
    for _ in 0..300 {
        silent.push(TcpStream::connect(&server.address).await.unwrap());
    }
    let access = Access::Token(credentials.access(Role::Viewer));
    let caller = within(who(&access, &server.address)).await.unwrap();
    assert!(caller.contains("Viewer"), "{caller}");
    // The oldest was given up for it.
    let mut byte = [0];
    assert_eq!(within(silent[0].read(&mut byte)).await.unwrap(), 0);
}
