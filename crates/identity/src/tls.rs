//! TLS 1.3 between coordinator, agents, workers and commands: keys by fingerprint, or certificates of an authority.

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore, ServerConfig,
    SignatureScheme,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

use crate::secret::{from_hex, hex};

/// HTTP/2, as ALPN names it: gRPC knows no other.
const ALPN: &[u8] = b"h2";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// SHA-256 of a public key (SubjectPublicKeyInfo): it stays when a certificate is made anew for the same key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of the key in a certificate; nothing if it is none.
    pub fn of(certificate: &[u8]) -> Option<Fingerprint> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let digest = digest::digest(&digest::SHA256, parsed.public_key().raw);
        Some(Fingerprint(digest.as_ref().try_into().expect("SHA-256 has 32 bytes")))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_string())
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fingerprint, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = from_hex(&text).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Fingerprint)
            .ok_or_else(|| serde::de::Error::custom("not a fingerprint of 64 hexadecimal digits"))
    }
}

/// A certificate chain and its key, as PEM.
pub(crate) struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Pair {
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Pair, BoxError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>()?;
        Ok(Pair { chain, key: PrivateKeyDer::from_pem_slice(key)? })
    }

    pub fn fingerprint(&self) -> Option<Fingerprint> {
        Fingerprint::of(self.chain.first()?)
    }
}

/// Checks clients' certificates: of this authority, valid today, and on no list of revoked ones.
pub(crate) fn client_verifier(
    authority: &[u8],
    revoked: Option<&[u8]>,
) -> Result<Arc<dyn ClientCertVerifier>, BoxError> {
    let crypto = Arc::new(provider::default_provider());
    let lists = revoked.map(CertificateRevocationListDer::pem_slice_iter).into_iter().flatten();
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), crypto)
        .with_crls(lists.collect::<Result<Vec<_>, _>>()?)
        .allow_unknown_revocation_status()
        .allow_unauthenticated()
        .build()?)
}

/// A server of `pair` that asks `clients` for certificates, and serves who shows none as well: a token may follow.
pub(crate) fn server(
    pair: Pair,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<Arc<ServerConfig>, BoxError> {
    let builder = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(clients),
    };
    let mut config = builder.with_single_cert(pair.chain, pair.key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would bring its client's certificate without looking at it again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client that knows its server by the fingerprint of its key.
pub(crate) fn client_of_key(fingerprint: Fingerprint) -> Arc<ClientConfig> {
    let crypto = Arc::new(provider::default_provider());
    let verifier = Arc::new(PinnedKey { fingerprint, crypto: Arc::clone(&crypto) });
    let builder = ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3");
    let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    with_alpn(config)
}

/// A client that knows its server by an authority and its name, and shows a certificate of its own if it has one.
pub(crate) fn client_of_authority(
    authority: &[u8],
    own: Option<Pair>,
) -> Result<Arc<ClientConfig>, BoxError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(authority)?);
    Ok(with_alpn(match own {
        Some(Pair { chain, key }) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    }))
}

fn with_alpn(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

fn roots(pem: &[u8]) -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// Takes one key and no other, whatever its certificate says of names and dates: the fingerprint came from a file that only its
/// owner can write.
#[derive(Debug)]
struct PinnedKey {
    fingerprint: Fingerprint,
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match Fingerprint::of(certificate) {
            Some(fingerprint) if fingerprint == self.fingerprint => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.crypto.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}
