//! Certificates of an authority: good ones, and expired, revoked, foreign and renewed ones, also on connections that are open.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{PATIENCE, Server, WORKER, caller, error, who, within};
use identity::authority::{Authority, CertificateId, Folder, Holder};
use identity::{Access, Connection, Credentials, Encryption, Error, Role, Trust};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// What `himpun certs init` makes, and a coordinator that uses it.
struct Cluster {
    directory: TempDir,
    authority: Authority,
    server: Server,
}

fn hosts() -> Holder {
    Holder::Coordinator(vec!["127.0.0.1".to_owned()])
}

fn authority() -> (TempDir, Authority) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_make(&directory.path().join("certs")).unwrap();
    let agent = Holder::Agent(Some("node-1".to_owned()));
    for holder in [hosts(), Holder::Operator, Holder::Viewer, Holder::Agent(None), agent] {
        authority.issue(&holder).unwrap();
    }
    (directory, authority)
}

impl Cluster {
    async fn start() -> Cluster {
        let (directory, authority) = authority();
        let folder = directory.path().join("certs/coordinator");
        let server = Server::start(&Credentials::ephemeral().unwrap(), Some(folder)).await;
        Cluster { directory, authority, server }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.directory.path().join("certs").join(name)
    }

    async fn connect(&self, name: &str) -> Result<Connection, Error> {
        within(Access::Certificates(self.folder(name)).connect(&self.server.address)).await
    }

    async fn who(&self, name: &str) -> Result<String, Error> {
        who(&Access::Certificates(self.folder(name)), &self.server.address).await
    }

    /// As a holder that has a copy of its folder.
    fn copy(&self, name: &str) -> String {
        let copy = self.folder(&format!("{name}-copy"));
        copy_files(&self.folder(name), &copy, &["ca.pem", "cert.pem", "key.pem"]);
        format!("{name}-copy")
    }

    /// Gives `name` a certificate that is valid from and until so many seconds from now.
    fn reissue(&self, name: &str, from: i64, until: i64) {
        let read = |file: PathBuf| std::fs::read_to_string(file).unwrap();
        let key = KeyPair::from_pem(&read(self.folder("authority/key.pem"))).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read(self.folder("authority/cert.pem")), key).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) =
            (now + Duration::seconds(from), now + Duration::seconds(until));
        if name == "coordinator" {
            params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        } else {
            params.subject_alt_names = vec![SanType::URI(format!("himpun:{name}").try_into().unwrap())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
        let own = KeyPair::from_pem(&read(self.folder(name).join("key.pem"))).unwrap();
        let certificate = params.signed_by(&own, &issuer).unwrap().pem();
        std::fs::write(self.folder(name).join("cert.pem"), certificate).unwrap();
    }
}

fn copy_files(from: &Path, to: &Path, names: &[&str]) {
    std::fs::create_dir_all(to).unwrap();
    for name in names {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[track_caller]
fn check_refused(attempt: Result<String, Error>, alert: &str) {
    let error = error(attempt);
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains(alert)), "{error:?}");
    assert_eq!(error.exit_code(), 2);
    assert!(error.is_refusal());
}

#[track_caller]
fn check_impostor(attempt: Result<String, Error>, reason: &str) {
    let error = error(attempt);
    assert!(matches!(error, Error::Impostor { .. }), "{error:?}");
    assert!(error.to_string().contains(reason), "{error}");
}

#[tokio::test]
async fn each_holder_is_known_by_its_certificate() {
    let cluster = Cluster::start().await;
    for (name, expected) in [
        ("operator", "Holder { role: Operator, name: None }"),
        ("viewer", "Holder { role: Viewer, name: None }"),
        ("agent", "Holder { role: Agent, name: None }"),
        ("agent-node-1", "Holder { role: Agent, name: Some(\"node-1\") }"),
    ] {
        assert_eq!(cluster.who(name).await.unwrap(), expected);
        assert_eq!(cluster.server.shown.lock().unwrap().pop(), Some(None), "and by nothing else");
    }
    // A folder that is not there, or whose key others can change, is named as such, and nothing is said to anybody.
    let missing = error(cluster.who("nobody").await);
    assert!(matches!(&missing, Error::Io { path, .. } if path.ends_with("nobody/ca.pem")), "{missing:?}");
    let key = cluster.folder(&cluster.copy("viewer")).join("key.pem");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o666)).unwrap();
    let open = error(cluster.who("viewer-copy").await);
    assert_eq!((open.hint(), open.exit_code()), (Some(format!("chmod go-w {}", key.display())), 2));
    // The coordinator's own certificate is for a server.
    check_refused(cluster.who("coordinator").await, "");
}

#[tokio::test]
async fn tokens_and_workers_go_with_the_certificate_of_an_authority() {
    let (directory, _authority) = authority();
    let certs = directory.path().join("certs");
    let shown = Folder::new(&certs.join("coordinator")).fingerprint().unwrap();
    let credentials = Credentials::open(directory.path(), Encryption::Tls, Some(shown)).unwrap();
    let server = Server::start(&credentials, Some(certs.join("coordinator"))).await;
    let token = Access::Token(credentials.access(Role::Viewer));
    assert_eq!(who(&token, &server.address).await.unwrap(), "Holder { role: Viewer, name: None }");
    let trust = Access::Certificates(certs.join("agent")).trust("127.0.0.1:1").unwrap();
    assert!(matches!(trust, Trust::Authority(_)));
    let worker = Access::Worker { trust, nonce: "n-1".to_owned(), secret: WORKER };
    assert_eq!(who(&worker, &server.address).await.unwrap(), "Worker(\"n-1\")");
}

