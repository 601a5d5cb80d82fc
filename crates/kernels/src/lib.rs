//! The arithmetic: convolutions and matrix products on the CPU, and the threads they run on. Knows no network, no loss and
//! no rank; what a pass needs of other ranks it asks of [`peers`].
//!
//! Everything other crates call is safe and generic over [`Real`]. In `f64`, and on
//! [`KernelPath::Reference`], plain loops answer (`reference`); in `f32` one
//! register-blocked micro-kernel does all the work, compiled once per instruction set and chosen at
//! run time.
//!
//! Start reading at `conv` for what is computed, at `direct`, `dense` and `winograd` for how it is divided,
//! and at `strip` for how it is made fast. The only `unsafe` code of the crate lives here, in `aligned`, `planes`,
//! `pool`, `prefetch`, `products`, `row_block`, `simd`, `strip`, `tiles` and `vectorized`.
//!
//! Results depend on the path and on the number of threads, never on timing: work is divided
//! statically and partial sums are added in thread order.

mod aligned;
mod conv;
mod dense;
mod device;
mod direct;
mod division;
mod exponential;
mod frame;
mod gemm;
mod lattice;
mod matmul;
mod operands;
mod packed;
mod panels;
mod path;
mod peak;
pub mod peers;
mod phases;
mod planes;
mod pool;
mod prefetch;
mod products;
mod prologue;
mod real;
mod reference;
mod row_block;
mod scratch;
mod shape;
mod simd;
mod strip;
mod taps;
mod tiles;
mod transforms;
mod vectorized;
mod window;
mod winograd;
mod winograd_plan;
mod winograd_weights;

pub use aligned::AlignedVec;
pub use conv::{Conv2d, Convolution};
pub use device::{Cpu, CpuOptions, Device, DeviceOptions};
pub use exponential::{exp, exp2, normal, normal_f64};
pub use gemm::Gemm;
pub use matmul::{matmul, matmul_serial};
pub use operands::{Backward, Forward, InputGradient, OutputGradient, Then};
pub use packed::{PANEL, Packed, PackedGemm};
pub use path::KernelPath;
pub use peak::peak_flops;
pub use pool::{Pool, split};
pub use prefetch::prefetch;
pub use prologue::{Input, Prologue};
pub use real::Real;
pub use row_block::{RowBlock, RowBlocks, RowSums};
pub use shape::ConvShape;
pub use vectorized::{ChannelPass, LANES, vectorized};
