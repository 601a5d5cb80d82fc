//! Images that lie undecoded in memory: what IDX and CIFAR files hold.

use super::hold::Bytes;
use super::listing::Notices;
use crate::{Error, Image};

/// Images of one size.
pub struct Pixels {
    pub width: usize,
    pub height: usize,
    /// 1 (gray) or 3.
    pub channels: usize,
    pub layout: Layout,
    /// The images one after the other, and how many they are.
    pub bytes: Bytes,
    pub len: usize,
    /// Empty: there are no classes.
    pub labels: Vec<u32>,
    pub class_names: Vec<String>,
    /// The files in order, and how many images each holds.
    pub files: Vec<(String, usize)>,
    pub notices: Notices,
}

/// How the channels of an image lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// `[height, width, channels]`.
    #[default]
    Interleaved,
    /// `[channels, height, width]`.
    Planar,
}

impl Pixels {
    fn image_bytes(&self) -> usize {
        self.width * self.height * self.channels
    }

    /// Refuses images of more than `max_pixels`: they have one size, so that it is known before one is wanted.
    pub fn check(&self, max_pixels: usize) -> Result<(), String> {
        let name = self.files.first().map_or("", |(name, _)| name);
        crate::decode::check_dimensions(self.width, self.height, max_pixels)
            .map_err(|reason| format!("the images in {name} have {reason}"))
    }

    pub fn image(&self, index: usize) -> Result<Image, Error> {
        let offset = (index * self.image_bytes()) as u64;
        let bytes = self.bytes.read(offset, self.image_bytes())?.ok_or_else(|| Error::Image {
            path: self.path_of(index),
            reason: "its file is shorter than when it was opened".to_owned(),
        })?;
        let pixels = self.width * self.height;
        let rgb = match (self.channels, self.layout) {
            (1, _) => bytes.iter().flat_map(|&gray| [gray; 3]).collect(),
            (_, Layout::Interleaved) => bytes.into_owned(),
            (_, Layout::Planar) => {
                (0..pixels).flat_map(|i| [bytes[i], bytes[pixels + i], bytes[2 * pixels + i]]).collect()
            }
        };
        Ok(Image { width: self.width, height: self.height, rgb })
    }

    /// The file an image lies in and its number there.
    pub fn path_of(&self, index: usize) -> String {
        let mut within = index;
        for (file, len) in &self.files {
            if within < *len {
                return format!("{file}#{within}");
            }
            within -= len;
        }
        panic!("image {index} of {}", self.len)
    }
}
