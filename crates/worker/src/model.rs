//! The engine's and the data room's types for what a configuration says of them.

use config::RunConfig;
use data::Preprocess;
use engine::kernels::Convolution;
use engine::models::{Arch, BatchNormScope, Head, ModelSpec, Stem};

use crate::Error;

/// The network that a configuration describes.
///
/// # Errors
/// If a part of it cannot be trained.
pub fn spec(config: &RunConfig) -> Result<ModelSpec, Error> {
    let model = &config.model;
    Ok(ModelSpec {
        arch: match model.arch {
            config::Arch::ResNet18 => Arch::ResNet18,
            config::Arch::ResNet34 => Arch::ResNet34,
            config::Arch::ResNet50 => Arch::ResNet50,
            config::Arch::ResNet20 => Arch::ResNet20,
        },
        stem: match model.stem {
            config::Stem::Imagenet => Stem::Imagenet,
            config::Stem::Cifar => Stem::Cifar,
        },
        head: match model.head {
            config::Head::SimclrV1 => Head::SimclrV1,
            config::Head::SimclrV2 => Head::SimclrV2,
            config::Head::Mlp { hidden, out } => Head::Mlp { hidden, out },
            config::Head::Linear { out } => Head::Linear { out },
            config::Head::MocoV3 => {
                let reason = "this head cannot be trained by this version".to_owned();
                return Err(Error::Config { key: "model.head", value: model.head.to_string(), reason });
            }
        },
        batch_norm: match model.batch_norm {
            config::BatchNorm::Global => BatchNormScope::Global,
            config::BatchNorm::Local => BatchNormScope::Local,
        },
        image_size: config.data.size,
        zero_init_residual: model.zero_init_residual,
    })
}

/// How its convolutions are computed.
pub fn convolution(config: &RunConfig) -> Convolution {
    match config.train.convolution {
        config::Convolution::Auto => Convolution::Auto,
        config::Convolution::Direct => Convolution::Direct,
    }
}

/// How images are prepared where they are not augmented.
pub fn preprocess(config: &RunConfig) -> Preprocess {
    let narrow = |values: [f64; 3]| values.map(|x| x as f32);
    Preprocess {
        size: config.data.size,
        mean: config.data.mean.map_or([0.0; 3], narrow),
        std: config.data.std.map_or([1.0; 3], narrow),
    }
}
