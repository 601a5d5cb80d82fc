//! Tokens and workers' secrets, encrypted and not: who is known as whom, and what a wrong one is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Control, PATIENCE, Server, WORKER, caller, error, try_caller, who, within};
use identity::{Access, Credentials, Encryption, Error, Role, Secret, Token, TokenFile, Trust};
use proto::transport;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tower::ServiceExt as _;

fn credentials(encryption: Encryption) -> (TempDir, Credentials) {
    let directory = tempfile::tempdir().unwrap();
    let credentials = Credentials::open(directory.path(), encryption, None).unwrap();
    (directory, credentials)
}

fn worker(file: &TokenFile, secret: &Secret<16>) -> Access {
    let trust = Access::Token(file.clone()).trust("127.0.0.1:1").unwrap();
    Access::Worker { trust, nonce: "n-1".to_owned(), secret: secret.clone() }
}

#[tokio::test]
async fn each_role_and_each_worker_is_known_as_what_it_is() {
    for encryption in [Encryption::Tls, Encryption::None] {
        let (_directory, credentials) = credentials(encryption);
        let server = Server::start(&credentials, None).await;
        for role in Role::ALL {
            let file = credentials.access(role);
            let known = who(&Access::Token(file.clone()), &server.address).await.unwrap();
            assert_eq!(known, format!("Holder {{ role: {role:?}, name: None }}"));
            let is_shown = server.shown.lock().unwrap().pop().unwrap()
                == Some(format!("Bearer {}", file.token.to_hex()));
            assert_eq!(is_shown, encryption == Encryption::Tls, "a token passes inside TLS alone");
        }
        let access = worker(&credentials.access(Role::Agent), &WORKER);
        assert_eq!(who(&access, &server.address).await.unwrap(), "Worker(\"n-1\")");
        let lazy = access.connect_lazy(&server.address).unwrap();
        assert_eq!(caller(&lazy.channel).await, "Worker(\"n-1\")");
    }
}

#[tokio::test]
async fn a_wrong_secret_makes_nobody_of_its_holder() {
    let (_directory, credentials) = credentials(Encryption::Tls);
    let mut server = Server::start(&credentials, None).await;
    let file = TokenFile { token: Token::random(), ..credentials.access(Role::Operator) };
    let known = who(&Access::Token(file.clone()), &server.address).await.unwrap();
    assert_eq!(known, "a token that this coordinator does not know");
    let known = who(&worker(&file, &Secret([8; 16])), &server.address).await.unwrap();
    assert_eq!(known, "a wrong worker secret");

    // Without encryption the server proves itself by the secret, which this client has another one of.
    let (_directory, credentials) = self::credentials(Encryption::None);
    server = Server::start(&credentials, None).await;
    let file = TokenFile { token: Token::random(), ..credentials.access(Role::Operator) };
    for access in [worker(&file, &Secret([8; 16])), Access::Token(file)] {
        let error = error(who(&access, &server.address).await);
        assert!(
            matches!(&error, Error::Impostor { reason, .. } if reason == "it does not know the token"),
            "{error:?}"
        );
        server.rejected().await;
    }
    assert_eq!(server.shown.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_token_of_another_coordinator_is_not_shown() {
    for encryption in [Encryption::Tls, Encryption::None] {
        let ((_one, own), (_two, other)) = (credentials(encryption), credentials(encryption));
        let mut server = Server::start(&own, None).await;
        let file = other.access(Role::Operator);
        for access in [worker(&file, &Secret([8; 16])), Access::Token(file)] {
            let error = error(who(&access, &server.address).await);
            assert!(matches!(error, Error::Impostor { .. }), "{error:?}");
            assert!(!error.is_refusal() && error.exit_code() == 2);
            server.rejected().await;
        }
        assert_eq!(server.shown.lock().unwrap().len(), 0, "{encryption:?}");
    }
}

#[tokio::test]
async fn what_is_neither_encrypted_nor_proven_is_clear_text_whatever_it_shows() {
    for encryption in [Encryption::Tls, Encryption::None] {
        let (_directory, credentials) = credentials(encryption);
        let server = Server::start(&credentials, None).await;
        let mut channel = transport::endpoint(&server.address).unwrap().connect().await.unwrap();
        let token = credentials.access(Role::Admin).token.to_hex();
        let request = http::Request::post("/test.Mirror/Who")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::empty())
            .unwrap();
        let answer = within(async { channel.ready().await.unwrap().oneshot(request).await }).await.unwrap();
        assert_eq!(answer.headers()["caller"], "ClearText");
    }
}

#[tokio::test]
async fn a_difference_about_encryption_is_said_clearly() {
    for (served, expected, reason) in [
        (Encryption::Tls, Encryption::None, "it says: this coordinator encrypts its connections"),
        (Encryption::None, Encryption::Tls, "it does not encrypt its connections"),
    ] {
        let (_directory, credentials) = credentials(served);
        let server = Server::start(&credentials, None).await;
        let file = TokenFile { encryption: expected, ..credentials.access(Role::Viewer) };
        let error = error(who(&Access::Token(file), &server.address).await);
        let text = proto::one_line(&error);
        assert!(text.contains(reason), "{served:?}: {text}");
        assert!(text.contains(&server.address) && error.exit_code() == 2, "{text}");
    }
}

/// A coordinator of another version, in the clear.
async fn other_coordinator(version: &'static str, protocol: u32) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = transport::server()
        .add_service(Control(version, protocol))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(served);
    address
}

#[tokio::test]
async fn a_coordinator_of_another_version_is_named_with_both() {
    for encryption in [Encryption::Tls, Encryption::None] {
        let (_directory, credentials) = credentials(encryption);
        let access = Access::Token(credentials.access(Role::Operator));
        let address = other_coordinator("0.0.9\x1b[2J", 1).await;
        let error = error(who(&access, &address).await);
        let expected = format!(
            "the coordinator at {address} (himpun 0.0.9[2J) speaks protocol 1, this himpun {} speaks {}",
            env!("CARGO_PKG_VERSION"),
            proto::PROTOCOL
        );
        assert_eq!((error.to_string(), error.exit_code()), (expected, 2), "{encryption:?}");
        assert!(matches!(error, Error::OtherProtocol(_)));
    }
    let (_directory, credentials) = credentials(Encryption::Tls);
    let address = other_coordinator("0.1.0", proto::PROTOCOL).await;
    let error = error(who(&Access::Token(credentials.access(Role::Operator)), &address).await);
    assert!(
        matches!(&error, Error::Impostor { reason, .. } if reason == "it does not encrypt its connections"),
        "{error:?}"
    );
}

#[tokio::test]
async fn nobody_is_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let access = Access::Token(Credentials::ephemeral().unwrap().access(Role::Viewer));
    let error = error(tokio::time::timeout(PATIENCE, access.connect(&address)).await.unwrap());
    assert!(error.is_transient() && error.exit_code() == 75, "{error:?}");
    let lazy = access.connect_lazy(&address).unwrap();
    assert_eq!(try_caller(&lazy.channel).await, None);
    assert_eq!(error.to_string(), format!("failed to reach the coordinator at {address}"));
    let trust = access.trust("127.0.0.1:1").unwrap();
    assert!(
        matches!(trust, Trust::Key(fingerprint) if matches!(&access, Access::Token(file) if file.fingerprint == fingerprint))
    );
}
