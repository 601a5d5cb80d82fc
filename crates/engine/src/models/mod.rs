//! The networks: residual nets with a projection head, as torchvision and PyTorch define them.

mod head;
mod resnet;
mod spec;

pub use spec::{Arch, BatchNormScope, Head, ModelSpec, Stem, UnknownName};

use crate::graph::{Graph, GraphBuilder, TensorShape};

/// Builds the graph of a network for images of `spec.image_size`.
pub(crate) fn build(spec: &ModelSpec) -> Graph {
    let side = spec.image_size;
    let mut builder = GraphBuilder::new(TensorShape { h: side, w: side, c: 3 });
    let features = resnet::backbone(&mut builder, spec);
    let embeddings = head::head(&mut builder, features, spec);
    builder.finish(features, embeddings)
}
