//! A network that trains: its graph executed over planned memory.
//!
//! [`Network::forward_train`] and [`Network::backward`] run the ops in the order that `graph::program`
//! worked out; every buffer they touch was allocated by [`Network::new`]. A step is complete only when the
//! caller says so: gradients wait in [`Parameters`] for the optimizer and running statistics are staged until
//! [`Network::commit_buffers`], so a step that loses a peer half-way has changed nothing.

mod execution;
mod tokens;

use std::ops::Range;

use crate::arena::Arena;
use crate::graph::program::{BackwardStep, Passes, Program};
use crate::graph::{ConvNode, Graph, Node, TensorId};
use crate::models::{self, BatchNormScope, ModelSpec, Role};
use crate::ops::{BatchNorm, MaxPool, Op};
use crate::parameters::{BufferUpdate, Parameters};
use execution::gradient_of;
use kernels::peers::{Alone, PeerError, Peers};
use kernels::{AlignedVec, Conv2d, Convolution, Cpu, CpuOptions, Device, DeviceOptions, KernelPath, Real};

/// What a network needs to know besides its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Images, at most, in one call.
    pub max_rows: usize,
    /// Seed of the first values of the parameters.
    pub seed: u64,
    /// Algorithm of the convolutions.
    pub convolution: Convolution,
}

/// What a network makes of images in evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Evaluated<'a, T> {
    /// `[n, f]`, the backbone's output, before the head.
    pub features: &'a [T],
    /// `[n, d]`, the head's output.
    pub embeddings: &'a [T],
}

/// A copy of the running statistics, to go back to.
#[derive(Debug, Clone, PartialEq)]
pub struct BufferSnapshot<T> {
    values: Vec<T>,
    num_batches_tracked: u64,
}

/// A backbone with its projection head, its parameters and all memory of a step.
pub struct Network<T: Real> {
    spec: ModelSpec,
    role: Role,
    options: NetworkOptions,
    cpu: Cpu,
    graph: Graph,
    program: Program,
    arena: Arena<T>,
    ops: Vec<Op<T>>,
    /// What the ops use by turns.
    scratch: AlignedVec<T>,
    parameters: Parameters<T>,
    /// Per tensor that a batch norm reads: sum and sum of squares of each channel, `[2, channels]`.
    channel_sums: Vec<Vec<f64>>,
    /// Mean and unbiased variance of the last training batch, in the places of the running statistics.
    staged: Vec<f64>,
    is_staged: bool,
    /// Rows of the training pass whose activations the arena holds.
    trained_rows: Option<usize>,
}

/// Whose statistics a forward pass normalises by: those of the batch need channel sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    OfBatch,
    OfRunning,
}

impl<T: Real> Network<T> {
    /// Builds the network, draws its parameters and allocates everything that a step needs.
    ///
    /// # Panics
    /// If the images are too small for the model, or the machine lacks the instructions asked for.
    pub fn new(spec: &ModelSpec, options: NetworkOptions, device: &Device) -> Self {
        Self::with_role(spec, Role::Trained, options, device)
    }

    /// As [`Network::new`], for any network of the model. What shares a name starts with the same values. A momentum
    /// encoder has no gradients, and its arena is planned for the forward pass alone.
    ///
    /// # Panics
    /// As [`Network::new`], or if the model has no such network.
    pub fn with_role(spec: &ModelSpec, role: Role, options: NetworkOptions, device: &Device) -> Self {
        let graph = models::build(spec, role);
        let program = Program::new(&graph, passes(role));
        let mut parameters = Parameters::draw(&graph.parameters, &graph.buffers, options.seed);
        if role == Role::Momentum {
            parameters.gradients = Vec::new();
        }
        let cpu = device.cpu().clone();
        let sizing = Sizing { options, path: cpu.path, threads: cpu.threads() };
        let ops = graph.nodes.iter().map(|node| op(&graph, node, &sizing)).collect();
        let scratch_len = scratch_len::<T>(&graph, passes(role), &sizing);
        Self {
            arena: Arena::new(&program, options.max_rows),
            scratch: AlignedVec::zeroed_in_huge_pages(scratch_len),
            channel_sums: norm_input_widths(&graph).map(|channels| vec![0.0; 2 * channels]).collect(),
            staged: vec![0.0; parameters.buffer_values.len()],
            spec: spec.clone(),
            role,
            is_staged: false,
            trained_rows: None,
            options,
            cpu,
            graph,
            program,
            ops,
            parameters,
        }
    }

