//! The built-in set: ten patterns, drawn rather than downloaded.
//!
//! The class of an image is the pattern that fills its main figure: stripes, a spiral, bricks. Everything else
//! is a nuisance that says nothing about the class: the tints of the pattern and which of them is the brighter,
//! its scale, rotation and phase, the figure's place and outline, the background, clutter drawn across it, the
//! light and the sensor's noise. Pixels of two images of one class therefore agree little more than those of two
//! classes, while any two crops of one image show the same pattern, which is what a contrastive method needs.
//!
//! An image is a function of the split and its index, so nothing is stored and nothing has an order.

use crate::Image;
use crate::random::{Draws, Purpose};

/// The names of the classes, by label. They take turns, so that every class is equally frequent.
pub const CLASS_NAMES: [&str; 10] = [
    "stripes",
    "zigzag",
    "checkers",
    "dots",
    "rings",
    "bricks",
    "starburst",
    "spiral",
    "camouflage",
    "crosses",
];

/// Images of the training and of the test split.
pub const TRAIN_LEN: usize = 6_000;
pub const TEST_LEN: usize = 1_000;

const SIZE: usize = 32;
/// Part of what the set is: never change it.
const SEED: u64 = 0x4869_6d70_756e;

/// Which half of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

impl Split {
    pub fn len(self) -> usize {
        match self {
            Split::Train => TRAIN_LEN,
            Split::Test => TEST_LEN,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }
}

/// The class of an image.
pub fn label(index: usize) -> u32 {
    (index % CLASS_NAMES.len()) as u32
}

/// Draws one image.
pub fn render(split: Split, index: usize) -> Image {
    let mut draws = Draws::new(SEED, split as u64, index as u64, 0, Purpose::Builtin);
    let scene = Scene::draw(index % CLASS_NAMES.len(), &mut draws);
    let mut rgb = Vec::with_capacity(SIZE * SIZE * 3);
    let mut noise = Noise { amplitude: draws.uniform(0.03, 0.06) as f32, draws, bits: 0, left: 0 };
    for row in 0..SIZE {
        for column in 0..SIZE {
            // In units of half the image, the origin in its centre.
            let x = (column as f32 + 0.5) / (SIZE as f32 / 2.0) - 1.0;
            let y = (row as f32 + 0.5) / (SIZE as f32 / 2.0) - 1.0;
            for channel in scene.colour_at(x, y) {
                let value = (channel + noise.next()).clamp(0.0, 1.0);
                rgb.push((value * 255.0 + 0.5) as u8);
            }
        }
    }
    Image { width: SIZE, height: SIZE, rgb }
}

type Colour = [f32; 3];

/// Everything that was drawn for one image.
struct Scene {
    pattern: Pattern,
    inks: [Colour; 2],
    outline: Outline,
    background: [Colour; 2],
    background_slope: [f32; 2],
    clutter: [Bar; 2],
    light: [f32; 3],
}

impl Scene {
    fn draw(class: usize, draws: &mut Draws) -> Scene {
        let mut number = |low: f64, high: f64| draws.uniform(low, high) as f32;
        let centre = [number(-0.3, 0.3), number(-0.3, 0.3)];
        let outline = Outline { centre, radius: number(0.85, 1.35), roundness: number(0.0, 1.0) };
        let light = [number(0.85, 1.1), number(-0.15, 0.15), number(-0.15, 0.15)];
        Scene {
            pattern: Pattern::draw(class, centre, draws),
            inks: contrasting_colours(draws),
            outline,
            background: [colour(draws), colour(draws)],
            background_slope: direction(draws),
            clutter: [Bar::draw(draws), Bar::draw(draws)],
            light,
        }
    }

