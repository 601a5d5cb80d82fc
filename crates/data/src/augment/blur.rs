//! Gaussian blur, as torchvision's `gaussian_blur` does it: a finite kernel, edges reflected without repeating
//! the outermost pixel. The kernel is a product, so rows and columns are blurred one after the other.

use crate::augment::Planes;

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
    let reach = kernel.len() / 2;
    assert!(reach < size, "a kernel of {} pixels on an image of {size}", kernel.len());
    let padded = size + 2 * reach;
    spare.clear();
    spare.resize(size * size + padded, 0.0);
    let (tall, line) = spare.split_at_mut(size * size);
    for channel in planes.channels() {
        for (y, sums) in tall.chunks_exact_mut(size).enumerate() {
            sums.fill(0.0);
            for (tap, weight) in kernel.iter().enumerate() {
                let source = reflected(y + tap, reach, size) * size;
                for (sum, value) in sums.iter_mut().zip(&channel[source..source + size]) {
                    *sum += weight * value;
                }
            }
        }
        for (row, sums) in tall.chunks_exact(size).zip(channel.chunks_exact_mut(size)) {
            for (x, value) in line.iter_mut().enumerate() {
                *value = row[reflected(x, reach, size)];
            }
            sums.fill(0.0);
            for (tap, weight) in kernel.iter().enumerate() {
                for (sum, value) in sums.iter_mut().zip(&line[tap..tap + size]) {
                    *sum += weight * value;
                }
            }
        }
    }
}

/// The pixel of an axis of `size` that stands at `position` of the axis padded by `reach` on both sides.
fn reflected(position: usize, reach: usize, size: usize) -> usize {
    let inside = position.abs_diff(reach);
    if inside < size { inside } else { 2 * (size - 1) - inside }
}
