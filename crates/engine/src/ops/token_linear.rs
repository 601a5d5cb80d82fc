//! A linear layer over tokens, with bias and what it adds to: `y = x w^T + bias + addend`.
//!
//! The products go through the matrix kernel on each thread's own tokens. What is added is written first and the product
//! on top of it, so that no pass of its own goes over `y`.

use super::add_partials;
use kernels::{Cpu, Gemm, Real, matmul, matmul_serial, split};

/// Shape of one call: `y [tokens, outputs] = x [tokens, inputs] w^T`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenLinearShape {
    pub tokens: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// What the forward pass reads.
#[derive(Clone, Copy)]
pub(crate) struct TokenLinearInputs<'a, T> {
    /// `[tokens, inputs]`
    pub x: &'a [T],
    /// `[outputs, inputs]`
    pub w: &'a [T],
    /// `[outputs]`
    pub bias: &'a [T],
    /// `[tokens, outputs]`
    pub addend: Option<&'a [T]>,
}

/// Computes `y [tokens, outputs]`.
pub(crate) fn forward<T: Real>(
    cpu: &Cpu,
    shape: TokenLinearShape,
    inputs: TokenLinearInputs<'_, T>,
    y: &mut [T],
) {
    let TokenLinearShape { inputs: k, outputs, .. } = shape;
    let TokenLinearInputs { x, w, bias, addend } = inputs;
    cpu.pool.for_each_rows(y, outputs, |first, y| {
        let tokens = y.len() / outputs;
        for (token, y) in y.chunks_exact_mut(outputs).enumerate() {
            match addend {
                None => y.copy_from_slice(bias),
                Some(addend) => {
                    let addend = &addend[(first + token) * outputs..][..outputs];
                    for ((y, &bias), &addend) in y.iter_mut().zip(bias).zip(addend) {
                        *y = bias + addend;
                    }
                }
            }
        }
        let gemm = Gemm { b_transposed: true, accumulate: true, ..Gemm::new(tokens, outputs, k) };
        matmul_serial(cpu.path, gemm, &x[first * k..][..tokens * k], w, y);
    });
}

/// Computes `d_w [outputs, inputs] = d_y^T x`.
pub(crate) fn backward_weights<T: Real>(
    cpu: &Cpu,
    shape: TokenLinearShape,
    (x, d_y): (&[T], &[T]),
    d_w: &mut [T],
) {
    let gemm = Gemm { a_transposed: true, ..Gemm::new(shape.outputs, shape.inputs, shape.tokens) };
    matmul(cpu, gemm, d_y, x, d_w);
}

/// Computes `d_bias [outputs]`, the sum of `d_y` over tokens: of each thread's own, then over threads in their order.
pub(crate) fn backward_bias<T: Real>(cpu: &Cpu, d_y: &[T], d_bias: &mut [T]) {
    /// Tokens whose sums are taken in `T`.
    const BLOCK: usize = 64;
    let (outputs, threads) = (d_bias.len(), cpu.threads());
    let tokens = d_y.len() / outputs;
    let mut partials = vec![0.0; threads * outputs];
    cpu.pool.for_each_part(partials.chunks_exact_mut(outputs).collect(), |thread, sums| {
        let own = split(tokens, threads, thread);
        let mut block_sums = vec![T::ZERO; outputs];
        for block in d_y[own.start * outputs..own.end * outputs].chunks(BLOCK * outputs) {
            block_sums.fill(T::ZERO);
            for token in block.chunks_exact(outputs) {
                block_sums.iter_mut().zip(token).for_each(|(sum, &d_y)| *sum += d_y);
            }
            sums.iter_mut().zip(&block_sums).for_each(|(sum, block)| *sum += block.to_f64());
        }
    });
    let mut sums = vec![0.0; outputs];
    add_partials(&partials, &mut sums);
    d_bias.iter_mut().zip(sums).for_each(|(d_bias, sum)| *d_bias = T::from_f64(sum));
}

/// Computes `d_x [tokens, inputs] = d_y w`.
pub(crate) fn backward_data<T: Real>(
    cpu: &Cpu,
    shape: TokenLinearShape,
    (d_y, w): (&[T], &[T]),
    d_x: &mut [T],
) {
    matmul(cpu, Gemm::new(shape.tokens, shape.inputs, shape.outputs), d_y, w, d_x);
}
