//! The coordinator as a command sees it: connect, compare protocols, call.

use anyhow::anyhow;
use clap::Args;
use proto::transport::{CALL_DEADLINE, MAX_MESSAGE_BYTES, endpoint};
use proto::v1::control_service_client::ControlServiceClient;
use proto::v1::{CommandRequest, GetServerInfoRequest, GetStatusRequest, RunStatus};
use std::future::Future;
use tonic::transport::Channel;
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

impl Client {
    /// Connects, and compares protocol versions.
    pub async fn connect(address: &str) -> Result<Client, Failure> {
        let endpoint = endpoint(address).map_err(|error| {
            Failure::new(Exit::USAGE, anyhow!(error).context(format!("`{address}` is not host:port")))
        })?;
        let channel = endpoint.connect().await.map_err(|error| unreachable(address, error))?;
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

fn unreachable(address: &str, error: tonic::transport::Error) -> Failure {
    Failure::new(
        Exit::TRY_AGAIN,
        anyhow!(error).context(format!("failed to reach the coordinator at {address}")),
    )
    .hint("start one with `himpun coordinator`, or name another by --coordinator or HIMPUN_COORDINATOR")
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
