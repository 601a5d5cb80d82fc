//! Every algorithm and path against the definition, on shapes that nobody would choose.

use std::ops::Range;
use std::sync::Mutex;

use super::{Backward, InputGradient, OutputGradient, Then};
use super::{Choice, Conv2d, ConvShape, Convolution, InstructionSet, WinogradConv};
use crate::{AlignedVec, Forward, Input, KernelPath, Pool, Prologue};

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
        let conv = Conv2d::planned(shape, $choice, $pool.threads());
        // Garbage, to see that everything is written.
        let mut y = vec![7.0; n * shape.output_len()];
        let mut sums = vec![7.0; 2 * shape.c_out];
        let mut scratch = AlignedVec::zeroed(conv.scratch_len());
        scratch.fill(<$type>::NAN);
        let sums_of_y = Some(&mut sums[..]);
        let forward = Forward { input, w: &w, y: &mut y, sums: sums_of_y, scratch: &mut scratch };
        conv.forward($pool, n, forward);
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
            scratch.fill(<$type>::NAN);
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
        assert_eq!(dw, plain, "the gradient of the weights does not depend on where that of the output is");
        assert_eq!(dw, backward(OutputGradient::Plain(&dy), None, false), "nor on whether the input has one");
        check_handed_on(&dx);
        let mut again = vec![7.0; y.len()];
        scratch.fill(<$type>::NAN);
        let forward = Forward { input, w: &w, y: &mut again, sums: None, scratch: &mut scratch };
        conv.forward($pool, n, forward);
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
        // Right on every map, if not fast; but its matrix grows with the square of the map.
        let dense = (shape.h * shape.w <= 16).then_some(Choice::Dense(isa));
        [Some(Choice::Direct(isa)), dense, winograd].into_iter().flatten()
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
        (32, 16, 16, 3, 1, 1),
        (19, 16, 16, 3, 1, 1),
        (24, 8, 8, 3, 1, 1),
        (14, 64, 64, 3, 1, 1),
        (14, 64, 128, 3, 2, 1),
        (37, 16, 16, 3, 2, 1),
        (14, 64, 128, 1, 2, 0),
        (28, 64, 256, 1, 1, 0),
        (9, 272, 40, 1, 1, 0),
        (7, 128, 128, 3, 1, 1),
        (4, 512, 64, 3, 1, 1),
        (2, 64, 64, 3, 1, 1),
        (2, 32, 64, 3, 2, 1),
        (1, 64, 64, 3, 1, 1),
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
#[should_panic(expected = "does not begin on a cache line")]
fn scratch_that_begins_anywhere_is_refused() {
    let shape = ConvShape { n: 1, h: 4, w: 4, c_in: 3, c_out: 4, kernel: 3, stride: 1, pad: 1 };
    let conv = Conv2d::new::<f32>(shape, KernelPath::Portable, Convolution::Direct, 1);
    let mut scratch = AlignedVec::zeroed(conv.scratch_len() + 1);
    let (x, w) = (vec![0f32; shape.input_len()], vec![0.0; shape.weight_len()]);
    let (input, mut y) = (Input::plain(&x), vec![0.0; shape.output_len()]);
    let forward = Forward { input, w: &w, y: &mut y, sums: None, scratch: &mut scratch[1..] };
    conv.forward(&Pool::new(1, &[]), 1, forward);
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
        ConvShape { c_in: 8, c_out: 8, ..shape },
    ] {
        let choice = choose(&unfit, KernelPath::Portable, Convolution::Auto);
        assert!(matches!(choice, Choice::Direct(_)), "{unfit:?}: {choice:?}");
    }
    for convolution in [Convolution::Auto, Convolution::Direct] {
        let choice = choose(&ConvShape { h: 2, w: 2, ..shape }, KernelPath::Portable, convolution);
        assert!(matches!(choice, Choice::Dense(_)), "{choice:?}");
    }
}
