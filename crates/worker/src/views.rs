//! The exact views that training sees, for programs that replay it.

use checkpoint::Tensor;
use config::RunConfig;
use data::{Dataset, Views};

use crate::{Error, plan};

/// The two views of one image in one epoch.
pub struct ImageViews {
    /// `[size, size, 3]` each, interleaved as training feeds them.
    pub images: [Vec<f32>; 2],
    /// Their side, in pixels.
    pub size: usize,
    /// The image that is shown: another one than asked for if that is corrupt.
    pub index: usize,
    /// Its path in the data set.
    pub path: String,
}

/// Makes the views of image `index` in `epoch` as training under `config` makes them.
///
/// # Errors
/// If the data cannot be opened, there is no such image, or nothing can be shown for it.
pub fn views(config: &RunConfig, epoch: u64, index: usize) -> Result<ImageViews, Error> {
    let dataset = Dataset::open(&config.data.source).map_err(Error::Data)?;
    if index >= dataset.len() {
        let reason = format!("the data set has {} images, counted from 0", dataset.len());
        return Err(Error::Config { key: "--index", value: index.to_string(), reason });
    }
    let augmentation = plan::augmentation(config)?;
    let Views { index, images } =
        data::views_of(&dataset, &augmentation, plan::decoding(config), (config.run.seed, epoch, index))
            .map_err(Error::Data)?;
    let (first, second) = images.split_at(augmentation.view_len());
    Ok(ImageViews {
        images: [first.to_vec(), second.to_vec()],
        size: augmentation.size,
        index,
        path: dataset.path_of(index),
    })
}

impl ImageViews {
    /// `view_0` and `view_1` as `[3, size, size]` tensors, PyTorch's layout.
    pub fn tensors(&self) -> Vec<Tensor> {
        let shape = [3, self.size, self.size];
        let tensor = |(view, image): (usize, &Vec<f32>)| {
            let planes: Vec<f32> =
                (0..3).flat_map(|channel| image.iter().skip(channel).step_by(3).copied()).collect();
            Tensor::from_f32(format!("view_{view}"), &shape, &planes)
        };
        self.images.iter().enumerate().map(tensor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_planes() {
        let interleaved = |offset: f32| (0..12).map(|i| offset + i as f32).collect();
        let views = ImageViews {
            images: [interleaved(0.0), interleaved(100.0)],
            size: 2,
            index: 0,
            path: String::new(),
        };
        let tensors = views.tensors();
        let mut values = [0.0; 12];
        tensors[1].copy_to_f32(&[3, 2, 2], &mut values).unwrap();
        assert_eq!(tensors[1].name, "view_1");
        assert_eq!(values[..4], [100.0, 103.0, 106.0, 109.0]);
        assert_eq!(values[4..8], [101.0, 104.0, 107.0, 110.0]);
    }

    #[test]
    fn the_same_image_gives_the_same_views_and_another_epoch_others() {
        let config = RunConfig::default();
        let first = views(&config, 3, 5).unwrap();
        assert_eq!(first.images, views(&config, 3, 5).unwrap().images);
        assert_ne!(first.images[0], first.images[1]);
        assert_ne!(first.images, views(&config, 4, 5).unwrap().images);
        assert_eq!(views(&config, 0, usize::MAX).err().map(|error| error.exit_code()), Some(2));
    }
}
