//! The coordinator on a real port, spoken to as agents, workers and the command line speak to it.

mod checkpoints;
mod refusals;
mod runs;
mod support;
