//! Peers of another version: each side refuses the other, and names both.

use crate::cluster::start_coordinator;
use crate::support::{fail, himpun, succeed};
use identity::{Access, Role};
use proto::v1::agent_service_client::AgentServiceClient;
use proto::v1::control_service_client::ControlServiceClient;
use proto::v1::control_service_server::{ControlService, ControlServiceServer};
use proto::v1::*;
use proto::{PROTOCOL, transport};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

const OTHER: u32 = PROTOCOL + 41;

#[test]
fn a_coordinator_refuses_clients_and_agents_of_another_version() {
    let directory = tempfile::tempdir().unwrap();
    let (_coordinator, address) = start_coordinator(directory.path(), "127.0.0.1:0");
    let token = directory.path().join("coordinator/credentials/admin.token");
    let refusals = Runtime::new().unwrap().block_on(async {
        let access = Access::new(None, Some(&token), Role::Admin).unwrap();
        let channel = access.connect(&address).await.unwrap().channel;
        let submission = SubmitRunRequest { protocol: OTHER, ..SubmitRunRequest::default() };
        let client = ControlServiceClient::new(channel.clone()).submit_run(submission).await.unwrap_err();
        let hello = AgentHello { protocol: OTHER, agent_id: "odd".to_owned(), ..AgentHello::default() };
        let hello = AgentUp { message: Some(agent_up::Message::Hello(hello)) };
        let agent = AgentServiceClient::new(channel).session(tokio_stream::iter([hello])).await.unwrap_err();
        [client, agent]
    });
    for refusal in refusals {
        let both = format!("protocol {OTHER}, this coordinator protocol {PROTOCOL}");
        assert!(refusal.message().contains(&both), "{refusal:?}");
        assert_eq!(refusal.code(), tonic::Code::FailedPrecondition);
    }
    succeed(himpun().args(["runs", "--coordinator", &address]));
}

#[test]
fn a_command_refuses_a_coordinator_of_another_version() {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = transport::server().add_service(ControlServiceServer::new(Stranger));
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let stderr = fail(himpun().args(["runs", "--coordinator", &address]), 2);
    for words in
        [&address, &format!("protocol {OTHER}"), &format!("speaks {PROTOCOL}"), "himpun 9.9.9", "hint:"]
    {
        assert!(stderr.contains(words), "`{words}` is not in\n{stderr}");
    }
}

#[test]
fn peers_of_protocol_1_are_told_so_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let (_coordinator, address) = start_coordinator(directory.path(), "127.0.0.1:0");
    let refusals = Runtime::new().unwrap().block_on(async {
        // They spoke clear text, and showed nothing.
        let channel = transport::endpoint(&address).unwrap().connect().await.unwrap();
        let mut control = ControlServiceClient::new(channel.clone());
        let command = control.get_server_info(GetServerInfoRequest {}).await.unwrap_err();
        let hello = AgentHello { protocol: 1, agent_id: "old".to_owned(), slots: 1, ..AgentHello::default() };
        let hello = AgentUp { message: Some(agent_up::Message::Hello(hello)) };
        let agent = AgentServiceClient::new(channel).session(tokio_stream::iter([hello])).await.unwrap_err();
        [command, agent]
    });
    for refusal in refusals {
        let both = format!(
            "speaks protocol {PROTOCOL} over TLS; the peer speaks clear text without credentials, as protocol 1"
        );
        assert!(refusal.message().contains(&both), "{refusal:?}");
        assert_eq!(refusal.code(), tonic::Code::FailedPrecondition);
    }
}

/// A coordinator of another version: it says which, and must be asked for nothing else.
struct Stranger;

fn unasked<T>() -> Result<Response<T>, Status> {
    panic!("a coordinator of another version was asked for more than its version")
}

#[tonic::async_trait]
impl ControlService for Stranger {
    type WatchStream = ReceiverStream<Result<Event, Status>>;
    type TailLogsStream = ReceiverStream<Result<LogLine, Status>>;

    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<ServerInfo>, Status> {
        let version = "9.9.9".to_owned();
        Ok(Response::new(ServerInfo { version, protocol: OTHER, incarnation: 1, agents: Vec::new() }))
    }
    async fn submit_run(&self, _: Request<SubmitRunRequest>) -> Result<Response<SubmitRunResponse>, Status> {
        unasked()
    }
    async fn list_runs(&self, _: Request<ListRunsRequest>) -> Result<Response<ListRunsResponse>, Status> {
        unasked()
    }
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<RunStatus>, Status> {
        unasked()
    }
    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        unasked()
    }
    async fn tail_logs(&self, _: Request<TailLogsRequest>) -> Result<Response<Self::TailLogsStream>, Status> {
        unasked()
    }
    async fn pause(&self, _: Request<CommandRequest>) -> Result<Response<CommandResponse>, Status> {
        unasked()
    }
    async fn resume(&self, _: Request<CommandRequest>) -> Result<Response<CommandResponse>, Status> {
        unasked()
    }
    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<CommandResponse>, Status> {
        unasked()
    }
    async fn checkpoint_now(
        &self,
        _: Request<CheckpointNowRequest>,
    ) -> Result<Response<CheckpointNowResponse>, Status> {
        unasked()
    }
    async fn list_checkpoints(
        &self,
        _: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        unasked()
    }
    async fn verify_checkpoint(
        &self,
        _: Request<VerifyCheckpointRequest>,
    ) -> Result<Response<VerifyCheckpointResponse>, Status> {
        unasked()
    }
}
