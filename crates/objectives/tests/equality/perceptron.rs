//! The smallest encoder with parameters and no batch norm: `z = W2 tanh(W1 x)`.

use crate::deal::noise;

pub struct Perceptron {
    /// `[HIDDEN, INPUTS]`
    first: Vec<f64>,
    /// `[OUTPUTS, HIDDEN]`
    second: Vec<f64>,
}

impl Perceptron {
    pub const INPUTS: usize = 6;
    pub const OUTPUTS: usize = 4;
    const HIDDEN: usize = 5;

    pub fn new() -> Self {
        Self {
            first: noise(50, Self::HIDDEN * Self::INPUTS),
            second: noise(51, Self::OUTPUTS * Self::HIDDEN),
        }
    }

    /// `[n, INPUTS]` to `[n, OUTPUTS]`.
    pub fn forward(&self, inputs: &[f64]) -> Vec<f64> {
        let rows = inputs.chunks_exact(Self::INPUTS);
        rows.flat_map(|x| multiply(&self.second, &self.hidden(x))).collect()
    }

    /// Gradients of both weights, one after the other, summed over the rows.
    pub fn backward(&self, inputs: &[f64], d_outputs: &[f64]) -> Vec<f64> {
        let mut d_first = vec![0.0; self.first.len()];
        let mut d_second = vec![0.0; self.second.len()];
        for (x, d_z) in inputs.chunks_exact(Self::INPUTS).zip(d_outputs.chunks_exact(Self::OUTPUTS)) {
            let hidden = self.hidden(x);
            add_outer(&mut d_second, d_z, &hidden);
            let d_hidden = (0..Self::HIDDEN).map(|h| {
                let d_tanh =
                    (0..Self::OUTPUTS).map(|o| d_z[o] * self.second[o * Self::HIDDEN + h]).sum::<f64>();
                d_tanh * (1.0 - hidden[h] * hidden[h])
            });
            add_outer(&mut d_first, &d_hidden.collect::<Vec<_>>(), x);
        }
        d_first.extend(d_second);
        d_first
    }

    fn hidden(&self, x: &[f64]) -> Vec<f64> {
        multiply(&self.first, x).into_iter().map(f64::tanh).collect()
    }
}

fn multiply(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    let rows = matrix.chunks_exact(vector.len());
    rows.map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum()).collect()
}

fn add_outer(matrix: &mut [f64], column: &[f64], row: &[f64]) {
    for (matrix, c) in matrix.chunks_exact_mut(row.len()).zip(column) {
        matrix.iter_mut().zip(row).for_each(|(m, r)| *m += c * r);
    }
}
