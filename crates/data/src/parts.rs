//! What is made of one image: its views, and its jigsaw.

use crate::augment::{Augmentation, Jigsaw, Scratch, ViewKey};
use crate::replace::{KnownCorrupt, Shown, decode_or_replace};
use crate::{Dataset, Error, Image};

/// Which parts an objective wants of each image.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// Views, the first ones of the augmentation's: 1 or 2.
    pub views: usize,
    /// The nine patches beside them.
    pub jigsaw: Option<Jigsaw>,
}

impl Parts {
    /// Both views and no jigsaw.
    pub const VIEWS: Parts = Parts { views: 2, jigsaw: None };

    /// Counts the values of an image's patches.
    pub fn jigsaw_len(&self) -> usize {
        self.jigsaw.as_ref().map_or(0, Jigsaw::len)
    }
}

/// The parts of one image, and which image it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Views {
    /// The image that is shown: another one than asked for if that is corrupt.
    pub index: usize,
    /// The views, `[views, size, size, 3]`.
    pub images: Vec<f32>,
    /// The patches, `[9, patch, patch, 3]`, if there is a jigsaw.
    pub jigsaw: Vec<f32>,
}

/// Makes the parts of one image exactly as training does.
///
/// # Errors
/// Why neither it nor a replacement can be decoded.
pub fn views_of(
    dataset: &Dataset,
    augmentation: &Augmentation,
    parts: &Parts,
    key: (u64, u64, usize),
) -> Result<Views, Error> {
    let known = KnownCorrupt::new(1.0);
    let mut images = vec![0.0; parts.views * augmentation.view_len()];
    let mut jigsaw = vec![0.0; parts.jigsaw_len()];
    let Shown { index, image } = decode_or_replace(dataset, &known, key, &mut Vec::new())?;
    render(augmentation, parts, (&image, key), &mut Scratch::default(), (&mut images, &mut jigsaw));
    Ok(Views { index, images, jigsaw })
}

/// Makes all parts of a decoded image.
///
/// - `images`: `[views, size, size, 3]`; `jigsaw`: `[9, patch, patch, 3]` or empty; both overwritten
pub(crate) fn render(
    augmentation: &Augmentation,
    parts: &Parts,
    (image, key): (&Image, (u64, u64, usize)),
    scratch: &mut Scratch,
    (images, jigsaw): (&mut [f32], &mut [f32]),
) {
    let (seed, epoch, index) = key;
    for (view, out) in images.chunks_exact_mut(augmentation.view_len()).enumerate() {
        let key = ViewKey { seed, epoch, index, view: view as u8 };
        augmentation.render(image, key, scratch, out);
    }
    if let Some(pipeline) = &parts.jigsaw {
        pipeline.render(image, key, scratch, jigsaw);
    }
}
