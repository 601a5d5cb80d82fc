//! The engine's and the data room's types for what a configuration says of them.

use config::RunConfig;
use data::Preprocess;
use engine::models::{Arch, BatchNormScope, Head, Jigsaw, ModelSpec, Predictor, Stem, Vit};
use kernels::Convolution;

/// The network that a configuration describes.
pub fn spec(config: &RunConfig) -> ModelSpec {
    let model = &config.model;
    ModelSpec {
        arch: match model.arch {
            config::Arch::ResNet18 => Arch::ResNet18,
            config::Arch::ResNet34 => Arch::ResNet34,
            config::Arch::ResNet50 => Arch::ResNet50,
            config::Arch::ResNet20 => Arch::ResNet20,
            config::Arch::Vit { width, depth, heads } => {
                Arch::Vit(Vit { width, depth, heads, patch: model.patch, freeze_patch: model.freeze_patch })
            }
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
            config::Head::MocoV3 { hidden, out } => Head::MocoV3 { hidden, out },
            config::Head::MocoV3Vit { hidden, out } => Head::MocoV3Vit { hidden, out },
        },
        batch_norm: match model.batch_norm {
            config::BatchNorm::Global => BatchNormScope::Global,
            config::BatchNorm::Local => BatchNormScope::Local,
            config::BatchNorm::Frozen => BatchNormScope::Frozen,
        },
        image_size: config.data.size,
        zero_init_residual: model.zero_init_residual,
        predictor: predictor(config),
        jigsaw: jigsaw(config),
    }
}

/// What follows the head; as wide as a projector of MoCo v3's that it follows, and otherwise as the paper's.
fn predictor(config: &RunConfig) -> Option<Predictor> {
    let last_norm = match config.model.predictor {
        config::Predictor::None => return None,
        config::Predictor::MocoV3 => false,
        config::Predictor::MocoV3Vit => true,
    };
    let hidden = match config.model.head {
        config::Head::MocoV3 { hidden, .. } | config::Head::MocoV3Vit { hidden, .. } => hidden,
        _ => config::Head::MOCO_V3.0,
    };
    Some(Predictor { hidden, last_norm })
}

/// The second branch of an objective that has one.
fn jigsaw(config: &RunConfig) -> Option<Jigsaw> {
    let has_jigsaw = config.objective.kind == config::ObjectiveKind::Pirl;
    let patch_size = || data::Jigsaw::of(&data::Augmentation::none(config.data.size)).patch;
    has_jigsaw.then(|| Jigsaw { patch_size: patch_size() })
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
