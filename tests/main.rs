//! End to end: the real binary, real processes, real ports, real kills.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod bad_input;
mod cluster;
mod compatibility;
mod export;
mod identity;
mod images;
mod layers;
mod methods;
mod namespaces;
mod protocol;
mod replay;
mod resume;
mod single;
mod support;
mod tools;
mod world_sizes;
