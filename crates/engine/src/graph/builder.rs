//! Puts a graph together op by op, keeping shapes and names.

use super::{
    BatchNormNode, ConvNode, Graph, LinearNode, Node, Norm, ParameterId, PoolNode, Shortcut, TensorId,
    TensorShape,
};
use crate::init::Initial;
use crate::parameters::{BufferEntry, BufferSpec, ParameterEntry, ParameterKind, ParameterSpec};

/// A graph under construction. Parameters get their place in the order of the calls, which is PyTorch's.
pub(crate) struct GraphBuilder {
    pub(super) graph: Graph,
}

/// A norm with its parameters registered, not yet part of a node.
///
/// Names are registered in PyTorch's module order while a projected shortcut is normalised in its block's last
/// op, hence two calls: [`GraphBuilder::norm`] here, [`GraphBuilder::batch_norm`] there.
pub(crate) struct NormOptions {
    pub initial_scale: f64,
    pub scale: bool,
    pub shift: bool,
}

impl Default for NormOptions {
    fn default() -> Self {
        Self { initial_scale: 1.0, scale: true, shift: true }
    }
}

/// Kernel side, stride and padding of a convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub pad: usize,
}

impl Window {
    /// Positions along an axis of `size` pixels.
    fn positions(self, size: usize) -> usize {
        assert!(size + 2 * self.pad >= self.kernel, "{self:?} does not fit into {size} pixels");
        (size + 2 * self.pad - self.kernel) / self.stride + 1
    }
}

/// The residual nets' only max pool.
const MAX_POOL: Window = Window { kernel: 3, stride: 2, pad: 1 };

impl GraphBuilder {
    pub fn new(images: TensorShape) -> Self {
        let graph = Graph {
            tensors: vec![images],
            nodes: vec![],
            parameters: vec![],
            buffers: vec![],
            images: TensorId(0),
            features: TensorId(0),
            embeddings: TensorId(0),
            joined_rows: 1,
        };
        Self { graph }
    }

    pub fn images(&self) -> TensorId {
        self.graph.images
    }

    pub fn channels(&self, tensor: TensorId) -> usize {
        self.graph.shape(tensor).c
    }

    pub fn finish(mut self, features: TensorId, embeddings: TensorId) -> Graph {
        self.graph.features = features;
        self.graph.embeddings = embeddings;
        self.graph
    }

    pub fn conv(&mut self, name: &str, x: TensorId, c_out: usize, window: Window) -> TensorId {
        let shape = self.graph.shape(x);
        let weight = self.parameter(
            format!("{name}.weight"),
            vec![c_out, shape.c, window.kernel, window.kernel],
            ParameterKind::Weight,
            Initial::HeNormal { fan_out: c_out * window.kernel * window.kernel },
        );
        let y =
            self.tensor(TensorShape { h: window.positions(shape.h), w: window.positions(shape.w), c: c_out });
        let Window { kernel, stride, pad } = window;
        self.graph.nodes.push(Node::Conv(ConvNode { x, y, weight, c_out, kernel, stride, pad }));
        y
    }

    /// Registers the parameters and running statistics of a batch norm over `x`.
    pub fn norm(&mut self, name: &str, x: TensorId, options: &NormOptions) -> Norm {
        let channels = self.channels(x);
        let scale = options.scale.then(|| {
            let initial = Initial::Constant(options.initial_scale);
            self.parameter(format!("{name}.weight"), vec![channels], ParameterKind::Norm, initial)
        });
        let shift = options.shift.then(|| {
            let initial = Initial::Constant(0.0);
            self.parameter(format!("{name}.bias"), vec![channels], ParameterKind::Norm, initial)
        });
        let running_mean = self.buffer(format!("{name}.running_mean"), channels, 0.0);
        self.buffer(format!("{name}.running_var"), channels, 1.0);
        Norm { x, scale, shift, running_mean }
    }

