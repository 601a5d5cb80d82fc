//! The augmentations of the contrastive methods.
//!
//! A view is made as torchvision makes it from a float tensor in [0, 1]: crop, resize (bilinear, antialiased),
//! flip, then the colour operations in the pipeline's order, each clamped to [0, 1], and at last
//! `(x - mean) / std`. Which operations and how strong is a [`ViewPipeline`]; the two views of a method may
//! differ. What each operation draws comes from [`crate::random`], so a view is a function of its [`ViewKey`].
//!
//! Differences to the methods' own programs, all of them torchvision's: the crop is resized bilinearly (the
//! SimCLR code: bicubic), blur has a finite kernel (MoCo's is Pillow's approximation), a crop has no
//! `min_object_covered`, and `b` bits are kept as multiples of `1 / 2^b` (VISSL: of `2^(8 - b) / 255`).

mod blur;
mod color;
mod crop;
mod jigsaw;
mod photometric;
mod resize;

pub use blur::gaussian_blur;
pub use color::{Adjust, adjust, grayscale, solarize};
pub use crop::{CropBox, RandomCrop};
pub use jigsaw::{Jigsaw, PATCHES};
pub use photometric::{autocontrast, posterize, sharpen};
pub(crate) use resize::{Axis, Shrink, resize};

use crate::random::{Draws, Purpose};
use crate::wide;
use crate::{Error, Image, Preprocess};

/// The names that [`Augmentation::preset`] knows.
pub const PRESETS: [&str; 11] = [
    "simclr-imagenet",
    "simclr-cifar",
    "moco-v1",
    "moco-v2",
    "moco-v3",
    "moco-v3-vit",
    "npid",
    "npid-cifar",
    "npidpp",
    "pirl",
    "none",
];

/// How the two views of an image are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Augmentation {
    /// Rows and columns of a view.
    pub size: usize,
    /// One pipeline per view.
    pub views: [ViewPipeline; 2],
    /// Subtracted from each channel at the end.
    pub mean: [f32; 3],
    /// What the difference is divided by.
    pub std: [f32; 3],
}

/// One view's operations.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewPipeline {
    /// Without it the whole image is used, as [`Preprocess`] does, and is never flipped.
    pub crop: Option<RandomCrop>,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Colour operations in the order they are applied in.
    pub ops: Vec<Op>,
}

/// A colour operation that happens with probability `p`.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Brightness, contrast and saturation times U[max(0, 1-x), 1+x], hue plus U[-x, x] turns, in a random order.
    Jitter {
        /// Probability.
        p: f64,
        /// Strength x of the brightness.
        brightness: f64,
        /// Strength x of the contrast.
        contrast: f64,
        /// Strength x of the saturation.
        saturation: f64,
        /// Strength x of the hue, at most 0.5.
        hue: f64,
    },
    /// All channels become the luma.
    Grayscale {
        /// Probability.
        p: f64,
    },
    /// Gaussian blur with standard deviation U[0.1, 2] pixels.
    Blur {
        /// Probability.
        p: f64,
        /// Width of the kernel in pixels, odd.
        kernel: usize,
    },
    /// Values from 0.5 on are inverted.
    Solarize {
        /// Probability.
        p: f64,
    },
    /// VISSL's: 4 to 8 bits are kept, sharpness times U[0.1, 1.9], values from a threshold on of 0 to 256 of 255 are
    /// inverted, and each channel is stretched.
    Photometric {
        /// Probability.
        p: f64,
    },
}

/// What an operation does to one view, with every parameter drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// Four adjustments in this order.
    Jitter([Adjust; 4]),
    /// Colour is dropped.
    Grayscale,
    /// Blurred.
    Blur {
        /// Width of the kernel in pixels.
        kernel: usize,
        /// Standard deviation in pixels.
        sigma: f32,
    },
    /// Bright values are inverted.
    Solarize,
    /// Fewer levels, another sharpness, values from a threshold on inverted, and all of the range taken.
    Photometric {
        /// Bits of a value.
        bits: u32,
        /// Factor of the sharpness.
        sharpness: f32,
        /// What is inverted first.
        threshold: f32,
    },
}

/// Which view: everything its random numbers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewKey {
    /// The run's seed.
    pub seed: u64,
    /// Data pass.
    pub epoch: u64,
    /// The image's place in the data set (also where a replacement is shown in its stead).
    pub index: usize,
    /// 0 or 1; from 2 on the patches of a jigsaw, by their cells.
    pub view: u8,
}

impl ViewKey {
    fn draws(self, purpose: Purpose) -> Draws {
        Draws::new(self.seed, self.epoch, self.index as u64, self.view, purpose)
    }
}

/// Memory that making a view needs; kept from view to view, so that none is allocated for each.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) planes: Planes,
    pub(crate) axes: [Axis; 2],
    pub(crate) row: Vec<f32>,
    /// What the patches of a jigsaw are taken from.
    sheet: Planes,
    spare: Vec<f32>,
    kernel: Vec<f32>,
}

