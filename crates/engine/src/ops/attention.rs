//! Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762): for each image and head, `y = P v` with `P =
//! softmax(q k^T / sqrt(d))`, `q`, `k`, `v` of `[tokens, d]`.
//!
//! Each thread takes whole images and goes through their heads one by one, so that everything of a head lies in its
//! nearer caches: at 197 tokens of 64 numbers, half a megabyte. `P`, `[tokens, tokens]`, is not kept: a network of 12
//! layers of 12 heads would keep 22 MB of it for each image of 224 pixels, more than half of everything else. The
//! backward pass computes it once more, which is one product of then six.
//!
//! Backward, with `d` before a name for its gradient: `dv = P^T dy`, `dP = dy v^T`, and per row `dS = P (dP - sum(P dP))`;
//! then `dq = dS k / sqrt(d)` and `dk = dS^T q / sqrt(d)`.

use std::ops::Range;

use super::{pieces, pieces_mut};
use kernels::{ChannelPass, Cpu, Gemm, KernelPath, LANES, Real, matmul_serial, vectorized};

/// Shape of an image's attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub tokens: usize,
    /// Width of all heads together.
    pub c: usize,
    pub heads: usize,
}

/// Places of queries, keys and values among the three parts of a token.
const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;

impl AttentionShape {
    fn width(self) -> usize {
        self.c / self.heads
    }

    /// Numbers of one head's rows.
    fn head_len(self) -> usize {
        self.tokens * self.width()
    }

    /// Numbers of scratch that each thread needs.
    pub fn scratch_len(self) -> usize {
        // q, k, v, dy and a product of theirs; P and dP.
        5 * self.head_len() + 2 * self.tokens * self.tokens
    }

    /// Where a token's numbers of one head and part lie in `[tokens, 3, heads, width]`.
    fn place(self, (part, head): (usize, usize), token: usize) -> Range<usize> {
        let start = token * 3 * self.c + part * self.c + head * self.width();
        start..start + self.width()
    }

    /// Where they lie in `[tokens, heads, width]`.
    fn output_place(self, head: usize, token: usize) -> Range<usize> {
        let start = token * self.c + head * self.width();
        start..start + self.width()
    }
}

/// Computes `y [images, tokens, c]` from `x [images, tokens, 3 c]`.
pub(crate) fn forward<T: Real>(cpu: &Cpu, shape: AttentionShape, x: &[T], y: &mut [T], scratch: &mut [T]) {
    let (threads, image) = (cpu.threads(), shape.tokens * shape.c);
    let parts = pieces(x, 3 * image, threads)
        .zip(pieces_mut(y, image, threads))
        .zip(scratch.chunks_exact_mut(shape.scratch_len()));
    cpu.pool.for_each_part(parts.collect(), |_, ((x, y), scratch)| {
        let mut head_of = Head::new(cpu.path, shape, scratch);
        for (x, y) in x.chunks_exact(3 * image).zip(y.chunks_exact_mut(image)) {
            for head in 0..shape.heads {
                head_of.attend(x, head);
                head_of.forward(y, head);
            }
        }
    });
}

/// Computes `d_x [images, tokens, 3 c]` from `x` and `d_y [images, tokens, c]`.
pub(crate) fn backward<T: Real>(
    cpu: &Cpu,
    shape: AttentionShape,
    (x, d_y): (&[T], &[T]),
    d_x: &mut [T],
    scratch: &mut [T],
) {
    let (threads, image) = (cpu.threads(), shape.tokens * shape.c);
    let parts = pieces(x, 3 * image, threads)
        .zip(pieces(d_y, image, threads))
        .zip(pieces_mut(d_x, 3 * image, threads))
        .zip(scratch.chunks_exact_mut(shape.scratch_len()));
    cpu.pool.for_each_part(parts.collect(), |_, (((x, d_y), d_x), scratch)| {
        let mut head_of = Head::new(cpu.path, shape, scratch);
        let images = x.chunks_exact(3 * image).zip(d_y.chunks_exact(image));
        for ((x, d_y), d_x) in images.zip(d_x.chunks_exact_mut(3 * image)) {
            for head in 0..shape.heads {
                head_of.attend(x, head);
                head_of.backward(d_y, d_x, head);
            }
        }
    });
}

/// One head of one image, packed.
struct Head<'a, T> {
    path: KernelPath,
    shape: AttentionShape,
    q: &'a mut [T],
    k: &'a mut [T],
    v: &'a mut [T],
    d_y: &'a mut [T],
    product: &'a mut [T],
    /// `P`, `[tokens, tokens]`.
    shares: &'a mut [T],
    d_shares: &'a mut [T],
}

impl<'a, T: Real> Head<'a, T> {
    fn new(path: KernelPath, shape: AttentionShape, scratch: &'a mut [T]) -> Self {
        let (rows, squares) = scratch.split_at_mut(5 * shape.head_len());
        let mut rows = rows.chunks_exact_mut(shape.head_len());
        let mut next = || rows.next().expect("scratch for five");
        let [q, k, v, d_y, product] = std::array::from_fn(|_| next());
        let (shares, d_shares) = squares.split_at_mut(shape.tokens * shape.tokens);
        Self { path, shape, q, k, v, d_y, product, shares, d_shares }
    }

