//! Every op at odd shapes: gradients against central differences in f64, and every path in f32 against f64.

mod tokens;

use super::batch_norm::{BackwardViews, ForwardViews};
use super::linear::{self, LinearShape};
use super::{BatchNorm, MaxPool, channel_sums, pool};
use crate::graph::{Graph, GraphBuilder, Node, NormOptions, Shortcut, TensorShape};
use crate::parameters::Parameters;
use kernels::peers::Alone;
use kernels::{
    Backward, Conv2d, ConvShape, Convolution, Cpu, Forward, Input, InputGradient, KernelPath, OutputGradient,
    Pool, Real,
};

fn cpu(threads: usize) -> Cpu {
    Cpu::new(threads, KernelPath::detect())
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

/// An op as a function of several arrays.
trait Case {
    /// Lengths of the arrays, and of the output.
    fn lengths(&self) -> (Vec<usize>, usize);
    /// The output, and the gradients of the arrays by that of the output; empty for one that has none.
    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>);
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

/// What the op writes must not depend on what was there.
fn dirty<T: Real>(len: usize) -> Vec<T> {
    vec![T::from_f64(7.0); len]
}

#[track_caller]
fn check(case: &impl Case) {
    let (lengths, output) = case.lengths();
    let arrays: Vec<Vec<f64>> = lengths.iter().zip(1..).map(|(&len, seed)| noise(seed, len)).collect();
    let d_y = noise(99, output);
    let (exact, exact_gradients) = case.run(&cpu(1), &arrays, &d_y);
    for (index, gradient) in exact_gradients.iter().enumerate().filter(|(_, gradient)| !gradient.is_empty()) {
        check_gradient(&format!("array {index}"), &arrays[index], gradient, |x| {
            let mut moved = arrays.clone();
            moved[index] = x.to_vec();
            dot(&case.run(&cpu(1), &moved, &d_y).0, &d_y)
        });
    }
    let single: Vec<Vec<f32>> = arrays.iter().map(|array| narrow(array)).collect();
    for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
        for threads in [1, 2, 5] {
            let cpu = Cpu::new(threads, path);
            let (y, gradients) = case.run(&cpu, &single, &narrow(&d_y));
            close(path, &y, &exact);
            for (gradient, exact) in gradients.iter().zip(&exact_gradients) {
                close(path, gradient, exact);
            }
        }
    }
}

/// Within 1e-5 of the largest number.
#[track_caller]
fn close(path: KernelPath, values: &[f32], exact: &[f64]) {
    assert_eq!(values.len(), exact.len());
    let scale = exact.iter().fold(1e-3_f64, |scale, x| scale.max(x.abs()));
    for (value, exact) in values.iter().zip(exact) {
        assert!((f64::from(*value) - exact).abs() < 1e-5 * scale, "{path}: {value} instead of {exact}");
    }
}

/// What joins a batch norm.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Joins {
    Nothing,
    Identity,
    Projected,
}

/// Batch norm of so many rows.
#[derive(Debug)]
struct Norm {
    rows: usize,
    shape: TensorShape,
    joins: Joins,
    relu: bool,
}

impl Norm {
    fn graph(&self) -> Graph {
        let mut builder = GraphBuilder::new(self.shape);
        let x = builder.images();
        let main = builder.norm("main", x, &NormOptions::default());
        let shortcut = match self.joins {
            Joins::Nothing => Shortcut::None,
            Joins::Identity => Shortcut::Identity(x),
            Joins::Projected => Shortcut::Projected(builder.norm("other", x, &NormOptions::default())),
        };
        let y = builder.batch_norm(main, shortcut, self.relu);
        builder.finish(x, y)
    }
}

