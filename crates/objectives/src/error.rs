//! What can go wrong in a step, and what a checkpoint can have wrong.

/// Why an objective made no step, or took no state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A peer is lost or the group was aborted.
    #[error(transparent)]
    Collective(#[from] collective::Error),
    /// An image is twice in a global batch: its slot cannot be updated with both.
    #[error("image {index} of the data set is twice in the global batch of step {step}")]
    DuplicateImage {
        /// Its place in the data set.
        index: usize,
        /// The update.
        step: u64,
    },
    /// An image that the bank has no slot for.
    #[error("image {index} has no slot in a bank of {slots}")]
    NoSlot {
        /// Its place in the data set.
        index: usize,
        /// Slots of all ranks.
        slots: usize,
    },
    /// A checkpoint's bank is of a data set with another number of images.
    #[error(
        "the checkpoint's memory bank has {entries} entries, one an image, and the data set has {images} images: an entry \
         would belong to another image"
    )]
    OtherCount {
        /// Entries that the checkpoint has.
        entries: usize,
        /// Images of the data set.
        images: usize,
    },
    /// An array of a checkpoint that this objective does not keep.
    #[error("the objective keeps no `{name}`: the checkpoint is of another objective")]
    UnknownArray {
        /// Its name.
        name: String,
    },
    /// An array of a checkpoint that has another type or shape than this objective's.
    #[error("`{name}` should be {expected}, and is {actual} in the checkpoint")]
    WrongArray {
        /// Its name.
        name: String,
        /// Type and shape of this objective's.
        expected: String,
        /// Type and shape of the checkpoint's.
        actual: String,
    },
    /// A checkpoint ended before all of the state was restored.
    #[error("the checkpoint lacks {what}")]
    Incomplete {
        /// The first array, or range of slots, that is missing.
        what: String,
    },
}
