//! A server's side: its key, the tokens it knows, the authority it takes certificates from, and who a caller is.

use http::HeaderValue;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, ServerConfig};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::authority::{CertificateId, Folder, Version};
use crate::listener::{Peer, Proven};
use crate::{Credentials, Encryption, Error, Role, Token, WorkerSecret};

/// The secret of the worker that a nonce names.
pub type WorkerSecrets = Arc<dyn Fn(&str) -> WorkerSecret + Send + Sync>;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nothing was shown.
    Nobody,
    /// Nothing can be: a connection that is neither encrypted nor proven, as version 1 of the protocol had them.
    ClearText,
    /// The holder of a token or a certificate.
    Holder {
        /// What it may do.
        role: Role,
        /// The name that its certificate binds it to, if it does.
        name: Option<String>,
    },
    /// The worker of this nonce.
    Worker(String),
}

/// Tells who calls. Cheap to clone.
#[derive(Clone)]
pub struct Guard {
    inner: Arc<Inner>,
}

struct Inner {
    tokens: Vec<(Role, Token)>,
    workers: WorkerSecrets,
    encryption: Encryption,
    /// Where certificates come from, if there are any.
    folder: Option<PathBuf>,
    current: Mutex<Current>,
}

/// What the folder of certificates held when it was last read.
struct Current {
    version: Option<Version>,
    config: Arc<ServerConfig>,
    /// Checks clients' certificates, where there is a folder of them.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Guard {
    /// Guards with `credentials`, and with the certificates in `folder`, whose own is then shown, too.
    ///
    /// # Errors
    /// If the certificates cannot be used.
    pub fn new(
        credentials: &Credentials,
        folder: Option<PathBuf>,
        workers: WorkerSecrets,
    ) -> Result<Guard, Error> {
        let current = match &folder {
            None => Current { version: None, config: credentials.server()?, clients: None },
            Some(folder) => Current::read(&Folder::new(folder))?,
        };
        let inner = Inner {
            tokens: credentials.tokens(),
            workers,
            encryption: credentials.encryption(),
            folder,
            current: Mutex::new(current),
        };
        Ok(Guard { inner: Arc::new(inner) })
    }

    /// Whether connections are encrypted.
    pub fn encryption(&self) -> Encryption {
        self.inner.encryption
    }

    /// For a new connection, with the certificates as they are now.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.refresh();
        Arc::clone(&self.current().config)
    }

    /// The secret by which a client proves a claim where nothing is encrypted.
    pub(crate) fn secret_of(&self, claim: &str) -> Option<Vec<u8>> {
        if let Some(nonce) = claim.strip_prefix("worker ") {
            return Some((self.inner.workers)(nonce).0.to_vec());
        }
        let role = Role::from_name(claim)?;
        let known = self.inner.tokens.iter().find(|(its_role, _)| *its_role == role);
        known.map(|(_, token)| token.0.to_vec())
    }

    /// Who sends a request on this connection, with this header.
    ///
    /// # Errors
    /// Why what was shown does not count.
    pub fn identify(&self, peer: &Peer, authorization: Option<&HeaderValue>) -> Result<Caller, &'static str> {
        match (&peer.proven, authorization) {
            (Proven::ClearText, _) => Ok(Caller::ClearText),
            (Proven::Claim(claim), _) => match claim.strip_prefix("worker ") {
                Some(nonce) => Ok(Caller::Worker(nonce.to_owned())),
                None => {
                    let role = Role::from_name(claim).ok_or("a role that does not exist")?;
                    Ok(Caller::Holder { role, name: None })
                }
            },
            (Proven::Certificate(chain), _) => self.of_certificate(chain),
            (Proven::Nothing, None) => Ok(Caller::Nobody),
            (Proven::Nothing, Some(value)) => {
                let text = value.to_str().map_err(|_| "an authorization that cannot be read")?;
                self.of_authorization(text)
            }
        }
    }

    fn of_authorization(&self, text: &str) -> Result<Caller, &'static str> {
        let mut words = text.split(' ');
        match [words.next(), words.next(), words.next(), words.next()] {
            [Some(scheme), Some(token), None, None] if scheme.eq_ignore_ascii_case("bearer") => {
                let token = Token::from_hex(token).ok_or("a malformed token")?;
                let known = self.inner.tokens.iter().find(|(_, known)| known.matches(&token.0));
                let (role, _) = known.ok_or("a token that this coordinator does not know")?;
                Ok(Caller::Holder { role: *role, name: None })
            }
            [Some("Worker"), Some(nonce), Some(secret), None] => {
                let shown = WorkerSecret::from_hex(secret).ok_or("a malformed worker secret")?;
                match (self.inner.workers)(nonce).matches(&shown.0) {
                    true => Ok(Caller::Worker(nonce.to_owned())),
                    false => Err("a wrong worker secret"),
                }
            }
            _ => Err("an authorization of an unknown kind"),
        }
    }

    /// A certificate counts as long as it is valid, also on a connection that was opened before.
    fn of_certificate(&self, chain: &[CertificateDer<'static>]) -> Result<Caller, &'static str> {
        self.refresh();
        let clients =
            self.current().clients.clone().ok_or("a certificate of no authority that is known here")?;
        let (own, others) = chain.split_first().ok_or("no certificate")?;
        match clients.verify_client_cert(own, others, UnixTime::now()) {
            Ok(_) => {}
            Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => {
                return Err("a certificate that was revoked");
            }
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => return Err("a certificate that has expired"),
            Err(_) => return Err("a certificate that the authority does not stand for"),
        }
        let id = CertificateId::of(own).ok_or("a certificate that cannot be read")?;
        let role = id.role.ok_or("a certificate without a role of himpun")?;
        Ok(Caller::Holder { role, name: id.name })
    }

    /// Reads the folder of certificates again if a file in it has changed. What cannot be used is logged, and what was read
    /// before holds on.
    fn refresh(&self) {
        let Some(folder) = &self.inner.folder else { return };
        let folder = Folder::new(folder);
        let version = folder.version();
        if self.current().version.as_ref() == Some(&version) {
            return;
        }
        match Current::read(&folder) {
            Ok(read) => {
                tracing::info!(folder = %folder.path().display(), "certificates read again");
                *self.current() = read;
            }
            Err(error) => {
                let error = proto::one_line(&error);
                tracing::error!(folder = %folder.path().display(), error, "certificates cannot be read");
                // Not again before they change once more.
                self.current().version = Some(version);
            }
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.inner.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    fn read(folder: &Folder) -> Result<Current, Error> {
        // Before the files: one that changes meanwhile is then read once more.
        let version = folder.version();
        let (config, clients) = folder.server()?;
        Ok(Current { version: Some(version), config, clients: Some(clients) })
    }
}
