//! Every op's gradient against central differences, in f64, at odd shapes.

mod tokens;

use std::sync::Arc;

use super::batch_norm::{BackwardViews, ForwardViews};
use super::linear::{self, LinearShape};
use super::{BatchNorm, MaxPool, Team, channel_sums, pool};
use crate::graph::{Graph, GraphBuilder, Node, NormOptions, Shortcut, TensorShape};
use crate::kernels::{
    Backward, Conv2d, ConvShape, Convolution, Input, InputGradient, KernelPath, OutputGradient, Pool,
};
use crate::parameters::Parameters;
use crate::peers::Alone;

fn team(threads: usize) -> Team {
    Team { pool: Arc::new(Pool::new(threads, &[])), path: KernelPath::detect() }
}

/// Numbers in [-1, 1) that look random and are always the same.
fn noise(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Compares `gradient` with central differences of `loss` at `x`, element by element.
#[track_caller]
fn check_gradient(what: &str, x: &[f64], gradient: &[f64], mut loss: impl FnMut(&[f64]) -> f64) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    let step = 1e-6;
    for (i, &gradient) in gradient.iter().enumerate() {
        let mut at = |t: f64| {
            let mut moved = x.to_vec();
            moved[i] += t;
            loss(&moved)
        };
        let measured = (at(step) - at(-step)) / (2.0 * step);
        assert!((measured - gradient).abs() < 1e-7, "{what}[{i}]: {measured} measured, {gradient} computed");
    }
}

/// What joins a batch norm.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Joins {
    Nothing,
    Identity,
    Projected,
}

struct Norm {
    graph: Graph,
    parameters: Parameters<f64>,
    op: BatchNorm<f64>,
    team: Team,
    joins: Joins,
}

impl Norm {
    fn new(shape: TensorShape, joins: Joins, relu: bool, threads: usize) -> Self {
        let mut builder = GraphBuilder::new(shape);
        let x = builder.images();
        let main = builder.norm("main", x, &NormOptions::default());
        let shortcut = match joins {
            Joins::Nothing => Shortcut::None,
            Joins::Identity => Shortcut::Identity(x),
            Joins::Projected => Shortcut::Projected(builder.norm("other", x, &NormOptions::default())),
        };
        let y = builder.batch_norm(main, shortcut, relu);
        let graph = builder.finish(x, y);
        let mut parameters = Parameters::draw(&graph.parameters, &graph.buffers, 1);
        let drawn = noise(5, parameters.values.len());
        parameters.values.iter_mut().zip(drawn).for_each(|(value, drawn)| *value += 0.5 * drawn);
        let Node::BatchNorm(node) = &graph.nodes[0] else { unreachable!("the only node") };
        let op = BatchNorm::new(&graph, node, threads);
        Self { op, team: team(threads), joins, parameters, graph }
    }

    fn forward(&mut self, x: &[f64], other: &[f64]) -> Vec<f64> {
        let channels = self.graph.shape(self.graph.images).c;
        let sums = [x, other].map(|x| {
            let mut sums = vec![0.0; 2 * channels];
            channel_sums(&self.team, x, &mut sums);
            sums
        });
        let sums = [&sums[0][..], &sums[1][..]];
        let sums = if self.joins == Joins::Projected { &sums[..] } else { &sums[..1] };
        let mut staged = vec![0.0; self.parameters.buffer_values.len()];
        let count = x.len() / channels;
        self.op.use_batch_statistics((count, sums), &self.parameters, &mut staged, &mut Alone).unwrap();
        let mut y = vec![7.0; x.len()];
        let shortcut = (self.joins != Joins::Nothing).then_some(other);
        self.op.forward(&self.team, ForwardViews { x, shortcut, y: &mut y });
        y
    }

