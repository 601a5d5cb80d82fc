//! What a coordinator makes at its first start: a key, a certificate of it, and a token for each role.

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::ServerConfig;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tls::Pair;
use crate::{Encryption, Error, Fingerprint, Role, Token, TokenFile, files, tls};

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";

/// A coordinator's own secrets.
pub struct Credentials {
    certificate_pem: String,
    key_pem: String,
    tokens: Vec<(Role, Token)>,
    encryption: Encryption,
    /// Of what is shown: of this certificate, or of the authority's.
    fingerprint: Fingerprint,
    /// The coordinator's directory, or nothing where it has none that outlives it.
    directory: Option<PathBuf>,
}

impl Credentials {
    /// Those in `directory/credentials`, made if they are not there. The token files are written anew: they say how the
    /// coordinator is reached this time, `shown` being the fingerprint of a certificate that is shown instead of the own one.
    ///
    /// # Errors
    /// If the directory, or what is in it, is not private.
    pub fn open(
        directory: &Path,
        encryption: Encryption,
        shown: Option<Fingerprint>,
    ) -> Result<Credentials, Error> {
        files::trusted_directory(directory)?;
        let folder = directory.join("credentials");
        files::private_directory(&folder)?;
        let key_pem = read_or_make(&folder.join(KEY), || Ok(KeyPair::generate()?.serialize_pem()))?;
        let certificate_pem = read_or_make(&folder.join(CERTIFICATE), || certificate(&key_pem))?;
        let own = fingerprint(&certificate_pem, &key_pem, &folder)?;
        let mut credentials = Credentials {
            certificate_pem,
            key_pem,
            tokens: Vec::new(),
            encryption,
            fingerprint: shown.unwrap_or(own),
            directory: Some(directory.to_owned()),
        };
        for role in Role::ALL {
            credentials.open_token(role, &folder.join(file_name(role)))?;
        }
        Ok(credentials)
    }

    fn open_token(&mut self, role: Role, path: &Path) -> Result<(), Error> {
        let fresh = self.token_file(role, Token::random());
        if files::create_secret(path, fresh.to_json().as_bytes())? {
            self.tokens.push((role, fresh.token));
            return Ok(());
        }
        let stored = TokenFile::parse(path, &files::read_secret(path)?)?;
        let current = self.token_file(role, stored.token.clone());
        if stored != current {
            files::replace_secret(path, current.to_json().as_bytes())?;
        }
        self.tokens.push((role, stored.token));
        Ok(())
    }

    /// Credentials for a coordinator whose clients are in the same process, or its children: nothing is written.
    ///
    /// # Errors
    /// If a certificate cannot be made.
    pub fn ephemeral() -> Result<Credentials, Error> {
        let key_pem = KeyPair::generate()?.serialize_pem();
        let certificate_pem = certificate(&key_pem)?;
        let fingerprint = fingerprint(&certificate_pem, &key_pem, Path::new("memory"))?;
        Ok(Credentials {
            certificate_pem,
            key_pem,
            tokens: Role::ALL.map(|role| (role, Token::random())).to_vec(),
            encryption: Encryption::Tls,
            fingerprint,
            directory: None,
        })
    }

    /// What a client of this role needs.
    ///
    /// # Panics
    /// Never: every role has a token.
    pub fn access(&self, role: Role) -> TokenFile {
        let known = self.tokens.iter().find(|(its_role, _)| *its_role == role);
        let (_, token) = known.expect("every role has a token");
        self.token_file(role, token.clone())
    }

    /// The file that a client of this role on another machine needs a copy of.
    pub fn file(&self, role: Role) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join("credentials").join(file_name(role)))
    }

    pub(crate) fn tokens(&self) -> Vec<(Role, Token)> {
        self.tokens.clone()
    }

    pub(crate) fn encryption(&self) -> Encryption {
        self.encryption
    }

    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>, Error> {
        let made = Pair::from_pem(self.certificate_pem.as_bytes(), self.key_pem.as_bytes());
        let path = self.directory.as_deref().unwrap_or(Path::new("memory")).join("credentials");
        made.and_then(|pair| tls::server(pair, None)).map_err(|source| Error::Unusable { path, source })
    }

    fn token_file(&self, role: Role, token: Token) -> TokenFile {
        TokenFile {
            role,
            encryption: self.encryption,
            fingerprint: self.fingerprint,
            token,
            directory: self.directory.as_ref().map_or(String::new(), |path| path.display().to_string()),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the key nor a token.
        let Credentials { encryption, fingerprint, directory, .. } = self;
        f.debug_struct("Credentials")
            .field("encryption", encryption)
            .field("fingerprint", fingerprint)
            .field("directory", directory)
            .finish_non_exhaustive()
    }
}

fn file_name(role: Role) -> String {
    format!("{role}.token")
}

fn read_or_make(path: &Path, make: impl FnOnce() -> Result<String, Error>) -> Result<String, Error> {
    if !path.exists() {
        files::create_secret(path, make()?.as_bytes())?;
    }
    // Also if it was made just now: by another, perhaps.
    Ok(String::from_utf8_lossy(&files::read_secret(path)?).into_owned())
}

/// A certificate for clients that are not ours: ours know the key. It names this machine and does not expire.
fn certificate(key_pem: &str) -> Result<String, Error> {
    let key = KeyPair::from_pem(key_pem)?;
    let mut params = CertificateParams::new(["himpun".to_owned(), "localhost".to_owned()])?;
    if let Ok(host) = nix::unistd::gethostname()
        && let Ok(name) = host.to_string_lossy().into_owned().try_into()
    {
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    params.subject_alt_names.extend(loopback.map(SanType::IpAddress));
    params.distinguished_name.push(DnType::CommonName, "himpun coordinator");
    Ok(params.self_signed(&key)?.pem())
}

fn fingerprint(certificate: &str, key: &str, folder: &Path) -> Result<Fingerprint, Error> {
    let unusable = |source| Error::Unusable { path: folder.to_owned(), source };
    let pair = Pair::from_pem(certificate.as_bytes(), key.as_bytes()).map_err(unusable)?;
    pair.fingerprint().ok_or_else(|| unusable("there is no certificate".into()))
}
