//! A linear layer with optional bias and ReLU.

use kernels::{Cpu, Gemm, Real, matmul};

/// Shape of one call: `y [rows, outputs] = x [rows, inputs] w^T`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinearShape {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// Computes `y = relu(x w^T + bias)`, with the bias and the ReLU that are there.
///
/// - `x`: `[rows, inputs]`; `w`: `[outputs, inputs]`; `bias`: `[outputs]`; `y`: `[rows, outputs]`
pub(crate) fn forward<T: Real>(
    cpu: &Cpu,
    shape: LinearShape,
    x: &[T],
    (w, bias, relu): (&[T], Option<&[T]>, bool),
    y: &mut [T],
) {
    let gemm = Gemm { b_transposed: true, ..Gemm::new(shape.rows, shape.outputs, shape.inputs) };
    matmul(cpu, gemm, x, w, y);
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(shape.outputs) {
            for (y, &bias) in row.iter_mut().zip(bias) {
                *y += bias;
            }
        }
    }
    if relu {
        for y in y.iter_mut().filter(|y| **y < T::ZERO) {
            *y = T::ZERO;
        }
    }
}

/// Zeroes `d_y` wherever the ReLU held `y` back.
pub(crate) fn mask<T: Real>(y: &[T], d_y: &mut [T]) {
    for (d_y, _) in d_y.iter_mut().zip(y).filter(|(_, y)| **y <= T::ZERO) {
        *d_y = T::ZERO;
    }
}

/// Computes `d_w [outputs, inputs] = d_y^T x`.
pub(crate) fn backward_weights<T: Real>(cpu: &Cpu, shape: LinearShape, x: &[T], d_y: &[T], d_w: &mut [T]) {
    let gemm = Gemm { a_transposed: true, ..Gemm::new(shape.outputs, shape.inputs, shape.rows) };
    matmul(cpu, gemm, d_y, x, d_w);
}

/// Computes `d_bias [outputs]`, the sum of `d_y [rows, outputs]` over rows.
pub(crate) fn backward_bias<T: Real>(d_y: &[T], d_bias: &mut [T]) {
    let mut sums = vec![0.0; d_bias.len()];
    for row in d_y.chunks_exact(d_bias.len()) {
        for (sum, d_y) in sums.iter_mut().zip(row) {
            *sum += d_y.to_f64();
        }
    }
    for (d_bias, sum) in d_bias.iter_mut().zip(sums) {
        *d_bias = T::from_f64(sum);
    }
}

/// Computes `d_x [rows, inputs] = d_y w`.
pub(crate) fn backward_data<T: Real>(cpu: &Cpu, shape: LinearShape, d_y: &[T], w: &[T], d_x: &mut [T]) {
    matmul(cpu, Gemm::new(shape.rows, shape.inputs, shape.outputs), d_y, w, d_x);
}
