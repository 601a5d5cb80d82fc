//! Images in, batches of augmented views out.
//!
//! This room opens data sets in the formats people have, decodes their images, draws and applies the
//! augmentations of the contrastive methods, and hands a rank its share of every global batch, prepared
//! ahead of time by threads of its own.
//!
//! What it promises: the views of an image depend on the seed, the epoch, the image's index, the view and
//! the operation, and on nothing else: not on ranks, threads, restarts, or the order in which work is done.
//!
//! What it does not know: models, losses, devices, the network. It writes no file but a packed set.
//!
//! Where to start: [`Dataset::open`] for the source grammar, [`Augmentation`] for the pipelines,
//! [`Loader`] for how a run consumes them, [`random`] for where every random number comes from.

pub mod augment;
mod cache;
mod decode;
mod error;
mod fingerprint;
#[cfg(test)]
mod fixtures;
mod list;
mod loader;
pub mod memory;
mod parts;
mod preprocess;
pub mod random;
mod replace;
mod sampler;
mod source;
mod stats;
mod wide;

pub use augment::{Augmentation, Jigsaw, PATCHES, Scratch, ViewKey, ViewPipeline};
pub use decode::{Image, MAX_PIXELS, decode};
pub use error::Error;
pub use fingerprint::{BLOCK, Digest, Fingerprint, Kind};
pub use list::{Counted, Differences, ImageList};
pub use loader::{Batch, Loader, LoaderOptions};
pub use parts::{Parts, Views, views_of};
pub use preprocess::Preprocess;
pub use replace::{KnownCorrupt, Replaced, Shown, decode_or_replace, tolerates};
pub use sampler::{EpochOrigin, Sampler, chunk_ranges, rank_range};
pub use source::pack::{PackOptions, Packed, pack};
pub use source::{Dataset, Limits};
pub use stats::{Stats, stats};
