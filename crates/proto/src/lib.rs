//! The wire: types generated from `proto/himpun/v1`, and what both ends of a connection must agree on.
//!
//! Knows nothing of what the messages are for. Start with the `.proto` files; then `transport` (the
//! settings of every channel and server) and `refusal` (typed errors across gRPC).

mod fence;
mod refusal;
mod secrets;
pub mod transport;

pub use refusal::{MissingField, Refusal, one_line};

/// Version of the protocol. Both sides state it; a different one is refused by name.
pub const PROTOCOL: u32 = 2;

/// Descriptors of every service, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

include!(concat!(env!("OUT_DIR"), "/method.rs"));

impl Method {
    /// The method that a request of this path calls.
    pub fn from_path(path: &str) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.path() == path)
    }
}

/// Messages and services of `himpun.v1`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    reason = "generated: the documentation stands in proto/"
)]
pub mod v1 {
    tonic::include_proto!("himpun.v1");
}
