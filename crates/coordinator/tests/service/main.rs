//! The coordinator on a real port, spoken to as agents, workers and the command line speak to it.

#![expect(
    clippy::unwrap_used,
    reason = "all of it is tests, and `allow-unwrap-in-tests` knows only functions that are marked so"
)]

mod checkpoints;
mod everybody;
mod fuzz;
mod probes;
mod raw;
mod refusals;
mod runs;
mod scene;
mod support;
