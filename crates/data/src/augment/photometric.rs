//! The operations that VISSL's photometric transform is made of, beside solarisation, after torchvision's functional
//! versions on float tensors.

use crate::augment::Planes;
use crate::wide;

/// Rounds values down to one of `2^bits` levels.
pub fn posterize(planes: &mut Planes, bits: u32) {
    wide::run(Posterize { planes, levels: (1u32 << bits) as f32 });
}

/// Takes each pixel away from its blurred neighbourhood by `factor`, of which 1 leaves it; pixels at the edge stay.
///
/// - `spare`: memory, its content does not matter
pub fn sharpen(planes: &mut Planes, factor: f32, spare: &mut Vec<f32>) {
    spare.clone_from(&planes.values);
    wide::run(Sharpen { planes, factor, before: spare });
}

/// Stretches each channel to [0, 1]; one of a single value stays.
pub fn autocontrast(planes: &mut Planes) {
    wide::run(Autocontrast { planes });
}

struct Posterize<'a> {
    planes: &'a mut Planes,
    levels: f32,
}

impl wide::Pass for Posterize<'_> {
    #[inline(always)]
    fn run(self) {
        let Posterize { planes, levels } = self;
        for value in &mut planes.values {
            // Values are not negative, so that cutting is rounding down.
            *value = ((*value * levels) as i32 as f32).min(levels - 1.0) / levels;
        }
    }
}

struct Sharpen<'a> {
    planes: &'a mut Planes,
    factor: f32,
    before: &'a [f32],
}

impl wide::Pass for Sharpen<'_> {
    #[inline(always)]
    fn run(self) {
        let Sharpen { planes, factor, before } = self;
        let size = planes.size;
        let channels = planes.values.chunks_exact_mut(size * size).zip(before.chunks_exact(size * size));
        for (channel, before) in channels {
            for y in 1..size.saturating_sub(1) {
                let [above, row, below] = [y - 1, y, y + 1].map(|y| &before[y * size..][..size]);
                let out = &mut channel[y * size + 1..][..size.saturating_sub(2)];
                let windows = above.windows(3).zip(row.windows(3)).zip(below.windows(3));
                for (out, ((above, row), below)) in out.iter_mut().zip(windows) {
                    let ends = above[0] + above[1] + above[2] + below[0] + below[1] + below[2];
                    let blurred = (ends + row[0] + 5.0 * row[1] + row[2]) / 13.0;
                    *out = (row[1] + (1.0 - factor) * (blurred - row[1])).clamp(0.0, 1.0);
                }
            }
        }
    }
}

struct Autocontrast<'a> {
    planes: &'a mut Planes,
}

impl wide::Pass for Autocontrast<'_> {
    #[inline(always)]
    fn run(self) {
        for channel in self.planes.channels() {
            let (min, max) = channel.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &value| {
                (min.min(value), max.max(value))
            });
            if min < max {
                channel.iter_mut().for_each(|value| *value = (*value - min) / (max - min));
            }
        }
    }
}
