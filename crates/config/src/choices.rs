//! The closed sets of names that keys take.

use std::fmt;
use std::str::FromStr;

/// A name that is not in its set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name `{name}`, expected {expected}")]
pub struct UnknownChoice {
    /// What was given.
    pub name: String,
    /// The names that exist.
    pub expected: String,
}

/// Declares an enum with the name that each of its values has in a configuration.
macro_rules! choices {
    ($(#[$doc:meta])* $Name:ident { $($(#[$value_doc:meta])* $Value:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $Name {
            $($(#[$value_doc])* $Value,)+
        }

        impl $Name {
            /// Every value's name.
            pub const NAMES: &'static [&'static str] = &[$($name),+];
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($Name::$Value => $name,)+ })
            }
        }

        impl FromStr for $Name {
            type Err = UnknownChoice;

            fn from_str(name: &str) -> Result<Self, UnknownChoice> {
                match name {
                    $($name => Ok($Name::$Value),)+
                    _ => Err(UnknownChoice { name: name.to_owned(), expected: Self::NAMES.join(", ") }),
                }
            }
        }
    };
}

/// `model.arch`: the backbones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// torchvision's `resnet18`.
    ResNet18,
    /// torchvision's `resnet34`.
    ResNet34,
    /// torchvision's `resnet50`.
    ResNet50,
    /// He's CIFAR network of 20 layers.
    ResNet20,
    /// `vit-<width>-<depth>-<heads>`: a vision transformer. `vit-ti16`, `vit-s16` (MoCo v3's, of 12 heads) and `vit-b16`
    /// are names of three; timm's small one is `vit-384-12-6`.
    Vit {
        /// Width of a token, a multiple of 4 and of `heads`.
        width: usize,
        /// Blocks.
        depth: usize,
        /// Heads of each attention.
        heads: usize,
    },
}

impl Arch {
    /// The residual networks.
    pub const RESNETS: &'static [&'static str] = &["resnet18", "resnet34", "resnet50", "resnet20"];

    /// The transformers; the last form stands for every name that begins like it.
    pub const VITS: &'static [&'static str] =
        &["vit-ti16", "vit-s16", "vit-b16", "vit-<width>-<depth>-<heads>"];

    const NAMED: &'static [(&'static str, Arch)] = &[
        ("resnet18", Arch::ResNet18),
        ("resnet34", Arch::ResNet34),
        ("resnet50", Arch::ResNet50),
        ("resnet20", Arch::ResNet20),
        ("vit-ti16", Arch::Vit { width: 192, depth: 12, heads: 3 }),
        ("vit-s16", Arch::Vit { width: 384, depth: 12, heads: 12 }),
        ("vit-b16", Arch::Vit { width: 768, depth: 12, heads: 12 }),
    ];

    /// The forms that exist.
    pub fn forms() -> String {
        [Self::RESNETS, Self::VITS].concat().join(", ")
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (Arch::NAMED.iter().find(|(_, arch)| arch == self), self) {
            (Some((name, _)), _) => f.write_str(name),
            (None, Arch::Vit { width, depth, heads }) => write!(f, "vit-{width}-{depth}-{heads}"),
            (None, _) => unreachable!("every residual network has a name"),
        }
    }
}

impl FromStr for Arch {
    type Err = UnknownChoice;

    fn from_str(name: &str) -> Result<Self, UnknownChoice> {
        let named = Arch::NAMED.iter().find(|(known, _)| *known == name).map(|(_, arch)| *arch);
        named
            .or_else(|| vit_of_shape(name))
            .ok_or_else(|| UnknownChoice { name: name.to_owned(), expected: Arch::forms() })
    }
}

fn vit_of_shape(name: &str) -> Option<Arch> {
    let numbers: Result<Vec<usize>, _> = name.strip_prefix("vit-")?.split('-').map(str::parse).collect();
    let [width, depth, heads] = numbers.ok()?[..] else { return None };
    let is_possible = width > 0 && depth > 0 && heads > 0;
    let fits = is_possible && width.is_multiple_of(4) && width.is_multiple_of(heads);
    fits.then_some(Arch::Vit { width, depth, heads })
}

choices! {
    /// `model.stem`: how images enter the network.
    Stem {
        /// 7x7 of stride 2, then a max pool of stride 2.
        Imagenet = "imagenet",
        /// 3x3 of stride 1.
        Cifar = "cifar",
    }
}

choices! {
    /// `model.batch_norm`: where statistics come from in training.
    BatchNorm {
        /// All rows of all ranks.
        Global = "global",
        /// This rank's rows.
        Local = "local",
        /// Nowhere: the mean stays 0 and the variance 1, so that scale and shift are left.
        Frozen = "frozen",
    }
}

