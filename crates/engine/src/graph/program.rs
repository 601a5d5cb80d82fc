//! What a training step does, in order, and which buffer each value lives in while it is needed.
//!
//! The backward pass is the forward pass in reverse. Three things save memory on the way:
//!
//! - A normalised activation that only convolutions read (inside a block) is never stored: their *prologue*
//!   normalises what they read, both times. Any other of a batch norm without shortcut, and what a layer norm or a GELU
//!   makes of tokens, is not kept: it is *replayed* in one memory pass, just before the backward pass reads it.
//! - The gradient of a convolution's output is never stored: the norm behind it *makes* it from the gradient of
//!   its own output, block by block, as the convolution's backward pass reads it. So norms hand the buffer of
//!   their output's gradient on to the convolutions; where a shortcut joined, it is also the shortcut's gradient,
//!   and others add to it once these convolutions have read it.
//! - Buffers that are never alive together share memory ([`super::plan`]).

use super::plan::Lifetime;
use super::{BatchNormNode, Graph, Node, Shortcut, TensorId, TokenNode};

/// Index of a buffer: a value or a gradient, over one stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BufferId(pub usize);

/// One thing that the backward pass does. The forward pass just runs the nodes in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackwardStep {
    /// Computes a node's output once more.
    Replay { node: usize },
    /// Runs a node's backward; its input's gradient already holds another consumer's share if `accumulate`.
    Backward { node: usize, accumulate: bool },
}

/// A normalisation that reads a convolution's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NormBehind {
    /// The batch norm.
    pub node: usize,
    /// Which of its norms: the main one, or the shortcut's.
    pub norm: usize,
}

/// Which passes the buffers are planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passes {
    /// A buffer is free for others once the last op of the forward pass has read it.
    Forward,
    /// What the backward pass reads is kept for it.
    Both,
}

/// The buffers of a graph and the order of its backward pass.
#[derive(Debug)]
pub(crate) struct Program {
    pub backward: Vec<BackwardStep>,
    pub lifetimes: Vec<Lifetime>,
    values: Vec<BufferId>,
    prologues: Vec<Option<usize>>,
    norms_behind: Vec<Option<NormBehind>>,
    completed_by: Vec<Option<usize>>,
    replayed: Vec<Option<BufferId>>,
    gradients: Vec<Option<BufferId>>,
}

impl Program {
    pub fn new(graph: &Graph, passes: Passes) -> Self {
        let (replayed, gradients) = (vec![None; graph.tensors.len()], vec![None; graph.tensors.len()]);
        let prologues = (0..graph.tensors.len()).map(|tensor| prologue_of(graph, TensorId(tensor))).collect();
        let norms_behind =
            (0..graph.tensors.len()).map(|tensor| norm_behind(graph, TensorId(tensor))).collect();
        let completed_by = (0..graph.nodes.len()).map(|node| completed_by(graph, node)).collect();
        let (backward, lifetimes, values) = (vec![], vec![], vec![]);
        let mut program =
            Self { backward, lifetimes, values, prologues, norms_behind, completed_by, replayed, gradients };
        for (tensor, shape) in graph.tensors.iter().enumerate() {
            let buffer = match program.prologues[tensor] {
                // An input is made, and so listed, before the output.
                Some(norm) => program.values[graph.nodes[norm].inputs()[0].0],
                None => program.buffer(shape.len()),
            };
            program.values.push(buffer);
        }
        let mut time = 0;
        for node in &graph.nodes {
            for tensor in node.inputs().into_iter().chain([node.output()]) {
                program.touch(program.values[tensor.0], time);
            }
            time += 1;
        }
        // The caller looks at both after the forward pass, and hands in the gradient of one before the next.
        program.touch(program.values[graph.features.0], time);
        program.touch(program.values[graph.embeddings.0], time);
        if passes == Passes::Forward {
            return program;
        }
        let d_embeddings = program.gradient(graph, graph.embeddings);
        program.touch(d_embeddings, time);

        for (node_idx, node) in graph.nodes.iter().enumerate().rev() {
            for tensor in node.backward_reads() {
                let is_there = program.replayed[tensor.0].is_some() || program.prologues[tensor.0].is_some();
                if let Some(maker) = replayed_by(graph, tensor).filter(|_| !is_there) {
                    time += 1;
                    program.backward.push(BackwardStep::Replay { node: maker });
                    program.replayed[tensor.0] = Some(program.buffer(graph.shape(tensor).len()));
                    for input in graph.nodes[maker].inputs() {
                        program.touch(program.values[input.0], time);
                    }
                    program.touch(program.kept(tensor), time);
                }
            }
            time += 1;
            let accumulate = program.place_gradients(graph, node);
            program.backward.push(BackwardStep::Backward { node: node_idx, accumulate });
            for tensor in node.backward_reads() {
                program.touch(program.kept(tensor), time);
            }
            for tensor in node.inputs().into_iter().chain([node.output()]) {
                if let Some(buffer) = program.gradients[tensor.0] {
                    program.touch(buffer, time);
                }
            }
        }
        program
    }

