//! What a certificate says of its holder.

use x509_parser::prelude::{GeneralName, X509Certificate};

use crate::{Fingerprint, Role};

/// What counts of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateId {
    /// What its holder may do; nothing for a server's, or one that is none of himpun's.
    pub role: Option<Role>,
    /// The agent that it is for, if it is for one alone.
    pub name: Option<String>,
    /// Names it among those of its authority.
    pub serial: Vec<u8>,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Of its key.
    pub fingerprint: Fingerprint,
    /// The names of a server.
    pub hosts: Vec<String>,
}

impl CertificateId {
    /// Reads a certificate (DER); nothing if it is none.
    pub fn of(certificate: &[u8]) -> Option<CertificateId> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()?.map(|names| &names.value.general_names);
        let names: &[GeneralName<'_>] = names.map_or(&[], |names| names);
        let (role, name) = holder(names);
        Some(CertificateId {
            role,
            name,
            serial: serial(&parsed),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            fingerprint: Fingerprint::of(certificate)?,
            hosts: names.iter().filter_map(host).collect(),
        })
    }
}

fn serial(certificate: &X509Certificate<'_>) -> Vec<u8> {
    certificate.tbs_certificate.serial.to_bytes_be()
}

/// The coordinator's own role is no certificate's: whoever has it reads the coordinator's files.
fn holder(names: &[GeneralName<'_>]) -> (Option<Role>, Option<String>) {
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("himpun:"),
        _ => None,
    });
    match uri.map(|uri| uri.split_once('/')) {
        Some(None) => (uri.and_then(Role::from_name).filter(|role| *role != Role::Admin), None),
        Some(Some(("agent", id))) => (Some(Role::Agent), Some(id.to_owned())),
        Some(Some(_)) | None => (None, None),
    }
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|ip| std::net::IpAddr::from(ip).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|ip| std::net::IpAddr::from(ip).to_string()),
            _ => None,
        },
        _ => None,
    }
}
