//! One rank's training: the step, its state, and the evaluations that training itself makes.
//!
//! A rank plans its part of a run ([`plan`]), makes updates together with the other ranks ([`step`]), names its state for
//! checkpoints ([`state_dict`]) and evaluates what it has learned ([`evaluation`]). The other ranks it reaches through a
//! communicator that it is given; who started it, where checkpoints go and that there is a coordinator, it does not know.

pub mod caveats;
pub mod corrupt;
mod error;
pub mod evaluation;
pub mod features;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod gather;
pub mod images;
pub mod knn;
pub mod model;
mod objective;
pub mod plan;
pub mod resumption;
pub mod same_data;
pub mod spectrum;
pub mod state_dict;
pub mod step;

pub use error::Error;