    /// The batch norm that the readers of a tensor leave to their prologue. The tensor is not stored; its buffer
    /// is that of the norm's input.
    pub fn prologue(&self, tensor: TensorId) -> Option<usize> {
        self.prologues[tensor.0]
    }

    /// The norm that makes the gradient of a convolution's output. The gradient is not stored; its buffer is that of
    /// the gradient of the norm's output.
    pub fn norm_behind(&self, tensor: TensorId) -> Option<NormBehind> {
        self.norms_behind[tensor.0]
    }

    /// The convolution that has the last word on the gradient of a batch norm's output, and so hands it on to the norm
    /// image by image.
    pub fn completed_by(&self, norm: usize) -> Option<usize> {
        self.completed_by[norm]
    }

    /// The batch norm that a convolution [completes](Self::completed_by).
    pub fn completes(&self, conv: usize) -> Option<usize> {
        self.completed_by.iter().position(|by| *by == Some(conv))
    }

    /// The buffer of a value during the forward pass.
    pub fn value(&self, tensor: TensorId) -> BufferId {
        self.values[tensor.0]
    }

    /// The buffer of a value during the backward pass.
    pub fn kept(&self, tensor: TensorId) -> BufferId {
        self.replayed[tensor.0].unwrap_or(self.values[tensor.0])
    }

    /// The buffer of a gradient; `None` for the images, which need none.
    pub fn d_value(&self, tensor: TensorId) -> Option<BufferId> {
        self.gradients[tensor.0]
    }

    /// Decides where the gradients of the node's inputs go; whether the first one adds to what is there.
    fn place_gradients(&mut self, graph: &Graph, node: &Node) -> bool {
        let d_y = self.gradients[node.output().0].expect("consumers come first in the backward pass");
        match node {
            Node::BatchNorm(norm) => {
                for input in node.inputs() {
                    if norm_behind(graph, input).is_some()
                        || matches!(norm.shortcut, Shortcut::Identity(x) if x == input)
                    {
                        self.hand_on(input, d_y);
                    } else {
                        self.gradient(graph, input);
                    }
                }
            }
            Node::Tokens(node) => return self.place_token_gradients(graph, node, d_y),
            Node::Conv(_) | Node::MaxPool(_) | Node::AveragePool(_) | Node::Linear(_) => {
                let x = node.inputs()[0];
                if x != graph.images {
                    let accumulate = self.gradients[x.0].is_some();
                    assert!(
                        !accumulate || matches!(node, Node::Conv(_)),
                        "only convolutions add to a gradient"
                    );
                    self.gradient(graph, x);
                    return accumulate;
                }
            }
        }
        false
    }

    /// As [`Program::place_gradients`], of an op over tokens.
    fn place_token_gradients(&mut self, graph: &Graph, node: &TokenNode, d_y: BufferId) -> bool {
        match node {
            // Images need none.
            TokenNode::Embed(_) => false,
            TokenNode::LayerNorm(node) => {
                let accumulate = self.gradients[node.x.0].is_some();
                self.gradient(graph, node.x);
                accumulate
            }
            TokenNode::Linear(node) => {
                if let Some(addend) = node.addend {
                    self.hand_on(addend, d_y);
                }
                self.first_gradient(graph, node.x)
            }
            TokenNode::Gelu(node) => {
                self.hand_on(node.x, d_y);
                false
            }
            TokenNode::Attention(node) => self.first_gradient(graph, node.x),
        }
    }

    /// Makes room for the gradient of a tensor that has no other reader; so nothing is added to what is there.
    fn first_gradient(&mut self, graph: &Graph, tensor: TensorId) -> bool {
        assert!(self.gradients[tensor.0].is_none(), "only layer norms add to a gradient of tokens");
        self.gradient(graph, tensor);
        false
    }

    /// Lets the gradient of `tensor` live in `buffer`.
    fn hand_on(&mut self, tensor: TensorId, buffer: BufferId) {
        assert!(self.gradients[tensor.0].is_none(), "what is handed on is the first share");
        self.gradients[tensor.0] = Some(buffer);
    }

    fn gradient(&mut self, graph: &Graph, tensor: TensorId) -> BufferId {
        if let Some(buffer) = self.gradients[tensor.0] {
            return buffer;
        }
        let buffer = self.buffer(graph.shape(tensor).len());
        self.gradients[tensor.0] = Some(buffer);
        buffer
    }

    fn buffer(&mut self, row_len: usize) -> BufferId {
        self.lifetimes.push(Lifetime { row_len, first: usize::MAX, last: 0 });
        BufferId(self.lifetimes.len() - 1)
    }

    fn touch(&mut self, buffer: BufferId, time: usize) {
        let lifetime = &mut self.lifetimes[buffer.0];
        lifetime.first = lifetime.first.min(time);
        lifetime.last = lifetime.last.max(time);
    }
}

/// The norm that becomes the prologue of the convolutions that read `tensor`, if nobody else does.
fn prologue_of(graph: &Graph, tensor: TensorId) -> Option<usize> {
    let mut readers = graph.nodes.iter().filter(|node| node.inputs().contains(&tensor));
    let is_inside = tensor != graph.features && tensor != graph.embeddings;
    let by_convolutions = is_inside && readers.all(|node| matches!(node, Node::Conv(_)));
    lone_norm(graph, tensor).filter(|_| by_convolutions)
}

