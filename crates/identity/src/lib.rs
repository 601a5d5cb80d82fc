//! Who may speak with a coordinator, and how both ends prove who they are.
//!
//! Every connection is authenticated, on loopback as well, and the server proves itself first: by its key, which the client
//! knows (a fingerprint, or a certificate of an authority), or, where `--insecure` turns encryption off, by an HMAC of a shared
//! token over two nonces. Only then does the client show who it is: a token inside TLS, a certificate, or its own HMAC.
//!
//! It does not know what is said over a connection, nor who may say what: that is the coordinator's table of rules.
//!
//! Start with [`Access`] (a client's side) and [`Guard`] (a server's); then `proof` (the handshake without encryption),
//! `credentials` (what a coordinator makes at its first start), `keyring` (where the commands of the same user find it) and
//! `authority` (certificates between machines).

mod access;
pub mod authority;
mod channel;
mod credentials;
mod dial;
mod error;
pub mod files;
mod guard;
pub mod keyring;
mod listener;
mod proof;
mod role;
mod seal;
mod secret;
mod tls;
mod token_file;

pub use access::{Access, Spawn, Trust};
pub use channel::{Channel, Connection};
pub use credentials::Credentials;
pub use error::Error;
pub use guard::{Caller, Guard, WorkerSecrets};
pub use listener::{Connected, Peer, Rejected, incoming};
pub use role::Role;
pub use seal::Seal;
pub use secret::{Secret, Token, WorkerSecret, random};
pub use tls::Fingerprint;
pub use token_file::{Encryption, TokenFile};
