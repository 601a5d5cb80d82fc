//! What a coordinator leaves in its user's home, so that the same user's commands and agents find it by its address.
//!
//! One private file for each address. Homes are shared between machines and a loopback address means another machine on each,
//! so that the name of such a file holds the machine, too.

use nix::ifaddrs::getifaddrs;
use nix::unistd::{Uid, User};
use ring::digest;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::secret::hex;
use crate::{Error, Role, TokenFile, files};

/// Names another directory than the one in the user's home.
pub const DIRECTORY_VARIABLE: &str = "HIMPUN_CONFIG_DIR";

/// A coordinator's entries. They stay when this is dropped; see [`Entries::remove`].
#[derive(Debug)]
pub struct Entries {
    paths: Vec<PathBuf>,
    access: TokenFile,
}

/// Enters a coordinator that listens at `address`; a wildcard stands for every address of this machine. What an earlier one
/// left there is replaced, because this one has the port.
///
/// # Errors
/// If there is no home, or it cannot be written, or the directory in it is not private.
pub fn enter(address: SocketAddr, access: &TokenFile) -> Result<Entries, Error> {
    let directory = directory_of(std::env::var_os(DIRECTORY_VARIABLE), std::env::var_os("HOME"))?;
    enter_in(&directory, &machine(), address, access)
}

fn enter_in(
    directory: &Path,
    machine: &str,
    address: SocketAddr,
    access: &TokenFile,
) -> Result<Entries, Error> {
    make_directory(directory)?;
    let mut entries = Entries { paths: Vec::new(), access: access.clone() };
    for ip in addresses(address.ip()) {
        let at = SocketAddr::new(ip, address.port());
        entries.paths.push(directory.join(file_name(at, Some(machine))));
        if !ip.is_loopback() {
            entries.paths.push(directory.join(file_name(at, None)));
        }
    }
    for path in &entries.paths {
        files::replace_secret(path, access.to_json().as_bytes())?;
    }
    Ok(entries)
}

impl Entries {
    /// Takes the entries away, but those that another coordinator has replaced.
    pub fn remove(&self) {
        for path in &self.paths {
            let found = files::read_secret(path).and_then(|bytes| TokenFile::parse(path, &bytes));
            let ours = found.is_ok_and(|found| found == self.access);
            if ours && let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "an entry of this coordinator could not be removed");
            }
        }
    }
}

/// Finds the entry of the coordinator at `address` ("host:port").
///
/// # Errors
/// If there is none, or it is not private.
pub fn find(address: &str, role: Role) -> Result<TokenFile, Error> {
    match directory_of(std::env::var_os(DIRECTORY_VARIABLE), std::env::var_os("HOME")) {
        Ok(directory) => find_in(&directory, &machine(), address, role),
        Err(Error::NoHome) => Err(Error::NoCredentials { address: address.to_owned(), role }),
        Err(error) => Err(error),
    }
}

fn find_in(directory: &Path, machine: &str, address: &str, role: Role) -> Result<TokenFile, Error> {
    let missing = || Error::NoCredentials { address: address.to_owned(), role };
    if !directory.exists() {
        return Err(missing());
    }
    files::private_directory(directory)?;
    // A name that has no address has no entry either; whoever connects says so.
    let resolved: Vec<SocketAddr> = address.to_socket_addrs().into_iter().flatten().collect();
    for at in resolved {
        let elsewhere = (!at.ip().is_loopback()).then(|| file_name(at, None));
        for name in [Some(file_name(at, Some(machine))), elsewhere].into_iter().flatten() {
            let path = directory.join(name);
            if path.symlink_metadata().is_ok() {
                return TokenFile::parse(&path, &files::read_secret(&path)?);
            }
        }
    }
    Err(missing())
}

/// Where this user's entries lie, by the values of [`DIRECTORY_VARIABLE`] and `HOME`.
fn directory_of(named: Option<OsString>, home: Option<OsString>) -> Result<PathBuf, Error> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let home = home.filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = home.or_else(|| User::from_uid(Uid::effective()).ok().flatten().map(|user| user.dir));
    Ok(home.ok_or(Error::NoHome)?.join(".config").join("himpun"))
}

fn make_directory(directory: &Path) -> Result<(), Error> {
    // `.config` is not ours alone: one that is there keeps its mode.
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(Error::io("create", parent))?;
    }
    files::private_directory(directory)
}

fn file_name(at: SocketAddr, machine: Option<&str>) -> String {
    let address = at.to_string().replace(['[', ']'], "").replace('%', "_");
    match machine {
        Some(machine) => format!("{address}@{machine}.json"),
        None => format!("{address}.json"),
    }
}

/// The addresses by which a bind to `ip` is reached.
fn addresses(ip: IpAddr) -> Vec<IpAddr> {
    if !ip.is_unspecified() {
        return vec![ip];
    }
    let mut found: Vec<IpAddr> = getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        // A wildcard of the one family is not reached by the other, but for IPv6's, which takes IPv4 as well.
        .filter(|found| ip.is_ipv6() || found.is_ipv4())
        .chain([ip])
        .collect();
    found.sort();
    found.dedup();
    found
}

/// What tells this machine (and, within it, this network namespace) from all others that share the home.
fn machine() -> String {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let parts = [
        text("/etc/machine-id"),
        text("/proc/sys/kernel/random/boot_id"),
        namespace.to_string_lossy().into_owned(),
    ];
    hex(&digest::digest(&digest::SHA256, parts.concat().as_bytes()).as_ref()[..8])
}

#[cfg(test)]
mod tests;