    /// Bytes of numbers that [`Network::new`] allocates on such a device.
    pub fn predicted_bytes(spec: &ModelSpec, options: &NetworkOptions, device: &DeviceOptions) -> usize {
        Self::predicted_bytes_of(spec, Role::Trained, options, device)
    }

    /// Bytes of numbers that [`Network::with_role`] allocates on such a device.
    ///
    /// # Panics
    /// If the model has no such network.
    pub fn predicted_bytes_of(
        spec: &ModelSpec,
        role: Role,
        options: &NetworkOptions,
        device: &DeviceOptions,
    ) -> usize {
        let &CpuOptions { threads, path, .. } = device.cpu();
        let sizing = Sizing { options: *options, path, threads };
        let graph = models::build(spec, role);
        let program = Program::new(&graph, passes(role));
        let arrays = if role == Role::Momentum { 1 } else { 2 };
        let ops = graph.nodes.iter().map(|node| op_bytes::<T>(&graph, node, &sizing));
        let values: usize = graph.parameters.iter().map(|spec| spec.entry.len).sum();
        let buffers: usize = graph.buffers.iter().map(|spec| spec.entry.len).sum();
        let sums: usize = norm_input_widths(&graph).map(|channels| 2 * channels).sum();
        Arena::<T>::predicted_bytes(&program, options.max_rows)
            + ops.sum::<usize>()
            + AlignedVec::<T>::bytes_in_huge_pages(scratch_len::<T>(&graph, passes(role), &sizing))
            + (arrays * values + buffers) * size_of::<T>()
            + (buffers + sums) * size_of::<f64>()
    }

    /// Runs the forward pass of training: batch norm normalises by the statistics of the batch, unless they are frozen.
    ///
    /// - `images`: `[n, h, w, 3]` of this rank; the statistics are those of all ranks if the model says so
    ///
    /// Returns the embeddings `[n, d]`; of patches, nine rows of which belong to one image, `[n / 9, d]`.
    ///
    /// # Errors
    /// If a peer is lost; nothing was applied.
    ///
    /// # Panics
    /// If `images` has not that length, or `n` is 0 or more than planned.
    pub fn forward_train(
        &mut self,
        images: &[T],
        n: usize,
        peers: &mut dyn Peers,
    ) -> Result<&[T], PeerError> {
        self.take_images(images, n);
        self.is_staged = false;
        let pass = match self.spec.batch_norm {
            BatchNormScope::Global | BatchNormScope::Local => Pass::OfBatch,
            BatchNormScope::Frozen => Pass::OfRunning,
        };
        let mut alone = Alone;
        let peers = in_scope(self.spec.batch_norm, peers, &mut alone);
        for node_idx in 0..self.graph.nodes.len() {
            if let (Node::BatchNorm(node), Op::BatchNorm(op)) =
                (&self.graph.nodes[node_idx], &mut self.ops[node_idx])
            {
                match pass {
                    Pass::OfRunning => op.freeze(&self.parameters),
                    Pass::OfBatch => {
                        let shape = self.graph.shape(node.y);
                        let sums: Vec<&[f64]> =
                            node.norms().map(|norm| &self.channel_sums[norm.x.0][..]).collect();
                        let statistics = (n * shape.h * shape.w, &sums[..]);
                        op.use_batch_statistics(statistics, &self.parameters, &mut self.staged, peers)?;
                    }
                }
            }
            self.forward_node(node_idx, n, pass);
        }
        if pass == Pass::OfRunning {
            let running = &self.parameters.buffer_values;
            self.staged.iter_mut().zip(running).for_each(|(staged, running)| *staged = running.to_f64());
        }
        self.is_staged = true;
        self.trained_rows = Some(n);
        Ok(self.value(self.graph.embeddings, n / self.graph.joined_rows))
    }

    /// The embeddings of the last training pass, until its backward pass.
    ///
    /// # Panics
    /// If there is no such pass.
    pub fn embeddings(&self) -> &[T] {
        let n = self.trained_rows.expect("embeddings follow a training pass");
        self.value(self.graph.embeddings, n / self.graph.joined_rows)
    }

    /// The features `[n, f]` of the last training pass, until its backward pass.
    ///
    /// # Panics
    /// If there is no such pass.
    pub fn features(&self) -> &[T] {
        let n = self.trained_rows.expect("features follow a training pass");
        self.value(self.graph.features, n)
    }

