//! Two-dimensional convolution and its two gradients, NHWC.

use super::path::KernelPath;
use super::pool::Pool;
use super::real::Real;
use super::reference::{self, ReferenceConv};

/// The shape of a convolution with a square kernel and no bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images, at most, in one call.
    pub n: usize,
    /// Rows of the input.
    pub h: usize,
    /// Columns of the input.
    pub w: usize,
    /// Channels of the input.
    pub c_in: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Distance of two output pixels, in input pixels.
    pub stride: usize,
    /// Zeros around the input, on each side.
    pub pad: usize,
}

impl ConvShape {
    /// Rows of the output.
    pub fn out_h(&self) -> usize {
        (self.h + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// Columns of the output.
    pub fn out_w(&self) -> usize {
        (self.w + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// Elements of one input image.
    pub fn input_len(&self) -> usize {
        self.h * self.w * self.c_in
    }

    /// Elements of one output image.
    pub fn output_len(&self) -> usize {
        self.out_h() * self.out_w() * self.c_out
    }

    /// Elements of the weights, `[c_out, c_in, kernel, kernel]`.
    pub fn weight_len(&self) -> usize {
        self.c_out * self.c_in * self.kernel * self.kernel
    }

    /// Floating-point operations of one pass over `n` images, taps on padding counted.
    pub fn flops(&self, n: usize) -> f64 {
        let taps = (self.c_in * self.kernel * self.kernel) as f64;
        2.0 * n as f64 * self.output_len() as f64 * taps
    }

    #[track_caller]
    fn check(&self) {
        assert!(
            self.h * self.w * self.c_in * self.c_out * self.kernel * self.stride > 0
                && self.h.min(self.w) + 2 * self.pad >= self.kernel,
            "not a convolution: {self:?}"
        );
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Convolution {
    /// By the fastest algorithm that fits the shape.
    Auto,
    /// Tap by tap, as it is defined.
    Direct,
}

/// A convolution planned for one shape: it owns its packed weights and the scratch of each thread.
///
/// Images and activations are NHWC, weights `[c_out, c_in, kh, kw]` as in PyTorch. Every call may
/// run fewer images than planned. Results depend on the kernel path and the number of threads only.
pub struct Conv2d<T: Real> {
    shape: ConvShape,
    threads: usize,
    reference: ReferenceConv<T>,
}

impl<T: Real> Conv2d<T> {
    /// Allocates everything that the three passes will need.
    ///
    /// # Panics
    /// If the shape has no output or the machine lacks the instructions of `path`.
    pub fn new(shape: ConvShape, path: KernelPath, threads: usize) -> Self {
        shape.check();
        assert!(path.is_available(), "this machine cannot run the {path} path");
        Self { shape, threads, reference: ReferenceConv::new(shape) }
    }

    /// The shape that was planned.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// Bytes of buffers that [`Conv2d::new`] allocates.
    pub fn predicted_bytes(shape: &ConvShape, path: KernelPath, threads: usize) -> usize {
        let _ = (path, threads);
        ReferenceConv::<T>::predicted_bytes(shape)
    }

    /// Computes `y = conv(x, w)` for the first `n` images.
    ///
    /// - `x`: `[n, h, w, c_in]`; `w`: `[c_out, c_in, kh, kw]`; `y`: `[n, out_h, out_w, c_out]`
    /// - `sums`: `[2, c_out]`, overwritten with the sum and the sum of squares of each channel of `y`
    ///
    /// # Panics
    /// If the weights are not exactly and the images not at least that long, or `n` or the pool is larger than planned.
    pub fn forward(
        &mut self,
        pool: &Pool,
        n: usize,
        x: &[T],
        w: &[T],
        y: &mut [T],
        sums: Option<&mut [f64]>,
    ) {
        self.check(pool, n, x, w, y);
        self.reference.forward(pool, n, x, w, y);
        if let Some(sums) = sums {
            assert_eq!(sums.len(), 2 * self.shape.c_out, "sums of {:?}", self.shape);
            reference::channel_sums(pool, &y[..n * self.shape.output_len()], sums);
        }
    }

    /// Computes the gradient with respect to the input, added to `dx` if `accumulate`.
    ///
    /// - `dy`: `[n, out_h, out_w, c_out]`; `w`: `[c_out, c_in, kh, kw]`; `dx`: `[n, h, w, c_in]`
    ///
    /// # Panics
    /// If the weights are not exactly and the images not at least that long, or `n` or the pool is larger than planned.
    pub fn backward_data(
        &mut self,
        pool: &Pool,
        n: usize,
        dy: &[T],
        w: &[T],
        dx: &mut [T],
        accumulate: bool,
    ) {
        self.check(pool, n, dx, w, dy);
        self.reference.backward_data(pool, n, dy, w, dx, accumulate);
    }

    /// Computes the gradient with respect to the weights, overwriting `dw`.
    ///
    /// - `x`: `[n, h, w, c_in]`; `dy`: `[n, out_h, out_w, c_out]`; `dw`: `[c_out, c_in, kh, kw]`
    ///
    /// # Panics
    /// If the weights are not exactly and the images not at least that long, or `n` or the pool is larger than planned.
    pub fn backward_weights(&mut self, pool: &Pool, n: usize, x: &[T], dy: &[T], dw: &mut [T]) {
        self.check(pool, n, x, dw, dy);
        self.reference.backward_weights(pool, n, x, dy, dw);
    }

    #[track_caller]
    fn check(&self, pool: &Pool, n: usize, x: &[T], w: &[T], y: &[T]) {
        let shape = &self.shape;
        assert!(n <= shape.n, "{n} images in a plan for {shape:?}");
        assert!(pool.threads() <= self.threads, "{} threads, {} planned", pool.threads(), self.threads);
        assert_eq!(w.len(), shape.weight_len(), "weights of {shape:?}");
        assert!(
            x.len() >= n * shape.input_len() && y.len() >= n * shape.output_len(),
            "{} inputs and {} outputs for {n} images of {shape:?}",
            x.len(),
            y.len()
        );
    }
}
