//! Contrastive objectives: embeddings in, loss and exact gradients out. Knows no files.
//!
//! The batch is spread over ranks, and each rank holds some of its rows; what an objective needs of the others
//! it gathers through `collective`. The promise is that the gradients are those of one rank holding the whole
//! batch: an objective divides by the number of rows of *all* ranks, and says by [`Reduction`] how the ranks'
//! parameter gradients are to be joined, so that no caller can scale them wrongly.
//!
//! One step is: [`Objective::needs`] says what to encode, [`Objective::forward_backward`] computes and *stages*
//! what the objective will remember, and [`Objective::commit`] makes that so, once the step's last collective has
//! succeeded. A step that fails before is as if it had not been. What an objective keeps is listed by
//! [`Objective::state`] and put back by [`Objective::restore`]; see [`state`].
//!
//! Rows are ordered `[view][image]` on a rank, and ranks follow one another. Each method is a file that says what it
//! keeps, what it gathers, how its gradient is reduced and what chance gives. Start reading at [`nt_xent`].

pub mod align_uniform;
pub mod bank;
mod bank_spec;
mod candidates;
pub mod contrast;
pub mod dcl;
mod draws;
mod error;
mod exponential;
mod gather;
pub mod moco;
pub mod moco_v3;
pub mod npid;
pub mod nt_xent;
mod pairs;
pub mod pirl;
mod positives;
pub mod queue;
pub mod sampled;
pub mod shard;
mod softmax;
pub mod state;
pub mod supcon;
mod tile;
mod tournament;
pub mod two_views;
pub mod unit;
mod weigh;

use collective::{Communicator, Number};
use kernels::{Device, Real};

pub use bank::{Bank, Storage};
pub use bank_spec::{BankSpec, BankType};
use contrast::Contrast;
pub use contrast::{ContrastSpec, Normalizer};
pub use dcl::Dcl;
pub use error::Error;
pub use moco::Moco;
pub use moco_v3::MocoV3;
pub use npid::Npid;
pub use nt_xent::NtXent;
pub use pirl::Pirl;
pub use positives::MIN_TEMPERATURE;
pub use queue::Queue;
pub use state::{Array, ArrayType};
pub use supcon::SupCon;
pub use two_views::{Loss, TwoViews};
pub use weigh::Estimator;

/// What the embeddings of a batch are trained towards.
#[derive(Debug)]
pub enum Objective {
    /// SimCLR, SupCon, DCL and others: losses of the batch's two views alone.
    TwoViews(TwoViews),
    /// MoCo v1 and v2: each query is to be told its key from a queue of earlier ones.
    Moco(Moco),
    /// MoCo v3: from the keys of the same batch.
    MocoV3(MocoV3),
    /// NPID: each image from the features of others in a memory bank.
    Npid(Npid),
    /// PIRL: each image and its jigsaw.
    Pirl(Pirl),
}

/// How parameter gradients of the ranks become the gradient of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// They are added: the objective has divided by the rows of all ranks already.
    Sum,
}

/// Which encodings an objective is computed from. Numbers are views of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Views that the trained network encodes.
    pub queries: &'static [usize],
    /// Views that the momentum encoder encodes; none: there is no momentum encoder.
    pub keys: &'static [usize],
    /// Whether each image's jigsaw is encoded too.
    pub jigsaw: bool,
    /// Whether labels are looked at.
    pub labels: bool,
}