    pub fn batch_norm(&mut self, main: Norm, shortcut: Shortcut, relu: bool) -> TensorId {
        let shape = self.graph.shape(main.x);
        let y = self.tensor(shape);
        let node = BatchNormNode { main, shortcut, relu, y };
        for input in Node::BatchNorm(node.clone()).inputs() {
            assert_eq!(self.graph.shape(input), shape, "addends of one batch norm");
        }
        self.graph.nodes.push(Node::BatchNorm(node));
        y
    }

    pub fn max_pool(&mut self, x: TensorId) -> TensorId {
        let TensorShape { h, w, c } = self.graph.shape(x);
        let y = self.tensor(TensorShape { h: MAX_POOL.positions(h), w: MAX_POOL.positions(w), c });
        self.graph.nodes.push(Node::MaxPool(PoolNode { x, y }));
        y
    }

    pub fn average_pool(&mut self, x: TensorId) -> TensorId {
        let y = self.tensor(TensorShape::flat(self.channels(x)));
        self.graph.nodes.push(Node::AveragePool(PoolNode { x, y }));
        y
    }

    pub fn linear(&mut self, name: &str, x: TensorId, out: usize, options: LinearOptions) -> TensorId {
        let (weight, bias) = self.linear_parameters(name, (self.graph.shape(x).len(), out), options);
        let y = self.tensor(TensorShape::flat(out));
        self.graph.nodes.push(Node::Linear(LinearNode {
            x,
            y,
            weight,
            bias,
            relu: options.relu,
            joined_rows: 1,
        }));
        y
    }

    /// As [`GraphBuilder::linear`], over `joined_rows` consecutive rows of `x` end to end; it must be the last.
    pub fn joining_linear(&mut self, name: &str, x: TensorId, out: usize, joined_rows: usize) -> TensorId {
        let options = LinearOptions { bias: true, relu: false };
        let fan_in = joined_rows * self.graph.shape(x).len();
        let (weight, bias) = self.linear_parameters(name, (fan_in, out), options);
        let y = self.tensor(TensorShape::flat(out));
        self.graph.nodes.push(Node::Linear(LinearNode { x, y, weight, bias, relu: false, joined_rows }));
        self.graph.joined_rows = joined_rows;
        y
    }

    /// Registers the parameters of a linear layer; alone, where another network has the layer itself.
    pub fn linear_parameters(
        &mut self,
        name: &str,
        (fan_in, out): (usize, usize),
        options: LinearOptions,
    ) -> (ParameterId, Option<ParameterId>) {
        let initial = Initial::LinearUniform { fan_in };
        let weight =
            self.parameter(format!("{name}.weight"), vec![out, fan_in], ParameterKind::Weight, initial);
        let bias = options
            .bias
            .then(|| self.parameter(format!("{name}.bias"), vec![out], ParameterKind::Bias, initial));
        (weight, bias)
    }

    pub(super) fn tensor(&mut self, shape: TensorShape) -> TensorId {
        self.graph.tensors.push(shape);
        TensorId(self.graph.tensors.len() - 1)
    }

    pub(super) fn parameter(
        &mut self,
        name: String,
        shape: Vec<usize>,
        kind: ParameterKind,
        initial: Initial,
    ) -> ParameterId {
        let offset = self.graph.parameters.last().map_or(0, |spec| spec.entry.range().end);
        let len = shape.iter().product();
        let entry = ParameterEntry { name, shape, offset, len, kind };
        self.graph.parameters.push(ParameterSpec { entry, initial });
        ParameterId(self.graph.parameters.len() - 1)
    }

    fn buffer(&mut self, name: String, channels: usize, initial: f64) -> usize {
        let offset = self.graph.buffers.last().map_or(0, |spec| spec.entry.range().end);
        let entry = BufferEntry { name, shape: vec![channels], offset, len: channels };
        self.graph.buffers.push(BufferSpec { entry, initial });
        self.graph.buffers.len() - 1
    }
}

/// What a linear layer has besides its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinearOptions {
    pub bias: bool,
    pub relu: bool,
}
