//! Settings of every channel and server, so that both ends agree.

use std::time::Duration;
use tonic::transport::{Endpoint, Server};

/// Largest message that is decoded; bulk data travels in chunks of [`CHUNK_BYTES`].
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Bytes of a checkpoint in one message.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Deadline of a call that only reads or changes state.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// A silent peer is noticed after the interval and the time-out of the keepalive.
const KEEPALIVE: Duration = Duration::from_secs(5);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Two chunks in flight on a stream, several streams on a connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The channel to `address` ("host:port"), not yet connected.
///
/// # Errors
/// If `address` is not a host and a port.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}

/// A server with the same settings.
pub fn server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}