choices! {
    /// `train.convolution`: the algorithm of stride-1 3x3 convolutions.
    Convolution {
        /// The fastest.
        Auto = "auto",
        /// Direct convolution everywhere.
        Direct = "direct",
    }
}

/// The register of losses of two views that keep nothing: what each is, its name in a configuration, and where it is in
/// `crates/objectives/src`. A new file there needs its `mod` line and a line here, and nothing else anywhere.
#[macro_export]
macro_rules! losses {
    ($with:ident) => {
        $with! {
            /// NT-Xent over the gathered batch.
            Simclr = "simclr", nt_xent::NtXent;
            /// Supervised contrast: positives are the images of the same class.
            Supcon = "supcon", supcon::SupCon;
            /// Decoupled contrast: NT-Xent without the positive in the denominator.
            Dcl = "dcl", dcl::Dcl;
            /// Alignment and uniformity on the sphere.
            AlignUniform = "align-uniform", align_uniform::AlignUniform;
        }
    };
}

macro_rules! objective_kinds {
    ($($(#[$doc:meta])* $Kind:ident = $name:literal, $module:ident::$Loss:ident;)+) => {
        choices! {
            /// `objective.kind`: the loss.
            ObjectiveKind {
                $($(#[$doc])* $Kind = $name,)+
                /// Non-parametric instance discrimination: a memory bank of one slot per image.
                Npid = "npid",
                /// Pretext-invariant representations: the bank, and a jigsaw of each image.
                Pirl = "pirl",
                /// Momentum contrast with a queue of keys (versions 1 and 2).
                Moco = "moco",
                /// Momentum contrast of version 3: keys of the batch, a predictor, both views.
                MocoV3 = "moco-v3",
            }
        }
    };
}

losses!(objective_kinds);

choices! {
    /// `objective.estimator`: what is made of a positive and its negatives from the bank.
    Estimator {
        /// Noise-contrastive estimation: each of them is told from noise on its own.
        Nce = "nce",
        /// Cross-entropy over all of them.
        Softmax = "softmax",
    }
}

choices! {
    /// `objective.normalizer`: the constant Z of noise-contrastive estimation.
    Normalizer {
        /// Estimated from the first batch, then kept.
        FirstBatch = "first-batch",
        /// A running mean over the batches.
        Ema = "ema",
    }
}

choices! {
    /// `objective.momentum_schedule`: the momentum of the key encoder over the run.
    MomentumSchedule {
        /// No change.
        Constant = "constant",
        /// Half a cosine to 1 at the end of the run.
        Cosine = "cosine",
    }
}

choices! {
    /// `bank.dtype`: how a slot's numbers are stored.
    BankDtype {
        /// 32 bits.
        F32 = "f32",
        /// 16 bits, of which 8 are the exponent's.
        Bf16 = "bf16",
    }
}

choices! {
    /// `bank.storage`: where a rank's slots are.
    BankStorage {
        /// In memory.
        Memory = "memory",
        /// In a file that is mapped into memory.
        Mapped = "mapped",
    }
}

choices! {
    /// `model.predictor`: what stands behind the head of the trained network, but not of the momentum encoder.
    Predictor {
        /// Nothing.
        None = "none",
        /// Linear to 4096, batch norm, ReLU, linear to 256.
        MocoV3 = "moco-v3",
        /// The same of vision transformers: a batch norm without scale and shift follows.
        MocoV3Vit = "moco-v3-vit",
    }
}

choices! {
    /// `optimizer.kind`: the update rule.
    OptimizerKind {
        /// Stochastic gradient descent with momentum.
        Sgd = "sgd",
        /// Layer-wise adaptive rates over SGD.
        Lars = "lars",
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
    }
}

choices! {
    /// `schedule.kind`: what follows the warm-up.
    ScheduleKind {
        /// Half a cosine to `schedule.final_lr` at the end of the run.
        Cosine = "cosine",
        /// No change.
        Constant = "constant",
        /// Times `schedule.gamma` at each of `schedule.milestones`.
        Step = "step",
    }
}

choices! {
    /// `data.augment`: the augmentation pipelines.
    Augment {
        /// Both views are the image itself.
        None = "none",
        /// SimCLR's for CIFAR: crop, flip, jitter of strength 0.5, gray.
        SimclrCifar = "simclr-cifar",
        /// SimCLR's for ImageNet: crop, flip, jitter of strength 1, gray, blur.
        SimclrImagenet = "simclr-imagenet",
        /// MoCo's of version 1.
        MocoV1 = "moco-v1",
        /// MoCo's of version 2: with blur.
        MocoV2 = "moco-v2",
        /// MoCo's of version 3: the views differ in blur and solarisation.
        MocoV3 = "moco-v3",
        /// The same for vision transformers: crops from 0.08 of the area.
        MocoV3Vit = "moco-v3-vit",
        /// Non-parametric instance discrimination's.
        Npid = "npid",
        /// The same for CIFAR: without the flip.
        NpidCifar = "npid-cifar",
        /// The same as VISSL has it: crops from 0.08 of the area, no gray.
        Npidpp = "npidpp",
        /// Pretext-invariant representations': crop, flip, jitter, VISSL's photometric operation, gray.
        Pirl = "pirl",
    }
}

/// `model.head`: the projection between features and embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Head {
    /// `simclr-v1`: two layers with batch norm.
    SimclrV1,
    /// `simclr-v2`: three layers with batch norm.
    SimclrV2,
    /// `mlp-<hidden>-<out>`: two layers with biases.
    Mlp {
        /// Width between them.
        hidden: usize,
        /// Width of the embeddings.
        out: usize,
    },
    /// `linear-<out>`: one layer with bias.
    Linear {
        /// Width of the embeddings.
        out: usize,
    },
    /// `moco-v3-<hidden>-<out>`: two layers with batch norm, the last norm without scale and shift; `moco-v3` has the
    /// paper's widths.
    MocoV3 {
        /// Width between them.
        hidden: usize,
        /// Width of the embeddings.
        out: usize,
    },
    /// `moco-v3-vit-<hidden>-<out>`: the same of vision transformers, of three layers.
    MocoV3Vit {
        /// Width between them.
        hidden: usize,
        /// Width of the embeddings.
        out: usize,
    },
}

impl Head {
    /// The forms that exist.
    pub const FORMS: &'static [&'static str] = &[
        "simclr-v1",
        "simclr-v2",
        "mlp-<hidden>-<out>",
        "linear-<out>",
        "moco-v3",
        "moco-v3-<hidden>-<out>",
        "moco-v3-vit",
        "moco-v3-vit-<hidden>-<out>",
    ];

    /// The paper's widths of `moco-v3`: between its layers, and of the embeddings.
    pub const MOCO_V3: (usize, usize) = (4096, 256);
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Head::SimclrV1 => f.write_str("simclr-v1"),
            Head::SimclrV2 => f.write_str("simclr-v2"),
            Head::Mlp { hidden, out } => write!(f, "mlp-{hidden}-{out}"),
            Head::Linear { out } => write!(f, "linear-{out}"),
            Head::MocoV3 { hidden, out } if (*hidden, *out) == Head::MOCO_V3 => f.write_str("moco-v3"),
            Head::MocoV3 { hidden, out } => write!(f, "moco-v3-{hidden}-{out}"),
            Head::MocoV3Vit { hidden, out } if (*hidden, *out) == Head::MOCO_V3 => f.write_str("moco-v3-vit"),
            Head::MocoV3Vit { hidden, out } => write!(f, "moco-v3-vit-{hidden}-{out}"),
        }
    }
}