impl Case for Norm {
    fn lengths(&self) -> (Vec<usize>, usize) {
        let (len, c) = (self.rows * self.shape.len(), self.shape.c);
        let (other, norms) = match self.joins {
            Joins::Nothing => (0, 1),
            Joins::Identity => (len, 1),
            Joins::Projected => (len, 2),
        };
        (vec![len, other, 2 * norms * c], len)
    }

    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>) {
        let [x, other, values] = arrays else { unreachable!("as many as there are lengths") };
        let (graph, c) = (self.graph(), self.shape.c);
        let Node::BatchNorm(node) = &graph.nodes[0] else { unreachable!("the only node") };
        let mut op = BatchNorm::<T>::new(&graph, node, cpu.threads());
        let mut parameters = Parameters::<T>::draw(&graph.parameters, &graph.buffers, 1);
        for (parameter, &value) in parameters.values.iter_mut().zip(values) {
            *parameter += T::from_f64(0.5) * value;
        }
        let sums = [x, other].map(|x| {
            let mut sums = vec![0.0; 2 * c];
            channel_sums(cpu, x, &mut sums);
            sums
        });
        let sums = [&sums[0][..], &sums[1][..]];
        let sums = if self.joins == Joins::Projected { &sums[..] } else { &sums[..1] };
        let mut staged = vec![0.0; parameters.buffer_values.len()];
        op.use_batch_statistics((x.len() / c, sums), &parameters, &mut staged, &mut Alone).unwrap();
        let mut y = dirty(x.len());
        let shortcut = (self.joins != Joins::Nothing).then_some(&other[..]);
        op.forward(cpu, ForwardViews { x, shortcut, y: &mut y });

        let mut d = d_y.to_vec();
        let projected = (self.joins == Joins::Projected).then_some(&other[..]);
        let views = match self.joins {
            Joins::Nothing => BackwardViews::Single { x, d: &d },
            Joins::Identity | Joins::Projected => BackwardViews::Residual { x, projected, y: &y, d: &mut d },
        };
        op.add_all_gradients(cpu, views);
        op.backward(&mut parameters, &mut Alone).unwrap();
        let input_gradient = |norm, x: &[T]| {
            let mut d_x = dirty(x.len());
            op.input_gradient(norm, cpu.path, (x, &d), &mut d_x);
            d_x
        };
        let d_x = input_gradient(0, x);
        let d_other = match self.joins {
            Joins::Nothing => vec![],
            Joins::Identity => d.clone(),
            Joins::Projected => input_gradient(1, other),
        };
        let d_values = parameters.gradients.iter().map(|&d| T::from_f64(0.5) * d).collect();
        (y, vec![d_x, d_other, d_values])
    }
}

#[test]
fn batch_norm() {
    let check_norm = |(rows, h, w, c), joins, relu| {
        check(&Norm { rows, shape: TensorShape { h, w, c }, joins, relu });
    };
    for relu in [false, true] {
        check_norm((5, 1, 1, 3), Joins::Nothing, relu);
        check_norm((3, 3, 2, 5), Joins::Nothing, relu);
        check_norm((2, 1, 2, 32), Joins::Nothing, relu);
    }
    for joins in [Joins::Identity, Joins::Projected] {
        check_norm((3, 1, 2, 7), joins, true);
        check_norm((1, 5, 3, 1), joins, true);
        check_norm((3, 2, 1, 16), joins, true);
        // More pixels than are summed at once.
        check_norm((2, 9, 10, 1), joins, true);
    }
}

