//! End to end: the real binary, real processes, real ports, real kills.

mod bad_input;
mod cluster;
mod namespaces;
mod replay;
mod resume;
mod single;
mod support;
mod world_sizes;
