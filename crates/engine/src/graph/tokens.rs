//! The ops of a vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929). Their tensors are rows of tokens: `h`
//! tokens of `c` numbers for each image.
//!
//! Norms come first in a block, `x + f(norm(x))`. The linear layer that closes a branch adds `x` itself, so in the
//! backward pass it hands the gradient of its output on as that of `x`, and the norm then adds the branch's to it: the
//! gradient of all blocks' sums lives in one buffer.

use super::{Graph, GraphBuilder, Node, ParameterId, TensorId, TensorShape};
use crate::init::Initial;
use crate::parameters::ParameterKind;

/// An image's patches by a linear layer, behind a class token, and positions added to all.
#[derive(Debug, Clone)]
pub(crate) struct EmbedNode {
    pub x: TensorId,
    pub y: TensorId,
    /// `[c, 3, patch, patch]`
    pub weight: ParameterId,
    pub bias: ParameterId,
    pub class_token: ParameterId,
    /// `[1, tokens, c]`, never trained.
    pub positions: ParameterId,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Whether the patches' layer stays as it was drawn.
    pub is_frozen: bool,
}

/// Layer norm of each token, or of the first alone where `y` has no others.
#[derive(Debug, Clone)]
pub(crate) struct LayerNormNode {
    pub x: TensorId,
    pub y: TensorId,
    pub scale: ParameterId,
    pub shift: ParameterId,
}

/// A linear layer over each token, with what it adds to.
#[derive(Debug, Clone)]
pub(crate) struct TokenLinearNode {
    pub x: TensorId,
    pub y: TensorId,
    pub weight: ParameterId,
    pub bias: ParameterId,
    /// The block's input, in the layer that closes a branch.
    pub addend: Option<TensorId>,
}

/// `x` times the probability that a normal number is less than `x` (Hendrycks & Gimpel 2016): PyTorch's `GELU`.
#[derive(Debug, Clone)]
pub(crate) struct GeluNode {
    pub x: TensorId,
    pub y: TensorId,
}

/// Multi-head self-attention: tokens of queries, keys and values to tokens of heads.
#[derive(Debug, Clone)]
pub(crate) struct AttentionNode {
    /// `3 c` numbers a token: queries of all heads, then keys, then values.
    pub x: TensorId,
    pub y: TensorId,
    pub heads: usize,
}

/// One op over tokens.
#[derive(Debug, Clone)]
pub(crate) enum TokenNode {
    Embed(EmbedNode),
    LayerNorm(LayerNormNode),
    Linear(TokenLinearNode),
    Gelu(GeluNode),
    Attention(AttentionNode),
}

impl TokenNode {
    /// The tensors that the forward pass reads, the op's main input first.
    pub fn inputs(&self) -> Vec<TensorId> {
        match self {
            Self::Embed(node) => vec![node.x],
            Self::LayerNorm(node) => vec![node.x],
            Self::Linear(node) => [node.x].into_iter().chain(node.addend).collect(),
            Self::Gelu(node) => vec![node.x],
            Self::Attention(node) => vec![node.x],
        }
    }

    /// The tensor that the forward pass writes.
    pub fn output(&self) -> TensorId {
        match self {
            Self::Embed(node) => node.y,
            Self::LayerNorm(node) => node.y,
            Self::Linear(node) => node.y,
            Self::Gelu(node) => node.y,
            Self::Attention(node) => node.y,
        }
    }

    /// The tensors of the forward pass that the backward pass reads again: the op's main input.
    pub fn backward_reads(&self) -> Vec<TensorId> {
        match self {
            Self::Embed(node) if node.is_frozen => vec![],
            _ => vec![self.inputs()[0]],
        }
    }

    /// Whether the backward pass computes the output once more instead of keeping it: one pass over memory does, from
    /// what this op's own backward needs anyway.
    pub fn is_replayed(&self) -> bool {
        matches!(self, Self::LayerNorm(_) | Self::Gelu(_))
    }

    /// As [`Graph::flops_per_row`]; what attention's backward computes once more does not count.
    pub fn flops_per_row(&self, graph: &Graph) -> f64 {
        match self {
            Self::Embed(node) => {
                let passes = if node.is_frozen { 1.0 } else { 2.0 };
                passes
                    * 2.0
                    * ((graph.shape(node.y).h - 1) * graph.parameters[node.weight.0].entry.len) as f64
            }
            Self::Linear(node) => 6.0 * (graph.shape(node.x).len() * graph.shape(node.y).c) as f64,
            Self::Attention(node) => {
                // Two products of as many terms, each with two in the backward pass.
                let y = graph.shape(node.y);
                6.0 * 2.0 * (y.len() * y.h) as f64
            }
            Self::LayerNorm(_) | Self::Gelu(_) => 0.0,
        }
    }
}

