//! Gaussian blur, as torchvision's `gaussian_blur` does it: a finite kernel, edges reflected without repeating
//! the outermost pixel. The kernel is a product, so rows and columns are blurred one after the other.

use crate::augment::Planes;
use crate::wide::{self, LANES};

/// Writes the weights of a kernel of `width` pixels, which add up to 1.
pub(crate) fn kernel(width: usize, sigma: f32, weights: &mut Vec<f32>) {
    assert!(width % 2 == 1, "a kernel of {width} pixels has no middle");
    let middle = (width / 2) as f32;
    weights.clear();
    weights.extend((0..width).map(|i| {
        let distance = (i as f32 - middle) / sigma;
        (-0.5 * distance * distance).exp()
    }));
    let total: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= total);
}

/// Blurs all channels with the same symmetric kernel along both axes.
///
/// - `spare`: memory, its content does not matter
///
/// # Panics
/// If half the kernel is not smaller than the image: there would be nothing to reflect.
pub fn gaussian_blur(planes: &mut Planes, kernel: &[f32], spare: &mut Vec<f32>) {
    let size = planes.size;
    assert!(kernel.len() / 2 < size, "a kernel of {} pixels on an image of {size}", kernel.len());
    let kernel = without_nothings(kernel);
    spare.resize(planes.values.len() + size + kernel.len() - 1, 0.0);
    let (out, line) = spare.split_at_mut(planes.values.len());
    wide::run(Blur { size, kernel, planes: &planes.values, out, line });
    std::mem::swap(&mut planes.values, spare);
    planes.values.truncate(3 * size * size);
}

/// The middle of a kernel, without the taps that no sum of values up to 1 would notice: most of a wide kernel,
/// where the standard deviation is small.
fn without_nothings(kernel: &[f32]) -> &[f32] {
    const NOTHING: f32 = 1e-9;
    let first = kernel.iter().position(|weight| *weight > NOTHING).unwrap_or(0);
    &kernel[first..kernel.len() - first]
}

struct Blur<'a> {
    size: usize,
    kernel: &'a [f32],
    planes: &'a [f32],
    out: &'a mut [f32],
    /// One row with what is reflected at both ends.
    line: &'a mut [f32],
}

impl wide::Pass for Blur<'_> {
    /// Row by row: first down the columns into `line`, then along it.
    #[inline(always)]
    fn run(self) {
        let Blur { size, kernel, planes, out, line } = self;
        let reach = kernel.len() / 2;
        let channels = planes.chunks_exact(size * size).zip(out.chunks_exact_mut(size * size));
        for (channel, out) in channels {
            for (y, out) in out.chunks_exact_mut(size).enumerate() {
                let from = |tap| reflected(y + tap, reach, size) * size;
                weighted_sums(kernel, channel, from, &mut line[reach..reach + size]);
                for x in (0..reach).chain(reach + size..line.len()) {
                    line[x] = line[reach + reflected(x, reach, size)];
                }
                weighted_sums(kernel, line, |tap| tap, out);
            }
        }
    }
}

/// Writes the sums over taps of `weight * values[from(tap) + i]` into `out[i]`.
#[inline(always)]
fn weighted_sums(kernel: &[f32], values: &[f32], from: impl Fn(usize) -> usize, out: &mut [f32]) {
    // Four registers hide the latency of the additions; what is left takes one, then single values.
    let done = groups::<{ 2 * LANES }>(kernel, values, &from, (0, &mut *out));
    let done = groups::<{ LANES / 2 }>(kernel, values, &from, (done, &mut *out));
    groups::<1>(kernel, values, &from, (done, out));
}

/// Writes as many whole groups of `N` sums as fit behind the first `done`; returns how many are done then.
#[inline(always)]
fn groups<const N: usize>(
    kernel: &[f32],
    values: &[f32],
    from: &impl Fn(usize) -> usize,
    (mut done, out): (usize, &mut [f32]),
) -> usize {
    for sums in out[done..].as_chunks_mut::<N>().0 {
        *sums = lanes(kernel, values, |tap| from(tap) + done);
        done += N;
    }
    done
}

/// The sums stay in registers from the first tap to the last.
#[inline(always)]
fn lanes<const N: usize>(kernel: &[f32], values: &[f32], from: impl Fn(usize) -> usize) -> [f32; N] {
    let mut sums = [0.0; N];
    for (tap, weight) in kernel.iter().enumerate() {
        let values = &values[from(tap)..][..N];
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += weight * value;
        }
    }
    sums
}

/// The pixel of an axis of `size` that stands at `position` of the axis padded by `reach` on both sides.
#[inline(always)]
fn reflected(position: usize, reach: usize, size: usize) -> usize {
    let inside = position.abs_diff(reach);
    if inside < size { inside } else { 2 * (size - 1) - inside }
}
