//! Two-dimensional convolution and its two gradients, NHWC.

use super::dense::DenseConv;
use super::direct::DirectConv;
use super::operands::{Backward, Forward, InputGradient, OutputGradient, Then};
use super::path::KernelPath;
use super::pool::Pool;
use super::prefetch::LINE_LEN;
use super::prologue::Input;
use super::real::Real;
use super::reference::ReferenceConv;
use super::shape::ConvShape;
use super::simd::InstructionSet;
use super::winograd::WinogradConv;

/// Which algorithms a fast path may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Convolution {
    /// Fewer multiplications where that is faster, by Winograd's algorithm, at a rounding error
    /// some ten times that of direct convolution.
    #[default]
    Auto,
    /// Direct convolution for every shape.
    Direct,
}

/// A convolution planned for one shape. All that it writes besides its results is scratch, which convolutions that run one
/// after the other share.
///
/// Images and activations are NHWC, weights `[c_out, c_in, kh, kw]` as in PyTorch. Every call may
/// run fewer images than planned. Results depend on the kernel path and the number of threads only.
pub struct Conv2d {
    shape: ConvShape,
    threads: usize,
    method: Method,
}

enum Method {
    Reference(ReferenceConv),
    Fast(Fast),
}

/// In `f32` only.
enum Fast {
    Direct(Box<DirectConv>),
    Dense(Box<DenseConv>),
    Winograd(Box<WinogradConv>),
}

impl Fast {
    fn scratch_len(&self) -> usize {
        match self {
            Self::Direct(direct) => direct.scratch_len(),
            Self::Dense(dense) => dense.scratch_len(),
            Self::Winograd(winograd) => winograd.scratch_len(),
        }
    }

    fn forward(&self, pool: &Pool, n: usize, forward: Forward<'_, f32>) {
        match self {
            Self::Direct(direct) => direct.forward(pool, n, forward),
            Self::Dense(dense) => dense.forward(pool, n, forward),
            Self::Winograd(winograd) => winograd.forward(pool, n, forward),
        }
    }

    fn backward(&self, pool: &Pool, n: usize, backward: Backward<'_, f32>) {
        match self {
            Self::Direct(direct) => direct.backward(pool, n, backward),
            Self::Dense(dense) => dense.backward(pool, n, backward),
            Self::Winograd(winograd) => winograd.backward(pool, n, backward),
        }
    }
}

impl Conv2d {
    /// Plans the three passes for numbers of type `T`; those in `f64` are plain loops.
    ///
    /// # Panics
    /// If the shape has no output or the machine lacks the instructions of `path`.
    pub fn new<T: Real>(
        shape: ConvShape,
        path: KernelPath,
        convolution: Convolution,
        threads: usize,
    ) -> Self {
        shape.check();
        assert!(path.is_available(), "this machine cannot run the {path} path");
        Self::planned(shape, Choice::new::<T>(&shape, path, convolution), threads)
    }

    fn planned(shape: ConvShape, choice: Choice, threads: usize) -> Self {
        let method = match choice {
            Choice::Reference => Method::Reference(ReferenceConv::new(shape)),
            Choice::Direct(isa) => Method::Fast(Fast::Direct(Box::new(DirectConv::new(shape, isa, threads)))),
            Choice::Dense(isa) => Method::Fast(Fast::Dense(Box::new(DenseConv::new(shape, isa, threads)))),
            Choice::Winograd(isa) => {
                Method::Fast(Fast::Winograd(Box::new(WinogradConv::new(shape, isa, threads))))
            }
        };
        Self { shape, threads, method }
    }

    /// Numbers of scratch that each pass wants.
    pub fn scratch_len(&self) -> usize {
        match &self.method {
            Method::Reference(reference) => reference.scratch_len(),
            Method::Fast(fast) => fast.scratch_len(),
        }
    }

    /// Computes `y = conv(input, w)` for the first `n` images.
    ///
    /// # Panics
    /// If the weights, the sums and the prologue are not exactly and the images and the scratch not at least that long, `n`
    /// is larger than planned, or the pool has not the threads that were planned; of a convolution that was planned for
    /// `f32`, also if the scratch does not begin on a cache line, or the numbers are others.
    pub fn forward<T: Real>(&self, pool: &Pool, n: usize, forward: Forward<'_, T>) {
        let Forward { input, w, y, sums, scratch } = forward;
        self.check(pool, n, input.x, w, y.len());
        self.check_inputs(input, scratch.len());
        let len = 2 * self.shape.c_out;
        assert_eq!(sums.as_ref().map_or(len, |sums| sums.len()), len, "sums of {:?}", self.shape);
        match &self.method {
            Method::Reference(reference) => {
                reference.forward(pool, n, Forward { input, w, y, sums, scratch });
            }
            Method::Fast(fast) => {
                let (input, w, y, scratch) = (f32_input(input), f32s(w), f32s_mut(y), f32_scratch(scratch));
                fast.forward(pool, n, Forward { input, w, y, sums, scratch });
            }
        }
    }

