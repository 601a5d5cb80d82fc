//! End to end: the real binary, real processes, real ports, real kills.

#![expect(clippy::print_stderr, reason = "skips are printed, so that they can be counted")]

mod bad_input;
mod cluster;
mod resume;
mod single;
mod support;
mod world_sizes;
