//! Operations on the colour of single pixels, after torchvision's functional versions on float tensors.

use crate::augment::Planes;
use crate::wide::{self, LANES};

/// One of the four colour adjustments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Adjust {
    /// Times the factor.
    Brightness(f32),
    /// Away from the image's mean luma by the factor.
    Contrast(f32),
    /// Away from each pixel's luma by the factor.
    Saturation(f32),
    /// Round the hue circle by this share of a turn, in [-0.5, 0.5].
    Hue(f32),
}

/// Makes adjustments one after the other; results of each are clamped to [0, 1].
pub fn adjust(planes: &mut Planes, changes: &[Adjust]) {
    // Contrast needs the mean of all pixels as they are by then: everything between two such means is one pass.
    let mut rest = changes;
    while !rest.is_empty() {
        let mut mean = 0.0;
        if let [Adjust::Contrast(_), ..] = rest {
            wide::run(MeanLuma { planes, mean: &mut mean });
        }
        let next = rest.iter().skip(1).position(|change| matches!(change, Adjust::Contrast(_)));
        let (now, later) = rest.split_at(next.map_or(rest.len(), |at| at + 1));
        wide::run(PerPixel { planes, changes: now, mean });
        rest = later;
    }
}

/// Replaces all channels by the luma.
pub fn grayscale(planes: &mut Planes) {
    wide::run(Grayscale { planes });
}

/// Inverts the values from `threshold` on.
pub fn solarize(planes: &mut Planes, threshold: f32) {
    planes.values.iter_mut().for_each(|value| {
        if *value >= threshold {
            *value = 1.0 - *value;
        }
    });
}

/// Changes of single pixels, of which only the first may be one of contrast, about `mean`.
struct PerPixel<'a> {
    planes: &'a mut Planes,
    changes: &'a [Adjust],
    mean: f32,
}

impl wide::Pass for PerPixel<'_> {
    /// All changes to a few pixels before the next few, so that they stay in the nearest cache.
    #[inline(always)]
    fn run(self) {
        const BLOCK: usize = 32 * LANES;
        let [red, green, blue] = self.planes.channels();
        let blocks = red.chunks_mut(BLOCK).zip(green.chunks_mut(BLOCK)).zip(blue.chunks_mut(BLOCK));
        for ((red, green), blue) in blocks {
            for change in self.changes {
                let rgb = [&mut *red, &mut *green, &mut *blue];
                match *change {
                    Adjust::Brightness(factor) => for_each_value(rgb, |value| unit(value * factor)),
                    Adjust::Contrast(factor) => {
                        let other = self.mean * (1.0 - factor);
                        for_each_value(rgb, |value| unit(value * factor + other));
                    }
                    Adjust::Saturation(factor) => for_each_pixel(rgb, |rgb| {
                        let other = luma(rgb) * (1.0 - factor);
                        rgb.map(|value| unit(value * factor + other))
                    }),
                    Adjust::Hue(0.0) => {}
                    Adjust::Hue(turn) => for_each_pixel(rgb, |rgb| turn_hue(rgb, turn)),
                }
            }
        }
    }
}

struct Grayscale<'a> {
    planes: &'a mut Planes,
}

impl wide::Pass for Grayscale<'_> {
    #[inline(always)]
    fn run(self) {
        for_each_pixel(self.planes.channels(), |rgb| [luma(rgb); 3]);
    }
}

struct MeanLuma<'a> {
    planes: &'a mut Planes,
    mean: &'a mut f32,
}

impl wide::Pass for MeanLuma<'_> {
    /// Short sums in f32, in lanes, added up in f64: fast, and exact enough for any image.
    #[inline(always)]
    fn run(self) {
        const PART: usize = 8 * LANES;
        let pixels = self.planes.size * self.planes.size;
        let [red, green, blue] = self.planes.channels();
        let mut total = 0.0;
        for ((red, green), blue) in red.chunks(PART).zip(green.chunks(PART)).zip(blue.chunks(PART)) {
            let mut sums = [0.0; LANES];
            let groups = red.chunks(LANES).zip(green.chunks(LANES)).zip(blue.chunks(LANES));
            for ((red, green), blue) in groups {
                for (sum, ((r, g), b)) in sums.iter_mut().zip(red.iter().zip(green).zip(blue)) {
                    *sum += luma([*r, *g, *b]);
                }
            }
            total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        }
        *self.mean = (total / pixels as f64) as f32;
    }
}

/// ITU-R 601-2, with torchvision's digits.
#[inline(always)]
fn luma([red, green, blue]: [f32; 3]) -> f32 {
    0.2989 * red + 0.587 * green + 0.114 * blue
}

/// Clamped to [0, 1], in the two instructions that `f32::clamp` is not: it also cares for what is no number.
#[inline(always)]
fn unit(value: f32) -> f32 {
    larger(smaller(value, 1.0), 0.0)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn for_each_value(rgb: [&mut [f32]; 3], change: impl Fn(f32) -> f32) {
    rgb.into_iter().for_each(|channel| channel.iter_mut().for_each(|value| *value = change(*value)));
}

/// Inlined into a loop over three plain slices, which the compiler vectorises.
#[inline(always)]
fn for_each_pixel(rgb: [&mut [f32]; 3], change: impl Fn([f32; 3]) -> [f32; 3]) {
    let [red, green, blue] = rgb;
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        [*red, *green, *blue] = change([*red, *green, *blue]);
    }
}

/// Adds `turn` to the hue of an RGB colour, keeping saturation and value.
///
/// The way over HSV of torchvision (and Pillow) written without branches. With h in sixths of the circle,
/// v the maximum and c the range of the channels, the channel whose own sector lies n sixths away is
/// `v - c * clamp(min(k, 4 - k), 0, 1)` where `k = (n + h) mod 6` and n = 5, 3, 1 for red, green, blue.
#[inline(always)]
fn turn_hue([red, green, blue]: [f32; 3], turn: f32) -> [f32; 3] {
    let max = larger(larger(red, green), blue);
    let range = max - smaller(smaller(red, green), blue);
    // Gray has no hue; whatever stands here is multiplied by a range of zero.
    let divisor = if range == 0.0 { 1.0 } else { range };
    // Chosen before the division: one of them instead of three.
    let (sector, difference) = if max == green { (2.0, blue - red) } else { (4.0, red - green) };
    let (sector, difference) = if max == red { (0.0, green - blue) } else { (sector, difference) };
    // From [-1, 5] and at most three sixths further to [0, 6].
    let hue = sector + difference / divisor + 6.0 * turn;
    let hue = if hue < 0.0 { hue + 6.0 } else { hue };
    let hue = if hue >= 6.0 { hue - 6.0 } else { hue };
    [5.0, 3.0, 1.0].map(|sector| {
        let k = sector + hue;
        let k = if k >= 6.0 { k - 6.0 } else { k };
        max - range * unit(smaller(k, 4.0 - k))
    })
}