/// The norm that reads `tensor`, if a convolution makes it and nobody else reads it.
fn norm_behind(graph: &Graph, tensor: TensorId) -> Option<NormBehind> {
    let mut makers = graph.nodes.iter().filter(|node| node.output() == tensor);
    let mut readers = graph.nodes.iter().enumerate().filter(|(_, node)| node.inputs().contains(&tensor));
    match (makers.next(), readers.next(), readers.next()) {
        (Some(Node::Conv(_)), Some((node, Node::BatchNorm(reader))), None) => {
            let norm = reader.norms().position(|norm| norm.x == tensor)?;
            Some(NormBehind { node, norm })
        }
        _ => None,
    }
}

/// The first reader of a batch norm's output, which is the last in the backward pass, if that is a convolution.
fn completed_by(graph: &Graph, norm: usize) -> Option<usize> {
    let Node::BatchNorm(BatchNormNode { y, .. }) = graph.nodes[norm] else { return None };
    let first = graph.nodes.iter().position(|node| node.inputs().contains(&y))?;
    matches!(graph.nodes[first], Node::Conv(_)).then_some(first)
}

/// The node that can compute `tensor` once more from what the backward pass keeps anyway: a batch norm without
/// shortcut, whose input its own backward needs.
fn lone_norm(graph: &Graph, tensor: TensorId) -> Option<usize> {
    graph.nodes.iter().position(|node| {
        node.output() == tensor
            && matches!(node, Node::BatchNorm(norm) if matches!(norm.shortcut, Shortcut::None))
    })
}

/// The node that computes `tensor` once more for the backward pass.
fn replayed_by(graph: &Graph, tensor: TensorId) -> Option<usize> {
    let replays = |node: &Node| matches!(node, Node::Tokens(node) if node.is_replayed());
    let of_tokens = || graph.nodes.iter().position(|node| node.output() == tensor && replays(node));
    lone_norm(graph, tensor).or_else(of_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{self, Arch, BatchNormScope, Head, ModelSpec, Role, Stem};

    fn graph() -> Graph {
        models::build(
            &ModelSpec {
                arch: Arch::ResNet20,
                stem: Stem::Cifar,
                head: Head::SimclrV1,
                batch_norm: BatchNormScope::Local,
                image_size: 8,
                zero_init_residual: false,
                predictor: None,
                jigsaw: None,
            },
            Role::Trained,
        )
    }

    /// Every value that the backward pass reads is alive from when it was computed, or replayed, until then.
    #[test]
    fn nothing_is_read_before_it_exists() {
        let graph = graph();
        let program = Program::new(&graph, Passes::Both);
        for lifetime in &program.lifetimes {
            assert!(lifetime.first <= lifetime.last, "{lifetime:?} is never used");
        }
        let mut replayed = vec![];
        for step in &program.backward {
            match *step {
                BackwardStep::Replay { node } => replayed.push(graph.nodes[node].output()),
                BackwardStep::Backward { node, .. } => {
                    for tensor in graph.nodes[node].backward_reads() {
                        // Kept as it is, or as the input of its norm.
                        let kept = program.kept(tensor) == program.value(tensor);
                        assert!(kept || replayed.contains(&tensor), "{tensor:?}");
                    }
                }
            }
        }
        // The stem's activation and one in the head.
        assert_eq!(replayed.len(), 2);
    }

    /// Inside each block one activation is a convolution's prologue, kept as what its norm reads.
    #[test]
    fn an_activation_that_only_convolutions_read_is_not_stored() {
        let graph = graph();
        let program = Program::new(&graph, Passes::Both);
        let fused = |node: &&Node| program.prologue(node.output()).is_some();
        let fused: Vec<_> = graph.nodes.iter().filter(fused).collect();
        assert_eq!(fused.len(), 9, "one per block");
        for node in fused {
            assert_eq!(program.value(node.output()), program.value(node.inputs()[0]));
            assert_eq!(program.kept(node.output()), program.value(node.inputs()[0]));
        }
    }

    /// A block's input gets its gradient from the shortcut first; the block's first convolution adds to it.
    #[test]
    fn shortcuts_hand_their_gradient_on() {
        let graph = graph();
        let program = Program::new(&graph, Passes::Both);
        let added = program.backward.iter().filter_map(|step| match *step {
            BackwardStep::Backward { node, accumulate: true } => Some(&graph.nodes[node]),
            _ => None,
        });
        let added: Vec<_> = added.map(|node| node.inputs()[0]).collect();
        assert_eq!(added.len(), 9, "one per block");
        for node in &graph.nodes {
            let Node::BatchNorm(norm) = node else { continue };
            if let Shortcut::Identity(x) = norm.shortcut {
                assert_eq!(program.d_value(x), program.d_value(norm.y));
                assert!(added.contains(&x));
            }
        }
        assert_eq!(program.d_value(graph.images), None);
    }
}
