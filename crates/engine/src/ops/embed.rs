//! From images to tokens: each patch through a linear layer, which is a convolution whose kernel is its stride, behind a
//! class token; positions are added to all.
//!
//! Each thread takes whole images, and gathers the patches of one at a time into rows that the weights' layout
//! multiplies as it is.

use super::{pieces, pieces_mut};
use kernels::{Cpu, Gemm, Real, matmul_serial};

/// Shape of an image's embedding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EmbedShape {
    /// Patches along a side of an image.
    pub side: usize,
    /// Pixels along a side of a patch.
    pub patch: usize,
    /// Width of a token.
    pub c: usize,
}

/// What is learnt or fixed: `[c, 3, patch, patch]`, `[c]`, `[c]` and `[1 + patches, c]`.
#[derive(Clone, Copy)]
pub(crate) struct EmbedParameters<'a, T> {
    pub weight: &'a [T],
    pub bias: &'a [T],
    pub class_token: &'a [T],
    pub positions: &'a [T],
}

impl EmbedShape {
    /// Numbers of a patch.
    fn patch_len(self) -> usize {
        3 * self.patch * self.patch
    }

    fn n_patches(self) -> usize {
        self.side * self.side
    }

    fn image_len(self) -> usize {
        self.n_patches() * self.patch_len()
    }

    fn output_len(self) -> usize {
        (1 + self.n_patches()) * self.c
    }

    /// Numbers of scratch that each thread needs: one image's patches, and with `gradients` its sums for weight and
    /// bias.
    pub fn scratch_len(self, gradients: bool) -> usize {
        self.image_len() + if gradients { self.c * (self.patch_len() + 1) } else { 0 }
    }

    /// Copies an image `[h, w, 3]` into rows of `[3, patch, patch]`, one for each patch.
    fn gather<T: Copy>(self, image: &[T], rows: &mut [T]) {
        let (patch, width) = (self.patch, self.side * self.patch);
        for (index, row) in rows.chunks_exact_mut(self.patch_len()).enumerate() {
            let (top, left) = (index / self.side * patch, index % self.side * patch);
            for (at, value) in row.iter_mut().enumerate() {
                let (channel, y, x) = (at / (patch * patch), at / patch % patch, at % patch);
                *value = image[((top + y) * width + left + x) * 3 + channel];
            }
        }
    }
}

/// Computes `y [images, 1 + patches, c]` from `x [images, h, w, 3]`.
pub(crate) fn forward<T: Real>(
    cpu: &Cpu,
    shape: EmbedShape,
    x: &[T],
    parameters: EmbedParameters<'_, T>,
    (y, scratch): (&mut [T], &mut [T]),
) {
    let (threads, c) = (cpu.threads(), shape.c);
    let EmbedParameters { weight, bias, class_token, positions } = parameters;
    let parts = pieces(x, shape.image_len(), threads)
        .zip(pieces_mut(y, shape.output_len(), threads))
        .zip(scratch.chunks_exact_mut(shape.image_len()));
    cpu.pool.for_each_part(parts.collect(), |_, ((x, y), patches)| {
        for (x, y) in x.chunks_exact(shape.image_len()).zip(y.chunks_exact_mut(shape.output_len())) {
            for (token, (y, positions)) in y.chunks_exact_mut(c).zip(positions.chunks_exact(c)).enumerate() {
                let addend = if token == 0 { class_token } else { bias };
                for ((y, &position), &addend) in y.iter_mut().zip(positions).zip(addend) {
                    *y = addend + position;
                }
            }
            shape.gather(x, patches);
            let gemm = Gemm::new(shape.n_patches(), c, shape.patch_len());
            let gemm = Gemm { b_transposed: true, accumulate: true, ..gemm };
            matmul_serial(cpu.path, gemm, patches, weight, &mut y[c..]);
        }
    });
}

/// Computes the class token's gradient `[c]` from `d_y [images, 1 + patches, c]`.
pub(crate) fn backward_class_token<T: Real>(shape: EmbedShape, d_y: &[T], d_class_token: &mut [T]) {
    let mut sums = vec![0.0; shape.c];
    for image in d_y.chunks_exact(shape.output_len()) {
        sums.iter_mut().zip(image).for_each(|(sum, d_y)| *sum += d_y.to_f64());
    }
    d_class_token.iter_mut().zip(sums).for_each(|(gradient, sum)| *gradient = T::from_f64(sum));
}

/// Computes the gradients of weight and bias: of each thread's images, then over threads in their order.
pub(crate) fn backward_weights<T: Real>(
    cpu: &Cpu,
    shape: EmbedShape,
    (x, d_y): (&[T], &[T]),
    (d_weight, d_bias): (&mut [T], &mut [T]),
    scratch: &mut [T],
) {
    let (threads, c) = (cpu.threads(), shape.c);
    let each = shape.scratch_len(true);
    let scratch = &mut scratch[..threads * each];
    let parts = pieces(x, shape.image_len(), threads)
        .zip(pieces(d_y, shape.output_len(), threads))
        .zip(scratch.chunks_exact_mut(each));
    cpu.pool.for_each_part(parts.collect(), |_, ((x, d_y), scratch)| {
        let (sums, patches) = scratch.split_at_mut(c * (shape.patch_len() + 1));
        sums.fill(T::ZERO);
        let (d_weight, d_bias) = sums.split_at_mut(c * shape.patch_len());
        for (x, d_y) in x.chunks_exact(shape.image_len()).zip(d_y.chunks_exact(shape.output_len())) {
            let d_y = &d_y[c..];
            shape.gather(x, patches);
            let gemm = Gemm::new(c, shape.patch_len(), shape.n_patches());
            let gemm = Gemm { a_transposed: true, accumulate: true, ..gemm };
            matmul_serial(cpu.path, gemm, d_y, patches, d_weight);
            for token in d_y.chunks_exact(c) {
                d_bias.iter_mut().zip(token).for_each(|(sum, &d_y)| *sum += d_y);
            }
        }
    });
    d_weight.fill(T::ZERO);
    d_bias.fill(T::ZERO);
    for part in scratch.chunks_exact(each) {
        let sums = d_weight.iter_mut().chain(&mut *d_bias).zip(part);
        sums.for_each(|(gradient, &sum)| *gradient += sum);
    }
}
