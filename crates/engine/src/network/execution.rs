//! How each kind of node runs: which buffers it gets, and where its gradients go.

use std::ops::Range;

use super::{Network, Pass};
use crate::arena::Arena;
use crate::graph::program::{BufferId, NormBehind, Program};
use crate::graph::{BatchNormNode, Graph, LinearNode, Node, ParameterId, Shortcut, TensorId};
use crate::ops::batch_norm::{BackwardViews, ForwardViews};
use crate::ops::linear::{self, LinearShape};
use crate::ops::{BatchNorm, Op, channel_sums, pool};
use crate::parameters::Parameters;
use kernels::peers::{PeerError, Peers};
use kernels::{Backward, Cpu, Forward, Input, InputGradient, OutputGradient, Prologue, Real, Then};

impl<T: Real> Network<T> {
    pub(super) fn forward_node(&mut self, node_idx: usize, n: usize, pass: Pass) {
        if matches!(self.graph.nodes[node_idx], Node::Tokens(_)) {
            return self.forward_tokens(node_idx, n);
        }
        let Self { graph, program, arena, ops, parameters, cpu, scratch, channel_sums: all_sums, .. } = self;
        let value = |tensor| program.value(tensor);
        let (earlier, rest) = ops.split_at_mut(node_idx);
        match (&graph.nodes[node_idx], &mut rest[0]) {
            (Node::Conv(node), Op::Conv(conv)) => {
                let prologue = program.prologue(node.x).map(|norm| prologue(&earlier[norm]));
                let [x, y] = arena.get_mut([value(node.x), value(node.y)], n);
                let sums = (pass == Pass::OfBatch).then(|| &mut all_sums[node.y.0][..]);
                let w = weight(graph, parameters, node.weight);
                conv.forward(&cpu.pool, n, Forward { input: Input { x, prologue }, w, y, sums, scratch });
            }
            // The convolutions that read it do it themselves.
            (Node::BatchNorm(node), _) if program.prologue(node.y).is_some() => {}
            (Node::BatchNorm(node), Op::BatchNorm(op)) => {
                batch_norm_forward(cpu, op, node, arena, (&value, n))
            }
            (Node::MaxPool(node), Op::MaxPool(op)) => {
                let [x, y] = arena.get_mut([value(node.x), value(node.y)], n);
                op.forward(cpu, x, y);
            }
            (Node::AveragePool(node), Op::AveragePool) => {
                let [x, y] = arena.get_mut([value(node.x), value(node.y)], n);
                pool::average(cpu, graph.shape(node.x), x, y);
            }
            (Node::Linear(node), Op::Linear) => {
                let shape = linear_shape(graph, node, n);
                let [x, y] = arena.get_mut([value(node.x), value(node.y)], n);
                let y = &mut y[..shape.rows * shape.outputs];
                let bias = node.bias.map(|bias| weight(graph, parameters, bias));
                let layer = (weight(graph, parameters, node.weight), bias, node.relu);
                linear::forward(cpu, shape, x, layer, y);
                let sums = &mut all_sums[node.y.0];
                if pass == Pass::OfBatch && !sums.is_empty() {
                    channel_sums(cpu, y, sums);
                }
            }
            _ => unreachable!("ops are made from the nodes"),
        }
    }

    pub(super) fn replay(&mut self, node_idx: usize, n: usize) {
        if matches!(self.graph.nodes[node_idx], Node::Tokens(_)) {
            return self.replay_tokens(node_idx, n);
        }
        let Self { graph, program, arena, ops, cpu, .. } = self;
        let (Node::BatchNorm(node), Op::BatchNorm(op)) = (&graph.nodes[node_idx], &ops[node_idx]) else {
            unreachable!("only norms and ops over tokens are replayed")
        };
        batch_norm_forward(cpu, op, node, arena, (&|tensor| program.kept(tensor), n));
    }

