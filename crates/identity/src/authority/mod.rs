//! Certificates between machines: an authority of one's own, and a folder for each holder.
//!
//! `himpun certs init` makes a directory with `authority/`, which stays with whoever runs the cluster, and a folder for the
//! coordinator, the operator, the viewer and the agents, each complete in itself: it is copied, or mounted as a Secret, where it
//! is needed. What a certificate stands for is a URI among its names: `himpun:operator`, `himpun:viewer`, `himpun:agent` or, for
//! one agent alone, `himpun:agent/ID`.

mod folder;
mod id;

pub use folder::Folder;
pub(crate) use folder::Version;
pub use id::CertificateId;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use std::fs::File;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

use crate::secret::{from_hex, hex, random};
use crate::{Error, files};

/// A certificate of the authority itself.
const AUTHORITY_LIFE: Duration = Duration::days(3650);

/// A certificate of a holder.
const LIFE: Duration = Duration::days(365);

/// Clocks of two machines differ.
const SKEW: Duration = Duration::hours(1);

/// Serials that were issued, each with its holder's folder, one a line.
const ISSUED: &str = "issued";

/// Serials that were revoked, one a line.
const REVOKED: &str = "revoked";

/// An authority with its key.
pub struct Authority {
    directory: PathBuf,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The coordinator, reached by these names and addresses.
    Coordinator(Vec<String>),
    /// Changes and weights.
    Operator,
    /// Reads.
    Viewer,
    /// Any agent, or the one of this id.
    Agent(Option<String>),
}

impl Holder {
    /// Name of its folder, and of it for `himpun certs revoke`.
    pub fn name(&self) -> String {
        match self {
            Holder::Coordinator(_) => "coordinator".to_owned(),
            Holder::Operator => "operator".to_owned(),
            Holder::Viewer => "viewer".to_owned(),
            Holder::Agent(None) => "agent".to_owned(),
            Holder::Agent(Some(id)) => format!("agent-{id}"),
        }
    }

    fn uri(&self) -> String {
        match self {
            Holder::Agent(Some(id)) => format!("himpun:agent/{id}"),
            other => format!("himpun:{}", other.name()),
        }
    }
}

impl Authority {
    /// The authority in `directory`, made if there is none.
    ///
    /// # Errors
    /// If the directory is not private.
    pub fn open_or_make(directory: &Path) -> Result<Authority, Error> {
        files::private_directory(directory)?;
        let own = directory.join("authority");
        files::private_directory(&own)?;
        if !own.join(folder::CERTIFICATE).exists() {
            let key = open_or_make_key(&own)?;
            let certificate = authority_params()?.self_signed(&key)?.pem();
            files::create_secret(&own.join(folder::CERTIFICATE), certificate.as_bytes())?;
        }
        Authority::open(directory)
    }

