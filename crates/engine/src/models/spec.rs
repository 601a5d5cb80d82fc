//! Which network: architecture, stem, head, and the names by which configurations call them.

use std::fmt;
use std::str::FromStr;

/// A name that no model part has, with the names that exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {part} `{name}`, expected {expected}")]
pub struct UnknownName {
    /// What was being named: `architecture`, `stem`, `head` or `batch norm scope`.
    pub part: &'static str,
    /// The name that was given.
    pub name: String,
    /// The names that exist, for the reader of the message.
    pub expected: &'static str,
}

/// The backbones that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// torchvision's `resnet18`.
    ResNet18,
    /// torchvision's `resnet34`.
    ResNet34,
    /// torchvision's `resnet50`: bottlenecks with the stride on the 3x3 convolution (v1.5).
    ResNet50,
    /// He's CIFAR network: three stages of three basic blocks, widths 16, 32, 64, projection shortcuts
    /// where the shape changes (option B).
    ResNet20,
    /// A vision transformer.
    Vit(Vit),
}

/// A vision transformer: timm's `VisionTransformer` with a class token as the features, biases everywhere and hidden
/// layers four times as wide as a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Vit {
    /// Width of a token, a multiple of 4 and of `heads`.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Side of a square patch, in pixels; it divides the image's.
    pub patch: usize,
    /// Whether the patches' layer stays as it was drawn, for stability (MoCo v3, section 4.2).
    pub freeze_patch: bool,
}

impl Vit {
    /// timm's and DeiT's `vit_tiny_patch16`.
    pub const TINY: Self = Self::new(192, 12, 3);
    /// MoCo v3's `vit_small`, of 12 heads; timm's `vit_small_patch16` has 6, and the same shapes.
    pub const SMALL: Self = Self::new(384, 12, 12);
    /// `vit_base_patch16`, timm's and MoCo v3's.
    pub const BASE: Self = Self::new(768, 12, 12);

    /// Of patches of 16 pixels, all of it trained.
    pub const fn new(width: usize, depth: usize, heads: usize) -> Self {
        Self { width, depth, heads, patch: 16, freeze_patch: false }
    }
}

/// How the input enters the residual stages; vision transformers have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stem {
    /// 7x7 convolution of stride 2, then a 3x3 max pool of stride 2.
    Imagenet,
    /// 3x3 convolution of stride 1, no pool.
    Cifar,
}

/// The projection between backbone features and embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Head {
    /// Linear(d, d), BN, ReLU, Linear(d, 128), BN without shift; no linear has a bias.
    SimclrV1,
    /// One more Linear, BN, ReLU in front of version 1.
    SimclrV2,
    /// Linear, ReLU, Linear, with biases.
    Mlp {
        /// Width between the two linear layers.
        hidden: usize,
        /// Width of the embeddings.
        out: usize,
    },
    /// One linear layer with bias.
    Linear {
        /// Width of the embeddings.
        out: usize,
    },
    /// MoCo v3's projector: Linear, BN, ReLU, Linear, BN without scale and shift; no linear has a bias.
    MocoV3 {
        /// Width between the two linear layers.
        hidden: usize,
        /// Width of the embeddings.
        out: usize,
    },
    /// MoCo v3's projector of vision transformers: one more Linear, BN, ReLU in front.
    MocoV3Vit {
        /// Width between the linear layers.
        hidden: usize,
        /// Width of the embeddings.
        out: usize,
    },
}

/// MoCo v3's predictor behind the head: Linear, BN, ReLU, Linear back to the width of the embeddings, without biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Predictor {
    /// Width between the two linear layers.
    pub hidden: usize,
    /// Whether a BN without scale and shift follows: behind vision transformers.
    pub last_norm: bool,
}

/// PIRL's second branch: the backbone sees the patches of a jigsaw, and a head of its own joins them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Jigsaw {
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
}

/// Patches of a jigsaw, from three rows of three cells.
pub const PATCHES: usize = 9;

/// Which of a model's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The one that is trained, predictor included. It holds every parameter of the model, that of the jigsaw's head too.
    Trained,
    /// The momentum encoder: backbone and head, forward only.
    Momentum,
    /// The backbone over the patches of a jigsaw, nine rows for each image, and the jigsaw's head.
    Patches,
}

/// By which statistics batch norm normalises in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BatchNormScope {
    /// All rows of all ranks.
    Global,
    /// This rank's rows only.
    Local,
    /// The running statistics, which stay as they are (mean 0 and variance 1 unless others were loaded), so that a row's
    /// embedding depends on no other row.
    Frozen,
}