/// What the tokens of an embedding are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EmbedOptions {
    pub width: usize,
    pub patch: usize,
    /// Whether the patches' layer stays as it was drawn.
    pub is_frozen: bool,
}

/// facebookresearch/moco-v3, vits.py.
const CLASS_TOKEN_DEVIATION: f64 = 1e-6;

impl GraphBuilder {
    /// Turns the images into tokens.
    pub fn embed(&mut self, name: &str, options: EmbedOptions) -> TensorId {
        let EmbedOptions { width, patch, is_frozen } = options;
        let (x, image) = (self.images(), self.graph.shape(self.images()));
        assert!(image.h.is_multiple_of(patch), "patches of {patch} in {} pixels", image.h);
        let side = image.h / patch;
        let tokens = 1 + side * side;
        let initial = Initial::Normal { deviation: CLASS_TOKEN_DEVIATION };
        let class_token =
            self.parameter(format!("{name}.cls_token"), vec![1, 1, width], ParameterKind::Bias, initial);
        let positions = self.parameter(
            format!("{name}.pos_embed"),
            vec![1, tokens, width],
            ParameterKind::Fixed,
            Initial::Positions { side, width },
        );
        let kinds =
            if is_frozen { [ParameterKind::Fixed; 2] } else { [ParameterKind::Weight, ParameterKind::Bias] };
        let initial = Initial::XavierUniform { fan_in: 3 * patch * patch, fan_out: width };
        let shape = vec![width, 3, patch, patch];
        let weight = self.parameter(format!("{name}.patch_embed.proj.weight"), shape, kinds[0], initial);
        let bias = self.parameter(
            format!("{name}.patch_embed.proj.bias"),
            vec![width],
            kinds[1],
            Initial::Constant(0.0),
        );
        let y = self.tensor(TensorShape { h: tokens, w: 1, c: width });
        self.add(TokenNode::Embed(EmbedNode { x, y, weight, bias, class_token, positions, patch, is_frozen }))
    }

    pub fn layer_norm(&mut self, name: &str, x: TensorId) -> TensorId {
        self.layer_norm_of(name, x, self.graph.shape(x))
    }

    /// Layer norm of each row's first token, which is all that is looked at behind it.
    pub fn class_token_norm(&mut self, name: &str, x: TensorId) -> TensorId {
        self.layer_norm_of(name, x, TensorShape::flat(self.channels(x)))
    }

    fn layer_norm_of(&mut self, name: &str, x: TensorId, shape: TensorShape) -> TensorId {
        let mut of = |part: &str, value| {
            let initial = Initial::Constant(value);
            self.parameter(format!("{name}.{part}"), vec![shape.c], ParameterKind::Norm, initial)
        };
        let (scale, shift) = (of("weight", 1.0), of("bias", 0.0));
        let y = self.tensor(shape);
        self.add(TokenNode::LayerNorm(LayerNormNode { x, y, scale, shift }))
    }

    /// A linear layer whose weight is `parts` matrices, one below the other, which are drawn as such.
    pub fn token_linear(
        &mut self,
        name: &str,
        (x, addend): (TensorId, Option<TensorId>),
        out: usize,
        parts: usize,
    ) -> TensorId {
        let shape = self.graph.shape(x);
        let initial = Initial::XavierUniform { fan_in: shape.c, fan_out: out / parts };
        let weight = vec![out, shape.c];
        let weight = self.parameter(format!("{name}.weight"), weight, ParameterKind::Weight, initial);
        let bias = Initial::Constant(0.0);
        let bias = self.parameter(format!("{name}.bias"), vec![out], ParameterKind::Bias, bias);
        let y = self.tensor(TensorShape { c: out, ..shape });
        self.add(TokenNode::Linear(TokenLinearNode { x, y, weight, bias, addend }))
    }

    pub fn gelu(&mut self, x: TensorId) -> TensorId {
        let y = self.tensor(self.graph.shape(x));
        self.add(TokenNode::Gelu(GeluNode { x, y }))
    }

    pub fn attention(&mut self, x: TensorId, heads: usize) -> TensorId {
        let shape = self.graph.shape(x);
        let c = shape.c / 3;
        assert!(shape.c == 3 * c && c.is_multiple_of(heads), "{heads} heads of {} numbers", shape.c);
        let y = self.tensor(TensorShape { c, ..shape });
        self.add(TokenNode::Attention(AttentionNode { x, y, heads }))
    }

    fn add(&mut self, node: TokenNode) -> TensorId {
        let y = node.output();
        self.graph.nodes.push(Node::Tokens(node));
        y
    }
}
