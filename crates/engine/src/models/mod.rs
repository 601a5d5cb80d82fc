//! The networks: residual nets with a projection head, as torchvision and PyTorch define them, and the parts of them
//! that a method has besides the one it trains.

mod head;
mod resnet;
mod spec;

pub use spec::{Arch, BatchNormScope, Head, Jigsaw, ModelSpec, PATCHES, Predictor, Role, Stem, UnknownName};

use crate::graph::{Graph, GraphBuilder, TensorShape};

/// Builds the graph of the part of a model that `role` names.
///
/// The parameters of every other role are among the trained network's, under the same names.
pub(crate) fn build(spec: &ModelSpec, role: Role) -> Graph {
    let side = spec.input_size(role);
    let mut builder = GraphBuilder::new(TensorShape { h: side, w: side, c: 3 });
    let features = resnet::backbone(&mut builder, spec);
    let embeddings = match role {
        Role::Trained => head::trained(&mut builder, features, spec),
        Role::Momentum => head::head(&mut builder, features, spec),
        Role::Patches => head::jigsaw(&mut builder, features, spec),
    };
    builder.finish(features, embeddings)
}
