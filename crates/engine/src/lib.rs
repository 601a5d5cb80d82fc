//! The training step: static graph of fused ops, models, optimizers. Knows no network and no files.
//!
//! A [`models::ModelSpec`] becomes a graph of fused ops, the graph a plan of what lives in which memory when,
//! and [`network::Network`] executes that plan: forward, backward, running statistics. Everything is generic
//! over [`kernels::Real`]: `f32` trains, `f64` checks the derivation. Start reading at [`network`].

mod arena;
pub mod average;
mod graph;
mod init;
pub mod models;
pub mod network;
mod ops;
pub mod optim;
pub mod parameters;
pub mod schedule;