    /// Runs the network with its running statistics; a training pass under way is lost.
    ///
    /// - `images`: `[n, h, w, 3]`
    ///
    /// # Panics
    /// If `images` has not that length, or `n` is 0 or more than planned.
    pub fn forward_eval(&mut self, images: &[T], n: usize) -> Evaluated<'_, T> {
        self.take_images(images, n);
        for node_idx in 0..self.graph.nodes.len() {
            if let Op::BatchNorm(op) = &mut self.ops[node_idx] {
                op.use_running_statistics(&self.parameters);
            }
            self.forward_node(node_idx, n, Pass::OfRunning);
        }
        Evaluated {
            features: self.value(self.graph.features, n),
            embeddings: self.value(self.graph.embeddings, n / self.graph.joined_rows),
        }
    }

    /// Computes the gradients of all parameters, of this rank's rows alone.
    ///
    /// - `d_embeddings`: as many rows as the last training pass gave embeddings
    /// - `on_gradient`: called with a place in `parameters().gradients` and what stands there, the moment that
    ///   is final; in the same order on every rank
    ///
    /// # Errors
    /// If a peer is lost; gradients are then incomplete, and the pass's statistics are dropped.
    ///
    /// # Panics
    /// Without a training pass since the last backward or evaluation, or if the length is wrong, or in a momentum
    /// encoder.
    pub fn backward(
        &mut self,
        d_embeddings: &[T],
        peers: &mut dyn Peers,
        on_gradient: &mut dyn FnMut(Range<usize>, &[T]),
    ) -> Result<(), PeerError> {
        let n = self.trained_rows.take().expect("a backward pass follows a training pass");
        let rows = n / self.graph.joined_rows;
        let [d_y] = self.arena.get_mut([gradient_of(&self.program, self.graph.embeddings)], rows);
        assert_eq!(d_embeddings.len(), d_y.len(), "d_embeddings of {rows} rows");
        d_y.copy_from_slice(d_embeddings);
        let mut alone = Alone;
        let peers = in_scope(self.spec.batch_norm, peers, &mut alone);
        // A pass that loses a peer leaves no statistics to commit.
        let is_staged = std::mem::take(&mut self.is_staged);
        for step_idx in 0..self.program.backward.len() {
            match self.program.backward[step_idx] {
                BackwardStep::Replay { node } => self.replay(node, n),
                BackwardStep::Backward { node, accumulate } => match &self.graph.nodes[node] {
                    Node::Conv(_) => self.conv_backward(node, n, accumulate, on_gradient),
                    Node::BatchNorm(_) => self.batch_norm_backward(node, n, peers, on_gradient)?,
                    Node::Linear(_) => self.linear_backward(node, n, on_gradient),
                    Node::Tokens(_) => self.tokens_backward(node, n, accumulate, on_gradient),
                    Node::MaxPool(_) | Node::AveragePool(_) => self.pool_backward(node, n),
                },
            }
        }
        self.is_staged = is_staged;
        Ok(())
    }

    /// Lets the statistics of the last training pass enter the running ones, once; frozen ones stay as they are.
    ///
    /// # Panics
    /// If that was done already, or there was no training pass.
    pub fn commit_buffers(&mut self, update: BufferUpdate) {
        assert!(self.is_staged, "statistics of a batch are committed once");
        self.is_staged = false;
        if self.spec.batch_norm != BatchNormScope::Frozen {
            self.parameters.update_buffers(&self.staged, update);
        }
    }

    /// The statistics of the last training pass, in the places of the running ones: mean and unbiased variance.
    ///
    /// # Panics
    /// If they were committed or dropped, or there was no training pass.
    pub fn staged_statistics(&self) -> &[f64] {
        assert!(self.is_staged, "statistics follow a training pass");
        &self.staged
    }

    /// Puts other statistics in the place of the last training pass's, to be committed: several passes' mean.
    ///
    /// # Panics
    /// If the length is not that of the running statistics.
    pub fn stage_statistics(&mut self, statistics: &[f64]) {
        self.staged.copy_from_slice(statistics);
        self.is_staged = true;
    }

    /// Copies the running statistics.
    pub fn buffers_snapshot(&self) -> BufferSnapshot<T> {
        let Parameters { buffer_values, num_batches_tracked, .. } = &self.parameters;
        BufferSnapshot { values: buffer_values.clone(), num_batches_tracked: *num_batches_tracked }
    }

    /// Goes back to an earlier copy of the running statistics; staged ones are dropped.
    ///
    /// # Panics
    /// If the copy is of another network.
    pub fn restore_buffers(&mut self, snapshot: &BufferSnapshot<T>) {
        self.parameters.buffer_values.copy_from_slice(&snapshot.values);
        self.parameters.num_batches_tracked = snapshot.num_batches_tracked;
        self.is_staged = false;
    }

    /// Parameters, gradients and running statistics.
    pub fn parameters(&self) -> &Parameters<T> {
        &self.parameters
    }

    /// Parameters, gradients and running statistics, for the optimizer and for loading.
    pub fn parameters_mut(&mut self) -> &mut Parameters<T> {
        &mut self.parameters
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Images, at most, in one call.
    pub fn max_rows(&self) -> usize {
        self.options.max_rows
    }

    /// Floating-point operations of one training step per image, counted as direct convolutions.
    pub fn flops_per_row(&self) -> f64 {
        self.graph.flops_per_row()
    }

    fn value(&self, tensor: TensorId, n: usize) -> &[T] {
        self.arena.get(self.program.value(tensor), n)
    }

    fn take_images(&mut self, images: &[T], n: usize) {
        assert!((1..=self.options.max_rows).contains(&n), "{n} rows, planned {}", self.options.max_rows);
        assert!(n.is_multiple_of(self.graph.joined_rows), "{n} rows of {} each", self.graph.joined_rows);
        self.trained_rows = None;
        let [target] = self.arena.get_mut([self.program.value(self.graph.images)], n);
        let size = self.spec.input_size(self.role);
        assert_eq!(images.len(), target.len(), "{n} images of {size} pixels");
        target.copy_from_slice(images);
    }
}

