//! What a coordinator makes in its directory, and finds there again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use identity::{Credentials, Encryption, Error, Role, TokenFile};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn open(directory: &Path) -> Result<Credentials, Error> {
    Credentials::open(directory, Encryption::Tls, None)
}

fn accesses(credentials: &Credentials) -> Vec<TokenFile> {
    Role::ALL.map(|role| credentials.access(role)).to_vec()
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn a_second_start_finds_the_key_and_the_tokens_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).unwrap();
    let second = open(directory.path()).unwrap();
    assert_eq!(accesses(&first), accesses(&second));
    let tokens: Vec<String> = accesses(&first).iter().map(|access| access.token.to_hex()).collect();
    for (role, token) in Role::ALL.iter().zip(&tokens) {
        let file = first.file(*role).unwrap();
        assert_eq!(file, directory.path().join(format!("credentials/{role}.token")));
        assert_eq!(TokenFile::read(&file).unwrap(), first.access(*role));
        assert_eq!(tokens.iter().filter(|other| *other == token).count(), 1, "each role has its own");
    }
    // Neither the key nor a token in a log.
    let debug = format!("{first:?}");
    assert!(!debug.contains("PRIVATE") && tokens.iter().all(|token| !debug.contains(token)), "{debug}");
    let other = tempfile::tempdir().unwrap();
    let other = open(other.path()).unwrap().access(Role::Operator);
    let own = first.access(Role::Operator);
    assert!(other.fingerprint != own.fingerprint && other.token != own.token);
}

#[test]
fn another_encryption_changes_the_files_and_no_token() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).unwrap().access(Role::Agent);
    assert_eq!(first.encryption, Encryption::Tls);
    let shown = Credentials::ephemeral().unwrap().access(Role::Agent).fingerprint;
    let second = Credentials::open(directory.path(), Encryption::None, Some(shown)).unwrap();
    let expected = TokenFile { encryption: Encryption::None, fingerprint: shown, ..first.clone() };
    assert_eq!(second.access(Role::Agent), expected);
    assert_eq!(TokenFile::read(&second.file(Role::Agent).unwrap()).unwrap(), expected);
    assert_eq!(open(directory.path()).unwrap().access(Role::Agent), first);
}

#[test]
fn two_first_starts_at_once_agree() {
    for _ in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let [one, two] = std::thread::scope(|scope| {
            let starts = [(), ()].map(|()| scope.spawn(|| accesses(&open(path).unwrap())));
            starts.map(|start| start.join().unwrap())
        });
        assert_eq!(one, two);
        assert_eq!(one, accesses(&open(path).unwrap()));
    }
}

#[test]
fn a_place_that_others_can_reach_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("credentials");
    #[track_caller]
    fn check(directory: &Path, problem: &str, remedy: &str) {
        let error = open(directory).expect_err(problem);
        assert!(error.to_string().contains(problem), "{error}");
        assert!(error.hint().unwrap().starts_with(remedy), "{:?}", error.hint());
        assert_eq!(error.exit_code(), 2);
    }
    // Somebody made them first.
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), &folder).unwrap();
    check(directory.path(), "is not a directory but a link", "remove it");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0, "nothing was written there");
    std::fs::remove_file(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    set_mode(&folder, 0o755);
    check(directory.path(), "is open to other users", "chmod 700 ");
    set_mode(&folder, 0o700);
    set_mode(directory.path(), 0o1777);
    check(directory.path(), "is writable by everybody", "chmod o-w ");
    // A mounted volume.
    set_mode(directory.path(), 0o2770);
    open(directory.path()).unwrap();
    set_mode(&folder.join("operator.token"), 0o640);
    check(directory.path(), "is open to other users", "chmod 600 ");
    set_mode(&folder.join("operator.token"), 0o600);
    std::fs::rename(folder.join("key.pem"), folder.join("moved")).unwrap();
    symlink("moved", folder.join("key.pem")).unwrap();
    check(directory.path(), "is a link", "put the file itself there");
}