/// Everything that decides a network's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// The backbone.
    pub arch: Arch,
    /// The entrance of a residual network.
    pub stem: Stem,
    /// Its projection head.
    pub head: Head,
    /// Where batch norm takes its statistics from.
    pub batch_norm: BatchNormScope,
    /// Side of the square input images, in pixels.
    pub image_size: usize,
    /// Whether the last batch norm of every residual block starts with a scale of 0, so that every block
    /// starts as the identity (SimCLR's choice).
    pub zero_init_residual: bool,
    /// What follows the head in the trained network alone.
    pub predictor: Option<Predictor>,
    /// The second branch.
    pub jigsaw: Option<Jigsaw>,
}

/// Embedding width of both SimCLR heads.
const SIMCLR_WIDTH: usize = 128;

/// The paper's widths of MoCo v3's projector, hidden and out.
const MOCO_V3_WIDTHS: (usize, usize) = (4096, 256);

impl ModelSpec {
    /// Width of the backbone's output, before the head.
    pub fn feature_width(&self) -> usize {
        match self.arch {
            Arch::ResNet18 | Arch::ResNet34 => 512,
            Arch::ResNet50 => 2048,
            Arch::ResNet20 => 64,
            Arch::Vit(vit) => vit.width,
        }
    }

    /// Width of the head's output.
    pub fn embedding_width(&self) -> usize {
        match self.head {
            Head::SimclrV1 | Head::SimclrV2 => SIMCLR_WIDTH,
            Head::Mlp { out, .. }
            | Head::Linear { out }
            | Head::MocoV3 { out, .. }
            | Head::MocoV3Vit { out, .. } => out,
        }
    }

    /// Values of all parameters of a network of the model.
    ///
    /// # Panics
    /// As [`ModelSpec::input_size`].
    pub fn n_parameters(&self, role: Role) -> usize {
        super::build(self, role).parameters.iter().map(|spec| spec.entry.len).sum()
    }

    /// Side of the images that a network of the model takes.
    ///
    /// # Panics
    /// If there is no jigsaw, and so no network for its patches.
    pub fn input_size(&self, role: Role) -> usize {
        match role {
            Role::Trained | Role::Momentum => self.image_size,
            Role::Patches => self.jigsaw.expect("the model has a jigsaw").patch_size,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResNet18 => f.write_str("resnet18"),
            Self::ResNet34 => f.write_str("resnet34"),
            Self::ResNet50 => f.write_str("resnet50"),
            Self::ResNet20 => f.write_str("resnet20"),
            Self::Vit(vit) => vit.fmt(f),
        }
    }
}

/// The names of transformers whose shape has one.
const VITS: [(&str, Vit); 3] = [("vit-ti16", Vit::TINY), ("vit-s16", Vit::SMALL), ("vit-b16", Vit::BASE)];

/// Names the shape; the patch is not part of it.
impl fmt::Display for Vit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { width, depth, heads, .. } = *self;
        let shape = |vit: &Vit| (vit.width, vit.depth, vit.heads);
        match VITS.iter().find(|(_, vit)| shape(vit) == shape(self)) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "vit-{width}-{depth}-{heads}"),
        }
    }
}

impl FromStr for Arch {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        if let Some((_, vit)) = VITS.iter().find(|(known, _)| *known == name) {
            return Ok(Self::Vit(*vit));
        }
        if let Some(vit) = vit_of_shape(name) {
            return Ok(Self::Vit(vit));
        }
        match name {
            "resnet18" => Ok(Self::ResNet18),
            "resnet34" => Ok(Self::ResNet34),
            "resnet50" => Ok(Self::ResNet50),
            "resnet20" => Ok(Self::ResNet20),
            _ => Err(UnknownName {
                part: "architecture",
                name: name.to_owned(),
                expected: "resnet18, resnet34, resnet50, resnet20, vit-ti16, vit-s16, vit-b16 or \
                           vit-<width>-<depth>-<heads>, the width a multiple of 4 and of the heads",
            }),
        }
    }
}

/// The transformer that `vit-<width>-<depth>-<heads>` names, if it can be.
fn vit_of_shape(name: &str) -> Option<Vit> {
    let numbers: Result<Vec<usize>, _> = name.strip_prefix("vit-")?.split('-').map(str::parse).collect();
    let [width, depth, heads] = numbers.ok()?[..] else { return None };
    let is_possible = width > 0 && depth > 0 && heads > 0;
    let fits = is_possible && width.is_multiple_of(4) && width.is_multiple_of(heads);
    fits.then(|| Vit::new(width, depth, heads))
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Imagenet => "imagenet",
            Self::Cifar => "cifar",
        })
    }
}

