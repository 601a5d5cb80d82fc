//! The networks: residual nets as torchvision defines them and vision transformers as timm does, with a projection head,
//! and the parts of them that a method has besides the one it trains.

mod head;
mod resnet;
mod spec;
mod vit;

pub use spec::{
    Arch, BatchNormScope, Head, Jigsaw, ModelSpec, PATCHES, Predictor, Role, Stem, UnknownName, Vit,
};

use crate::graph::{Graph, GraphBuilder, TensorShape};

/// Builds the graph of the part of a model that `role` names.
///
/// The parameters of every other role are among the trained network's, under the same names.
pub(crate) fn build(spec: &ModelSpec, role: Role) -> Graph {
    let side = spec.input_size(role);
    let mut builder = GraphBuilder::new(TensorShape { h: side, w: side, c: 3 });
    let features = match spec.arch {
        Arch::Vit(vit) => vit::backbone(&mut builder, vit),
        _ => resnet::backbone(&mut builder, spec),
    };
    let embeddings = match role {
        Role::Trained => head::trained(&mut builder, features, spec),
        Role::Momentum => head::head(&mut builder, features, spec),
        Role::Patches => head::jigsaw(&mut builder, features, spec),
    };
    builder.finish(features, embeddings)
}
