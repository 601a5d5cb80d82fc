//! Entries by address and machine, in directories of the tests' own.

use super::*;
use crate::{Credentials, Role, TokenFile};
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

const HERE: &str = "here";

fn access() -> TokenFile {
    Credentials::ephemeral().unwrap().access(Role::Operator)
}

/// A home with one coordinator of the machine [`HERE`] in it, that listens at `address`.
fn home(address: &str) -> (TempDir, PathBuf, TokenFile, Entries) {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join(".config").join("himpun");
    let access = access();
    let entries = enter_in(&directory, HERE, address.parse().unwrap(), &access).unwrap();
    (home, directory, access, entries)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn check_missing(found: Result<TokenFile, Error>) {
    let error = found.unwrap_err();
    assert!(matches!(error, Error::NoCredentials { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("credentials/operator.token"), "{:?}", error.hint());
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn a_loopback_address_means_this_machine_alone() {
    let (_home, directory, access, _) = home("127.0.0.1:7077");
    assert_eq!(names(&directory), ["127.0.0.1:7077@here.json"]);
    for address in ["127.0.0.1:7077", "localhost:7077"] {
        assert_eq!(find_in(&directory, HERE, address, Role::Operator).unwrap(), access, "{address}");
    }
    check_missing(find_in(&directory, "there", "127.0.0.1:7077", Role::Operator));
    for address in ["127.0.0.1:7078", "127.0.0.2:7077", "no such name:7077", "127.0.0.1"] {
        check_missing(find_in(&directory, HERE, address, Role::Operator));
    }
    check_missing(find_in(&directory.join("nowhere"), HERE, "127.0.0.1:7077", Role::Operator));
}

#[test]
fn another_address_is_found_from_every_machine_and_its_own_entry_first() {
    let (_home, directory, access, _) = home("192.0.2.7:7077");
    assert_eq!(names(&directory), ["192.0.2.7:7077.json", "192.0.2.7:7077@here.json"]);
    let other = self::access();
    // Another machine that has the same private address.
    enter_in(&directory, "there", "192.0.2.7:7077".parse().unwrap(), &other).unwrap();
    for (machine, expected) in [(HERE, &access), ("there", &other), ("elsewhere", &other)] {
        let found = find_in(&directory, machine, "192.0.2.7:7077", Role::Operator).unwrap();
        assert_eq!(&found, expected, "{machine}");
    }
}

#[test]
fn a_wildcard_is_found_by_every_address_of_the_machine_and_its_port() {
    let (_home, directory, access, entries) = home("0.0.0.0:7077");
    let local: Vec<IpAddr> = getifaddrs()
        .unwrap()
        .filter_map(|interface| Some(IpAddr::from(interface.address?.as_sockaddr_in()?.ip())))
        .collect();
    assert!(local.iter().any(IpAddr::is_loopback), "{local:?}");
    for ip in local.iter().chain([&"0.0.0.0".parse().unwrap()]) {
        let [good, bad] = [7077, 7078].map(|port| SocketAddr::new(*ip, port).to_string());
        assert_eq!(find_in(&directory, HERE, &good, Role::Operator).unwrap(), access, "{good}");
        check_missing(find_in(&directory, HERE, &bad, Role::Operator));
        if ip.is_loopback() {
            check_missing(find_in(&directory, "there", &good, Role::Operator));
        }
    }
    check_missing(find_in(&directory, HERE, "192.0.2.7:7077", Role::Operator));
    check_missing(find_in(&directory, HERE, "[::1]:7077", Role::Operator));
    entries.remove();
    assert_eq!(names(&directory), [""; 0]);
}

#[test]
fn a_wildcard_of_both_families_is_found_by_both() {
    let found = addresses("::".parse().unwrap());
    assert!(
        found.contains(&"::".parse().unwrap()) && found.contains(&"127.0.0.1".parse().unwrap()),
        "{found:?}"
    );
    assert_eq!(addresses("192.0.2.7".parse().unwrap()), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
}

#[test]
fn who_has_the_port_replaces_a_dead_entry_and_keeps_its_own() {
    let (_home, directory, _, dead) = home("127.0.0.1:7077");
    let access = access();
    let entries = enter_in(&directory, HERE, "127.0.0.1:7077".parse().unwrap(), &access).unwrap();
    // It was dead only almost: its end must not take what is another's.
    dead.remove();
    assert_eq!(find_in(&directory, HERE, "127.0.0.1:7077", Role::Operator).unwrap(), access);
    entries.remove();
    check_missing(find_in(&directory, HERE, "127.0.0.1:7077", Role::Operator));
    entries.remove();
}

#[test]
fn entries_are_private_and_refused_where_they_are_not() {
    let (home, directory, access, entries) = home("127.0.0.1:7077");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let file = directory.join("127.0.0.1:7077@here.json");
    assert_eq!([mode(&home.path().join(".config")), mode(&directory), mode(&file)], [0o700, 0o700, 0o600]);
    let find = || find_in(&directory, HERE, "127.0.0.1:7077", Role::Operator);
    for (path, open, good) in [(&directory, 0o755, 0o700), (&file, 0o644, 0o600)] {
        set(path, open);
        let error = find().unwrap_err();
        assert_eq!(error.hint().unwrap(), format!("chmod {good:o} {}", path.display()));
        assert_eq!(error.exit_code(), 2);
        set(path, good);
    }
    assert_eq!(find().unwrap(), access);
    assert_eq!(format!("{entries:?}").matches("Secret(..)").count(), 1, "no token in a log");
    // An attacker's link, made before the first coordinator.
    let link = home.path().join("link");
    std::os::unix::fs::symlink(&directory, &link).unwrap();
    let error = enter_in(&link, HERE, "127.0.0.1:1".parse().unwrap(), &access).unwrap_err();
    assert!(error.to_string().contains("not a directory but a link"), "{error}");
}

#[test]
fn a_token_that_stands_where_it_should_not_is_not_repeated() {
    let token = access().token.to_hex();
    for text in [format!("\"{token}\""), token.clone(), format!("{{\"role\":\"{token}\"}}"), "9".repeat(64)] {
        let error = TokenFile::parse(Path::new("file"), text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("file is not a token file"), "{error}");
        assert!(!error.contains(&token[..8]) && !error.contains("99999999"), "{error}");
    }
}

#[test]
fn the_directory_is_the_named_one_or_in_the_home_also_without_its_variable() {
    let directory = |named: Option<&str>, home: Option<&str>| {
        directory_of(named.map(OsString::from), home.map(OsString::from)).unwrap()
    };
    let of_system = User::from_uid(Uid::effective()).unwrap().unwrap().dir.join(".config/himpun");
    for (named, home, expected) in [
        (Some("/named"), Some("/home/a"), Path::new("/named")),
        (None, Some("/home/a"), Path::new("/home/a/.config/himpun")),
        (Some(""), Some("/home/a"), Path::new("/home/a/.config/himpun")),
        (None, None, &of_system),
        (None, Some(""), &of_system),
    ] {
        assert_eq!(directory(named, home), expected, "{named:?} {home:?}");
    }
}

#[test]
fn a_machine_has_one_name() {
    assert_eq!(machine(), machine());
    assert_eq!(machine().len(), 16);
}
