//! Two-dimensional convolution and its two gradients, NHWC.

use super::backward::{Backward, InputGradient, OutputGradient, Then};
use super::direct::DirectConv;
use super::path::KernelPath;
use super::pool::Pool;
use super::prologue::Input;
use super::real::Real;
use super::reference::{self, ReferenceConv};
use super::simd::InstructionSet;
use super::winograd::WinogradConv;

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

    #[track_caller]
    fn check(&self) {
        assert!(
            self.h * self.w * self.c_in * self.c_out * self.kernel * self.stride > 0
                && self.h.min(self.w) + 2 * self.pad >= self.kernel,
            "not a convolution: {self:?}"
        );
    }
}

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

/// A convolution planned for one shape: it owns its packed weights and the scratch of each thread.
///
/// Images and activations are NHWC, weights `[c_out, c_in, kh, kw]` as in PyTorch. Every call may
/// run fewer images than planned. Results depend on the kernel path and the number of threads only.
pub struct Conv2d<T: Real> {
    shape: ConvShape,
    threads: usize,
    scratch_len: usize,
    method: Method<T>,
}

enum Method<T> {
    Reference(ReferenceConv<T>),
    /// In `f32` only.
    Direct(Box<DirectConv>),
    /// In `f32` only.
    Winograd(Box<WinogradConv>),
}

impl<T: Real> Conv2d<T> {
    /// Allocates everything that the three passes will need.
    ///
    /// # Panics
    /// If the shape has no output or the machine lacks the instructions of `path`.
    pub fn new(shape: ConvShape, path: KernelPath, convolution: Convolution, threads: usize) -> Self {
        shape.check();
        assert!(path.is_available(), "this machine cannot run the {path} path");
        Self::planned(shape, Choice::new::<T>(&shape, path, convolution), threads)
    }

    fn planned(shape: ConvShape, choice: Choice, threads: usize) -> Self {
        let method = match choice {
            Choice::Reference => Method::Reference(ReferenceConv::new(shape)),
            Choice::Direct(isa) => Method::Direct(Box::new(DirectConv::new(shape, isa, threads))),
            Choice::Winograd(isa) => Method::Winograd(Box::new(WinogradConv::new(shape, isa, threads))),
        };
        Self { shape, threads, scratch_len: choice.scratch_len::<T>(&shape, threads), method }
    }

    /// Bytes of buffers that [`Conv2d::new`] allocates.
    pub fn predicted_bytes(
        shape: &ConvShape,
        path: KernelPath,
        convolution: Convolution,
        threads: usize,
    ) -> usize {
        match Choice::new::<T>(shape, path, convolution) {
            Choice::Reference => ReferenceConv::<T>::predicted_bytes(shape),
            Choice::Direct(isa) => DirectConv::predicted_bytes(shape, isa, threads),
            Choice::Winograd(isa) => WinogradConv::predicted_bytes(shape, isa, threads),
        }
    }

    /// Computes `y = conv(input, w)` for the first `n` images.
    ///
    /// - `w`: `[c_out, c_in, kh, kw]`; `y`: `[n, out_h, out_w, c_out]`
    /// - `sums`: `[2, c_out]`, overwritten with the sum and the sum of squares of each channel of `y`
    ///
    /// # Panics
    /// If the weights are not exactly and the images not at least that long, or `n` or the pool is larger than planned.
    pub fn forward(
        &mut self,
        pool: &Pool,
        n: usize,
        input: Input<'_, T>,
        w: &[T],
        y: &mut [T],
        sums: Option<&mut [f64]>,
    ) {
        self.check(pool, n, input.x, w, y.len());
        self.check_prologue(input);
        let len = 2 * self.shape.c_out;
        assert_eq!(sums.as_ref().map_or(len, |sums| sums.len()), len, "sums of {:?}", self.shape);
        match &mut self.method {
            Method::Direct(direct) => direct.forward(pool, n, f32_input(input), f32s(w), f32s_mut(y), sums),
            Method::Winograd(winograd) => {
                winograd.forward(pool, n, f32_input(input), f32s(w), f32s_mut(y), sums)
            }
            Method::Reference(reference) => {
                reference.forward(pool, n, input, w, y);
                if let Some(sums) = sums {
                    reference::channel_sums(pool, &y[..n * self.shape.output_len()], sums);
                }
            }
        }
    }

    /// Numbers of scratch that [`Conv2d::backward`] wants.
    pub fn scratch_len(&self) -> usize {
        self.scratch_len
    }