    fn colour_at(&self, x: f32, y: f32) -> Colour {
        let [across, down] = self.background_slope;
        let behind = blend(self.background, 0.5 + 0.5 * (across * x + down * y));
        let figure = blend(self.inks, self.pattern.at(x, y));
        let mut colour = blend([behind, figure], self.outline.coverage(x, y));
        for bar in &self.clutter {
            colour = blend([colour, bar.colour], bar.coverage(x, y));
        }
        let [level, slope_x, slope_y] = self.light;
        let light = level + slope_x * x + slope_y * y;
        colour.map(|channel| channel * light)
    }
}

/// A figure's outline, between a square and a circle, with a soft edge.
struct Outline {
    centre: [f32; 2],
    radius: f32,
    roundness: f32,
}

impl Outline {
    fn coverage(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = ((x - self.centre[0]).abs(), (y - self.centre[1]).abs());
        let round = (dx * dx + dy * dy).sqrt();
        let distance = dx.max(dy) + self.roundness * (round - dx.max(dy));
        ((self.radius - distance) * 8.0 + 0.5).clamp(0.0, 1.0)
    }
}

/// A straight bar across the image, of any colour.
struct Bar {
    through: [f32; 2],
    along: [f32; 2],
    half_length: f32,
    half_width: f32,
    colour: Colour,
}

impl Bar {
    fn draw(draws: &mut Draws) -> Bar {
        let mut number = |low: f64, high: f64| draws.uniform(low, high) as f32;
        let through = [number(-1.0, 1.0), number(-1.0, 1.0)];
        let (half_length, half_width) = (number(0.15, 0.7), number(0.03, 0.10));
        Bar { through, half_length, half_width, along: direction(draws), colour: colour(draws) }
    }

    fn coverage(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = (x - self.through[0], y - self.through[1]);
        let along = (dx * self.along[0] + dy * self.along[1]).abs();
        let across = (dx * self.along[1] - dy * self.along[0]).abs();
        let inside = (self.half_length - along).min(self.half_width - across);
        (inside * 16.0 + 0.5).clamp(0.0, 1.0)
    }
}

/// A pattern and the frame it lies in.
struct Pattern {
    class: usize,
    origin: [f32; 2],
    axis: [f32; 2],
    frequency: f32,
    phase: [f32; 2],
    /// Corner values of the irregular pattern, a torus of 8 x 8.
    lattice: [f32; 64],
}

impl Pattern {
    fn draw(class: usize, centre: [f32; 2], draws: &mut Draws) -> Pattern {
        let axis = direction(draws);
        // Periods of 5 to 7 pixels: fine enough for a crop to show several, coarse enough for 32.
        let frequency = 16.0 / draws.uniform(5.0, 7.0) as f32;
        let phase = [draws.unit() as f32, draws.unit() as f32];
        Pattern {
            class,
            origin: centre,
            axis,
            frequency,
            phase,
            lattice: std::array::from_fn(|_| draws.unit() as f32),
        }
    }

    /// How much of the second ink is at a place, in [0, 1].
    fn at(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = ((x - self.origin[0]) * self.frequency, (y - self.origin[1]) * self.frequency);
        let u = dx * self.axis[0] + dy * self.axis[1];
        let v = dy * self.axis[0] - dx * self.axis[1];
        let (pu, pv) = (u + self.phase[0], v + self.phase[1]);
        let squared_radius = (u * u + v * v).max(1e-4);
        // Positive on one ink, negative on the other; about 1 in size away from the border between them.
        let signed = match self.class {
            0 => triangle(pu),
            1 => triangle(pu + 0.45 * triangle(pv * 0.6)),
            2 => 2.0 * triangle(pu * 0.6) * triangle(pv * 0.6),
            3 => 6.0 * (0.3 - distance_to_centre(pu, pv)),
            4 => triangle(squared_radius.sqrt() + self.phase[0]),
            5 => bricks(pu * 0.7, pv),
            6 => 4.0 * u * v * (u * u - v * v) / (squared_radius * squared_radius),
            7 => {
                let turn = 0.8 * squared_radius.sqrt() + self.phase[0];
                (2.0 * u * v * wave(turn) + (u * u - v * v) * wave(turn + 0.25)) / squared_radius
            }
            8 => 5.0 * (self.irregular(pu * 1.6, pv * 1.6) - 0.5),
            _ => cross(pu * 0.8, pv * 0.8),
        };
        (0.5 + 1.5 * signed).clamp(0.0, 1.0)
    }