impl FromStr for Head {
    type Err = UnknownChoice;

    fn from_str(name: &str) -> Result<Self, UnknownChoice> {
        let unknown = || UnknownChoice { name: name.to_owned(), expected: Head::FORMS.join(", ") };
        let width = |text: &str| text.parse().ok().filter(|&width: &usize| width > 0).ok_or_else(unknown);
        match name.split('-').collect::<Vec<_>>()[..] {
            ["simclr", "v1"] => Ok(Head::SimclrV1),
            ["simclr", "v2"] => Ok(Head::SimclrV2),
            ["mlp", hidden, out] => Ok(Head::Mlp { hidden: width(hidden)?, out: width(out)? }),
            ["moco", "v3"] => Ok(Head::MocoV3 { hidden: Head::MOCO_V3.0, out: Head::MOCO_V3.1 }),
            ["moco", "v3", "vit"] => Ok(Head::MocoV3Vit { hidden: Head::MOCO_V3.0, out: Head::MOCO_V3.1 }),
            ["moco", "v3", "vit", hidden, out] => {
                Ok(Head::MocoV3Vit { hidden: width(hidden)?, out: width(out)? })
            }
            ["moco", "v3", hidden, out] => Ok(Head::MocoV3 { hidden: width(hidden)?, out: width(out)? }),
            ["linear", out] => Ok(Head::Linear { out: width(out)? }),
            _ => Err(unknown()),
        }
    }
}