    /// What [`Conv2d::scratch_len`] of such a convolution will be.
    pub fn predicted_scratch_len(
        shape: &ConvShape,
        path: KernelPath,
        convolution: Convolution,
        threads: usize,
    ) -> usize {
        Choice::new::<T>(shape, path, convolution).scratch_len::<T>(shape, threads)
    }

    /// Computes the gradients with respect to the weights and, if wanted, the input, for the first `n` images.
    ///
    /// # Panics
    /// If the weights are not exactly and the images and the scratch not at least that long, or `n` or the pool is
    /// larger than planned.
    pub fn backward(&mut self, pool: &Pool, n: usize, backward: Backward<'_, T>) {
        let Backward { input, d_y, w, d_w, d_x, scratch } = backward;
        let output_len = n * self.shape.output_len();
        match d_y {
            OutputGradient::Plain(d_y) => self.check(pool, n, input.x, w, d_y.len()),
            OutputGradient::Made(_) => self.check(pool, n, input.x, w, output_len),
        }
        if let Some(d_x) = &d_x {
            self.check(pool, n, d_x.d_x, d_w, output_len);
        }
        self.check_prologue(input);
        assert!(scratch.len() >= self.scratch_len(), "{} numbers of scratch", scratch.len());
        let method: &mut dyn FnMut(Backward<'_, f32>) = match &mut self.method {
            Method::Reference(reference) => {
                return reference.backward(pool, n, Backward { input, d_y, w, d_w, d_x, scratch });
            }
            Method::Direct(direct) => &mut |backward| direct.backward(pool, n, backward),
            Method::Winograd(winograd) => &mut |backward| winograd.backward(pool, n, backward),
        };
        let make = |images, made: &mut [f32]| match d_y {
            OutputGradient::Made(make) => make(images, bytemuck::cast_slice_mut(made)),
            OutputGradient::Plain(_) => unreachable!("there is nothing to make"),
        };
        let then = d_x.as_ref().and_then(|d_x| d_x.then);
        let then = then.map(|then| {
            move |thread, images, d_x: &mut [f32]| then(thread, images, bytemuck::cast_slice_mut(d_x))
        });
        method(Backward {
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
            scratch: f32s_mut(scratch),
        });
    }

    #[track_caller]
    fn check(&self, pool: &Pool, n: usize, x: &[T], w: &[T], outputs: usize) {
        let shape = &self.shape;
        assert!(n <= shape.n, "{n} images in a plan for {shape:?}");
        assert!(pool.threads() <= self.threads, "{} threads, {} planned", pool.threads(), self.threads);
        assert_eq!(w.len(), shape.weight_len(), "weights of {shape:?}");
        assert!(
            x.len() >= n * shape.input_len() && outputs >= n * shape.output_len(),
            "{} inputs and {} outputs for {n} images of {shape:?}",
            x.len(),
            outputs
        );
    }

