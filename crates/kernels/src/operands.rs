//! What the passes of a convolution read and write.

use std::ops::Range;

use super::prologue::Input;
use super::real::Real;

/// Operands of a forward pass.
pub struct Forward<'a, T> {
    /// The images.
    pub input: Input<'a, T>,
    /// `[c_out, c_in, kh, kw]`
    pub w: &'a [T],
    /// `[n, out_h, out_w, c_out]`
    pub y: &'a mut [T],
    /// `[2, c_out]`, overwritten with the sum and the sum of squares of each channel of `y`, if anybody wants them.
    pub sums: Option<&'a mut [f64]>,
    /// As [`Backward::scratch`].
    pub scratch: &'a mut [T],
}

/// Operands of a backward pass.
pub struct Backward<'a, T> {
    /// The input of the forward pass.
    pub input: Input<'a, T>,
    /// The gradient of its output.
    pub d_y: OutputGradient<'a, T>,
    /// `[c_out, c_in, kh, kw]`
    pub w: &'a [T],
    /// Overwritten by the gradient of the weights.
    pub d_w: &'a mut [T],
    /// Where the gradient of the input goes, if anybody wants it.
    pub d_x: Option<InputGradient<'a, T>>,
    /// [`Conv2d::scratch_len`](super::Conv2d::scratch_len) numbers that mean nothing before or after, and begin on a
    /// cache line.
    pub scratch: &'a mut [T],
}

/// The gradient of a convolution's output, `[n, out_h, out_w, c_out]`.
#[derive(Clone, Copy)]
pub enum OutputGradient<'a, T> {
    /// All of it, in memory.
    Plain(&'a [T]),
    /// Writes that of some images, on the thread that is about to read it: so it need not travel through memory.
    Made(&'a (dyn Fn(Range<usize>, &mut [T]) + Sync)),
}

/// Where the gradient of a convolution's input goes.
pub struct InputGradient<'a, T> {
    /// `[n, h, w, c_in]`
    pub d_x: &'a mut [T],
    /// Adds to what is there instead of replacing it.
    pub accumulate: bool,
    /// What is done next, while they are hot, to the gradients of some images.
    pub then: Option<&'a Then<'a, T>>,
}

/// Called with a thread, some images and their gradients; on that thread, and for its images in order.
pub type Then<'a, T> = dyn Fn(usize, Range<usize>, &mut [T]) + Sync + 'a;

impl<T> Default for InputGradient<'_, T> {
    /// Nowhere.
    fn default() -> Self {
        Self { d_x: &mut [], accumulate: false, then: None }
    }
}

impl<'a, T: Real> OutputGradient<'a, T> {
    /// That of some images, `len` numbers each.
    pub(super) fn of<'b>(&self, images: Range<usize>, len: usize, made: &'b mut [T]) -> &'b [T]
    where
        'a: 'b,
    {
        match self {
            Self::Plain(d_y) => &d_y[images.start * len..images.end * len],
            Self::Made(make) => {
                let made = &mut made[..images.len() * len];
                make(images, made);
                made
            }
        }
    }
}
