//! One process, one device: the training program.

pub mod embed;
mod error;
pub mod evaluation;
pub mod features;
#[cfg(test)]
mod fixtures;
pub mod knn;
pub mod model;
mod npy;
pub mod snapshot;
pub mod spectrum;

pub use error::Error;