    /// Computes the gradients with respect to the weights and, if wanted, the input, for the first `n` images.
    ///
    /// # Panics
    /// As [`Conv2d::forward`].
    pub fn backward<T: Real>(&self, pool: &Pool, n: usize, backward: Backward<'_, T>) {
        let Backward { input, d_y, w, d_w, d_x, scratch } = backward;
        let output_len = n * self.shape.output_len();
        match d_y {
            OutputGradient::Plain(d_y) => self.check(pool, n, input.x, w, d_y.len()),
            OutputGradient::Made(_) => self.check(pool, n, input.x, w, output_len),
        }
        self.check(pool, n, d_x.as_ref().map_or(input.x, |d_x| &*d_x.d_x), d_w, output_len);
        self.check_inputs(input, scratch.len());
        let fast = match &self.method {
            Method::Reference(reference) => {
                return reference.backward(pool, n, Backward { input, d_y, w, d_w, d_x, scratch });
            }
            Method::Fast(fast) => fast,
        };
        let make = |images, made: &mut [f32]| match d_y {
            OutputGradient::Made(make) => make(images, bytemuck::cast_slice_mut(made)),
            OutputGradient::Plain(_) => unreachable!("there is nothing to make"),
        };
        let then = d_x.as_ref().and_then(|d_x| d_x.then);
        let then = then.map(|then| {
            move |thread, images, d_x: &mut [f32]| then(thread, images, bytemuck::cast_slice_mut(d_x))
        });
        let backward = Backward {
            input: f32_input(input),
            d_y: match d_y {
                OutputGradient::Plain(d_y) => OutputGradient::Plain(f32s(d_y)),
                OutputGradient::Made(_) => OutputGradient::Made(&make),
            },
            w: f32s(w),
            d_w: f32s_mut(d_w),
            d_x: d_x.map(|InputGradient { d_x, accumulate, .. }| InputGradient {
                d_x: f32s_mut(d_x),
                accumulate,
                then: then.as_ref().map(|then| then as &Then<'_, f32>),
            }),
            scratch: f32_scratch(scratch),
        };
        fast.backward(pool, n, backward);
    }

    #[track_caller]
    fn check<T>(&self, pool: &Pool, n: usize, x: &[T], w: &[T], outputs: usize) {
        let shape = &self.shape;
        assert!(n <= shape.n, "{n} images in a plan for {shape:?}");
        assert_eq!(pool.threads(), self.threads, "threads of the pool and of the plan");
        assert_eq!(w.len(), shape.weight_len(), "weights of {shape:?}");
        assert!(
            x.len() >= n * shape.input_len() && outputs >= n * shape.output_len(),
            "{} inputs and {} outputs for {n} images of {shape:?}",
            x.len(),
            outputs
        );
    }

    #[track_caller]
    fn check_inputs<T>(&self, input: Input<'_, T>, scratch: usize) {
        assert!(scratch >= self.scratch_len(), "{scratch} numbers of scratch");
        if let Some(prologue) = input.prologue {
            let channels = (prologue.multiplier.len(), prologue.offset.len());
            assert_eq!(channels, (self.shape.c_in, self.shape.c_in), "prologue of {:?}", self.shape);
        }
    }
}

/// The algorithm for a shape.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Reference,
    Direct(InstructionSet),
    Dense(InstructionSet),
    Winograd(InstructionSet),
}

impl Choice {
    fn new<T: Real>(shape: &ConvShape, path: KernelPath, convolution: Convolution) -> Self {
        if path == KernelPath::Reference || T::as_f32(&[]).is_none() {
            return Self::Reference;
        }
        let isa = InstructionSet::new(path);
        match convolution {
            Convolution::Auto if WinogradConv::applies(shape, isa) && WinogradConv::pays(shape) => {
                Self::Winograd(isa)
            }
            Convolution::Auto | Convolution::Direct if DenseConv::pays(shape) => Self::Dense(isa),
            Convolution::Auto | Convolution::Direct => Self::Direct(isa),
        }
    }
}

fn f32_input<T: Real>(input: Input<'_, T>) -> Input<'_, f32> {
    input.as_f32().expect("the fast methods are planned for f32 only")
}

fn f32s<T: Real>(numbers: &[T]) -> &[f32] {
    T::as_f32(numbers).expect("the fast methods are planned for f32 only")
}

fn f32s_mut<T: Real>(numbers: &mut [T]) -> &mut [f32] {
    T::as_f32_mut(numbers).expect("the fast methods are planned for f32 only")
}

fn f32_scratch<T: Real>(scratch: &mut [T]) -> &mut [f32] {
    let scratch = f32s_mut(scratch);
    let begins_on_line = scratch.as_ptr().addr().is_multiple_of(LINE_LEN * size_of::<f32>());
    assert!(begins_on_line, "scratch that does not begin on a cache line");
    scratch
}

#[cfg(test)]
mod tests;