    pub(super) fn conv_backward(
        &mut self,
        node_idx: usize,
        n: usize,
        accumulate: bool,
        on_gradient: &mut dyn FnMut(Range<usize>, &[T]),
    ) {
        let Self { graph, program, arena, ops, parameters, cpu, scratch, .. } = self;
        let (earlier, rest) = ops.split_at_mut(node_idx);
        let (this, later) = rest.split_first_mut().expect("the node has an op");
        let (Node::Conv(node), Op::Conv(conv)) = (&graph.nodes[node_idx], this) else {
            unreachable!("ops are made from the nodes")
        };
        let prologue = program.prologue(node.x).map(|norm| prologue(&earlier[norm]));
        // The norm whose output this convolution reads, if it is the last to say what the gradient of that is.
        let completed = program.completes(node_idx).map(|norm| match (&graph.nodes[norm], &earlier[norm]) {
            (Node::BatchNorm(node), Op::BatchNorm(op)) => (node, op),
            _ => unreachable!("convolutions complete batch norms"),
        });
        let d_x = program.d_value(node.x);
        let (x, y, d) = (program.kept(node.x), program.kept(node.y), gradient_of(program, node.y));
        // What a prologue reads is the norm's input already.
        let norm_x = completed.map(|(norm, _)| program.kept(norm.main.x)).filter(|norm_x| *norm_x != x);
        let projected = completed.and_then(|(norm, _)| norm.norms().nth(1)).map(|norm| program.kept(norm.x));
        let buffers = [Some(x), Some(y), Some(d), d_x, norm_x, projected];
        let [x, y, d, d_x_numbers, norm_x_numbers, projected] = arena.get_mut_if(buffers, n);
        let (x, projected) = (&x[..], &projected[..]);
        let norm_x = if norm_x.is_some() { &norm_x_numbers[..] } else { x };
        let (x_len, path) = (graph.shape(node.x).len(), cpu.path);
        let then = completed.map(|(norm, op)| {
            move |thread, images: Range<usize>, d: &mut [T]| {
                let numbers = images.start * x_len..images.end * x_len;
                let of_norm = &norm_x[numbers.clone()];
                let views = match norm.shortcut {
                    Shortcut::None => BackwardViews::Single { x: of_norm, d },
                    Shortcut::Identity(_) => {
                        BackwardViews::Residual { x: of_norm, projected: None, y: &x[numbers], d }
                    }
                    Shortcut::Projected(_) => {
                        let projected = Some(&projected[numbers.clone()]);
                        BackwardViews::Residual { x: of_norm, projected, y: &x[numbers], d }
                    }
                };
                op.add_gradients(path, thread, views);
            }
        });
        let d_x = d_x.map(|_| InputGradient {
            d_x: d_x_numbers,
            accumulate,
            then: then.as_ref().map(|then| then as &Then<'_, T>),
        });
        let len = graph.shape(node.y).len();
        let make = program.norm_behind(node.y).map(|NormBehind { node, norm }| {
            let Op::BatchNorm(op) = &later[node - node_idx - 1] else { unreachable!("a batch norm") };
            let (y, d) = (&y[..], &d[..]);
            move |images: Range<usize>, d_y: &mut [T]| {
                let numbers = images.start * len..images.end * len;
                op.input_gradient(norm, path, (&y[numbers.clone()], &d[numbers]), d_y);
            }
        });
        let d_y = match &make {
            Some(make) => OutputGradient::Made(make),
            None => OutputGradient::Plain(d),
        };
        let range = graph.parameters[node.weight.0].entry.range();
        let (w, d_w) = (&parameters.values[range.clone()], &mut parameters.gradients[range.clone()]);
        conv.backward(&cpu.pool, n, Backward { input: Input { x, prologue }, d_y, w, d_w, d_x, scratch });
        on_gradient(range, d_w);
    }

    pub(super) fn batch_norm_backward(
        &mut self,
        node_idx: usize,
        n: usize,
        peers: &mut dyn Peers,
        on_gradient: &mut dyn FnMut(Range<usize>, &[T]),
    ) -> Result<(), PeerError> {
        let Self { graph, program, arena, ops, parameters, cpu, .. } = self;
        let (Node::BatchNorm(node), Op::BatchNorm(op)) = (&graph.nodes[node_idx], &mut ops[node_idx]) else {
            unreachable!("ops are made from the nodes")
        };
        let (x, y, d_y) = (program.kept(node.main.x), program.kept(node.y), gradient_of(program, node.y));
        if program.completed_by(node_idx).is_none() {
            match &node.shortcut {
                Shortcut::None => {
                    let [x, d] = arena.get_mut([x, d_y], n);
                    op.add_all_gradients(cpu, BackwardViews::Single { x, d });
                }
                Shortcut::Identity(_) => {
                    let [x, y, d] = arena.get_mut([x, y, d_y], n);
                    op.add_all_gradients(cpu, BackwardViews::Residual { x, projected: None, y, d });
                }
                Shortcut::Projected(norm) => {
                    let [x, p, y, d] = arena.get_mut([x, program.kept(norm.x), y, d_y], n);
                    op.add_all_gradients(cpu, BackwardViews::Residual { x, projected: Some(p), y, d });
                }
            }
        }
        op.backward(parameters, peers)?;
        if program.norm_behind(node.main.x).is_none() {
            let [x, d, d_x] = arena.get_mut([x, d_y, gradient_of(program, node.main.x)], n);
            op.input_gradient(0, cpu.path, (x, d), d_x);
        }
        for range in op.parameter_ranges() {
            on_gradient(range.clone(), &parameters.gradients[range]);
        }
        Ok(())
    }

    pub(super) fn linear_backward(
        &mut self,
        node_idx: usize,
        n: usize,
        on_gradient: &mut dyn FnMut(Range<usize>, &[T]),
    ) {
        let Self { graph, program, arena, parameters, cpu, .. } = self;
        let Node::Linear(node) = &graph.nodes[node_idx] else { unreachable!("called for linear layers") };
        let shape = linear_shape(graph, node, n);
        let d_y = gradient_of(program, node.y);
        if node.relu {
            let [y, d_y] = arena.get_mut([program.kept(node.y), d_y], n / node.joined_rows);
            linear::mask(y, d_y);
        }
        let [x, d_y, d_x] = arena.get_mut([program.kept(node.x), d_y, gradient_of(program, node.x)], n);
        let d_y = &mut d_y[..n / node.joined_rows * shape.outputs];
        if let Some(bias) = node.bias {
            let range = graph.parameters[bias.0].entry.range();
            let d_bias = &mut parameters.gradients[range.clone()];
            linear::backward_bias(d_y, d_bias);
            on_gradient(range, d_bias);
        }
        let range = graph.parameters[node.weight.0].entry.range();
        let d_w = &mut parameters.gradients[range.clone()];
        linear::backward_weights(cpu, shape, x, d_y, d_w);
        on_gradient(range, d_w);
        linear::backward_data(cpu, shape, d_y, weight(graph, parameters, node.weight), d_x);
    }

    pub(super) fn pool_backward(&mut self, node_idx: usize, n: usize) {
        let Self { graph, program, arena, ops, cpu, .. } = self;
        let (x, y) = (graph.nodes[node_idx].inputs()[0], graph.nodes[node_idx].output());
        let [d_y, d_x] = arena.get_mut([gradient_of(program, y), gradient_of(program, x)], n);
        match &ops[node_idx] {
            Op::MaxPool(op) => op.backward(cpu, d_y, d_x),
            _ => pool::average_backward(cpu, graph.shape(x), d_y, d_x),
        }
    }
}

fn prologue<T: Real>(op: &Op<T>) -> Prologue<'_, T> {
    let Op::BatchNorm(op) = op else { unreachable!("only batch norms are prologues") };
    op.prologue()
}