#[tokio::test]
async fn an_expired_and_a_foreign_certificate_are_refused() {
    let mut cluster = Cluster::start().await;
    cluster.reissue("operator", -100, -10);
    check_refused(cluster.who("operator").await, "CertificateExpired");
    assert!(cluster.server.rejected().await.contains("expired"));
    cluster.reissue("operator", 100, 200);
    check_refused(cluster.who("operator").await, "");
    cluster.reissue("operator", -10, 100);
    assert!(cluster.who("operator").await.is_ok());

    // Of another authority, whose holder trusts ours.
    let (foreign, _authority) = authority();
    let folder = cluster.folder("foreign");
    copy_files(&foreign.path().join("certs/operator"), &folder, &["cert.pem", "key.pem"]);
    copy_files(&cluster.folder("operator"), &folder, &["ca.pem"]);
    check_refused(cluster.who("foreign").await, "UnknownCA");
    // And who trusts the other authority does not take our coordinator for its own.
    copy_files(&foreign.path().join("certs/operator"), &folder, &["ca.pem"]);
    check_impostor(cluster.who("foreign").await, "UnknownIssuer");
}

#[tokio::test]
async fn a_revoked_certificate_ends_at_once_on_an_open_connection_and_opens_none() {
    let cluster = Cluster::start().await;
    let (operator, viewer) =
        (cluster.connect("operator").await.unwrap(), cluster.connect("viewer").await.unwrap());
    assert_eq!(caller(&operator.channel).await, "Holder { role: Operator, name: None }");
    let kept = cluster.copy("operator");
    cluster.authority.revoke("operator").unwrap();
    assert_eq!(caller(&operator.channel).await, "a certificate that was revoked");
    check_refused(cluster.who(&kept).await, "CertificateRevoked");
    assert_eq!(caller(&viewer.channel).await, "Holder { role: Viewer, name: None }");
    cluster.authority.issue(&Holder::Operator).unwrap();
    assert_eq!(cluster.who("operator").await.unwrap(), "Holder { role: Operator, name: None }");
    check_refused(cluster.who(&kept).await, "CertificateRevoked");
    // A list that is being copied does not forgive.
    std::fs::write(cluster.folder("coordinator/revoked.pem"), "").unwrap();
    assert_eq!(caller(&operator.channel).await, "a certificate that was revoked");
    check_refused(cluster.who(&kept).await, "CertificateRevoked");
}

#[tokio::test]
async fn a_certificate_that_expires_ends_an_open_connection() {
    let cluster = Cluster::start().await;
    cluster.reissue("viewer", -100, 3);
    let connection = cluster.connect("viewer").await.unwrap();
    let mut said = caller(&connection.channel).await;
    assert_eq!(said, "Holder { role: Viewer, name: None }");
    let begun = std::time::SystemTime::now();
    while said.starts_with("Holder") && begun.elapsed().unwrap() < PATIENCE {
        said = caller(&connection.channel).await;
    }
    assert_eq!(said, "a certificate that has expired");
}

#[tokio::test]
async fn certificates_are_read_again_without_a_restart() {
    let cluster = Cluster::start().await;
    let open = cluster.connect("operator").await.unwrap();
    cluster.authority.issue(&Holder::Coordinator(vec!["other.example".to_owned()])).unwrap();
    check_impostor(cluster.who("operator").await, "not valid for name");
    // Half of a change: what was read before holds on.
    std::fs::write(cluster.folder("coordinator/cert.pem"), "half").unwrap();
    check_impostor(cluster.who("operator").await, "not valid for name");
    assert_eq!(caller(&open.channel).await, "Holder { role: Operator, name: None }");
    cluster.authority.issue(&hosts()).unwrap();
    assert!(cluster.who("operator").await.is_ok());
    cluster.reissue("coordinator", -100, -10);
    check_impostor(cluster.who("operator").await, "expired");

    // Another authority in the place of the first: its holders come, those of the first go.
    let (foreign, _authority) = authority();
    let theirs = foreign.path().join("certs");
    copy_files(
        &theirs.join("coordinator"),
        &cluster.folder("coordinator"),
        &["ca.pem", "cert.pem", "key.pem", "revoked.pem"],
    );
    let access = Access::Certificates(theirs.join("viewer"));
    assert_eq!(who(&access, &cluster.server.address).await.unwrap(), "Holder { role: Viewer, name: None }");
    assert_eq!(caller(&open.channel).await, "a certificate that the authority does not stand for");
}

/// A resumed session would bring its certificate without being looked at again.
#[tokio::test]
async fn no_session_is_resumed() {
    let cluster = Cluster::start().await;
    let pem = |name: &str| std::fs::read(cluster.folder("operator").join(name)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&pem("ca.pem")).unwrap()).unwrap();
    let chain = vec![rustls::pki_types::CertificateDer::from_pem_slice(&pem("cert.pem")).unwrap()];
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(&pem("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    for attempt in 0..3 {
        let tcp = TcpStream::connect(&cluster.server.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut tls = within(connector.connect(name, tcp)).await.unwrap();
        // Tickets would come before the server's settings.
        within(tls.read_u8()).await.unwrap();
        let (_, session) = tls.get_ref();
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full), "attempt {attempt}");
        assert_eq!(session.tls13_tickets_received(), 0);
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[test]
fn what_a_folder_holds_is_shown() {
    let (directory, authority) = authority();
    let shown: Vec<(String, CertificateId, bool)> = authority.issued().unwrap();
    let folder = Folder::new(&directory.path().join("certs/agent-node-1"));
    let (_, id, revoked) = shown.iter().find(|(name, ..)| name == "agent-node-1").unwrap();
    assert_eq!((&folder.id().unwrap(), *revoked), (id, false));
    assert_eq!((id.role, id.name.as_deref()), (Some(Role::Agent), Some("node-1")));
}
