//! Rows on the unit sphere, and gradients back through the normalisation.

use kernels::Real;

/// Shorter rows are divided by this instead of their norm (PyTorch's `normalize`).
const MIN_NORM: f64 = 1e-12;

/// Embeddings divided by their norms.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitRows<T> {
    /// `[n, d]`, `u = z / |z|`.
    pub unit: Vec<T>,
    norms: Vec<f64>,
}

impl<T: Real> UnitRows<T> {
    /// Normalises the rows of `embeddings`, `[n, width]`.
    ///
    /// # Panics
    /// If `embeddings` end within a row.
    pub fn new(embeddings: &[T], width: usize) -> Self {
        assert!(embeddings.len().is_multiple_of(width), "{} numbers in rows of {width}", embeddings.len());
        let norms: Vec<f64> = embeddings.chunks_exact(width).map(|z| dot(z, z).sqrt()).collect();
        let mut unit = embeddings.to_vec();
        for (row, &norm) in unit.chunks_exact_mut(width).zip(&norms) {
            row.iter_mut().for_each(|u| *u = T::from_f64(u.to_f64() / norm.max(MIN_NORM)));
        }
        Self { unit, norms }
    }

    /// Turns `dL/du` into `dL/dz`, both `[n, d]`: `dL/dz = (I - u u^T) dL/du / |z|`.
    ///
    /// A row that was too short for its norm was divided by a constant, and so is its gradient.
    ///
    /// # Panics
    /// If the gradient is not of these rows.
    pub fn project(&self, mut d_unit: Vec<T>) -> Vec<T> {
        assert_eq!(d_unit.len(), self.unit.len(), "length of a gradient by the unit rows");
        let width = self.unit.len() / self.norms.len();
        for ((d_row, u), &norm) in
            d_unit.chunks_exact_mut(width).zip(self.unit.chunks_exact(width)).zip(&self.norms)
        {
            let radial = if norm < MIN_NORM { 0.0 } else { dot(d_row, u) };
            for (d, u) in d_row.iter_mut().zip(u) {
                *d = T::from_f64((d.to_f64() - radial * u.to_f64()) / norm.max(MIN_NORM));
            }
        }
        d_unit
    }
}

/// Inner product, summed in `f64`.
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    // Lanes, since one running sum would be one long chain of waits.
    let mut lanes = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a.to_f64() * b.to_f64();
        }
    }
    lanes.into_iter().sum()
}

/// The loss and its gradient by this rank's unit rows.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitGradient<T> {
    /// Mean over the rows of all ranks, in nats; the same bits on every rank.
    pub loss: f64,
    /// `[n, d]`: `dL/du` of this rank's rows.
    pub d_unit: Vec<T>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sum(weights * u(z))` has `weights` as its gradient by `u`.
    fn loss(z: &[f64], weights: &[f64], width: usize) -> f64 {
        dot(&UnitRows::new(z, width).unit, weights)
    }

    #[test]
    fn rows_have_norm_one_and_gradients_match_central_differences() {
        let (n, width) = (3, 5);
        let z: Vec<f64> = (0..n * width).map(|i| ((i * i * 7 + 3) % 11) as f64 - 4.7).collect();
        let weights: Vec<f64> = (0..n * width).map(|i| ((i * 5) % 7) as f64 - 2.9).collect();
        let rows = UnitRows::new(&z, width);
        for row in rows.unit.chunks(width) {
            assert!((dot(row, row) - 1.0).abs() < 1e-15);
        }
        let d_z = rows.project(weights.clone());
        for i in 0..z.len() {
            let at = |h: f64| {
                let mut moved = z.clone();
                moved[i] += h;
                loss(&moved, &weights, width)
            };
            let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((d_z[i] - difference).abs() < 1e-9, "{i}: {} against {difference}", d_z[i]);
        }
    }

    #[test]
    fn a_row_too_short_for_a_norm_is_scaled() {
        let rows = UnitRows::new(&[0.0, 0.0, 3e-13, 4e-13], 2);
        assert_eq!(rows.unit, [0.0, 0.0, 0.3, 0.4]);
        assert_eq!(rows.project(vec![1.0, 2.0, 3.0, 4.0]), [1e12, 2e12, 3e12, 4e12]);
    }
}
