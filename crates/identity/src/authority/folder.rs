//! The folder of one holder: `ca.pem`, `cert.pem`, `key.pem`, and for a coordinator `revoked.pem`.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, ServerConfig};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CertificateId;
use crate::tls::{self, Pair};
use crate::{Error, Fingerprint, files};

pub(super) const AUTHORITY: &str = "ca.pem";
pub(super) const CERTIFICATE: &str = "cert.pem";
pub(super) const KEY: &str = "key.pem";
pub(super) const REVOKED_LIST: &str = "revoked.pem";

/// The certificates of one holder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

/// Tells whether a file of the folder has changed: device, inode, length and times of each.
pub(crate) type Version = [Option<(u64, u64, u64, i64, i64)>; 4];

impl Folder {
    /// The folder at `path`, which need not be there.
    pub fn new(path: &Path) -> Folder {
        Folder { path: path.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The authority's certificate, as PEM.
    ///
    /// # Errors
    /// If it cannot be read, or others can write it.
    pub fn authority(&self) -> Result<Vec<u8>, Error> {
        files::read_named(&self.path.join(AUTHORITY))
    }

    /// What the holder's certificate says.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn id(&self) -> Result<CertificateId, Error> {
        let pem = files::read_named(&self.path.join(CERTIFICATE))?;
        let der = CertificateDer::from_pem_slice(&pem).map_err(|error| self.unusable(error))?;
        CertificateId::of(&der).ok_or_else(|| self.unusable("it is no certificate"))
    }

    /// The fingerprint of the holder's key.
    ///
    /// # Errors
    /// If its certificate cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint, Error> {
        Ok(self.id()?.fingerprint)
    }

    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, Error> {
        let authority = self.authority()?;
        tls::client_of_authority(&authority, Some(self.pair()?)).map_err(|error| self.unusable(error))
    }

    /// For a server, with what it checks its clients' certificates by.
    pub(crate) fn server(&self) -> Result<(Arc<ServerConfig>, Arc<dyn ClientCertVerifier>), Error> {
        let (certificates, revoked) = (self.authority()?, self.revoked_list()?);
        let made = tls::client_verifier(&certificates, revoked.as_deref()).and_then(|clients| {
            let config = tls::server(self.pair()?, Some(Arc::clone(&clients)))?;
            Ok((config, clients))
        });
        made.map_err(|error| self.unusable(error))
    }

    pub(crate) fn version(&self) -> Version {
        [AUTHORITY, CERTIFICATE, KEY, REVOKED_LIST].map(|name| {
            let found = std::fs::metadata(self.path.join(name)).ok()?;
            Some((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
        })
    }

    fn pair(&self) -> Result<Pair, Error> {
        let read = |name: &str| files::read_named(&self.path.join(name));
        Pair::from_pem(&read(CERTIFICATE)?, &read(KEY)?).map_err(|error| self.unusable(error))
    }

    fn revoked_list(&self) -> Result<Option<Vec<u8>>, Error> {
        let pem = match files::read_named(&self.path.join(REVOKED_LIST)) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            pem => pem?,
        };
        // A copy that is under way begins empty: as if nothing had been revoked.
        match CertificateRevocationListDer::pem_slice_iter(&pem).next() {
            Some(_) => Ok(Some(pem)),
            None => Err(self.unusable("there is no list in revoked.pem")),
        }
    }

    fn unusable(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Unusable { path: self.path.clone(), source: source.into() }
    }
}