    /// The gradients of `x`, of `other`, and in `parameters.gradients`.
    fn backward(&mut self, x: &[f64], other: &[f64], y: &[f64], d_y: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let mut d = d_y.to_vec();
        let projected = (self.joins == Joins::Projected).then_some(other);
        let views = match self.joins {
            Joins::Nothing => BackwardViews::Single { x, d: &d },
            Joins::Identity | Joins::Projected => BackwardViews::Residual { x, projected, y, d: &mut d },
        };
        self.op.add_all_gradients(&self.team, views);
        self.op.backward(&mut self.parameters, &mut Alone).unwrap();
        let input_gradient = |norm, x: &[f64]| {
            let mut d_x = vec![7.0; x.len()];
            self.op.input_gradient(norm, self.team.path, (x, &d), &mut d_x);
            d_x
        };
        let d_other = match self.joins {
            Joins::Nothing => vec![],
            Joins::Identity => d.clone(),
            Joins::Projected => input_gradient(1, other),
        };
        (input_gradient(0, x), d_other)
    }
}

#[track_caller]
fn check_batch_norm((rows, h, w, c): (usize, usize, usize, usize), joins: Joins, relu: bool, threads: usize) {
    let mut norm = Norm::new(TensorShape { h, w, c }, joins, relu, threads);
    let len = rows * h * w * c;
    let (x, other, d_y) = (noise(1, len), noise(2, len), noise(3, len));
    let y = norm.forward(&x, &other);
    let (d_x, d_other) = norm.backward(&x, &other, &y, &d_y);
    let (values, d_values) = (norm.parameters.values.clone(), norm.parameters.gradients.clone());
    let what = format!("{joins:?} {rows}x{h}x{w}x{c}");
    check_gradient(&format!("{what} x"), &x, &d_x, |x| dot(&norm.forward(x, &other), &d_y));
    if joins != Joins::Nothing {
        check_gradient(&format!("{what} other"), &other, &d_other, |other| {
            dot(&norm.forward(&x, other), &d_y)
        });
    }
    check_gradient(&format!("{what} parameters"), &values, &d_values, |values| {
        norm.parameters.values.copy_from_slice(values);
        dot(&norm.forward(&x, &other), &d_y)
    });
}

#[test]
fn batch_norm() {
    for relu in [false, true] {
        check_batch_norm((5, 1, 1, 3), Joins::Nothing, relu, 2);
        check_batch_norm((3, 3, 2, 5), Joins::Nothing, relu, 3);
        check_batch_norm((2, 1, 2, 32), Joins::Nothing, relu, 1);
    }
    for joins in [Joins::Identity, Joins::Projected] {
        check_batch_norm((3, 1, 2, 7), joins, true, 2);
        check_batch_norm((1, 5, 3, 1), joins, true, 3);
        check_batch_norm((3, 2, 1, 16), joins, true, 2);
        // More pixels than are summed at once.
        check_batch_norm((2, 9, 10, 1), joins, true, 2);
    }
}

/// The reference convolution, which the kernels' own tests hold every other one against.
#[track_caller]
fn check_convolution(shape: ConvShape) {
    let pool = Pool::new(2, &[]);
    let mut conv = Conv2d::new(shape, KernelPath::Reference, Convolution::Direct, 2);
    let (len, d_len) = (shape.n * shape.input_len(), shape.n * shape.output_len());
    let (x, w, d_y) = (noise(1, len), noise(2, shape.weight_len()), noise(3, d_len));
    let (mut d_x, mut d_w) = (vec![7.0; len], vec![7.0; w.len()]);
    let backward = Backward {
        input: Input::plain(&x),
        d_y: OutputGradient::Plain(&d_y),
        w: &w,
        d_w: &mut d_w,
        d_x: Some(InputGradient { d_x: &mut d_x, accumulate: false, then: None }),
        scratch: &mut vec![7.0; conv.scratch_len()],
    };
    conv.backward(&pool, shape.n, backward);
    let mut loss = |x: &[f64], w: &[f64]| {
        let mut y = vec![7.0; d_len];
        conv.forward(&pool, shape.n, Input::plain(x), w, &mut y, None);
        dot(&y, &d_y)
    };
    check_gradient(&format!("x of {shape:?}"), &x, &d_x, |x| loss(x, &w));
    check_gradient(&format!("w of {shape:?}"), &w, &d_w, |w| loss(&x, w));
}

