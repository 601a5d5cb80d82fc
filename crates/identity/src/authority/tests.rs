//! What is made, made anew, listed and revoked.

use super::*;
use crate::Role;
use rcgen::PublicKeyData as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use tempfile::TempDir;

/// What `himpun certs init` makes.
fn holders() -> Vec<Holder> {
    let hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let agent = Holder::Agent(Some("node-1".to_owned()));
    vec![Holder::Coordinator(hosts), Holder::Operator, Holder::Viewer, Holder::Agent(None), agent]
}

/// A private directory, as `private_directory` makes it.
fn private() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).unwrap();
    directory
}

fn made() -> (TempDir, Authority) {
    let directory = private();
    let authority = Authority::open_or_make(directory.path()).unwrap();
    holders().iter().for_each(|holder| drop(authority.issue(holder).unwrap()));
    (directory, authority)
}

fn ids(authority: &Authority) -> Vec<(String, CertificateId, bool)> {
    let own = |(name, ..): &(String, CertificateId, bool)| name != "authority";
    authority.issued().unwrap().into_iter().filter(own).collect()
}

#[test]
fn a_certificate_says_what_its_holder_may_do_for_a_year() {
    let (_directory, authority) = made();
    let said: Vec<_> = ids(&authority)
        .into_iter()
        .map(|(folder, id, revoked)| {
            assert_eq!((id.not_after - id.not_before, revoked), (365 * 86_400 + 3600, false), "{folder}");
            assert_eq!((id.serial.len(), id.serial[0] & 0xc0), (16, 0x40), "{folder}: {:?}", id.serial);
            (folder, id.role, id.name, id.hosts.join(" "))
        })
        .collect();
    let expected = [
        ("agent", Some(Role::Agent), None, ""),
        ("agent-node-1", Some(Role::Agent), Some("node-1"), ""),
        ("coordinator", None, None, "localhost 127.0.0.1 ::1"),
        ("operator", Some(Role::Operator), None, ""),
        ("viewer", Some(Role::Viewer), None, ""),
    ];
    let expected = expected.map(|(folder, role, name, hosts)| {
        (folder.to_owned(), role, name.map(str::to_owned), hosts.to_owned())
    });
    assert_eq!(said, expected);
}

#[test]
fn all_that_is_made_is_private() {
    let (directory, _authority) = made();
    let mut files = 0;
    for folder in std::fs::read_dir(directory.path()).unwrap() {
        let folder = folder.unwrap().path();
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700, "{}", folder.display());
        for file in std::fs::read_dir(folder).unwrap() {
            let file = file.unwrap().path();
            assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600, "{}", file.display());
            files += 1;
        }
    }
    // Three for each holder, the coordinator's list, and the authority's two, with its list of what it issued.
    assert_eq!(files, 5 * 3 + 1 + 3);
}

#[test]
fn made_again_the_authority_and_all_keys_stay_and_certificates_are_new() {
    let (directory, authority) = made();
    let before = ids(&authority);
    let authority_before = std::fs::read(directory.path().join("authority/cert.pem")).unwrap();
    let again = Authority::open_or_make(directory.path()).unwrap();
    holders().iter().for_each(|holder| drop(again.issue(holder).unwrap()));
    for ((name, old, _), (_, new, _)) in before.iter().zip(ids(&again)) {
        assert_eq!(old.fingerprint, new.fingerprint, "{name}");
        assert_ne!(old.serial, new.serial, "{name}");
    }
    assert_eq!(std::fs::read(directory.path().join("authority/cert.pem")).unwrap(), authority_before);
    let holder = Folder::new(&directory.path().join("viewer"));
    assert_eq!(holder.authority().unwrap(), authority_before);
}

#[test]
fn two_that_make_an_authority_at_once_make_one_whose_key_is_its_certificates() {
    for _ in 0..5 {
        let directory = private();
        let path = directory.path();
        let authorities = std::thread::scope(|scope| {
            let attempts = [(), ()].map(|()| scope.spawn(|| Authority::open_or_make(path).unwrap()));
            attempts.map(|attempt| attempt.join().unwrap())
        });
        assert_eq!(authorities[0].certificate_pem, authorities[1].certificate_pem);
        for authority in authorities {
            let own = Folder::new(&path.join("authority")).id().unwrap().fingerprint;
            let folder = authority.issue(&Holder::Coordinator(vec!["localhost".to_owned()])).unwrap();
            folder.server().unwrap();
            let key = ring::digest::digest(
                &ring::digest::SHA256,
                &authority.issuer.key().subject_public_key_info(),
            );
            assert_eq!(hex(key.as_ref()), own.to_string());
        }
    }
}

