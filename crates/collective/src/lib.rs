//! Collective operations between the worker processes of one run, over TCP.
//!
//! What the ranks exchange goes from worker to worker, never through the coordinator: a full mesh of sockets
//! per [`Communicator`], formed once per generation by [`form`]. Every operation is one or two *exchanges*, in
//! which a rank sends at most one frame to each peer and receives at most one from it, all of them at once.
//!
//! Both ends of a socket prove that they know the secret of the generation when it is opened (`handshake`);
//! nothing is encrypted.
//!
//! The room promises: sums run in rank order and have the same bits on every rank; a frame that belongs to
//! another generation, step or operation is a typed error and is never summed; a blocked operation ends at
//! once when a peer dies or [`AbortHandle::abort`] is called; nothing spins. It knows no model and no
//! coordinator, and never retries: after an error the generation is over.
//!
//! Start reading at [`Communicator`]; `tcp` says which frames an operation exchanges, `exchange` moves the bytes, `form` builds
//! the mesh.

mod abort;
mod clock;
mod communicator;
mod dial;
mod element;
mod error;
mod exchange;
mod form;
mod frame;
mod handshake;
mod partial;
mod position;
mod reducer;
mod stranger;
mod tcp;

pub use abort::AbortHandle;
pub use communicator::Communicator;
pub use element::{Element, Number};
pub use error::{Error, Field, Refusal};
pub use form::{Group, Listener, Membership, form, loopback};
pub use reducer::{Bucket, GradientReducer};