    /// The authority in `directory`.
    ///
    /// # Errors
    /// If there is none, or it is not private.
    pub fn open(directory: &Path) -> Result<Authority, Error> {
        let own = directory.join("authority");
        let text = |name: &str| -> Result<String, Error> {
            Ok(String::from_utf8_lossy(&files::read_secret(&own.join(name))?).into_owned())
        };
        let certificate_pem = text(folder::CERTIFICATE)?;
        let key = KeyPair::from_pem(&text(folder::KEY)?)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)?;
        Ok(Authority { directory: directory.to_owned(), certificate_pem, issuer })
    }

    /// Makes the holder's folder, or a new certificate in it for the key that it has.
    ///
    /// # Errors
    /// If it cannot be written, or a name is none.
    pub fn issue(&self, holder: &Holder) -> Result<Folder, Error> {
        let folder = self.folder_of(&holder.name())?;
        files::private_directory(&folder)?;
        let key = open_or_make_key(&folder)?;
        let params = params(holder)?;
        self.note_issued(&holder.name(), &params)?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        files::replace_secret(&folder.join(folder::AUTHORITY), self.certificate_pem.as_bytes())?;
        files::replace_secret(&folder.join(folder::CERTIFICATE), certificate.as_bytes())?;
        if matches!(holder, Holder::Coordinator(_)) {
            files::replace_secret(&folder.join(folder::REVOKED_LIST), self.revocation_list()?.as_bytes())?;
        }
        Ok(Folder::new(&folder))
    }

    /// Revokes the certificate in the folder `name`, takes its key away, and writes the coordinator's list anew. A coordinator
    /// that reads this very folder notices at once; one elsewhere needs a copy of `coordinator/revoked.pem`.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn revoke(&self, name: &str) -> Result<CertificateId, Error> {
        let folder = self.folder_of(name)?;
        // Of two that revoke at once, each adds to what the other wrote.
        let own = self.directory.join("authority");
        let _locked = File::open(&own)
            .and_then(|directory| directory.lock().map(|()| directory))
            .map_err(Error::io("lock", &own))?;
        let id = Folder::new(&folder).id()?;
        let list = own.join(REVOKED);
        let mut serials = self.revoked_serials()?;
        // A copy of the folder may hold a certificate of before: all that were issued to its holder end.
        serials.extend(self.lines(ISSUED)?.iter().filter_map(|line| {
            let (serial, holder) = line.split_once(' ')?;
            (holder == name).then(|| serial.to_owned())
        }));
        serials.push(hex(&id.serial));
        serials.sort();
        serials.dedup();
        files::replace_secret(&list, (serials.join("\n") + "\n").as_bytes())?;
        let target = self.directory.join("coordinator");
        if target.exists() {
            files::replace_secret(&target.join(folder::REVOKED_LIST), self.revocation_list()?.as_bytes())?;
        }
        // A new certificate must not be for the old key.
        for name in [folder::KEY, folder::CERTIFICATE] {
            let file = folder.join(name);
            std::fs::remove_file(&file).map_err(Error::io("remove", &file))?;
        }
        Ok(id)
    }

    /// Every certificate of the authority that lies in a folder beside it, with the folder's name and whether it was revoked.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn issued(&self) -> Result<Vec<(String, CertificateId, bool)>, Error> {
        let revoked = self.revoked_serials()?;
        let entries = std::fs::read_dir(&self.directory).map_err(Error::io("read", &self.directory))?;
        let mut found = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.join(folder::CERTIFICATE).exists() {
                let id = Folder::new(&path).id()?;
                let is_revoked = revoked.contains(&hex(&id.serial));
                found.push((name, id, is_revoked));
            }
        }
        found.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        Ok(found)
    }

    /// The folder of this name, which is that of a holder: the authority's own key is never touched.
    fn folder_of(&self, name: &str) -> Result<PathBuf, Error> {
        let folder = self.directory.join(name);
        match !name.contains('/') && !name.starts_with('.') && !["", "authority"].contains(&name) {
            true => Ok(folder),
            false => Err(Error::Malformed {
                path: folder,
                what: "the folder of a holder",
                reason: "name one as `himpun certs show` lists them".to_owned(),
            }),
        }
    }

    /// Notes a serial before its certificate exists, so that none is forgotten.
    fn note_issued(&self, name: &str, params: &CertificateParams) -> Result<(), Error> {
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let mut lines = self.lines(ISSUED)?;
        lines.push(format!("{} {name}", hex(&serial)));
        let list = self.directory.join("authority").join(ISSUED);
        files::replace_secret(&list, (lines.join("\n") + "\n").as_bytes())
    }

    fn revoked_serials(&self) -> Result<Vec<String>, Error> {
        self.lines(REVOKED)
    }

    /// The lines of one of the authority's own lists.
    fn lines(&self, list: &str) -> Result<Vec<String>, Error> {
        let list = self.directory.join("authority").join(list);
        if !list.exists() {
            return Ok(Vec::new());
        }
        let text = files::read_secret(&list)?;
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }

    fn revocation_list(&self) -> Result<String, Error> {
        let now = OffsetDateTime::now_utc();
        let serials = self.revoked_serials()?;
        let revoked = |serial: &String| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&from_hex(serial).unwrap_or_default()),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - SKEW,
            next_update: now + AUTHORITY_LIFE,
            crl_number: SerialNumber::from(serials.len() as u64 + 1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }
}

/// The key in `folder`, made if there is none; of two that make it at once, both get the same.
fn open_or_make_key(folder: &Path) -> Result<KeyPair, Error> {
    let file = folder.join(folder::KEY);
    if !file.exists() {
        files::create_secret(&file, KeyPair::generate()?.serialize_pem().as_bytes())?;
    }
    Ok(KeyPair::from_pem(&String::from_utf8_lossy(&files::read_secret(&file)?))?)
}

fn authority_params() -> Result<CertificateParams, Error> {
    let mut params = valid_for(AUTHORITY_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Each authority has a name of its own, so that a certificate of another is not taken for one of it.
    params.distinguished_name.push(DnType::CommonName, format!("himpun authority {}", hex(&random::<4>())));
    Ok(params)
}

fn params(holder: &Holder) -> Result<CertificateParams, Error> {
    let mut params = valid_for(LIFE)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, format!("himpun {}", holder.name()));
    match holder {
        Holder::Coordinator(hosts) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = CertificateParams::new(hosts.clone())?.subject_alt_names;
        }
        client => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.subject_alt_names = vec![SanType::URI(client.uri().try_into()?)];
        }
    }
    Ok(params)
}

fn valid_for(life: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new([])?;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + life;
    // Positive, as a serial has to be.
    let mut serial = random::<16>();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

#[cfg(test)]
mod tests;
