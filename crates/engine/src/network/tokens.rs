//! How the ops over tokens run: which buffers they get, and where their gradients go.

use std::ops::Range;

use super::Network;
use super::execution::{gradient_of, weight};
use crate::graph::program::{BufferId, Passes};
use crate::graph::{
    AttentionNode, EmbedNode, Graph, LayerNormNode, Node, ParameterId, TensorId, TokenLinearNode, TokenNode,
};
use crate::ops::attention::{self, AttentionShape};
use crate::ops::embed::{self, EmbedParameters, EmbedShape};
use crate::ops::gelu;
use crate::ops::layer_norm::{self, LayerNormShape};
use crate::ops::token_linear::{self, TokenLinearInputs, TokenLinearShape};
use crate::parameters::Parameters;
use kernels::Real;

impl<T: Real> Network<T> {
    pub(super) fn forward_tokens(&mut self, node_idx: usize, n: usize) {
        let program = &self.program;
        let [x, y] = [input_of(&self.graph, node_idx), self.graph.nodes[node_idx].output()];
        self.run_tokens(node_idx, n, (program.value(x), program.value(y)));
    }

    /// Computes a value once more, from what is kept.
    pub(super) fn replay_tokens(&mut self, node_idx: usize, n: usize) {
        let program = &self.program;
        let [x, y] = [input_of(&self.graph, node_idx), self.graph.nodes[node_idx].output()];
        self.run_tokens(node_idx, n, (program.kept(x), program.kept(y)));
    }

    fn run_tokens(&mut self, node_idx: usize, n: usize, (x, y): (BufferId, BufferId)) {
        let Self { graph, program, arena, parameters, cpu, scratch, .. } = self;
        let Node::Tokens(node) = &graph.nodes[node_idx] else { unreachable!("called for tokens") };
        let of = |id| weight(graph, parameters, id);
        let addend = match node {
            TokenNode::Linear(node) => node.addend.map(|addend| program.value(addend)),
            _ => None,
        };
        let [x, y, addend_numbers] = arena.get_mut_if([Some(x), Some(y), addend], n);
        match node {
            TokenNode::Embed(node) => {
                let parameters = EmbedParameters {
                    weight: of(node.weight),
                    bias: of(node.bias),
                    class_token: of(node.class_token),
                    positions: of(node.positions),
                };
                embed::forward(cpu, embed_shape(graph, node), x, parameters, (y, scratch));
            }
            TokenNode::LayerNorm(node) => {
                let affine = (of(node.scale), of(node.shift));
                layer_norm::forward(cpu, norm_shape(graph, node), x, affine, y);
            }
            TokenNode::Linear(node) => {
                let addend = addend.map(|_| &addend_numbers[..]);
                let inputs = TokenLinearInputs { x, w: of(node.weight), bias: of(node.bias), addend };
                token_linear::forward(cpu, linear_shape(graph, node, n), inputs, y);
            }
            TokenNode::Gelu(_) => gelu::forward(cpu, x, y),
            TokenNode::Attention(node) => {
                attention::forward(cpu, attention_shape(graph, node), x, y, scratch);
            }
        }
    }

