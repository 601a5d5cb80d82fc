//! What the command line does with a checkpoint or a configuration alone, without a coordinator: features and their
//! evaluation ([`embed`], [`probe`]), a baseline from pixels ([`pixels`]), the exact views of training ([`views`]), and
//! how fast the trainer's own parts are ([`mod@bench`]).

pub mod bench;
pub mod embed;
mod error;
pub mod linear;
mod npy;
pub mod pixels;
pub mod probe;
pub mod views;

pub use error::Error;