#[test]
fn convolution() {
    let shape = ConvShape { n: 2, h: 5, w: 4, c_in: 3, c_out: 2, kernel: 3, stride: 1, pad: 1 };
    check_convolution(shape);
    check_convolution(ConvShape { stride: 2, ..shape });
    check_convolution(ConvShape { kernel: 1, stride: 2, pad: 0, ..shape });
    check_convolution(ConvShape { kernel: 7, stride: 2, pad: 3, h: 9, ..shape });
    check_convolution(ConvShape { n: 3, h: 4, w: 2, c_in: 1, c_out: 5, kernel: 1, stride: 3, pad: 2 });
    check_convolution(ConvShape { kernel: 2, stride: 3, pad: 0, h: 7, w: 6, ..shape });
}

#[test]
fn max_pool() {
    for (rows, h, w, c) in [(1, 1, 1, 1), (2, 5, 4, 3), (3, 2, 7, 2)] {
        let input = TensorShape { h, w, c };
        let output = TensorShape { h: h.div_ceil(2), w: w.div_ceil(2), c };
        let (x, d_y) = (noise(1, rows * input.len()), noise(2, rows * output.len()));
        let mut op = MaxPool::new(input, output, rows + 1);
        let team = team(2);
        let mut forward = |x: &[f64]| {
            let mut y = vec![7.0; rows * output.len()];
            op.forward(&team, x, &mut y);
            y
        };
        let at = |y: usize, x: usize, channel: usize| (y * w + x) * c + channel;
        let first = (0..2.min(h)).flat_map(|y| (0..2.min(w)).map(move |x| (y, x)));
        let corner = first.map(|(row, column)| x[at(row, column, c - 1)]).fold(f64::MIN, f64::max);
        assert_eq!(forward(&x)[c - 1], corner, "the first window, its padding left out");
        let mut d_x = vec![7.0; x.len()];
        op.backward(&team, &d_y, &mut d_x);
        let mut op = MaxPool::new(input, output, rows);
        check_gradient("x", &x, &d_x, |x| {
            let mut y = vec![7.0; rows * output.len()];
            op.forward(&team, x, &mut y);
            dot(&y, &d_y)
        });
    }
}

#[test]
fn average_pool() {
    for (rows, h, w, c) in [(1, 1, 1, 1), (4, 3, 5, 17), (2, 2, 3, 16)] {
        let input = TensorShape { h, w, c };
        let (x, d_y) = (noise(1, rows * input.len()), noise(2, rows * c));
        let team = team(3);
        let mut d_x = vec![7.0; x.len()];
        pool::average_backward(&team, input, &d_y, &mut d_x);
        let mut y = vec![7.0; rows * c];
        pool::average(&team, input, &x, &mut y);
        let mean: f64 = (0..h * w).map(|pixel| x[pixel * c]).sum::<f64>() / (h * w) as f64;
        assert!((y[0] - mean).abs() < 1e-15);
        check_gradient("x", &x, &d_x, |x| {
            pool::average(&team, input, x, &mut y);
            dot(&y, &d_y)
        });
    }
}

#[test]
fn linear_layer() {
    for (rows, inputs, outputs, relu) in
        [(1, 1, 1, false), (3, 7, 5, true), (5, 16, 3, false), (2, 3, 33, true)]
    {
        let shape = LinearShape { rows, inputs, outputs };
        let (x, w, bias) = (noise(1, rows * inputs), noise(2, outputs * inputs), noise(3, outputs));
        let d_y = noise(4, rows * outputs);
        let team = team(2);
        let forward = |x: &[f64], w: &[f64], bias: &[f64]| {
            let mut y = vec![7.0; rows * outputs];
            linear::forward(&team, shape, x, (w, Some(bias), relu), &mut y);
            y
        };
        let mut g = d_y.clone();
        if relu {
            linear::mask(&forward(&x, &w, &bias), &mut g);
        }
        let (mut d_x, mut d_w, mut d_bias) = (vec![7.0; x.len()], vec![7.0; w.len()], vec![7.0; outputs]);
        linear::backward_weights(&team, shape, &x, &g, &mut d_w);
        linear::backward_bias(&g, &mut d_bias);
        linear::backward_data(&team, shape, &g, &w, &mut d_x);
        check_gradient("x", &x, &d_x, |x| dot(&forward(x, &w, &bias), &d_y));
        check_gradient("w", &w, &d_w, |w| dot(&forward(&x, w, &bias), &d_y));
        check_gradient("bias", &bias, &d_bias, |bias| dot(&forward(&x, &w, bias), &d_y));
    }
}