    /// Smooth noise: the lattice's values, interpolated.
    fn irregular(&self, u: f32, v: f32) -> f32 {
        let (column, fu) = cell(u);
        let (row, fv) = cell(v);
        let corner =
            |down: i32, right: i32| self.lattice[(((row + down) & 7) * 8 + ((column + right) & 7)) as usize];
        let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
        let (su, sv) = (smooth(fu), smooth(fv));
        let top = corner(0, 0) + su * (corner(0, 1) - corner(0, 0));
        let bottom = corner(1, 0) + su * (corner(1, 1) - corner(1, 0));
        top + sv * (bottom - top)
    }
}

/// A wall: mortar lines on every row, and on every second half a brick further.
fn bricks(u: f32, v: f32) -> f32 {
    let (row, fv) = cell(v * 1.2);
    let (_, fu) = cell(u + 0.5 * (row & 1) as f32);
    let to_joint = (fv.min(1.0 - fv) / 1.2).min(fu.min(1.0 - fu) / 0.7);
    6.0 * (to_joint - 0.14)
}

/// Plus signs, one a cell.
fn cross(u: f32, v: f32) -> f32 {
    let (du, dv) = ((cell(u).1 - 0.5).abs(), (cell(v).1 - 0.5).abs());
    6.0 * (0.12 - du.min(dv)).min(0.4 - du.max(dv))
}

fn distance_to_centre(u: f32, v: f32) -> f32 {
    let (du, dv) = (cell(u).1 - 0.5, cell(v).1 - 0.5);
    (du * du + dv * dv).sqrt()
}

/// A number's floor, and what is above it.
fn cell(x: f32) -> (i32, f32) {
    let floor = x.floor();
    (floor as i32, x - floor)
}

/// A triangle wave of period 1 between -1 and 1. No sine: its last bit differs between C libraries.
fn triangle(x: f32) -> f32 {
    4.0 * (cell(x).1 - 0.5).abs() - 1.0
}

/// Nearly `cos(2 pi x)`.
fn wave(x: f32) -> f32 {
    let t = triangle(x);
    t * (1.5 - 0.5 * t * t)
}

/// A unit vector, uniform over the circle.
fn direction(draws: &mut Draws) -> [f32; 2] {
    loop {
        let (x, y) = (draws.uniform(-1.0, 1.0) as f32, draws.uniform(-1.0, 1.0) as f32);
        let length = (x * x + y * y).sqrt();
        if (0.05..1.0).contains(&length) {
            return [x / length, y / length];
        }
    }
}

fn colour(draws: &mut Draws) -> Colour {
    tinted(draws, 0.15, 0.85)
}

/// A brightness within bounds and little colour: were the colours strong, two crops of an image could be told from
/// all others by them alone, and a contrastive method would learn those instead of the pattern.
fn tinted(draws: &mut Draws, low: f64, high: f64) -> Colour {
    let level = draws.uniform(low, high) as f32;
    std::array::from_fn(|_| level + draws.uniform(-0.05, 0.05) as f32)
}

/// A dark and a bright colour in any order, so that the pattern survives the loss of colour.
fn contrasting_colours(draws: &mut Draws) -> [Colour; 2] {
    let pair = [tinted(draws, 0.1, 0.35), tinted(draws, 0.65, 0.9)];
    if draws.chance(0.5) { pair } else { [pair[1], pair[0]] }
}

fn blend([from, to]: [Colour; 2], share: f32) -> Colour {
    std::array::from_fn(|channel| from[channel] + share * (to[channel] - from[channel]))
}

/// Sensor noise with a triangular distribution.
struct Noise {
    draws: Draws,
    amplitude: f32,
    bits: u32,
    left: u32,
}

impl Noise {
    fn next(&mut self) -> f32 {
        if self.left == 0 {
            (self.bits, self.left) = (self.draws.bits32(), 2);
        }
        let sum = (self.bits & 0xFF) + (self.bits >> 8 & 0xFF);
        (self.bits, self.left) = (self.bits >> 16, self.left - 1);
        // The standard deviation of the sum of two bytes is 104.
        self.amplitude * (sum as f32 - 255.0) / 104.0
    }
}
