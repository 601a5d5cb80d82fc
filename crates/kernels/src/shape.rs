//! What a convolution is applied to.

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

    /// Whether each pixel of the input is a window, and the only one that reads it.
    pub(super) fn is_every_pixel(&self) -> bool {
        (self.kernel, self.stride, self.pad) == (1, 1, 0)
    }

    /// Elements of the weights, `[c_out, c_in, kernel, kernel]`.
    pub fn weight_len(&self) -> usize {
        self.c_out * self.c_in * self.kernel * self.kernel
    }

    #[track_caller]
    pub(super) fn check(&self) {
        assert!(
            self.h * self.w * self.c_in * self.c_out * self.kernel * self.stride > 0
                && self.h.min(self.w) + 2 * self.pad >= self.kernel,
            "not a convolution: {self:?}"
        );
    }
}