fn batch_norm_forward<T: Real>(
    cpu: &Cpu,
    op: &BatchNorm<T>,
    node: &BatchNormNode,
    arena: &mut Arena<T>,
    (place, n): (&dyn Fn(TensorId) -> BufferId, usize),
) {
    let (x, y) = (place(node.main.x), place(node.y));
    match &node.shortcut {
        Shortcut::None => {
            let [x, y] = arena.get_mut([x, y], n);
            op.forward(cpu, ForwardViews { x, shortcut: None, y });
        }
        Shortcut::Identity(shortcut) => {
            let [x, shortcut, y] = arena.get_mut([x, place(*shortcut), y], n);
            op.forward(cpu, ForwardViews { x, shortcut: Some(shortcut), y });
        }
        Shortcut::Projected(norm) => {
            let [x, shortcut, y] = arena.get_mut([x, place(norm.x), y], n);
            op.forward(cpu, ForwardViews { x, shortcut: Some(shortcut), y });
        }
    }
}

pub(super) fn gradient_of(program: &Program, tensor: TensorId) -> BufferId {
    program.d_value(tensor).expect("everything but the images has a gradient")
}

pub(super) fn weight<'a, T>(graph: &Graph, parameters: &'a Parameters<T>, id: ParameterId) -> &'a [T] {
    &parameters.values[graph.parameters[id.0].entry.range()]
}

fn linear_shape(graph: &Graph, node: &LinearNode, rows: usize) -> LinearShape {
    let inputs = node.joined_rows * graph.shape(node.x).len();
    LinearShape { rows: rows / node.joined_rows, inputs, outputs: graph.shape(node.y).len() }
}