#[test]
fn a_revoked_holder_is_listed_and_gets_a_new_key() {
    let (directory, authority) = made();
    let old = Folder::new(&directory.path().join("operator")).id().unwrap();
    assert_eq!(authority.revoke("operator").unwrap(), old);
    assert!(!directory.path().join("operator/key.pem").exists());
    assert!(ids(&authority).iter().all(|(name, ..)| name != "operator"), "nothing is left of it");
    assert!(authority.revoke("operator").is_err(), "there is nothing to revoke");

    let new = authority.issue(&Holder::Operator).unwrap().id().unwrap();
    assert_ne!((&new.serial, new.fingerprint), (&old.serial, old.fingerprint));
    assert!(ids(&authority).iter().all(|(_, _, revoked)| !revoked));
    authority.revoke("viewer").unwrap();
    assert_eq!(authority.revoked_serials().unwrap().len(), 2);

    // A certificate that its holder has kept is known as a revoked one.
    let kept = directory.path().join("kept");
    std::fs::rename(directory.path().join("agent"), &kept).unwrap();
    std::fs::create_dir(directory.path().join("agent")).unwrap();
    for name in ["cert.pem", "key.pem"] {
        std::fs::copy(kept.join(name), directory.path().join("agent").join(name)).unwrap();
    }
    authority.revoke("agent").unwrap();
    let revoked: Vec<String> =
        ids(&authority).into_iter().filter(|(_, _, revoked)| *revoked).map(|(name, ..)| name).collect();
    assert_eq!(revoked, ["kept"]);
}

#[test]
fn of_those_that_revoke_at_once_none_is_lost() {
    let (_directory, authority) = made();
    let names = ["operator", "viewer", "agent", "agent-node-1"];
    std::thread::scope(|scope| {
        for name in names {
            let authority = &authority;
            scope.spawn(move || authority.revoke(name).unwrap());
        }
    });
    assert_eq!(authority.revoked_serials().unwrap().len(), names.len());
}

#[test]
fn the_authority_itself_and_what_is_elsewhere_is_no_holder() {
    let (directory, authority) = made();
    let outside = Holder::Agent(Some("x/../../outside".to_owned()));
    for name in ["authority", "", ".", "..", "operator/../authority", "/etc", &outside.name()] {
        let error = authority.revoke(name).unwrap_err();
        assert!(error.to_string().contains("is not the folder of a holder"), "{name}: {error}");
    }
    assert!(authority.issue(&outside).is_err());
    assert!(directory.path().join("authority/key.pem").exists());
}

#[test]
fn an_authority_is_not_opened_where_others_can_reach_it() {
    let (directory, _authority) = made();
    let key = directory.path().join("authority/key.pem");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let error = Authority::open(directory.path()).err().unwrap();
    assert_eq!(error.hint().unwrap(), format!("chmod 600 {}", key.display()));
    let link = directory.path().join("link");
    symlink(directory.path().join("elsewhere"), &link).unwrap();
    let error = Authority::open_or_make(&link).err().unwrap();
    assert!(error.to_string().contains("not a directory but a link"), "{error}");
}

#[test]
fn a_uri_that_is_not_himpuns_gives_no_role() {
    let directory = private();
    let authority = Authority::open_or_make(directory.path()).unwrap();
    let role = |uri: &str| {
        let mut params = params(&Holder::Viewer).unwrap();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), &authority.issuer).unwrap();
        let id = CertificateId::of(certificate.der()).unwrap();
        (id.role, id.name)
    };
    assert_eq!(role("himpun:agent/a/b"), (Some(Role::Agent), Some("a/b".to_owned())));
    // The coordinator's own role is no certificate's.
    for none in
        ["himpun:admin", "himpun:admin/x", "himpun:operator/x", "himpun:", "other:operator", "himpun:Viewer"]
    {
        assert_eq!(role(none), (None, None), "{none}");
    }
}

#[test]
fn a_list_of_revoked_ones_that_is_none_is_not_taken_for_an_empty_one() {
    let (directory, _authority) = made();
    let folder = Folder::new(&directory.path().join("coordinator"));
    folder.server().unwrap();
    let list = directory.path().join("coordinator/revoked.pem");
    let whole = std::fs::read(&list).unwrap();
    for part in [0, 1, whole.len() / 2] {
        std::fs::write(&list, &whole[..part]).unwrap();
        assert!(matches!(folder.server(), Err(Error::Unusable { .. })), "{part} bytes of it");
    }
    std::fs::remove_file(&list).unwrap();
    folder.server().unwrap();
}

#[test]
fn a_copy_of_a_certificate_of_before_is_revoked_with_it() {
    let (_directory, authority) = made();
    let serial = |authority: &Authority| {
        let found = ids(authority).into_iter().find(|(folder, ..)| folder == "operator");
        hex(&found.unwrap().1.serial)
    };
    let first = serial(&authority);
    authority.issue(&Holder::Operator).unwrap();
    let second = serial(&authority);
    authority.revoke("operator").unwrap();
    let mut expected = [first, second];
    expected.sort();
    assert_eq!(authority.revoked_serials().unwrap(), expected);
}
