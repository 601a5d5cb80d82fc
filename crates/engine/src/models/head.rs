//! Projection heads, numbered as the modules of a PyTorch `Sequential`, ReLUs included.

use super::{Head, ModelSpec, PATCHES};
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
        Head::MocoV3 { hidden, out } => {
            let y = hidden_layer(builder, ("head", 0), features, hidden);
            plain_norm_layer(builder, ("head", 3), y, out)
        }
        Head::MocoV3Vit { hidden, out } => {
            let y = hidden_layer(builder, ("head", 0), features, hidden);
            let y = hidden_layer(builder, ("head", 3), y, hidden);
            plain_norm_layer(builder, ("head", 6), y, out)
        }
    }
}

/// Adds what is trained: head, predictor, and the parameters of the jigsaw's head, whose layers are another network's.
pub(super) fn trained(builder: &mut GraphBuilder, features: TensorId, spec: &ModelSpec) -> TensorId {
    let mut embeddings = head(builder, features, spec);
    if let Some(predictor) = spec.predictor {
        // facebookresearch/moco-v3: no linear has a bias, and for residual nets no norm follows the last.
        let y = hidden_layer(builder, ("predictor", 0), embeddings, predictor.hidden);
        embeddings = if predictor.last_norm {
            plain_norm_layer(builder, ("predictor", 3), y, spec.embedding_width())
        } else {
            builder.linear("predictor.3", y, spec.embedding_width(), BEFORE_NORM)
        };
    }
    if spec.jigsaw.is_some() {
        let (features, out) = (builder.channels(features), spec.embedding_width());
        builder.linear_parameters(PATCH, (features, out), LAST);
        builder.linear_parameters(JOINED, (PATCHES * out, out), LAST);
    }
    embeddings
}

/// The layers of the jigsaw's head (Misra & van der Maaten 2019, arXiv:1912.01991): one over each patch, one over all
/// of an image.
const PATCH: &str = "jigsaw_head.0";
const JOINED: &str = "jigsaw_head.1";

/// Adds the head that makes one row of an image's patches, which are consecutive rows here.
pub(super) fn jigsaw(builder: &mut GraphBuilder, features: TensorId, spec: &ModelSpec) -> TensorId {
    let out = spec.embedding_width();
    let y = builder.linear(PATCH, features, out, LAST);
    builder.joining_linear(JOINED, y, out, PATCHES)
}

/// Linear-BN-ReLU as the modules `first` and the two behind it of a `Sequential`.
fn hidden_layer(builder: &mut GraphBuilder, place: (&str, usize), x: TensorId, width: usize) -> TensorId {
    norm_layer(builder, place, x, width, &NormOptions::default(), true)
}

/// Linear-BN, the norm without scale and shift.
fn plain_norm_layer(builder: &mut GraphBuilder, place: (&str, usize), x: TensorId, width: usize) -> TensorId {
    let options = NormOptions { scale: false, shift: false, ..NormOptions::default() };
    norm_layer(builder, place, x, width, &options, false)
}

/// Linear-BN, and a ReLU if asked for, as the module `first` and those behind it of a `Sequential`.
fn norm_layer(
    builder: &mut GraphBuilder,
    (sequential, first): (&str, usize),
    x: TensorId,
    width: usize,
    options: &NormOptions,
    relu: bool,
) -> TensorId {
    let y = builder.linear(&format!("{sequential}.{first}"), x, width, BEFORE_NORM);
    let norm = builder.norm(&format!("{sequential}.{}", first + 1), y, options);
    builder.batch_norm(norm, Shortcut::None, relu)
}

/// `hidden_layers` times Linear-BN-ReLU at the features' width, then Linear-BN with a scale but no shift
/// (google-research/simclr: the last layer has `use_bias=False`, which there also removes the norm's shift).
fn simclr(builder: &mut GraphBuilder, features: TensorId, out: usize, hidden_layers: usize) -> TensorId {
    let width = builder.channels(features);
    let mut x = features;
    for layer in 0..hidden_layers {
        x = hidden_layer(builder, ("head", 3 * layer), x, width);
    }
    let options = NormOptions { shift: false, ..NormOptions::default() };
    norm_layer(builder, ("head", 3 * hidden_layers), x, out, &options, false)
}
