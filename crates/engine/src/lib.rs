//! The training step: static graph of fused ops, models, optimizers. Knows no network and no files.

pub mod kernels;
pub mod peers;