    pub(super) fn tokens_backward(
        &mut self,
        node_idx: usize,
        n: usize,
        accumulate: bool,
        on_gradient: &mut dyn FnMut(Range<usize>, &[T]),
    ) {
        let Self { graph, program, arena, parameters, cpu, scratch, .. } = self;
        let Node::Tokens(node) = &graph.nodes[node_idx] else { unreachable!("called for tokens") };
        let d_y = gradient_of(program, node.output());
        let Parameters { values, gradients, .. } = parameters;
        let range_of = |id: ParameterId| graph.parameters[id.0].entry.range();
        match node {
            TokenNode::Embed(node) => {
                let shape = embed_shape(graph, node);
                let class_token = range_of(node.class_token);
                let [d_y_numbers] = arena.get_mut([d_y], n);
                embed::backward_class_token(shape, d_y_numbers, &mut gradients[class_token.clone()]);
                on_gradient(class_token.clone(), &gradients[class_token]);
                if !node.is_frozen {
                    let [x, d_y] = arena.get_mut([program.kept(node.x), d_y], n);
                    let ranges = [range_of(node.weight), range_of(node.bias)];
                    let [d_w, d_bias] = disjoint(gradients, ranges.clone());
                    embed::backward_weights(cpu, shape, (x, d_y), (d_w, d_bias), scratch);
                    announce(ranges, gradients, on_gradient);
                }
            }
            TokenNode::LayerNorm(node) => {
                let d_x = gradient_of(program, node.x);
                let [x, d_y, d_x] = arena.get_mut([program.kept(node.x), d_y, d_x], n);
                if !accumulate {
                    d_x.fill(T::ZERO);
                }
                let ranges = [range_of(node.scale), range_of(node.shift)];
                let [d_scale, d_shift] = disjoint(gradients, ranges.clone());
                let scale = &values[ranges[0].clone()];
                let shape = norm_shape(graph, node);
                layer_norm::backward(cpu, shape, (x, scale, d_y), d_x, (d_scale, d_shift));
                announce(ranges, gradients, on_gradient);
            }
            TokenNode::Linear(node) => {
                let shape = linear_shape(graph, node, n);
                let d_x = gradient_of(program, node.x);
                let [x, d_y, d_x] = arena.get_mut([program.kept(node.x), d_y, d_x], n);
                let ranges = [range_of(node.weight), range_of(node.bias)];
                let [d_w, d_bias] = disjoint(gradients, ranges.clone());
                token_linear::backward_bias(cpu, d_y, d_bias);
                token_linear::backward_weights(cpu, shape, (x, d_y), d_w);
                let w = &values[ranges[0].clone()];
                announce(ranges, gradients, on_gradient);
                token_linear::backward_data(cpu, shape, (d_y, w), d_x);
            }
            TokenNode::Gelu(node) => {
                let [x, d] = arena.get_mut([program.kept(node.x), d_y], n);
                gelu::backward(cpu, x, d);
            }
            TokenNode::Attention(node) => {
                let d_x = gradient_of(program, node.x);
                let [x, d_y, d_x] = arena.get_mut([program.kept(node.x), d_y, d_x], n);
                attention::backward(cpu, attention_shape(graph, node), (x, d_y), d_x, scratch);
            }
        }
    }
}

/// Numbers that an op over tokens wants to write while it runs.
pub(super) fn scratch_len(graph: &Graph, node: &TokenNode, passes: Passes, threads: usize) -> usize {
    match node {
        TokenNode::Embed(node) => {
            let has_gradients = passes == Passes::Both && !node.is_frozen;
            threads * embed_shape(graph, node).scratch_len(has_gradients)
        }
        TokenNode::Attention(node) => threads * attention_shape(graph, node).scratch_len(),
        TokenNode::LayerNorm(_) | TokenNode::Linear(_) | TokenNode::Gelu(_) => 0,
    }
}

fn input_of(graph: &Graph, node_idx: usize) -> TensorId {
    graph.nodes[node_idx].inputs()[0]
}

/// The gradients of two parameters, the first of which comes first.
fn disjoint<T>(gradients: &mut [T], ranges: [Range<usize>; 2]) -> [&mut [T]; 2] {
    gradients.get_disjoint_mut(ranges).expect("parameters do not overlap")
}

fn announce<T>(ranges: [Range<usize>; 2], gradients: &[T], on_gradient: &mut dyn FnMut(Range<usize>, &[T])) {
    for range in ranges {
        on_gradient(range.clone(), &gradients[range]);
    }
}

fn embed_shape(graph: &Graph, node: &EmbedNode) -> EmbedShape {
    let (x, y) = (graph.shape(node.x), graph.shape(node.y));
    EmbedShape { side: x.h / node.patch, patch: node.patch, c: y.c }
}

fn norm_shape(graph: &Graph, node: &LayerNormNode) -> LayerNormShape {
    let (x, y) = (graph.shape(node.x), graph.shape(node.y));
    LayerNormShape { c: y.c, stride: x.len() / y.h }
}

fn linear_shape(graph: &Graph, node: &TokenLinearNode, n: usize) -> TokenLinearShape {
    let (x, y) = (graph.shape(node.x), graph.shape(node.y));
    TokenLinearShape { tokens: n * x.h, inputs: x.c, outputs: y.c }
}

fn attention_shape(graph: &Graph, node: &AttentionNode) -> AttentionShape {
    let y = graph.shape(node.y);
    AttentionShape { tokens: y.h, c: y.c, heads: node.heads }
}
