//! The jigsaw of an image: nine patches, each with colours of its own, in random order.
//!
//! Misra and van der Maaten 2019 (arXiv:1912.01991), section 3.2 and figure 3, with the numbers of VISSL's
//! `pirl_jigsaw_4node_resnet50`: a crop of 0.6 to 1 of the area is resized to 255 x 255 and cut into 3 x 3 cells of 85;
//! from each comes a patch of 64 x 64 at a random place; the patches are mirrored and coloured one by one, as VISSL's
//! transforms do it, and permuted.
//!
//! For other sizes of the views the patch keeps its share, [`Jigsaw::of`].

use super::{Augmentation, CropBox, Op, Planes, RandomCrop, Scratch, ViewKey};
use crate::random::Purpose;
use crate::{Image, Preprocess};

/// Patches of an image.
pub const PATCHES: usize = 9;

/// Cells along a side.
const SIDE: usize = 3;

/// Stands for the view in the keys of the patches' draws: patch of cell 0, those of the others following.
const FIRST_PATCH_VIEW: u8 = 2;

/// How the jigsaw of an image is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Jigsaw {
    /// Without it the whole image is cut, as the views are then made of it.
    pub crop: Option<RandomCrop>,
    /// Side of a cell; the crop is resized to three of them.
    pub cell: usize,
    /// Side of a patch.
    pub patch: usize,
    /// Probability that a patch is mirrored.
    pub flip: f64,
    /// A patch's colour operations.
    pub ops: Vec<Op>,
    /// Subtracted from each channel at the end.
    pub mean: [f32; 3],
    /// What the difference is divided by.
    pub std: [f32; 3],
}

impl Jigsaw {
    /// Builds the jigsaw that goes with an augmentation: mirrored, coloured and normalised as its first view.
    ///
    /// The patch is the multiple of 4 nearest to 2/7 of the views' side, at least 4, and the cell the patch times
    /// 85/64, rounded: cells of 85 with patches of 64 for views of 224, of 11 and 8 for 32, of 5 and 4 for 16.
    pub fn of(augmentation: &Augmentation) -> Jigsaw {
        let patch = ((augmentation.size + 7) / 14 * 4).max(4);
        let view = &augmentation.views[0];
        let area = [0.6, 1.0];
        Jigsaw {
            crop: view.crop.as_ref().map(|crop| RandomCrop { area, aspect: crop.aspect }),
            cell: (patch * 85 + 32) / 64,
            patch,
            flip: view.flip,
            ops: view.ops.clone(),
            mean: augmentation.mean,
            std: augmentation.std,
        }
    }