/// An image in the making: `[3, size, size]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Planes {
    /// Rows and columns.
    pub size: usize,
    /// Red, then green, then blue.
    pub values: Vec<f32>,
}

impl Planes {
    /// The three channels.
    pub fn channels(&mut self) -> [&mut [f32]; 3] {
        let (red, rest) = self.values.split_at_mut(self.size * self.size);
        let (green, blue) = rest.split_at_mut(self.size * self.size);
        [red, green, blue]
    }

    /// Writes `(x - mean) / std` as `[size, size, 3]`.
    pub(crate) fn write_normalised(&self, mean: [f32; 3], std: [f32; 3], out: &mut [f32]) {
        assert_eq!(out.len(), self.values.len(), "a view of {0} x {0}", self.size);
        wide::run(WriteNormalised { planes: self, mean, std, out });
    }
}

struct WriteNormalised<'a> {
    planes: &'a Planes,
    mean: [f32; 3],
    std: [f32; 3],
    out: &'a mut [f32],
}

impl wide::Pass for WriteNormalised<'_> {
    #[inline(always)]
    fn run(self) {
        let WriteNormalised { planes, mean, std, out } = self;
        let pixels = planes.size * planes.size;
        let (red, rest) = planes.values.split_at(pixels);
        let (green, blue) = rest.split_at(pixels);
        let (out, _) = out.as_chunks_mut::<3>();
        for (pixel, ((r, g), b)) in out.iter_mut().zip(red.iter().zip(green).zip(blue)) {
            *pixel = [(r - mean[0]) / std[0], (g - mean[1]) / std[1], (b - mean[2]) / std[2]];
        }
    }
}

impl Augmentation {
    /// Builds the augmentation of a paper, for views of `size` pixels, with values in [0, 1].
    ///
    /// `npid` is lemniscate's ImageNet recipe, `npid-cifar` its CIFAR recipe, `npidpp` and `pirl` are VISSL's.
    /// `moco-v3` crops from 0.2 of the area on, as for ResNet-50; `moco-v3-vit` from 0.08, as for transformers.
    ///
    /// # Errors
    /// If no preset has this name.
    pub fn preset(name: &str, size: usize) -> Result<Augmentation, Error> {
        // Wider kernels for larger images: 23 pixels at 224.
        let kernel = (size / 10) | 1;
        let gray = Op::Grayscale { p: 0.2 };
        let blur = |p| Op::Blur { p, kernel };
        let [first, second] = match name {
            // Strength s of the colours is 1 on ImageNet, 0.5 on CIFAR, where nothing is blurred either.
            "simclr-imagenet" => both(0.08, vec![jitter(0.8, [0.8, 0.8, 0.8, 0.2]), gray, blur(0.5)]),
            "simclr-cifar" => both(0.08, vec![jitter(0.8, [0.4, 0.4, 0.4, 0.1]), gray]),
            // Gray comes first in both programs: the jitter then changes brightness and contrast only.
            "moco-v1" | "npid" => both(0.2, vec![gray, jitter(1.0, [0.4; 4])]),
            // In lemniscate's cifar.py the flip is commented out.
            "npid-cifar" => both(0.2, vec![gray, jitter(1.0, [0.4; 4])]).map(unflipped),
            "npidpp" => both(0.08, vec![jitter(1.0, [0.4; 4])]),
            "pirl" => both(0.08, vec![jitter(1.0, [0.4, 0.4, 0.4, 0.2]), Op::Photometric { p: 0.66 }, gray]),
            "moco-v2" => both(0.2, vec![jitter(0.8, [0.4, 0.4, 0.4, 0.1]), gray, blur(0.5)]),
            "moco-v3" | "moco-v3-vit" => {
                let smallest_area = if name == "moco-v3" { 0.2 } else { 0.08 };
                let colours = jitter(0.8, [0.4, 0.4, 0.2, 0.1]);
                let first = vec![colours.clone(), gray.clone(), blur(1.0)];
                [first, vec![colours, gray, blur(0.1), Op::Solarize { p: 0.2 }]]
                    .map(|ops| cropped(smallest_area, ops))
            }
            "none" => return Ok(Augmentation::none(size)),
            _ => return Err(Error::UnknownAugmentation { name: name.to_owned() }),
        };
        Ok(Augmentation { size, views: [first, second], mean: [0.0; 3], std: [1.0; 3] })
    }

    /// Builds the augmentation that does nothing: both views are the image, as [`Preprocess`] gives it.
    pub fn none(size: usize) -> Augmentation {
        let whole = ViewPipeline { crop: None, flip: 0.0, ops: Vec::new() };
        Augmentation { size, views: [whole.clone(), whole], mean: [0.0; 3], std: [1.0; 3] }
    }

    /// Ends both pipelines with `(x - mean) / std`.
    pub fn normalised(self, mean: [f32; 3], std: [f32; 3]) -> Augmentation {
        Augmentation { mean, std, ..self }
    }

    /// Tells how the same images are prepared for evaluation.
    pub fn preprocess(&self) -> Preprocess {
        Preprocess { size: self.size, mean: self.mean, std: self.std }
    }