/// What the memory of a network depends on besides its graph.
struct Sizing {
    options: NetworkOptions,
    path: KernelPath,
    threads: usize,
}

/// A momentum encoder is never differentiated.
fn passes(role: Role) -> Passes {
    match role {
        Role::Momentum => Passes::Forward,
        Role::Trained | Role::Patches => Passes::Both,
    }
}

fn op<T: Real>(graph: &Graph, node: &Node, sizing: &Sizing) -> Op<T> {
    match node {
        Node::Conv(node) => Op::Conv(conv::<T>(graph, node, sizing)),
        Node::BatchNorm(node) => Op::BatchNorm(BatchNorm::new(graph, node, sizing.threads)),
        Node::MaxPool(node) => {
            Op::MaxPool(MaxPool::new(graph.shape(node.x), graph.shape(node.y), sizing.options.max_rows))
        }
        Node::AveragePool(_) => Op::AveragePool,
        Node::Linear(_) => Op::Linear,
        Node::Tokens(_) => Op::Tokens,
    }
}

fn conv<T: Real>(graph: &Graph, node: &ConvNode, sizing: &Sizing) -> Conv2d {
    let shape = graph.conv_shape(node, sizing.options.max_rows);
    Conv2d::new::<T>(shape, sizing.path, sizing.options.convolution, sizing.threads)
}

fn op_bytes<T: Real>(graph: &Graph, node: &Node, sizing: &Sizing) -> usize {
    match node {
        Node::BatchNorm(node) => BatchNorm::<T>::predicted_bytes(graph, node, sizing.threads),
        Node::MaxPool(node) => sizing.options.max_rows * graph.shape(node.y).len(),
        Node::Conv(_) | Node::AveragePool(_) | Node::Linear(_) | Node::Tokens(_) => 0,
    }
}

/// Numbers that the ops want to write while they run, one after the other. Convolutions are planned anew to be asked, which
/// allocates next to nothing.
fn scratch_len<T: Real>(graph: &Graph, passes: Passes, sizing: &Sizing) -> usize {
    let ops = graph.nodes.iter().map(|node| match node {
        Node::Conv(node) => conv::<T>(graph, node, sizing).scratch_len(),
        Node::Tokens(node) => tokens::scratch_len(graph, node, passes, sizing.threads),
        _ => 0,
    });
    ops.max().unwrap_or(0)
}

/// For each tensor its channels if a batch norm reads it, 0 otherwise.
fn norm_input_widths(graph: &Graph) -> impl Iterator<Item = usize> {
    let mut widths = vec![0; graph.tensors.len()];
    for node in &graph.nodes {
        if let Node::BatchNorm(node) = node {
            for norm in node.norms() {
                widths[norm.x.0] = graph.shape(norm.x).c;
            }
        }
    }
    widths.into_iter()
}

/// The group over which statistics are taken.
fn in_scope<'a>(scope: BatchNormScope, peers: &'a mut dyn Peers, alone: &'a mut Alone) -> &'a mut dyn Peers {
    match scope {
        BatchNormScope::Global => peers,
        BatchNormScope::Local | BatchNormScope::Frozen => alone,
    }
}