/// The reference convolution, which the kernels' own tests hold every other one against.
#[track_caller]
fn check_convolution(shape: ConvShape) {
    let pool = Pool::new(2, &[]);
    let conv = Conv2d::new::<f64>(shape, KernelPath::Reference, Convolution::Direct, 2);
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
    let loss = |x: &[f64], w: &[f64]| {
        let (mut y, mut scratch) = (vec![7.0; d_len], vec![7.0; conv.scratch_len()]);
        let input = Input::plain(x);
        conv.forward(&pool, shape.n, Forward { input, w, y: &mut y, sums: None, scratch: &mut scratch });
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

/// 3x3 windows at stride 2 of so many images of this shape.
#[derive(Debug)]
struct MaxPooled(usize, TensorShape);

impl MaxPooled {
    fn output(&self) -> TensorShape {
        let TensorShape { h, w, c } = self.1;
        TensorShape { h: h.div_ceil(2), w: w.div_ceil(2), c }
    }
}

impl Case for MaxPooled {
    fn lengths(&self) -> (Vec<usize>, usize) {
        (vec![self.0 * self.1.len()], self.0 * self.output().len())
    }

    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>) {
        let x = &arrays[0];
        let mut op = MaxPool::new(self.1, self.output(), self.0 + 1);
        let (mut y, mut d_x) = (dirty(d_y.len()), dirty(x.len()));
        op.forward(cpu, x, &mut y);
        op.backward(cpu, d_y, &mut d_x);
        (y, vec![d_x])
    }
}

#[test]
fn max_pool() {
    for (rows, h, w, c) in [(1, 1, 1, 1), (2, 5, 4, 3), (3, 2, 7, 2), (2, 3, 3, 17)] {
        let case = MaxPooled(rows, TensorShape { h, w, c });
        check(&case);
        let x = noise(1, rows * h * w * c);
        let (y, _) = case.run(&cpu(2), std::slice::from_ref(&x), &noise(99, rows * case.output().len()));
        let at = |y: usize, x: usize, channel: usize| (y * w + x) * c + channel;
        let first = (0..2.min(h)).flat_map(|y| (0..2.min(w)).map(move |x| (y, x)));
        let corner = first.map(|(row, column)| x[at(row, column, c - 1)]).fold(f64::MIN, f64::max);
        assert_eq!(y[c - 1], corner, "the first window, its padding left out");
    }
}

/// Means over so many images of this shape.
#[derive(Debug)]
struct Averaged(usize, TensorShape);

impl Case for Averaged {
    fn lengths(&self) -> (Vec<usize>, usize) {
        (vec![self.0 * self.1.len()], self.0 * self.1.c)
    }

    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>) {
        let (mut y, mut d_x) = (dirty(d_y.len()), dirty(arrays[0].len()));
        pool::average(cpu, self.1, &arrays[0], &mut y);
        pool::average_backward(cpu, self.1, d_y, &mut d_x);
        (y, vec![d_x])
    }
}

#[test]
fn average_pool() {
    for (rows, h, w, c) in [(1, 1, 1, 1), (4, 3, 5, 17), (2, 2, 3, 16)] {
        let case = Averaged(rows, TensorShape { h, w, c });
        check(&case);
        let x = noise(1, rows * h * w * c);
        let (y, _) = case.run(&cpu(3), std::slice::from_ref(&x), &noise(99, rows * c));
        let mean: f64 = (0..h * w).map(|pixel| x[pixel * c]).sum::<f64>() / (h * w) as f64;
        assert!((y[0] - mean).abs() < 1e-15);
    }
}

/// A layer, and whether a ReLU follows it.
#[derive(Debug)]
struct Layer(LinearShape, bool);

impl Case for Layer {
    fn lengths(&self) -> (Vec<usize>, usize) {
        let LinearShape { rows, inputs, outputs } = self.0;
        (vec![rows * inputs, outputs * inputs, outputs], rows * outputs)
    }

    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>) {
        let ([x, w, bias], Layer(shape, relu)) = (arrays, self) else { unreachable!("as many as lengths") };
        let mut y = dirty(d_y.len());
        linear::forward(cpu, *shape, x, (w, Some(bias), *relu), &mut y);
        let mut d = d_y.to_vec();
        if *relu {
            linear::mask(&y, &mut d);
        }
        let (mut d_x, mut d_w, mut d_bias) = (dirty(x.len()), dirty(w.len()), dirty(bias.len()));
        linear::backward_weights(cpu, *shape, x, &d, &mut d_w);
        linear::backward_bias(&d, &mut d_bias);
        linear::backward_data(cpu, *shape, &d, w, &mut d_x);
        (y, vec![d_x, d_w, d_bias])
    }
}

#[test]
fn linear_layer() {
    for (rows, inputs, outputs, relu) in
        [(1, 1, 1, false), (3, 7, 5, true), (5, 16, 3, false), (2, 3, 33, true)]
    {
        check(&Layer(LinearShape { rows, inputs, outputs }, relu));
    }
}
