//! Images that lie undecoded in memory: what IDX and CIFAR files hold.

use crate::Image;

/// Images of one size.
#[derive(Debug, Default)]
pub struct Pixels {
    pub width: usize,
    pub height: usize,
    /// 1 (gray) or 3.
    pub channels: usize,
    pub layout: Layout,
    /// The images one after the other.
    pub bytes: Vec<u8>,
    /// Empty: there are no classes.
    pub labels: Vec<u32>,
    pub class_names: Vec<String>,
    /// The files in order, and how many images each holds.
    pub files: Vec<(String, usize)>,
    pub note: Option<String>,
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
    pub fn len(&self) -> usize {
        self.bytes.len() / self.image_bytes()
    }

    fn image_bytes(&self) -> usize {
        self.width * self.height * self.channels
    }

    pub fn image(&self, index: usize) -> Image {
        let bytes = &self.bytes[index * self.image_bytes()..][..self.image_bytes()];
        let pixels = self.width * self.height;
        let rgb = match (self.channels, self.layout) {
            (1, _) => bytes.iter().flat_map(|&gray| [gray; 3]).collect(),
            (_, Layout::Interleaved) => bytes.to_vec(),
            (_, Layout::Planar) => {
                (0..pixels).flat_map(|i| [bytes[i], bytes[pixels + i], bytes[2 * pixels + i]]).collect()
            }
        };
        Image { width: self.width, height: self.height, rgb }
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
        panic!("image {index} of {}", self.len())
    }
}