    #[track_caller]
    fn check_prologue(&self, input: Input<'_, T>) {
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
            Convolution::Auto | Convolution::Direct => Self::Direct(isa),
        }
    }

    fn scratch_len<T: Real>(self, shape: &ConvShape, threads: usize) -> usize {
        match self {
            Self::Reference => ReferenceConv::<T>::scratch_len(shape),
            Self::Direct(isa) => DirectConv::scratch_len(shape, isa, threads),
            Self::Winograd(isa) => WinogradConv::scratch_len(shape, isa, threads),
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

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Mutex;

    use super::{Backward, InputGradient, OutputGradient, Then};
    use super::{Choice, Conv2d, ConvShape, Convolution, InstructionSet, WinogradConv};
    use crate::kernels::{Input, KernelPath, Pool, Prologue};

    /// Numbers in [-1, 1) that look random and are always the same.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 40) as f64 / f64::from(1 << 23) - 1.0
        }

        fn pick<const N: usize>(&mut self, choices: [usize; N]) -> usize {
            choices[((self.next() + 1.0) / 2.0 * N as f64) as usize]
        }

        fn vec(&mut self, len: usize) -> Vec<f32> {
            (0..len).map(|_| self.next() as f32).collect()
        }
    }

    /// A shape with something odd about it.
    fn random_shape(numbers: &mut Numbers) -> ConvShape {
        loop {
            let shape = ConvShape {
                n: numbers.pick([1, 2, 3, 5]),
                h: numbers.pick([1, 2, 3, 4, 5, 7, 8, 9, 12, 15]),
                w: numbers.pick([1, 2, 3, 4, 5, 7, 8, 9, 12, 15]),
                c_in: numbers.pick([1, 3, 5, 16, 17, 33, 64]),
                c_out: numbers.pick([1, 3, 5, 16, 17, 33, 64]),
                kernel: numbers.pick([1, 3, 5, 7]),
                stride: numbers.pick([1, 2, 3]),
                pad: numbers.pick([0, 1, 2, 3]),
            };
            if shape.h.min(shape.w) + 2 * shape.pad >= shape.kernel {
                return shape;
            }
        }
    }

    /// The three passes and the sums of one shape, on `n` images.
    #[derive(PartialEq)]
    struct Passes<T> {
        y: Vec<T>,
        sums: Vec<f64>,
        dx: Vec<T>,
        dw: Vec<T>,
    }

    /// What the passes of one shape read.
    struct Data {
        x: Vec<f32>,
        w: Vec<f32>,
        dy: Vec<f32>,
        /// What a gradient is added to.
        dx: Vec<f32>,
        multiplier: Vec<f32>,
        offset: Vec<f32>,
        /// Whether a prologue ends in a ReLU, if there is one.
        relu: Option<bool>,
    }

    impl Data {
        fn new(numbers: &mut Numbers, shape: &ConvShape, n: usize) -> Self {
            Self {
                x: numbers.vec(n * shape.input_len()),
                w: numbers.vec(shape.weight_len()),
                dy: numbers.vec(n * shape.output_len()),
                dx: numbers.vec(n * shape.input_len()),
                multiplier: numbers.vec(shape.c_in),
                offset: numbers.vec(shape.c_in),
                relu: [None, Some(false), Some(true)][numbers.pick([0, 1, 2])],
            }
        }

        /// The same with a pass of its own in place of the prologue.
        fn unfused(&self) -> Self {
            let Self { x, w, dy, dx, multiplier, offset, relu } = self;
            let mut x = x.clone();
            if let Some(relu) = relu {
                for pixel in x.chunks_exact_mut(offset.len()) {
                    for ((x, multiplier), offset) in pixel.iter_mut().zip(multiplier).zip(offset) {
                        let value = multiplier * *x + offset;
                        *x = if *relu { value.max(0.0) } else { value };
                    }
                }
            }
            let (w, dy, dx) = (w.clone(), dy.clone(), dx.clone());
            Self { x, w, dy, dx, multiplier: vec![], offset: vec![], relu: None }
        }
    }

    macro_rules! passes {
        ($type:ty, $choice:expr, $pool:expr, $shape:expr, $n:expr, $data:expr) => {{
            let (shape, n): (ConvShape, usize) = ($shape, $n);
            let widen = |numbers: &[f32]| numbers.iter().map(|&x| <$type>::from(x)).collect::<Vec<$type>>();
            let data: &Data = &$data;
            let (x, w, dy, dx) = (widen(&data.x), widen(&data.w), widen(&data.dy), widen(&data.dx));
            let (multiplier, offset) = (widen(&data.multiplier), widen(&data.offset));
            let (multiplier, offset) = (&multiplier[..], &offset[..]);
            let prologue = data.relu.map(|relu| Prologue { multiplier, offset, relu });
            let input = Input { x: &x, prologue };
            let mut conv = Conv2d::<$type>::planned(shape, $choice, $pool.threads());
            // Garbage, to see that everything is written.
            let mut y = vec![7.0; n * shape.output_len()];
            let mut sums = vec![7.0; 2 * shape.c_out];
            conv.forward($pool, n, input, &w, &mut y, Some(&mut sums));
            let mut scratch = vec![7.0; conv.scratch_len()];
            // Every image is handed on once, when its gradient is final.
            let handed_on = Mutex::new(vec![None; n]);
            let then = |thread: usize, images: Range<usize>, d_x: &mut [$type]| {
                assert!(thread < $pool.threads());
                for (image, d_x) in images.zip(d_x.chunks_exact(shape.input_len())) {
                    assert_eq!(handed_on.lock().unwrap()[image].replace(d_x.to_vec()), None, "image {image}");
                }
            };
            let then: Option<&Then<'_, $type>> = Some(&then);
            let mut backward = |d_y, d_x: Option<&mut Vec<$type>>, accumulate| {
                let mut d_w = vec![7.0; shape.weight_len()];
                let d_x = d_x.map(|d_x| InputGradient { d_x, accumulate, then });
                let (w, d_w_out, scratch) = (&w[..], &mut d_w[..], &mut scratch[..]);
                conv.backward($pool, n, Backward { input, d_y, w, d_w: d_w_out, d_x, scratch });
                d_w
            };
            let make = |images: Range<usize>, d_y: &mut [$type]| {
                let len = shape.output_len();
                d_y.copy_from_slice(&dy[images.start * len..images.end * len]);
            };
            let mut accumulated = dx;
            let dw = backward(OutputGradient::Made(&make), Some(&mut accumulated), true);
            let check_handed_on = |d_x: &[$type]| {
                let images = std::mem::replace(&mut *handed_on.lock().unwrap(), vec![None; n]);
                assert_eq!(images.into_iter().map(Option::unwrap).collect::<Vec<_>>().concat(), d_x);
            };
            check_handed_on(&accumulated);
            let mut dx = vec![7.0; n * shape.input_len()];
            let plain = backward(OutputGradient::Plain(&dy), Some(&mut dx), false);
            assert_eq!(
                dw, plain,
                "the gradient of the weights does not depend on where that of the output is"
            );
            assert_eq!(
                dw,
                backward(OutputGradient::Plain(&dy), None, false),
                "nor on whether the input has one"
            );
            check_handed_on(&dx);
            let mut again = vec![7.0; y.len()];
            conv.forward($pool, n, input, &w, &mut again, None);
            assert_eq!(again, y, "nor does the forward pass on what ran before it");
            dx.extend(accumulated);
            Passes { y, sums, dx, dw }
        }};
    }

    #[track_caller]
    fn assert_close(what: &str, fast: impl IntoIterator<Item = f64>, exact: &[f64]) {
        let fast: Vec<f64> = fast.into_iter().collect();
        assert_eq!(fast.len(), exact.len(), "{what}");
        let distance: f64 = fast.iter().zip(exact).map(|(a, b)| (a - b).powi(2)).sum();
        let norm: f64 = exact.iter().map(|b| b * b).sum();
        assert!(distance.sqrt() <= 1e-5 * norm.sqrt(), "{what}: {} of {}", distance.sqrt(), norm.sqrt());
    }

    #[track_caller]
    fn check(pool: &Pool, shape: ConvShape, n: usize, data: &Data) {
        let exact = passes!(f64, Choice::Reference, pool, shape, n, data.unfused());
        for choice in choices(&shape) {
            let fast = passes!(f32, choice, pool, shape, n, data);
            let what = format!("{choice:?}, {} threads, {n} images of {shape:?}", pool.threads());
            assert_agree(&what, &shape, fast, &exact);
        }
    }

    #[track_caller]
    fn assert_agree(what: &str, shape: &ConvShape, fast: Passes<f32>, exact: &Passes<f64>) {
        let wide = |numbers: Vec<f32>| numbers.into_iter().map(f64::from);
        let what = |pass| format!("{pass}, {what}");
        assert_close(&what("forward"), wide(fast.y), &exact.y);
        // Sums may cancel, so that they are held against their size before that.
        let (sums, squares) = exact.sums.split_at(shape.c_out);
        let pixels = (exact.y.len() / shape.c_out) as f64;
        for ((a, b), square) in fast.sums.iter().zip(sums).zip(squares) {
            assert!((a - b).abs() <= 1e-5 * (square * pixels).sqrt() + 1e-12, "{}: {a} {b}", what("sums"));
        }
        assert_close(&what("squares"), fast.sums[shape.c_out..].iter().copied(), squares);
        assert_close(&what("data gradient"), wide(fast.dx), &exact.dx);
        assert_close(&what("weight gradient"), wide(fast.dw), &exact.dw);
    }

    /// Every algorithm that can do the shape, on every path of this machine.
    fn choices(shape: &ConvShape) -> Vec<Choice> {
        let fast = [KernelPath::Portable, KernelPath::Avx2, KernelPath::Avx512];
        let isas = fast.into_iter().filter(|path| path.is_available()).map(InstructionSet::new);
        let choices = isas.flat_map(|isa| {
            let winograd = WinogradConv::applies(shape, isa).then_some(Choice::Winograd(isa));
            [Some(Choice::Direct(isa)), winograd].into_iter().flatten()
        });
        std::iter::once(Choice::Reference).chain(choices).collect()
    }

    #[test]
    fn every_algorithm_agrees_with_the_reference_in_f64() {
        let mut numbers = Numbers(1);
        let pools = [1, 2, 3].map(|threads| Pool::new(threads, &[]));
        for case in 0..120 {
            let shape = random_shape(&mut numbers);
            let n = 1 + (case % shape.n);
            let data = Data::new(&mut numbers, &shape, n);
            check(&pools[case % 3], shape, n, &data);
        }
    }

    #[test]
    fn tiles_agree_with_the_reference_on_every_side() {
        let mut numbers = Numbers(5);
        let pools = [1, 2, 3].map(|threads| Pool::new(threads, &[]));
        for case in 0..80 {
            let shape = ConvShape {
                c_in: numbers.pick([4, 8, 16, 32, 48, 80]),
                c_out: numbers.pick([4, 8, 16, 32, 48, 80]),
                kernel: 3,
                stride: numbers.pick([1, 2]),
                pad: 1,
                ..random_shape(&mut numbers)
            };
            let n = 1 + (case % shape.n);
            let data = Data::new(&mut numbers, &shape, n);
            check(&pools[case % 3], shape, n, &data);
        }
    }

    #[test]
    fn the_layers_of_a_residual_network_agree_with_the_reference() {
        let mut numbers = Numbers(2);
        // Alone, so that the images fill several blocks.
        let pool = Pool::new(1, &[]);
        for (side, c_in, c_out, kernel, stride, pad) in [
            (32, 3, 64, 7, 2, 3),
            (32, 3, 16, 3, 1, 1),
            (14, 64, 64, 3, 1, 1),
            (14, 64, 128, 3, 2, 1),
            (14, 64, 128, 1, 2, 0),
            (28, 64, 256, 1, 1, 0),
            (9, 272, 40, 1, 1, 0),
            (7, 128, 128, 3, 1, 1),
            (4, 512, 64, 3, 1, 1),
        ] {
            let shape = ConvShape { n: 6, h: side, w: side, c_in, c_out, kernel, stride, pad };
            let data = Data::new(&mut numbers, &shape, 6);
            check(&pool, shape, 6, &data);
        }
    }

    #[test]
    fn the_same_threads_give_the_same_bits_and_a_pixel_does_not_depend_on_them() {
        let mut numbers = Numbers(3);
        let pools = [1, 3].map(|threads| Pool::new(threads, &[]));
        for (channels, stride) in [(17, 1), (32, 1), (32, 2)] {
            let shape =
                ConvShape { n: 7, h: 9, w: 8, c_in: channels, c_out: channels, kernel: 3, stride, pad: 1 };
            let data = Data::new(&mut numbers, &shape, 7);
            for choice in choices(&shape) {
                let first = passes!(f32, choice, &pools[1], shape, 7, data);
                for _ in 0..5 {
                    assert!(passes!(f32, choice, &pools[1], shape, 7, data) == first, "{choice:?}");
                }
                let alone = passes!(f32, choice, &pools[0], shape, 7, data);
                assert!(alone.y == first.y && alone.dx == first.dx, "{choice:?}");
            }
        }
    }

    #[test]
    fn no_images_have_no_gradient() {
        let pool = Pool::new(2, &[]);
        let shape = ConvShape { n: 2, h: 4, w: 4, c_in: 16, c_out: 32, kernel: 3, stride: 1, pad: 1 };
        for choice in choices(&shape) {
            let passes = passes!(f32, choice, &pool, shape, 0, Data::new(&mut Numbers(4), &shape, 0));
            assert!(
                passes.dw.iter().all(|&dw| dw == 0.0) && passes.sums.iter().all(|&sum| sum == 0.0),
                "{choice:?}"
            );
        }
    }

    #[test]
    fn winograd_is_chosen_where_it_applies_and_pays() {
        let shape = ConvShape { n: 2, h: 8, w: 8, c_in: 64, c_out: 64, kernel: 3, stride: 1, pad: 1 };
        let choose = Choice::new::<f32>;
        let strided = ConvShape { stride: 2, ..shape };
        assert!(matches!(choose(&strided, KernelPath::Portable, Convolution::Auto), Choice::Winograd(_)));
        assert!(matches!(choose(&shape, KernelPath::Portable, Convolution::Auto), Choice::Winograd(_)));
        assert!(matches!(choose(&shape, KernelPath::Portable, Convolution::Direct), Choice::Direct(_)));
        assert!(matches!(choose(&shape, KernelPath::Reference, Convolution::Auto), Choice::Reference));
        let choose = Choice::new::<f64>;
        assert!(matches!(choose(&shape, KernelPath::Portable, Convolution::Auto), Choice::Reference));
        let choose = Choice::new::<f32>;
        for unfit in [
            ConvShape { stride: 3, ..shape },
            ConvShape { stride: 2, c_in: 16, c_out: 16, ..shape },
            ConvShape { stride: 2, h: 3, w: 3, ..shape },
            ConvShape { c_in: 3, ..shape },
            ConvShape { h: 2, w: 2, ..shape },
            ConvShape { c_in: 8, c_out: 8, ..shape },
        ] {
            let choice = choose(&unfit, KernelPath::Portable, Convolution::Auto);
            assert!(matches!(choice, Choice::Direct(_)), "{unfit:?}: {choice:?}");
        }
    }
}
