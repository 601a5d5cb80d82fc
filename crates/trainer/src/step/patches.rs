//! PIRL's second branch: the trained backbone over the patches of each image's jigsaw.

use collective::Communicator;
use engine::models::PATCHES;
use engine::network::Network;
use engine::parameters::Parameters;
use std::ops::Range;

use crate::Error;

/// The network of the patches. It has copies of the trained parameters, and adds its gradients to theirs.
///
/// Patches are normalised by statistics of their own, and leave none behind: the encoder will see images, never patches.
/// In VISSL, whose trunk runs forward twice, both enter the running statistics.
pub struct PatchBranch {
    /// Backbone and the jigsaw's head.
    pub network: Network<f32>,
    /// Where each stretch of parameters lies in the trained network's arrays, and in this one's.
    places: Vec<(Range<usize>, Range<usize>)>,
}

impl PatchBranch {
    /// Pairs the branch with the trained network.
    ///
    /// # Panics
    /// If the trained network lacks one of its parameters.
    pub fn new(network: Network<f32>, trained: &Parameters<f32>) -> PatchBranch {
        let places = trained.places_of(network.parameters());
        PatchBranch { network, places }
    }

    /// Encodes jigsaws with the trained network's parameters.
    ///
    /// - `patches`: `[images][9]` rows of this rank
    ///
    /// Returns `[images, d]`.
    ///
    /// # Errors
    /// If a peer is lost.
    pub fn encode(
        &mut self,
        patches: &[f32],
        images: usize,
        trained: &Parameters<f32>,
        communicator: &mut Communicator,
    ) -> Result<&[f32], Error> {
        let values = &mut self.network.parameters_mut().values;
        for (there, here) in &self.places {
            values[here.clone()].copy_from_slice(&trained.values[there.clone()]);
        }
        Ok(self.network.forward_train(patches, images * PATCHES, communicator)?)
    }

    /// Adds the gradients of the last pass to `sums`, in the trained network's places.
    ///
    /// # Errors
    /// If a peer is lost.
    pub fn backward(
        &mut self,
        d_jigsaw: &[f32],
        communicator: &mut Communicator,
        sums: &mut [f32],
    ) -> Result<(), Error> {
        self.network.backward(d_jigsaw, communicator, &mut |_, _| {})?;
        let gradients = &self.network.parameters().gradients;
        for (there, here) in &self.places {
            super::gradients::add(&mut sums[there.clone()], &gradients[here.clone()]);
        }
        Ok(())
    }

    /// Where the parameters of the jigsaw's head lie in the trained network's arrays: it has no layer for them.
    pub fn own_places(&self) -> Vec<Range<usize>> {
        let own = |(there, here): &(Range<usize>, Range<usize>)| {
            let entries = self.network.parameters().entries.iter();
            let head = entries
                .filter(|entry| here.contains(&entry.offset) && entry.name.starts_with("jigsaw_head."));
            let place = |place: usize| there.start + place - here.start;
            head.map(|entry| place(entry.offset)..place(entry.range().end)).collect::<Vec<_>>()
        };
        self.places.iter().flat_map(own).collect()
    }

    /// Values of one image's jigsaw.
    pub fn jigsaw_len(&self) -> usize {
        let size = self.network.spec().input_size(engine::models::Role::Patches);
        PATCHES * size * size * 3
    }
}