    /// Counts the values of one view.
    pub fn view_len(&self) -> usize {
        self.size * self.size * 3
    }

    /// Makes one view of `image`.
    ///
    /// - `out`: `[size, size, 3]`, overwritten
    ///
    /// # Panics
    /// If `out` has another length or `key.view` is neither 0 nor 1.
    pub fn render(&self, image: &Image, key: ViewKey, scratch: &mut Scratch, out: &mut [f32]) {
        let pipeline = &self.views[usize::from(key.view)];
        match &pipeline.crop {
            Some(crop) => {
                let window = crop.draw(image.width, image.height, &mut key.draws(Purpose::Crop));
                let flip = key.draws(Purpose::Flip).chance(pipeline.flip);
                scratch.crop(image, window, self.size, flip);
            }
            None => self.preprocess().place(image, scratch),
        }
        for op in &pipeline.ops {
            if let Some(applied) = op.draw(key) {
                scratch.apply(&applied);
            }
        }
        scratch.planes.write_normalised(self.mean, self.std, out);
    }
}

fn both(smallest_area: f64, ops: Vec<Op>) -> [ViewPipeline; 2] {
    [cropped(smallest_area, ops.clone()), cropped(smallest_area, ops)]
}

fn cropped(smallest_area: f64, ops: Vec<Op>) -> ViewPipeline {
    let crop = RandomCrop { area: [smallest_area, 1.0], aspect: [3.0 / 4.0, 4.0 / 3.0] };
    ViewPipeline { crop: Some(crop), flip: 0.5, ops }
}

fn unflipped(pipeline: ViewPipeline) -> ViewPipeline {
    ViewPipeline { flip: 0.0, ..pipeline }
}

fn jitter(p: f64, [brightness, contrast, saturation, hue]: [f64; 4]) -> Op {
    Op::Jitter { p, brightness, contrast, saturation, hue }
}

impl Op {
    /// Decides whether the operation happens to this view, and how.
    pub fn draw(&self, key: ViewKey) -> Option<Applied> {
        match *self {
            Op::Jitter { p, brightness, contrast, saturation, hue } => {
                let mut draws = key.draws(Purpose::Jitter);
                draws.chance(p).then(|| {
                    let mut factor = |x: f64| draws.uniform((1.0 - x).max(0.0), 1.0 + x) as f32;
                    let mut adjusts = [
                        Adjust::Brightness(factor(brightness)),
                        Adjust::Contrast(factor(contrast)),
                        Adjust::Saturation(factor(saturation)),
                        Adjust::Hue(draws.uniform(-hue, hue) as f32),
                    ];
                    for last in (1..adjusts.len()).rev() {
                        adjusts.swap(last, draws.below(last as u64 + 1) as usize);
                    }
                    Applied::Jitter(adjusts)
                })
            }
            Op::Grayscale { p } => key.draws(Purpose::Grayscale).chance(p).then_some(Applied::Grayscale),
            Op::Blur { p, kernel } => {
                let mut draws = key.draws(Purpose::Blur);
                draws.chance(p).then(|| Applied::Blur { kernel, sigma: draws.uniform(0.1, 2.0) as f32 })
            }
            Op::Solarize { p } => key.draws(Purpose::Solarize).chance(p).then_some(Applied::Solarize),
            Op::Photometric { p } => {
                let mut draws = key.draws(Purpose::Photometric);
                draws.chance(p).then(|| Applied::Photometric {
                    bits: 4 + draws.below(5) as u32,
                    sharpness: draws.uniform(0.1, 1.9) as f32,
                    threshold: draws.below(257) as f32 / 255.0,
                })
            }
        }
    }
}

impl Scratch {
    /// Resizes a window of `image` to `size`, mirrored if `flip`, into `planes`.
    pub fn crop(&mut self, image: &Image, window: CropBox, size: usize, flip: bool) {
        let [columns, rows] = &mut self.axes;
        columns.plan(window.left, window.width, size, 0..size);
        if flip {
            columns.reverse();
        }
        rows.plan(window.top, window.height, size, 0..size);
        resize(image, [columns, rows], &mut self.row, &mut self.planes);
    }

    /// Applies one operation to `planes`.
    pub fn apply(&mut self, applied: &Applied) {
        match applied {
            Applied::Jitter(adjusts) => adjust(&mut self.planes, adjusts),
            Applied::Grayscale => grayscale(&mut self.planes),
            Applied::Blur { kernel, sigma } => {
                blur::kernel(*kernel, *sigma, &mut self.kernel);
                gaussian_blur(&mut self.planes, &self.kernel, &mut self.spare);
            }
            Applied::Solarize => solarize(&mut self.planes, 0.5),
            Applied::Photometric { bits, sharpness, threshold } => {
                posterize(&mut self.planes, *bits);
                sharpen(&mut self.planes, *sharpness, &mut self.spare);
                solarize(&mut self.planes, *threshold);
                autocontrast(&mut self.planes);
            }
        }
    }
}

#[cfg(test)]
mod tests;
