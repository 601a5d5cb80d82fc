//! What a run leaves behind to go on from: layout, digests, staging, retention, export.
//!
//! A checkpoint is a directory `RUN/checkpoints/step-00001234` with one safetensors shard a rank and a
//! `manifest.json` that holds the digest of each, and its own. It is written under another name and gets
//! this one by a rename, after everything in it is on the disk: a directory with that name is complete.
//!
//! What it promises: nothing is made of a checkpoint of which a digest does not hold, and whatever does not
//! hold is named, with what was expected, so that the previous good checkpoint can take its place. No shard is
//! in memory as a whole beside its tensors. Below a run's directory no link is followed, and nothing but regular
//! files is read or written ([`Directory`], which also says what of the path to it).
//!
//! What it does not know: the network it was streamed over, the models whose tensors it holds.
//!
//! Where to start: [`Manifest`] for what is recorded, [`Staging`] for how a checkpoint comes to be,
//! [`load`] and [`newest_good`] for how it is trusted, [`export`] for what other programs read.

mod beneath;
mod error;
pub mod export;
mod images;
mod layout;
mod manifest;
mod retention;
mod shard;
mod staging;
mod state;
mod store;
#[cfg(test)]
mod tests;

pub use beneath::Directory;
pub use error::{Error, Found, Part};
pub use images::{IMAGES_KEY, LIST_KEY, check_images, named_list, read_images};
pub use layout::checkpoint_dir;
pub use manifest::{Description, Digest, MANIFEST_FILE, Manifest, Shard, digest, hex, shard_file};
pub use retention::retain;
pub use shard::{ShardDecoder, ShardEncoder, encode_shard};
pub use staging::{ShardWriter, Staging, remove_abandoned};
pub use state::{Dtype, State, Tensor};
pub use store::{
    CheckpointInfo, Located, list, load, locate, newest_good, open, open_part, verify, verify_in,
};