    /// Counts the values of all patches of one image.
    pub fn len(&self) -> usize {
        PATCHES * self.patch_len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn patch_len(&self) -> usize {
        self.patch * self.patch * 3
    }

    /// Makes the patches of an image.
    ///
    /// - `key`: seed, epoch and the image's place in the data set
    /// - `out`: `[9, patch, patch, 3]`, overwritten
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn render(&self, image: &Image, key: (u64, u64, usize), scratch: &mut Scratch, out: &mut [f32]) {
        assert_eq!(out.len(), self.len(), "nine patches of {0} x {0}", self.patch);
        self.cut(image, key, scratch);
        let order = order(key);
        for (cell, out) in order.into_iter().zip(out.chunks_exact_mut(self.patch_len())) {
            let patch_key = patch_key(key, cell);
            let window = self.place(key, cell);
            scratch.patch(window, patch_key.draws(Purpose::Flip).chance(self.flip));
            for applied in self.ops.iter().filter_map(|op| op.draw(patch_key)) {
                scratch.apply(&applied);
            }
            scratch.planes.write_normalised(self.mean, self.std, out);
        }
    }

    /// Resizes the crop into the sheet.
    fn cut(&self, image: &Image, key: (u64, u64, usize), scratch: &mut Scratch) {
        let size = SIDE * self.cell;
        match &self.crop {
            Some(crop) => {
                let window = crop.draw(image.width, image.height, &mut draws(key, 0, Purpose::JigsawCrop));
                scratch.crop(image, window, size, false);
            }
            None => Preprocess { size, mean: [0.0; 3], std: [1.0; 3] }.place(image, scratch),
        }
        std::mem::swap(&mut scratch.planes, &mut scratch.sheet);
    }

    /// Where in the sheet the patch of a cell is taken.
    fn place(&self, key: (u64, u64, usize), cell: usize) -> CropBox {
        let mut draws = draws(key, FIRST_PATCH_VIEW + cell as u8, Purpose::JigsawPlace);
        let room = (self.cell - self.patch) as u64 + 1;
        let top = cell / SIDE * self.cell + draws.below(room) as usize;
        let left = cell % SIDE * self.cell + draws.below(room) as usize;
        CropBox { left, top, width: self.patch, height: self.patch }
    }
}

/// Which cell's patch comes when.
fn order(key: (u64, u64, usize)) -> [usize; PATCHES] {
    let mut draws = draws(key, 0, Purpose::JigsawOrder);
    let mut order = std::array::from_fn(|cell| cell);
    for last in (1..PATCHES).rev() {
        order.swap(last, draws.below(last as u64 + 1) as usize);
    }
    order
}

fn patch_key((seed, epoch, index): (u64, u64, usize), cell: usize) -> ViewKey {
    ViewKey { seed, epoch, index, view: FIRST_PATCH_VIEW + cell as u8 }
}

fn draws((seed, epoch, index): (u64, u64, usize), view: u8, purpose: Purpose) -> crate::random::Draws {
    ViewKey { seed, epoch, index, view }.draws(purpose)
}

impl Scratch {
    /// Copies a square window of the sheet, mirrored if `flip`, into `planes`.
    pub(super) fn patch(&mut self, window: CropBox, flip: bool) {
        let CropBox { left, top, width, height } = window;
        let Scratch { planes, sheet, .. } = self;
        let Planes { size, values } = sheet;
        planes.size = width;
        planes.values.clear();
        for channel in values.chunks_exact(*size * *size) {
            for row in channel.chunks_exact(*size).skip(top).take(height) {
                let row = &row[left..left + width];
                if flip {
                    planes.values.extend(row.iter().rev());
                } else {
                    planes.values.extend_from_slice(row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Image;

    const KEY: (u64, u64, usize) = (7, 3, 11);

    fn jigsaw(size: usize) -> Jigsaw {
        Jigsaw::of(&Augmentation::preset("pirl", size).unwrap())
    }

    /// Without colours, so that pixels can be followed.
    fn plain(size: usize) -> Jigsaw {
        Jigsaw { crop: None, flip: 0.0, ops: Vec::new(), ..jigsaw(size) }
    }

    fn render(jigsaw: &Jigsaw, image: &Image, key: (u64, u64, usize)) -> Vec<f32> {
        let mut out = vec![0.0; jigsaw.len()];
        jigsaw.render(image, key, &mut Scratch::default(), &mut out);
        out
    }

    /// Red is the column and green the row.
    fn gradient(size: usize) -> Image {
        let rgb = (0..size * size).flat_map(|i| [(i % size) as u8, (i / size) as u8, 0]).collect();
        Image { width: size, height: size, rgb }
    }

    #[test]
    fn geometry_follows_the_views() {
        #[track_caller]
        fn check(size: usize, cell: usize, patch: usize) {
            let jigsaw = jigsaw(size);
            assert_eq!((jigsaw.cell, jigsaw.patch), (cell, patch), "views of {size}");
        }
        check(224, 85, 64);
        check(32, 11, 8);
        check(28, 11, 8);
        check(21, 11, 8);
        check(20, 5, 4);
        check(16, 5, 4);
        check(1, 5, 4);
        check(64, 27, 20);
        check(96, 37, 28);
        for size in 8..=1024 {
            let Jigsaw { cell, patch, .. } = jigsaw(size);
            assert!(patch.is_multiple_of(4) && cell > patch, "{size}: {cell}, {patch}");
            assert!(patch.abs_diff(2 * size / 7) <= 3, "{size}: {patch}");
        }
    }

    /// Each cell gives one patch, whole and at one place, and all places and orders occur.
    #[test]
    fn patches_lie_in_their_cells_and_come_in_every_order() {
        const N: usize = 9000;
        let jigsaw = plain(32);
        let image = gradient(33);
        let (mut places, mut first) = ([0.0; 16], [0.0; PATCHES]);
        for index in 0..N {
            let key = (7, 3, index);
            let patches = render(&jigsaw, &image, key);
            let mut cells = Vec::new();
            for patch in patches.chunks_exact(jigsaw.patch_len()) {
                let at = |x: usize, y: usize| {
                    let pixel = &patch[(y * 8 + x) * 3..][..2];
                    ((pixel[0] * 255.0).round() as usize, (pixel[1] * 255.0).round() as usize)
                };
                let (left, top) = at(0, 0);
                assert_eq!(at(7, 5), (left + 7, top + 5), "a window, not scattered pixels");
                assert!(left % 11 <= 3 && top % 11 <= 3, "inside a cell");
                cells.push(top / 11 * 3 + left / 11);
                places[top % 11 * 4 + left % 11] += 1.0;
            }
            first[cells[0]] += 1.0;
            cells.sort_unstable();
            assert_eq!(cells, (0..PATCHES).collect::<Vec<_>>());
        }
        #[track_caller]
        fn check(counts: &[f64], limit: f64) {
            let expected = counts.iter().sum::<f64>() / counts.len() as f64;
            let chi_squared: f64 = counts.iter().map(|c| (c - expected).powi(2) / expected).sum();
            assert!(chi_squared < limit, "{counts:?}");
        }
        // 15 and 8 degrees of freedom, each exceeded once in a thousand seeds.
        check(&places, 37.7);
        check(&first, 26.1);
    }

    #[test]
    fn each_patch_has_colours_of_its_own_and_is_normalised() {
        let gray = Image { width: 33, height: 33, rgb: vec![128; 33 * 33 * 3] };
        let brightness = vec![super::super::jitter(1.0, [0.4, 0.0, 0.0, 0.0])];
        let jigsaw = Jigsaw { ops: brightness, ..plain(32) };
        let patches = render(&jigsaw, &gray, KEY);
        let levels: Vec<f32> = patches.iter().step_by(jigsaw.patch_len()).copied().collect();
        for (i, level) in levels.iter().enumerate() {
            assert!((0.3..=0.71).contains(level), "{levels:?}");
            assert!(levels[..i].iter().all(|other| other != level), "{levels:?}");
        }
        let normalised = render(&Jigsaw { mean: [0.5; 3], std: [0.25; 3], ..jigsaw }, &gray, KEY);
        let expected: Vec<f32> = patches.iter().map(|x| (x - 0.5) / 0.25).collect();
        assert_eq!(normalised, expected);
    }

    #[test]
    fn half_of_the_patches_are_mirrored() {
        let jigsaw = Jigsaw { flip: 0.5, ..plain(32) };
        let image = gradient(33);
        let mut mirrored = 0;
        for index in 0..1000 {
            let patches = render(&jigsaw, &image, (7, 3, index));
            mirrored += patches.chunks_exact(jigsaw.patch_len()).filter(|patch| patch[0] > patch[3]).count();
        }
        // Five standard errors of 9000 fair draws.
        assert!(mirrored.abs_diff(4500) < 240, "{mirrored}");
    }

    #[test]
    fn the_key_decides_and_nothing_else() {
        let jigsaw = jigsaw(32);
        let image = gradient(40);
        let first = render(&jigsaw, &image, KEY);
        assert_eq!(render(&jigsaw, &image, KEY), first);
        for other in [(8, 3, 11), (7, 4, 11), (7, 3, 12)] {
            assert_ne!(render(&jigsaw, &image, other), first, "{other:?}");
        }
    }
}
