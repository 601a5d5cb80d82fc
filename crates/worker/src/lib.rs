//! One process, one device: the training program.

pub mod snapshot;
