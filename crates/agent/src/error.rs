//! What ends an agent.

/// Why an agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither side knows the other.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The coordinator will not have this agent; trying again would not change that.
    #[error("the coordinator at {coordinator} refused this agent: {}", refusal.message)]
    Refused {
        /// Its address.
        coordinator: String,
        /// Its reason.
        refusal: proto::Refusal,
    },
    /// The thread that all workers are spawned from did not start.
    #[error("failed to start the spawning thread")]
    Spawner(#[source] std::io::Error),
}
