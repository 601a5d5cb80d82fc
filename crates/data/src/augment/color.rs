//! Operations on the colour of single pixels, after torchvision's functional versions on float tensors.

use crate::augment::Planes;

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

/// Adjusts every pixel; results are clamped to [0, 1].
pub fn adjust(planes: &mut Planes, change: Adjust) {
    match change {
        Adjust::Brightness(factor) => {
            planes.values.iter_mut().for_each(|value| *value = (*value * factor).clamp(0.0, 1.0));
        }
        Adjust::Contrast(factor) => {
            let other = mean_luma(planes) * (1.0 - factor);
            planes.values.iter_mut().for_each(|value| *value = (*value * factor + other).clamp(0.0, 1.0));
        }
        Adjust::Saturation(factor) => for_each_pixel(planes, |rgb| {
            let other = luma(rgb) * (1.0 - factor);
            rgb.map(|value| (value * factor + other).clamp(0.0, 1.0))
        }),
        Adjust::Hue(0.0) => {}
        Adjust::Hue(turn) => for_each_pixel(planes, |rgb| turn_hue(rgb, turn)),
    }
}

/// Replaces all channels by the luma.
pub fn grayscale(planes: &mut Planes) {
    for_each_pixel(planes, |rgb| [luma(rgb); 3]);
}

/// Inverts the values from 0.5 on.
pub fn solarize(planes: &mut Planes) {
    planes.values.iter_mut().for_each(|value| {
        if *value >= 0.5 {
            *value = 1.0 - *value;
        }
    });
}

/// ITU-R 601-2, with torchvision's digits.
fn luma([red, green, blue]: [f32; 3]) -> f32 {
    0.2989 * red + 0.587 * green + 0.114 * blue
}

fn mean_luma(planes: &mut Planes) -> f32 {
    let pixels = planes.size * planes.size;
    let [red, green, blue] = planes.channels();
    // Short sums in f32 added up in f64: fast, and exact enough for any image.
    let chunks = red.chunks(64).zip(green.chunks(64)).zip(blue.chunks(64));
    let sum: f64 = chunks
        .map(|((red, green), blue)| {
            let lumas = red.iter().zip(green).zip(blue).map(|((r, g), b)| luma([*r, *g, *b]));
            f64::from(lumas.sum::<f32>())
        })
        .sum();
    (sum / pixels as f64) as f32
}

/// Inlined into loops over three plain slices, which the compiler vectorises.
#[inline(always)]
fn for_each_pixel(planes: &mut Planes, change: impl Fn([f32; 3]) -> [f32; 3]) {
    let [red, green, blue] = planes.channels();
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
    let max = red.max(green).max(blue);
    let range = max - red.min(green).min(blue);
    // Gray has no hue; whatever stands here is multiplied by a range of zero.
    let divisor = if range == 0.0 { 1.0 } else { range };
    let from_red = (green - blue) / divisor;
    let from_green = 2.0 + (blue - red) / divisor;
    let from_blue = 4.0 + (red - green) / divisor;
    let hue = if max == green { from_green } else { from_blue };
    let hue = if max == red { from_red } else { hue };
    // From [-1, 5] and at most three sixths further to [0, 6].
    let hue = hue + 6.0 * turn;
    let hue = if hue < 0.0 { hue + 6.0 } else { hue };
    let hue = if hue >= 6.0 { hue - 6.0 } else { hue };
    [5.0, 3.0, 1.0].map(|sector| {
        let k = sector + hue;
        let k = if k >= 6.0 { k - 6.0 } else { k };
        max - range * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}
