//! The network as data: tensors, and the fused ops between them in the order of the forward pass.
//!
//! A graph is built once by `models`, for one image size. [`program`] derives from it what a training step
//! does and when each buffer is alive, [`plan`] which buffers may share memory; `network` then only executes.

mod builder;
pub(crate) mod plan;
pub(crate) mod program;
mod tokens;

pub(crate) use builder::{GraphBuilder, LinearOptions, NormOptions, Window};
pub(crate) use tokens::{AttentionNode, EmbedNode, EmbedOptions, LayerNormNode, TokenLinearNode, TokenNode};

use crate::parameters::{BufferSpec, ParameterSpec};
use kernels::ConvShape;

/// Index of a tensor of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TensorId(pub usize);

/// Index of a parameter, in PyTorch's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParameterId(pub usize);

/// Shape of one row (image) of a tensor; channels are innermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TensorShape {
    pub h: usize,
    pub w: usize,
    pub c: usize,
}

impl TensorShape {
    pub fn flat(c: usize) -> Self {
        Self { h: 1, w: 1, c }
    }

    pub fn len(self) -> usize {
        self.h * self.w * self.c
    }
}

/// A convolution without bias; a batch norm always follows.
#[derive(Debug, Clone)]
pub(crate) struct ConvNode {
    pub x: TensorId,
    pub y: TensorId,
    pub weight: ParameterId,
    pub c_out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub pad: usize,
}

/// One normalisation: what it normalises, by which parameters, and which running statistics it feeds.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    pub x: TensorId,
    /// Absent in the last norm of MoCo v3's projector.
    pub scale: Option<ParameterId>,
    /// Absent in the last norm of a SimCLR head as well.
    pub shift: Option<ParameterId>,
    /// Index of `running_mean` among the buffers; `running_var` is the next one.
    pub running_mean: usize,
}

/// What a batch norm adds before its ReLU.
#[derive(Debug, Clone)]
pub(crate) enum Shortcut {
    None,
    /// The block's input itself.
    Identity(TensorId),
    /// The block's input through a convolution, normalised here in the same pass.
    Projected(Norm),
}

/// Batch norm with its residual add and its ReLU.
#[derive(Debug, Clone)]
pub(crate) struct BatchNormNode {
    pub main: Norm,
    pub shortcut: Shortcut,
    pub relu: bool,
    pub y: TensorId,
}

/// 3x3 max pool of stride 2 and padding 1, or the mean over all pixels.
#[derive(Debug, Clone)]
pub(crate) struct PoolNode {
    pub x: TensorId,
    pub y: TensorId,
}

/// A linear layer, with its ReLU if it has one.
#[derive(Debug, Clone)]
pub(crate) struct LinearNode {
    pub x: TensorId,
    pub y: TensorId,
    pub weight: ParameterId,
    pub bias: Option<ParameterId>,
    pub relu: bool,
    /// Consecutive rows of `x` that make one row of `y`, end to end: 1 but for the patches of a jigsaw.
    pub joined_rows: usize,
}

/// One fused op.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Conv(ConvNode),
    BatchNorm(BatchNormNode),
    MaxPool(PoolNode),
    AveragePool(PoolNode),
    Linear(LinearNode),
    /// What vision transformers are made of.
    Tokens(TokenNode),
}

impl BatchNormNode {
    /// The normalisations of this op: one, or two where the shortcut has its own.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        let projected = match &self.shortcut {
            Shortcut::Projected(norm) => Some(norm),
            Shortcut::None | Shortcut::Identity(_) => None,
        };
        [Some(&self.main), projected].into_iter().flatten()
    }
}

impl Node {
    /// The tensors that the forward pass reads.
    pub fn inputs(&self) -> Vec<TensorId> {
        match self {
            Self::Conv(node) => vec![node.x],
            Self::MaxPool(node) | Self::AveragePool(node) => vec![node.x],
            Self::Linear(node) => vec![node.x],
            Self::Tokens(node) => node.inputs(),
            Self::BatchNorm(node) => match &node.shortcut {
                Shortcut::None => vec![node.main.x],
                Shortcut::Identity(x) => vec![node.main.x, *x],
                Shortcut::Projected(norm) => vec![node.main.x, norm.x],
            },
        }
    }

    /// The tensor that the forward pass writes.
    pub fn output(&self) -> TensorId {
        match self {
            Self::Conv(node) => node.y,
            Self::MaxPool(node) | Self::AveragePool(node) => node.y,
            Self::Linear(node) => node.y,
            Self::Tokens(node) => node.output(),
            Self::BatchNorm(node) => node.y,
        }
    }

    /// The tensors of the forward pass that the backward pass reads again.
    pub fn backward_reads(&self) -> Vec<TensorId> {
        match self {
            // The norm behind it makes the gradient of `y` from `y` itself.
            Self::Conv(node) => vec![node.x, node.y],
            // The positions of the maxima are kept by the op; a mean needs nothing.
            Self::MaxPool(_) | Self::AveragePool(_) => vec![],
            Self::Linear(node) if node.relu => vec![node.x, node.y],
            Self::Linear(node) => vec![node.x],
            Self::Tokens(node) => node.backward_reads(),
            Self::BatchNorm(node) => {
                let mut reads: Vec<_> = node.norms().map(|norm| norm.x).collect();
                // With an addend the mask is the sign of the output; alone it follows from the input.
                if node.relu && !matches!(node.shortcut, Shortcut::None) {
                    reads.push(node.y);
                }
                reads
            }
        }
    }
}

/// A whole network for one image size.
#[derive(Debug)]
pub(crate) struct Graph {
    pub tensors: Vec<TensorShape>,
    /// In the order of the forward pass.
    pub nodes: Vec<Node>,
    pub parameters: Vec<ParameterSpec>,
    pub buffers: Vec<BufferSpec>,
    pub images: TensorId,
    pub features: TensorId,
    pub embeddings: TensorId,
    /// Rows of images that make one row of embeddings.
    pub joined_rows: usize,
}

impl Graph {
    pub fn shape(&self, tensor: TensorId) -> TensorShape {
        self.tensors[tensor.0]
    }

    /// The kernel's view of a convolution over at most `rows` images.
    pub fn conv_shape(&self, node: &ConvNode, rows: usize) -> ConvShape {
        let x = self.shape(node.x);
        ConvShape {
            n: rows,
            h: x.h,
            w: x.w,
            c_in: x.c,
            c_out: node.c_out,
            kernel: node.kernel,
            stride: node.stride,
            pad: node.pad,
        }
    }

    /// Floating-point operations of one training step per row: convolutions and linear layers, a multiply and
    /// an add each, three times (forward, both backwards); the first convolution needs no input gradient.
    pub fn flops_per_row(&self) -> f64 {
        let flops = |node: &Node| match node {
            Node::Conv(conv) => {
                let y = self.shape(conv.y);
                let taps = conv.kernel * conv.kernel * self.shape(conv.x).c;
                let passes = if conv.x == self.images { 2.0 } else { 3.0 };
                passes * 2.0 * (y.len() * taps) as f64
            }
            Node::Linear(linear) => 6.0 * (self.shape(linear.x).len() * self.shape(linear.y).len()) as f64,
            Node::Tokens(node) => node.flops_per_row(self),
            Node::BatchNorm(_) | Node::MaxPool(_) | Node::AveragePool(_) => 0.0,
        };
        self.nodes.iter().map(flops).sum()
    }
}
