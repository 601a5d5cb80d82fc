//! Losses of two views that keep nothing from one step to the next: what each says of itself, and all that there are.

use collective::{Communicator, Number};
use config::ObjectiveKind;
use kernels::{Device, Real};

use crate::{Encoded, Error, Needs, ObjectiveStep, Reduction};

/// A loss of the embeddings of two views of each image, and of nothing else.
pub trait Loss: Sized {
    /// How the ranks' parameter gradients are joined.
    const REDUCTION: Reduction;
    /// Whether labels are looked at.
    const NEEDS_LABELS: bool = false;
    /// Below this temperature its exponentials are no `f32` any more.
    const MIN_TEMPERATURE: f64 = 0.0;

    /// The loss at a temperature, which divides the similarities and is above 0.
    fn new(temperature: f64) -> Self;

    /// See [`crate::Objective::forward_backward`].
    ///
    /// # Errors
    /// If a peer is lost or the group was aborted.
    fn forward_backward<T: Real + Number>(
        &self,
        device: &Device,
        encoded: &Encoded<'_, T>,
        communicator: &mut Communicator,
    ) -> Result<ObjectiveStep<T>, Error>;

    /// The loss of embeddings that say nothing, with `global_images` images over all ranks.
    fn chance_loss(&self, global_images: usize) -> f64;
}

macro_rules! two_views {
    ($($(#[$doc:meta])* $Kind:ident = $name:literal, $module:ident::$Loss:ident;)+) => {
        /// One of the losses that are registered in [`config::losses`].
        #[derive(Debug, Clone, PartialEq)]
        pub enum TwoViews {
            $($(#[$doc])* $Kind(crate::$module::$Loss),)+
        }

        impl TwoViews {
            /// The loss of that kind at a temperature; none if the kind is no loss of two views.
            pub fn new(kind: ObjectiveKind, temperature: f64) -> Option<Self> {
                match kind {
                    $(ObjectiveKind::$Kind => Some(Self::$Kind(Loss::new(temperature))),)+
                    _ => None,
                }
            }

            /// Its [`Loss::MIN_TEMPERATURE`].
            pub fn min_temperature(kind: ObjectiveKind) -> Option<f64> {
                match kind {
                    $(ObjectiveKind::$Kind => Some(<crate::$module::$Loss as Loss>::MIN_TEMPERATURE),)+
                    _ => None,
                }
            }

            pub(crate) fn needs(&self) -> Needs {
                let labels = match self {
                    $(Self::$Kind(_) => <crate::$module::$Loss as Loss>::NEEDS_LABELS,)+
                };
                Needs { queries: &[0, 1], keys: &[], jigsaw: false, labels }
            }

            pub(crate) fn forward_backward<T: Real + Number>(
                &self,
                device: &Device,
                encoded: &Encoded<'_, T>,
                communicator: &mut Communicator,
            ) -> Result<ObjectiveStep<T>, Error> {
                match self {
                    $(Self::$Kind(loss) => Loss::forward_backward(loss, device, encoded, communicator),)+
                }
            }

            pub(crate) fn reduction(&self) -> Reduction {
                match self {
                    $(Self::$Kind(_) => <crate::$module::$Loss as Loss>::REDUCTION,)+
                }
            }

            pub(crate) fn chance_loss(&self, global_images: usize) -> f64 {
                match self {
                    $(Self::$Kind(loss) => loss.chance_loss(global_images),)+
                }
            }
        }
    };
}

config::losses!(two_views);
