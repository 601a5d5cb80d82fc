//! Residual networks (He et al. 2015, arXiv:1512.03385) under torchvision's names.

use super::{Arch, ModelSpec, Stem};
use crate::graph::{GraphBuilder, NormOptions, Shortcut, TensorId, Window};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1 down, 3x3 with the stride, 1x1 up to four times the width.
    Bottleneck,
}

struct Layout {
    block: Block,
    stem_width: usize,
    /// Blocks of each stage; a stage has twice the width of the one before.
    stages: &'static [usize],
}

fn layout(arch: Arch) -> Layout {
    match arch {
        Arch::ResNet18 => Layout { block: Block::Basic, stem_width: 64, stages: &[2, 2, 2, 2] },
        Arch::ResNet34 => Layout { block: Block::Basic, stem_width: 64, stages: &[3, 4, 6, 3] },
        Arch::ResNet50 => Layout { block: Block::Bottleneck, stem_width: 64, stages: &[3, 4, 6, 3] },
        Arch::ResNet20 => Layout { block: Block::Basic, stem_width: 16, stages: &[3, 3, 3] },
        Arch::Vit(_) => unreachable!("a vision transformer is no residual net"),
    }
}

const ONE: Window = Window { kernel: 1, stride: 1, pad: 0 };
const THREE: Window = Window { kernel: 3, stride: 1, pad: 1 };

/// Adds the backbone and returns the features: the mean of the last stage over all pixels.
pub(super) fn backbone(builder: &mut GraphBuilder, spec: &ModelSpec) -> TensorId {
    let layout = layout(spec.arch);
    let mut x = stem(builder, spec.stem, layout.stem_width);
    let last_scale = if spec.zero_init_residual { 0.0 } else { 1.0 };
    for (stage, &blocks) in layout.stages.iter().enumerate() {
        let width = layout.stem_width << stage;
        for block_idx in 0..blocks {
            let stride = if stage > 0 && block_idx == 0 { 2 } else { 1 };
            let name = format!("backbone.layer{}.{block_idx}", stage + 1);
            let block = ResidualBlock { name, width, stride, last_scale };
            x = match layout.block {
                Block::Basic => block.basic(builder, x),
                Block::Bottleneck => block.bottleneck(builder, x),
            };
        }
    }
    builder.average_pool(x)
}

fn stem(builder: &mut GraphBuilder, stem: Stem, width: usize) -> TensorId {
    let window = match stem {
        Stem::Imagenet => Window { kernel: 7, stride: 2, pad: 3 },
        Stem::Cifar => THREE,
    };
    let y = builder.conv("backbone.conv1", builder.images(), width, window);
    let norm = builder.norm("backbone.bn1", y, &NormOptions::default());
    let x = builder.batch_norm(norm, Shortcut::None, true);
    match stem {
        Stem::Imagenet => builder.max_pool(x),
        Stem::Cifar => x,
    }
}

struct ResidualBlock {
    name: String,
    width: usize,
    stride: usize,
    /// Initial scale of the block's last batch norm.
    last_scale: f64,
}

impl ResidualBlock {
    fn basic(&self, builder: &mut GraphBuilder, x: TensorId) -> TensorId {
        let first = Window { stride: self.stride, ..THREE };
        let a = self.conv_norm_relu(builder, 1, x, self.width, first);
        self.close(builder, 2, x, a, (self.width, THREE))
    }

    fn bottleneck(&self, builder: &mut GraphBuilder, x: TensorId) -> TensorId {
        let a = self.conv_norm_relu(builder, 1, x, self.width, ONE);
        let b = self.conv_norm_relu(builder, 2, a, self.width, Window { stride: self.stride, ..THREE });
        self.close(builder, 3, x, b, (4 * self.width, ONE))
    }

    fn conv_norm_relu(
        &self,
        builder: &mut GraphBuilder,
        layer: usize,
        x: TensorId,
        c_out: usize,
        window: Window,
    ) -> TensorId {
        let y = builder.conv(&format!("{}.conv{layer}", self.name), x, c_out, window);
        let norm = builder.norm(&format!("{}.bn{layer}", self.name), y, &NormOptions::default());
        builder.batch_norm(norm, Shortcut::None, true)
    }

    /// The block's last convolution and norm, the shortcut from its input `x`, the sum and its ReLU.
    fn close(
        &self,
        builder: &mut GraphBuilder,
        layer: usize,
        x: TensorId,
        inner: TensorId,
        (c_out, window): (usize, Window),
    ) -> TensorId {
        let y = builder.conv(&format!("{}.conv{layer}", self.name), inner, c_out, window);
        let options = NormOptions { initial_scale: self.last_scale, ..NormOptions::default() };
        let main = builder.norm(&format!("{}.bn{layer}", self.name), y, &options);
        let shortcut = if self.stride == 1 && builder.channels(x) == c_out {
            Shortcut::Identity(x)
        } else {
            let window = Window { stride: self.stride, ..ONE };
            let y = builder.conv(&format!("{}.downsample.0", self.name), x, c_out, window);
            Shortcut::Projected(builder.norm(
                &format!("{}.downsample.1", self.name),
                y,
                &NormOptions::default(),
            ))
        };
        builder.batch_norm(main, shortcut, true)
    }
}