/// What one rank's networks made of its images in one step: `f32` to train, `f64` to check.
#[derive(Debug, Clone, Copy)]
pub struct Encoded<'a, T> {
    /// The update being made, counted from 1.
    pub step: u64,
    /// Images of every rank, in rank order; at least one each.
    pub images: &'a [usize],
    /// `[n]`: place of each of this rank's images in the global batch, the same whatever rank has it.
    pub positions: &'a [usize],
    /// `[n]`: place of each image in the data set, as the sampler dealt it. Objectives that keep nothing of an image
    /// do not look at it.
    pub indices: &'a [usize],
    /// `[n]`, or empty unless [`Needs::labels`].
    pub labels: &'a [u32],
    /// `[views * n, d]` of the trained network, `[view][image]` in the order of [`Needs::queries`], not normalised.
    pub queries: &'a [T],
    /// `[views * n, d]` of the momentum encoder, as [`Needs::keys`]; empty if there is none.
    pub keys: &'a [T],
    /// `[n, d]` of the jigsaws, or empty unless [`Needs::jigsaw`].
    pub jigsaw: &'a [T],
}

/// What an objective makes of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectiveStep<T> {
    /// Mean over the rows of all ranks, in nats; the same bits on every rank.
    pub loss: f64,
    /// Shape of [`Encoded::queries`]: gradient of `loss` by this rank's embeddings, complete.
    pub d_queries: Vec<T>,
    /// Shape of [`Encoded::jigsaw`]: the same by the jigsaws' embeddings.
    pub d_jigsaw: Vec<T>,
    /// Names and values for the log; the same bits on every rank.
    pub metrics: Vec<(&'static str, f64)>,
}

impl<'a, T> Encoded<'a, T> {
    /// What an objective sees that looks at the queries alone.
    pub fn of_queries(step: u64, images: &'a [usize], queries: &'a [T]) -> Self {
        Self { step, images, positions: &[], indices: &[], labels: &[], queries, keys: &[], jigsaw: &[] }
    }
}

impl<T> ObjectiveStep<T> {
    /// A step of an objective that has no jigsaw and nothing to tell but its loss.
    pub fn new(loss: f64, d_queries: Vec<T>) -> Self {
        Self { loss, d_queries, d_jigsaw: Vec::new(), metrics: Vec::new() }
    }
}

impl Objective {
    /// What has to be encoded for a step.
    pub fn needs(&self) -> Needs {
        let views = |queries, keys| Needs { queries, keys, jigsaw: false, labels: false };
        match self {
            Self::TwoViews(loss) => loss.needs(),
            Self::Moco(_) => views(&[0], &[1]),
            Self::MocoV3(_) => views(&[0, 1], &[0, 1]),
            Self::Npid(_) => views(&[0], &[]),
            Self::Pirl(_) => Needs { jigsaw: true, ..views(&[0], &[]) },
        }
    }

    /// Computes loss and gradient of one batch, and stages what is to be remembered of it in place of anything that a
    /// failed step has staged.
    ///
    /// Every rank calls it, and the ranks' communicators are of one group.
    ///
    /// # Errors
    /// If a peer is lost or the group was aborted, or an image has no place in what is kept of images.
    ///
    /// # Panics
    /// If a rank has no image, or a slice of `encoded` has not the shape that [`Objective::needs`] says.
    pub fn forward_backward<T: Real + Number>(
        &mut self,
        device: &Device,
        encoded: &Encoded<'_, T>,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error> {
        match self {
            Self::TwoViews(loss) => loss.forward_backward(device, encoded, communicator),
            Self::Moco(moco) => moco.forward_backward(device, encoded, communicator),
            Self::MocoV3(moco) => moco.forward_backward(device, encoded, communicator),
            Self::Npid(npid) => npid.forward_backward(device, encoded, communicator),
            Self::Pirl(pirl) => pirl.forward_backward(device, encoded, communicator),
        }
    }

    /// Applies what the last step staged, if anything. To be called once the step's last collective has succeeded here.
    pub fn commit(&mut self) {
        match self {
            Self::Moco(moco) => moco.commit(),
            other => {
                if let Some(contrast) = other.contrast_mut() {
                    contrast.commit();
                }
            }
        }
    }

