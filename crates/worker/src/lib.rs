//! One process, one device: the training program.
//!
//! A worker attaches to the coordinator, forms a group with its peers, and trains its share of every global
//! batch until the run's last step. What it does not know is who started it, where checkpoints lie, and
//! that there are other runs.
//!
//! Start reading at [`train`], which is the program; then `step`, one update; then `run`, how a worker comes
//! to train. Beside it stand what the command line does with a checkpoint or a configuration alone:
//! [`embed`], [`probe`], [`pixels`], [`mod@bench`], [`views`].

pub mod bench;
mod caveats;
mod checkpoints;
mod clock;
mod corrupt;
mod directive;
pub mod embed;
pub mod error;
pub mod evaluation;
pub mod features;
#[cfg(test)]
mod fixtures;
mod gather;
mod group;
pub mod images;
mod journal;
pub mod knn;
pub mod linear;
mod metrics;
pub mod model;
mod npy;
mod objective;
pub mod pixels;
pub mod plan;
pub mod probe;
mod resumption;
mod run;
mod same_data;
pub mod session;
pub mod snapshot;
pub mod spectrum;
pub mod step;
mod sync;
pub mod train;
pub mod views;

pub use error::Error;
pub use run::{Options, run};
