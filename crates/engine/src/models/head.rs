//! Projection heads, numbered as the modules of a PyTorch `Sequential`, ReLUs included.

use super::{Head, ModelSpec};
use crate::graph::{GraphBuilder, LinearOptions, NormOptions, Shortcut, TensorId};

/// A linear layer in front of a batch norm: the norm's shift stands in for the bias.
const BEFORE_NORM: LinearOptions = LinearOptions { bias: false, relu: false };
const LAST: LinearOptions = LinearOptions { bias: true, relu: false };

/// Adds `spec.head` behind the features and returns the embeddings.
pub(super) fn head(builder: &mut GraphBuilder, features: TensorId, spec: &ModelSpec) -> TensorId {
    match spec.head {
        Head::SimclrV1 => simclr(builder, features, spec.embedding_width(), 1),
        Head::SimclrV2 => simclr(builder, features, spec.embedding_width(), 2),
        Head::Mlp { hidden, out } => {
            let y = builder.linear("head.0", features, hidden, LinearOptions { bias: true, relu: true });
            builder.linear("head.2", y, out, LAST)
        }
        Head::Linear { out } => builder.linear("head.0", features, out, LAST),
    }
}

/// `hidden_layers` times Linear-BN-ReLU at the features' width, then Linear-BN with a scale but no shift
/// (google-research/simclr: the last layer has `use_bias=False`, which there also removes the norm's shift).
fn simclr(builder: &mut GraphBuilder, features: TensorId, out: usize, hidden_layers: usize) -> TensorId {
    let width = builder.channels(features);
    let mut x = features;
    for layer in 0..hidden_layers {
        let y = builder.linear(&format!("head.{}", 3 * layer), x, width, BEFORE_NORM);
        let norm = builder.norm(&format!("head.{}", 3 * layer + 1), y, &NormOptions::default());
        x = builder.batch_norm(norm, Shortcut::None, true);
    }
    let y = builder.linear(&format!("head.{}", 3 * hidden_layers), x, out, BEFORE_NORM);
    let options = NormOptions { shift: false, ..NormOptions::default() };
    let norm = builder.norm(&format!("head.{}", 3 * hidden_layers + 1), y, &options);
    builder.batch_norm(norm, Shortcut::None, false)
}