    /// Packs a head of `x`, queries divided by the root of their length, and computes `P`.
    fn attend(&mut self, x: &[T], head: usize) {
        let (shape, width, tokens) = (self.shape, self.shape.width(), self.shape.tokens);
        let scale = T::from_f64(1.0 / (width as f64).sqrt());
        for (part, rows) in [(QUERY, &mut *self.q), (KEY, &mut *self.k), (VALUE, &mut *self.v)] {
            for (token, row) in rows.chunks_exact_mut(width).enumerate() {
                row.copy_from_slice(&x[shape.place((part, head), token)]);
            }
        }
        self.q.iter_mut().for_each(|q| *q *= scale);
        let gemm = Gemm { b_transposed: true, ..Gemm::new(tokens, tokens, width) };
        matmul_serial(self.path, gemm, self.q, self.k, self.shares);
        vectorized(self.path, LANES, Softmax { rows: self.shares, width: tokens });
    }

    /// Writes a head of `y`.
    fn forward(&mut self, y: &mut [T], head: usize) {
        let AttentionShape { tokens, .. } = self.shape;
        let width = self.shape.width();
        matmul_serial(self.path, Gemm::new(tokens, width, tokens), self.shares, self.v, self.product);
        for (token, row) in self.product.chunks_exact(width).enumerate() {
            y[self.shape.output_place(head, token)].copy_from_slice(row);
        }
    }

    /// Writes a head of `d_x`.
    fn backward(&mut self, d_y: &[T], d_x: &mut [T], head: usize) {
        let (shape, tokens, width, path) = (self.shape, self.shape.tokens, self.shape.width(), self.path);
        for (token, row) in self.d_y.chunks_exact_mut(width).enumerate() {
            row.copy_from_slice(&d_y[shape.output_place(head, token)]);
        }
        let place = |d_x: &mut [T], part: usize, rows: &[T]| {
            for (token, row) in rows.chunks_exact(width).enumerate() {
                d_x[shape.place((part, head), token)].copy_from_slice(row);
            }
        };
        let transposed = Gemm { a_transposed: true, ..Gemm::new(tokens, width, tokens) };
        matmul_serial(path, transposed, self.shares, self.d_y, self.product);
        place(d_x, VALUE, self.product);

        let gemm = Gemm { b_transposed: true, ..Gemm::new(tokens, tokens, width) };
        matmul_serial(path, gemm, self.d_y, self.v, self.d_shares);
        vectorized(
            path,
            LANES,
            SoftmaxBackward { shares: self.shares, d_shares: self.d_shares, width: tokens },
        );
        // The queries in `q` are scaled already.
        matmul_serial(path, transposed, self.d_shares, self.q, self.product);
        place(d_x, KEY, self.product);
        matmul_serial(path, Gemm::new(tokens, width, tokens), self.d_shares, self.k, self.product);
        let scale = T::from_f64(1.0 / (width as f64).sqrt());
        self.product.iter_mut().for_each(|d_q| *d_q *= scale);
        place(d_x, QUERY, self.product);
    }
}

/// Turns each row of logits into its softmax.
struct Softmax<'a, T> {
    rows: &'a mut [T],
    width: usize,
}

impl<T: Real> ChannelPass for Softmax<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        for row in self.rows.chunks_exact_mut(self.width) {
            let larger = |a: T, b: T| if b > a { b } else { a };
            let largest = fold::<T, L>(row, T::from_f64(f64::NEG_INFINITY), larger);
            let (groups, rest) = row.as_chunks_mut::<L>();
            for x in groups {
                for x in x {
                    *x = (*x - largest).exp_in_pass();
                }
            }
            for x in rest {
                *x = (*x - largest).exp_in_pass();
            }
            let inverse = T::ONE / fold::<T, L>(row, T::ZERO, |a, b| a + b);
            row.iter_mut().for_each(|x| *x *= inverse);
        }
    }
}

/// Turns each row of `d_shares` into the gradient of the logits.
struct SoftmaxBackward<'a, T> {
    shares: &'a [T],
    d_shares: &'a mut [T],
    width: usize,
}

impl<T: Real> ChannelPass for SoftmaxBackward<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(self) {
        let rows = self.shares.chunks_exact(self.width);
        for (shares, d_shares) in rows.zip(self.d_shares.chunks_exact_mut(self.width)) {
            d_shares.iter_mut().zip(shares).for_each(|(d, &share)| *d *= share);
            let sum = fold::<T, L>(d_shares, T::ZERO, |a, b| a + b);
            d_shares.iter_mut().zip(shares).for_each(|(d, &share)| *d -= share * sum);
        }
    }
}

/// Folds a row in `L` lanes, which are then folded in order.
#[inline(always)]
fn fold<T: Real, const L: usize>(row: &[T], first: T, f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [first; L];
    let (groups, rest) = row.as_chunks::<L>();
    for group in groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane = f(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
    let mut all = first;
    for lane in lanes {
        all = f(all, lane);
    }
    all
}