impl FromStr for Stem {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "imagenet" => Ok(Self::Imagenet),
            "cifar" => Ok(Self::Cifar),
            _ => Err(UnknownName { part: "stem", name: name.to_owned(), expected: "imagenet or cifar" }),
        }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SimclrV1 => f.write_str("simclr-v1"),
            Self::SimclrV2 => f.write_str("simclr-v2"),
            Self::Mlp { hidden, out } => write!(f, "mlp-{hidden}-{out}"),
            Self::Linear { out } => write!(f, "linear-{out}"),
            Self::MocoV3 { hidden, out } if (*hidden, *out) == MOCO_V3_WIDTHS => f.write_str("moco-v3"),
            Self::MocoV3 { hidden, out } => write!(f, "moco-v3-{hidden}-{out}"),
            Self::MocoV3Vit { hidden, out } if (*hidden, *out) == MOCO_V3_WIDTHS => {
                f.write_str("moco-v3-vit")
            }
            Self::MocoV3Vit { hidden, out } => write!(f, "moco-v3-vit-{hidden}-{out}"),
        }
    }
}

impl FromStr for Head {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let unknown = || UnknownName {
            part: "head",
            name: name.to_owned(),
            expected: "simclr-v1, simclr-v2, mlp-<hidden>-<out>, linear-<out>, moco-v3, moco-v3-<hidden>-<out>, \
                       moco-v3-vit or moco-v3-vit-<hidden>-<out>",
        };
        let width = |text: &str| text.parse().ok().filter(|&width: &usize| width > 0).ok_or_else(unknown);
        let parts: Vec<&str> = name.split('-').collect();
        match parts[..] {
            ["simclr", "v1"] => Ok(Self::SimclrV1),
            ["simclr", "v2"] => Ok(Self::SimclrV2),
            ["mlp", hidden, out] => Ok(Self::Mlp { hidden: width(hidden)?, out: width(out)? }),
            ["linear", out] => Ok(Self::Linear { out: width(out)? }),
            ["moco", "v3"] => Ok(Self::MocoV3 { hidden: MOCO_V3_WIDTHS.0, out: MOCO_V3_WIDTHS.1 }),
            ["moco", "v3", "vit"] => Ok(Self::MocoV3Vit { hidden: MOCO_V3_WIDTHS.0, out: MOCO_V3_WIDTHS.1 }),
            ["moco", "v3", "vit", hidden, out] => {
                Ok(Self::MocoV3Vit { hidden: width(hidden)?, out: width(out)? })
            }
            ["moco", "v3", hidden, out] => Ok(Self::MocoV3 { hidden: width(hidden)?, out: width(out)? }),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for BatchNormScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Local => "local",
            Self::Frozen => "frozen",
        })
    }
}

impl FromStr for BatchNormScope {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "global" => Ok(Self::Global),
            "local" => Ok(Self::Local),
            "frozen" => Ok(Self::Frozen),
            _ => Err(UnknownName {
                part: "batch norm scope",
                name: name.to_owned(),
                expected: "global, local or frozen",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for name in ["simclr-v1", "simclr-v2", "mlp-512-128", "linear-64", "moco-v3", "moco-v3-64-32"] {
            assert_eq!(name.parse::<Head>().unwrap().to_string(), name);
        }
        for name in ["moco-v3-vit", "moco-v3-vit-64-32"] {
            assert_eq!(name.parse::<Head>().unwrap().to_string(), name);
        }
        for name in ["resnet18", "resnet34", "resnet50", "resnet20", "vit-s16", "vit-384-12-6", "vit-24-2-3"]
        {
            assert_eq!(name.parse::<Arch>().unwrap().to_string(), name);
        }
        assert_eq!("vit-384-12-12".parse::<Arch>().unwrap(), Arch::Vit(Vit::SMALL));
        for name in
            ["vit-384-12", "vit-384-12-5", "vit-6-1-1", "vit-0-1-1", "vit-24-0-3", "vit-x-1-1", "vit-"]
        {
            assert_eq!(name.parse::<Arch>().unwrap_err().name, name);
        }
        for name in ["mlp-0-128", "mlp-512", "linear-", "simclr", "linear--3", "moco-v3-vit-0-3"] {
            assert_eq!(name.parse::<Head>().unwrap_err().name, name);
        }
        assert_eq!(
            "resnet19".parse::<Arch>().unwrap_err().to_string(),
            "unknown architecture `resnet19`, expected resnet18, resnet34, resnet50, resnet20, vit-ti16, vit-s16, vit-b16 \
             or vit-<width>-<depth>-<heads>, the width a multiple of 4 and of the heads"
        );
    }
}
