//! `himpun certs init|show|revoke`.

use clap::{Args, Subcommand};
use identity::Fingerprint;
use identity::authority::{Authority, CertificateId, Folder, Holder};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::{Exit, Failure};
use crate::output;

/// Make, list and revoke certificates for coordinators, operators and agents on several machines
#[derive(Subcommand)]
pub enum Command {
    /// Make an authority and a folder of certificates for each role, or make them anew for another year: the authority and
    /// the keys stay
    Init(InitArguments),
    /// List certificates: whose, until when, and whether they were revoked
    Show(ShowArguments),
    /// Revoke a certificate: its holder is refused from the next call on
    Revoke(RevokeArguments),
}

/// Where certificates are made.
#[derive(Args)]
pub struct Directory {
    /// The directory of the authority, with a folder for each holder
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
}

/// What to make.
#[derive(Args)]
pub struct InitArguments {
    #[command(flatten)]
    directory: Directory,
    /// A name or address that the coordinator is reached by; may be repeated
    #[arg(long, value_name = "NAME", required = true, num_args = 1..)]
    host: Vec<String>,
    /// An agent that gets a certificate for its id alone, besides the one for agents of any id; may be repeated
    #[arg(long, value_name = "ID", num_args = 1..)]
    agent: Vec<String>,
}

/// What to list.
#[derive(Args)]
pub struct ShowArguments {
    /// The directory of an authority, or the folder of one holder
    #[arg(value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

/// What to revoke.
#[derive(Args)]
pub struct RevokeArguments {
    #[command(flatten)]
    directory: Directory,
    /// The holder's folder, as `himpun certs show` names it
    #[arg(value_name = "NAME")]
    name: String,
}

/// Carries the command out.
pub fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Init(arguments) => init(&arguments),
        Command::Show(arguments) => show(&arguments),
        Command::Revoke(arguments) => revoke(&arguments),
    }
}

fn init(arguments: &InitArguments) -> Result<Exit, Failure> {
    let dir = &arguments.directory.dir;
    // An id names a folder and stands in a certificate.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if let Some(id) = arguments.agent.iter().find(|id| id.is_empty() || !id.chars().all(plain)) {
        return Err(Failure::usage(format!("`{id}` is not an agent's id"))
            .hint("use letters, digits, `-`, `_` and `.`"));
    }
    let authority = Authority::open_or_make(dir)?;
    let agents = arguments.agent.iter().map(|id| Holder::Agent(Some(id.clone())));
    let holders =
        [Holder::Coordinator(arguments.host.clone()), Holder::Operator, Holder::Viewer, Holder::Agent(None)];
    for holder in holders.into_iter().chain(agents) {
        output::data(&authority.issue(&holder)?.path().display().to_string());
    }
    output::note(&format!(
        "start the coordinator with --certs {}; copy the other folders to who needs them, and keep {} to yourself",
        dir.join("coordinator").display(),
        dir.join("authority").display()
    ));
    Ok(Exit::DONE)
}

fn show(arguments: &ShowArguments) -> Result<Exit, Failure> {
    let found = certificates(&arguments.dir)?;
    if arguments.json {
        let entry = |(name, id, revoked): &(String, CertificateId, bool)| {
            json!({
                "name": name,
                "role": id.role.map(|role| role.name()),
                "agent": id.name,
                "hosts": id.hosts,
                "serial": serial(id),
                "not_after": id.not_after,
                "fingerprint": id.fingerprint.to_string(),
                "state": state(id, *revoked),
            })
        };
        output::json(&found.iter().map(entry).collect::<Vec<Value>>());
        return Ok(Exit::DONE);
    }
    let mut rows = vec![["name", "for", "state", "days left", "serial", "key"].map(str::to_owned).to_vec()];
    rows.extend(found.iter().map(|(name, id, revoked)| {
        let days = (id.not_after - now()).max(0) / 86_400;
        let state = state(id, *revoked).to_owned();
        vec![name.clone(), purpose(id), state, days.to_string(), serial(id), short(id.fingerprint)]
    }));
    output::data(&output::table(&rows));
    Ok(Exit::DONE)
}

fn certificates(dir: &Path) -> Result<Vec<(String, CertificateId, bool)>, Failure> {
    if dir.join("authority").is_dir() {
        return Ok(Authority::open(dir)?.issued()?);
    }
    // Whether one was revoked, its holder's folder does not tell.
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(vec![(name, Folder::new(dir).id()?, false)])
}

fn revoke(arguments: &RevokeArguments) -> Result<Exit, Failure> {
    let dir = &arguments.directory.dir;
    let id = Authority::open(dir)?.revoke(&arguments.name)?;
    output::data(&serial(&id));
    output::note(&format!(
        "a coordinator that does not read {0} itself needs a copy of it; `himpun certs init` makes a new certificate",
        dir.join("coordinator").join("revoked.pem").display()
    ));
    Ok(Exit::DONE)
}

fn state(id: &CertificateId, revoked: bool) -> &'static str {
    match revoked {
        true => "revoked",
        false if id.not_after < now() => "expired",
        false => "valid",
    }
}

fn purpose(id: &CertificateId) -> String {
    match (id.role, &id.name) {
        (Some(role), Some(name)) => format!("{role} {name}"),
        (Some(role), None) => role.to_string(),
        (None, _) => id.hosts.join(", "),
    }
}

fn serial(id: &CertificateId) -> String {
    id.serial.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn short(fingerprint: Fingerprint) -> String {
    fingerprint.to_string()[..12].to_owned()
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
