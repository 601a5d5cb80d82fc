//! MoCo, NPID and PIRL: PyTorch's values, the same steps at any world size, and state that outlives a step.
//!
//! Everything runs in `f64` unless it says otherwise, over real sockets, one thread a rank. Mistakes that a distributed
//! implementation can make are simulated by [`textbook`], a second implementation of the same methods on one rank.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

mod closed_forms;
mod equality;
mod fixtures;
mod golden;
mod state;
mod textbook;
