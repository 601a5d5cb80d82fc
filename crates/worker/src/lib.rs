//! One process, one device: the training program.
//!
//! A worker attaches to the coordinator, forms a group with its peers, and trains its share of every global
//! batch until the run's last step. What it does not know is who started it, where checkpoints lie, and
//! that there are other runs.
//!
//! Start reading at [`train`], which is the program; then `run`, how a worker comes to train. One update is
//! [`trainer::step`]. Of checkpoints, `checkpointing` decides when, [`trainer::state_dict`] what, and `transfer` how.

mod checkpointing;
mod clock;
mod directive;
mod error;
mod group;
mod journal;
mod metrics;
mod run;
pub mod session;
pub mod train;
mod transfer;

pub use error::Error;
pub use run::{Options, run};
