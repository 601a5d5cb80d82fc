//! Membership, runs and checkpoints; decisions are pure.
//!
//! The coordinator queues runs, deals their workers' ranks, carries operators' orders to them, takes their
//! checkpoints and writes their directories. It alone says how a run ended, and whose fault it was.
//!
//! It does not know: the engine, the collectives, the data. Images and gradients never pass through it, and
//! a healthy group trains on while it is away.
//!
//! Where to start: [`state`], which decides everything and touches nothing; then `owner`, which carries its
//! decisions out; then `service`, which puts both on the wire.

mod audit;
mod checkpoints;
mod clock;
mod error;
mod event_log;
mod owner;
mod run_dir;
mod server;
mod service;
pub mod state;
mod store;

pub use error::Error;
pub use server::{Coordinator, Identity, Options, Running};