    /// How the parameter gradients of the ranks are joined.
    pub fn reduction(&self) -> Reduction {
        match self {
            Self::TwoViews(loss) => loss.reduction(),
            Self::Moco(_) => Moco::REDUCTION,
            Self::MocoV3(_) => MocoV3::REDUCTION,
            Self::Npid(_) => Npid::REDUCTION,
            Self::Pirl(_) => Pirl::REDUCTION,
        }
    }

    /// The loss of embeddings that say nothing, with `global_images` images over all ranks.
    pub fn chance_loss(&self, global_images: usize) -> f64 {
        match self {
            Self::TwoViews(loss) => loss.chance_loss(global_images),
            Self::Moco(moco) => ((moco.queue().len() + 1) as f64).ln(),
            Self::MocoV3(moco) => moco.chance_loss(global_images),
            Self::Npid(npid) => npid.contrast().chance_loss(),
            Self::Pirl(pirl) => pirl.contrast().chance_loss(),
        }
    }

    /// What a checkpoint has to hold of this rank's objective; nothing that is only staged.
    pub fn state(&self) -> Vec<Array<'_>> {
        match self {
            Self::Moco(moco) => moco.queue().state(),
            other => other.contrast().map_or_else(Vec::new, Contrast::state),
        }
    }

    /// Takes over one array of a checkpoint, or what of it is this rank's.
    ///
    /// # Errors
    /// If this objective keeps no such array, or keeps it with another type or shape.
    pub fn restore(&mut self, array: &Array<'_>) -> Result<(), Error> {
        match self {
            Self::Moco(moco) => moco.queue_mut().restore(array),
            other => match other.contrast_mut() {
                Some(contrast) => contrast.restore(array),
                None => Err(Error::UnknownArray { name: array.name.clone() }),
            },
        }
    }

    /// Ends a restoration.
    ///
    /// # Errors
    /// If an array, or some of this rank's slots, were not restored; the first of them is named.
    pub fn restored(&mut self) -> Result<(), Error> {
        match self {
            Self::Moco(moco) => moco.queue_mut().restored(),
            other => other.contrast_mut().map_or(Ok(()), Contrast::restored),
        }
    }

    /// The memory bank, if there is one.
    pub fn bank(&self) -> Option<&Bank> {
        self.contrast().map(Contrast::bank)
    }

    /// Slots of this rank, which are images of the data set, that are to be encoded anew in update `step`: after its
    /// [`Objective::forward_backward`] and before its [`Objective::commit`], by the weights before the update, for
    /// [`Objective::refresh`]. None unless the objective bounds the age of what it reads.
    pub fn due(&self, step: u64) -> Vec<usize> {
        self.contrast().map_or_else(Vec::new, |contrast| contrast.due(step))
    }

    /// Stages fresh embeddings of what is due, beside what the step has staged. If the objective bounds ages, every rank
    /// calls it in every step, if with no slots.
    ///
    /// - `embeddings`: `[slots, d]`, not normalised
    ///
    /// # Errors
    /// If a peer is lost or the group was aborted.
    ///
    /// # Panics
    /// If there is not one embedding for each slot, or the objective has no bank.
    pub fn refresh<T: Real + Number>(
        &mut self,
        slots: &[usize],
        embeddings: &[T],
        communicator: &mut Communicator,
    ) -> Result<(), Error> {
        let contrast = self.contrast_mut().expect("slots of an objective that has no bank");
        let unit = unit::UnitRows::new(embeddings, contrast.bank().spec().width).unit;
        contrast.refresh(slots, &unit, communicator)
    }

    /// What contrasts with a memory bank, in the objectives that have one.
    fn contrast(&self) -> Option<&Contrast> {
        match self {
            Self::Npid(npid) => Some(npid.contrast()),
            Self::Pirl(pirl) => Some(pirl.contrast()),
            _ => None,
        }
    }

    fn contrast_mut(&mut self) -> Option<&mut Contrast> {
        match self {
            Self::Npid(npid) => Some(npid.contrast_mut()),
            Self::Pirl(pirl) => Some(pirl.contrast_mut()),
            _ => None,
        }
    }
}
