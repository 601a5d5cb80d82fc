//! The exact views that training sees, for programs that replay it.

use checkpoint::Tensor;
use config::RunConfig;
use data::Views;
use trainer::images::{self, Past};
use trainer::{Error, plan};

/// What training sees of one image in one epoch.
pub struct ImageViews {
    /// `[size, size, 3]` each, interleaved as training feeds them: one or two, as the objective has it.
    pub images: Vec<Vec<f32>>,
    /// Their side, in pixels.
    pub size: usize,
    /// The patches of the jigsaw in the order in which training sees them; none without one.
    pub jigsaw: Vec<Vec<f32>>,
    /// Their side, in pixels; 0 without a jigsaw.
    pub patch: usize,
    /// The image that is shown: another one than asked for if that is corrupt.
    pub index: usize,
    /// Its path in the data set.
    pub path: String,
}

/// Makes the views of image `index` in `epoch` as training under `config` makes them, in the order of the images that a
/// checkpoint of the run has, if there is one.
///
/// # Errors
/// If the data cannot be opened, there is no such image, or nothing can be shown for it.
pub fn views(config: &RunConfig, past: Option<&Past>, epoch: u64, index: usize) -> Result<ImageViews, Error> {
    let dataset = images::open_in_order(config, plan::limits(config), past)?;
    if index >= dataset.len() {
        let reason = format!("the data set has {} images, counted from 0", dataset.len());
        return Err(Error::Config { key: "--index", value: index.to_string(), reason });
    }
    let augmentation = plan::augmentation(config)?;
    let parts = plan::parts(config, &augmentation);
    let key = (config.run.seed, epoch, index);
    let Views { index, images, jigsaw } = data::views_of(&dataset, &augmentation, &parts, key)?;
    let patch = parts.jigsaw.as_ref().map_or(0, |jigsaw| jigsaw.patch);
    let split = |values: &[f32], size: usize| match size {
        0 => Vec::new(),
        _ => values.chunks_exact(size * size * 3).map(<[f32]>::to_vec).collect(),
    };
    Ok(ImageViews {
        images: split(&images, augmentation.size),
        size: augmentation.size,
        jigsaw: split(&jigsaw, patch),
        patch,
        index,
        path: dataset.path_of(index),
    })
}

impl ImageViews {
    /// `view_0` and `view_1` (where there are two) as `[3, size, size]` tensors, PyTorch's layout, and `jigsaw` as
    /// `[9, 3, patch, patch]`.
    pub fn tensors(&self) -> Vec<Tensor<'static>> {
        let shape = [3, self.size, self.size];
        let view = |(view, image): (usize, &Vec<f32>)| {
            Tensor::from_f32(format!("view_{view}"), &shape, &planes(image)).into_owned()
        };
        let mut tensors: Vec<Tensor<'static>> = self.images.iter().enumerate().map(view).collect();
        if !self.jigsaw.is_empty() {
            let patches: Vec<f32> = self.jigsaw.iter().flat_map(|patch| planes(patch)).collect();
            let shape = [self.jigsaw.len(), 3, self.patch, self.patch];
            tensors.push(Tensor::from_f32("jigsaw", &shape, &patches).into_owned());
        }
        tensors
    }
}

/// Channel by channel what is interleaved.
fn planes(image: &[f32]) -> Vec<f32> {
    (0..3).flat_map(|channel| image.iter().skip(channel).step_by(3).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_planes() {
        let interleaved = |offset: f32| (0..12).map(|i| offset + i as f32).collect();
        let views = ImageViews {
            images: vec![interleaved(0.0), interleaved(100.0)],
            size: 2,
            jigsaw: vec![interleaved(200.0), interleaved(300.0)],
            patch: 2,
            index: 0,
            path: String::new(),
        };
        let tensors = views.tensors();
        let mut values = [0.0; 12];
        tensors[1].copy_to_f32(&[3, 2, 2], &mut values).unwrap();
        assert_eq!(tensors[1].name, "view_1");
        assert_eq!(values[..4], [100.0, 103.0, 106.0, 109.0]);
        assert_eq!(values[4..8], [101.0, 104.0, 107.0, 110.0]);
        let mut patches = [0.0; 24];
        tensors[2].copy_to_f32(&[2, 3, 2, 2], &mut patches).unwrap();
        assert_eq!((tensors[2].name.as_str(), tensors.len()), ("jigsaw", 3));
        assert_eq!(patches[16..20], [301.0, 304.0, 307.0, 310.0]);
    }

    #[test]
    fn the_same_image_gives_the_same_views_and_another_epoch_others() {
        let config = RunConfig::default();
        let first = views(&config, None, 3, 5).unwrap();
        assert_eq!(first.images, views(&config, None, 3, 5).unwrap().images);
        assert_ne!(first.images[0], first.images[1]);
        assert_ne!(first.images, views(&config, None, 4, 5).unwrap().images);
        assert_eq!(views(&config, None, 0, usize::MAX).err().map(|error| error.exit_code()), Some(2));
    }

    #[test]
    fn the_limit_of_pixels_holds_for_views() {
        let dir = tempfile::tempdir().unwrap();
        image::RgbImage::new(5, 3).save(dir.path().join("0.png")).unwrap();
        let is_shown = |max_pixels: usize| {
            let source = dir.path().display();
            let text = format!("[data]\nsource = \"{source}\"\nmax_pixels = {max_pixels}\n");
            views(&RunConfig::from_toml(&text).unwrap(), None, 0, 0).is_ok()
        };
        assert_eq!([15, 14].map(is_shown), [true, false]);
    }

    #[test]
    fn only_what_the_objective_sees_is_shown() {
        let config = |kind: &str| RunConfig::from_toml(&format!("[objective]\nkind = \"{kind}\"\n")).unwrap();
        let npid = views(&config("npid"), None, 3, 5).unwrap();
        assert_eq!((npid.images.len(), npid.jigsaw.len(), npid.tensors().len()), (1, 0, 1));
        assert_eq!(npid.images[0], views(&RunConfig::default(), None, 3, 5).unwrap().images[0]);
        let pirl = views(&config("pirl"), None, 3, 5).unwrap();
        assert_eq!((pirl.images.len(), pirl.jigsaw.len(), pirl.patch), (1, 9, 8));
        assert_eq!(pirl.tensors()[1].name, "jigsaw");
    }
}
