//! The coordinator as a command sees it: connect, compare protocols, call.

use anyhow::anyhow;
use clap::Args;
use identity::{Access, Channel, Connection, Role};
use proto::transport::{CALL_DEADLINE, MAX_MESSAGE_BYTES};
use proto::v1::control_service_client::ControlServiceClient;
use proto::v1::{CommandRequest, GetServerInfoRequest, GetStatusRequest, RunStatus};
use std::future::Future;
use std::path::PathBuf;
use tonic::{Response, Status};

use crate::failure::{Exit, Failure};

/// Where a coordinator listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7420";

/// Which coordinator.
#[derive(Args, Clone, Debug)]
pub struct CoordinatorArgument {
    /// The coordinator, host:port
    #[arg(long, value_name = "ADDRESS", env = "HIMPUN_COORDINATOR", default_value = DEFAULT_ADDRESS, value_parser = host_and_port)]
    pub coordinator: String,
    /// Prove yourself by this file, a copy of one in the coordinator's directory `credentials` [default: what a
    /// coordinator of this user on this machine has left in ~/.config/himpun] [env: HIMPUN_TOKEN_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "certs")]
    token_file: Option<PathBuf>,
    /// Prove yourself by the certificate in this folder, as `himpun certs init` makes one for each role
    /// [env: HIMPUN_CERTS]
    #[arg(long, value_name = "DIR")]
    certs: Option<PathBuf>,
}

impl CoordinatorArgument {
    /// What this user proves itself by, in a role.
    pub fn access(&self, role: Role) -> Result<Access, Failure> {
        let is_named = self.certs.is_some() || self.token_file.is_some();
        // What is named on the command line counts before the environment, whichever of the two it is.
        let of_environment = |name| std::env::var_os(name).filter(|value| !is_named && !value.is_empty());
        let certificates = self.certs.clone().or_else(|| of_environment("HIMPUN_CERTS").map(PathBuf::from));
        let token_file =
            self.token_file.clone().or_else(|| of_environment("HIMPUN_TOKEN_FILE").map(PathBuf::from));
        Ok(Access::new(certificates.as_deref(), token_file.as_deref(), role)?)
    }
}

/// Takes an address that names a host and a port; whether they exist, the network knows.
fn host_and_port(address: &str) -> Result<String, String> {
    match address.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>())) {
        Some((false, Ok(port))) if port > 0 => Ok(address.to_owned()),
        _ => Err("it is not host:port, such as 127.0.0.1:7420".to_owned()),
    }
}

/// A connection to the coordinator, whose protocol is known to be ours.
#[derive(Clone)]
pub struct Client {
    /// The calls.
    pub control: ControlServiceClient<Channel>,
}

/// The role that commands are for, where they find nothing and say what to copy.
const ROLE: Role = Role::Operator;

impl Client {
    /// Connects to the coordinator that was named, or the one at the default address.
    pub async fn connect(coordinator: &CoordinatorArgument) -> Result<Client, Failure> {
        Client::connect_as(&coordinator.coordinator, &coordinator.access(ROLE)?).await
    }

    /// Connects, and compares protocol versions.
    pub async fn connect_as(address: &str, access: &Access) -> Result<Client, Failure> {
        let Connection { channel, .. } = access.connect(address).await?;
        let mut control = ControlServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let server =
            call(control.get_server_info(GetServerInfoRequest {})).await.map_err(|failure| Failure {
                error: failure
                    .error
                    .context(format!("the process at {address} does not answer as a coordinator")),
                ..failure
            })?;
        if server.protocol != proto::PROTOCOL {
            return Err(Failure::usage(format!(
                "the coordinator at {address} (himpun {}) speaks protocol {}, this himpun {} speaks {}",
                server.version,
                server.protocol,
                env!("CARGO_PKG_VERSION"),
                proto::PROTOCOL
            ))
            .hint("use the same version on both sides"));
        }
        Ok(Client { control })
    }

    /// The state of a run: by id, a unique prefix of one, or the newest if `run_id` is empty.
    pub async fn status(&mut self, run_id: &str) -> Result<RunStatus, Failure> {
        call(self.control.get_status(GetStatusRequest { run_id: run_id.to_owned() })).await
    }
}

/// Waits for an answer, no longer than a call that does no work may take.
pub async fn call<T>(answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_DEADLINE, answer).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::new(
            Exit::TRY_AGAIN,
            anyhow!("the coordinator did not answer within {CALL_DEADLINE:?}"),
        )),
    }
}

/// A request that changes a run, safe to repeat.
pub fn command(run_id: &str) -> CommandRequest {
    CommandRequest { run_id: run_id.to_owned(), idempotency_key: idempotency_key(), actor: actor() }
}

/// A key that no other call has.
pub fn idempotency_key() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Who gives the order, for the run's events.
pub fn actor() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "someone".to_owned());
    match nix::unistd::gethostname() {
        Ok(host) => format!("{user}@{}", host.to_string_lossy()),
        Err(_) => user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for address in ["127.0.0.1:7420", "node-0:1", "[::1]:7420"] {
            assert_eq!(host_and_port(address).as_deref(), Ok(address));
        }
        for address in ["nonsense", ":7420", "host:", "host:99999", "host:0", "host:port", ""] {
            assert!(host_and_port(address).is_err(), "{address}");
        }
    }
}
