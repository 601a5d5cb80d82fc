//! Named configurations after the papers.

use crate::Error;

/// The preset that holds where neither a preset nor a file is given: the first.
pub const QUICKSTART: &str = "quickstart";

/// A preset's name is its file's.
macro_rules! presets {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../presets/", $name, ".toml")))),+]
    };
}

const PRESETS: &[(&str, &str)] = presets![
    "quickstart",
    "simclr-cifar10-small",
    "npid-cifar10-small",
    "npidpp-cifar10-small",
    "pirl-cifar10-small",
    "moco-v1-cifar10-small",
    "moco-v2-cifar10-small",
    "moco-v3-cifar10-small",
    "moco-v3-vit-cifar10-small",
    "supcon-cifar10-small",
    "dcl-cifar10-small",
    "simclr-fashion-mnist-small",
    "simclr-cifar10",
    "simclr-imagenet",
    "simclr-imagenet-decay-1e-4",
    "simclr-imagenet-256-sqrt",
    "simclr-v2-imagenet",
    "npid-cifar10",
    "npid-cifar10-proximal",
    "npid-imagenet",
    "npid-imagenet-ema",
    "npidpp-imagenet",
    "pirl-imagenet",
    "moco-v1-imagenet",
    "moco-v2-imagenet",
    "moco-v3-imagenet",
    "moco-v3-imagenet-300",
    "moco-v3-imagenet-1000",
    "moco-v3-vit-s16-imagenet",
    "moco-v3-vit-b16-imagenet",
    "supcon-cifar10",
    "dcl-imagenet",
];

/// Every preset's name.
pub fn names() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

/// The preset as it is written, comments and sources included.
///
/// # Errors
/// If there is no such preset.
pub fn text(name: &str) -> Result<&'static str, Error> {
    PRESETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
        .ok_or_else(|| Error::UnknownPreset { name: name.to_owned(), known: names() })
}

/// What the preset is for: its first line.
///
/// # Errors
/// If there is no such preset.
pub fn description(name: &str) -> Result<&'static str, Error> {
    Ok(text(name)?.lines().next().unwrap_or_default().trim_start_matches(['#', ' ']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunConfig;

    #[test]
    fn every_preset_is_a_configuration_with_a_description() {
        for name in names() {
            let config =
                RunConfig::from_toml(text(name).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(config.validate().map_err(|error| error.to_string()), Ok(()), "{name}");
            assert!(description(name).unwrap().ends_with('.'), "{name}");
        }
        assert_eq!(names()[0], QUICKSTART);
        let error = text("quickstrat").unwrap_err().to_string();
        assert!(
            error.starts_with(
                "unknown preset `quickstrat`, expected one of quickstart, simclr-cifar10-small, "
            )
        );
    }

    /// A number that stands in a published preset says where it is from.
    #[test]
    fn published_numbers_have_a_source() {
        let ours = |name: &str| name.ends_with("-small") || name == QUICKSTART;
        for name in names().into_iter().filter(|name| !ours(name)) {
            for line in text(name).unwrap().lines() {
                let Some((key, rest)) = line.split_once(" = ") else { continue };
                let (value, source) = rest.split_once('#').unwrap_or((rest, ""));
                let is_number = value.contains(|c: char| c.is_ascii_digit()) && !value.contains('"');
                assert!(!is_number || key.starts_with('#') || !source.is_empty(), "{name}: {line}");
            }
        }
    }

    /// The numbers by which the published presets are known, as the papers print them.
    #[test]
    fn published_numbers() {
        use crate::{Estimator, MomentumSchedule, Normalizer, ObjectiveKind, ScheduleKind};
        let config = |name| RunConfig::from_toml(text(name).unwrap()).unwrap();
        #[track_caller]
        fn learning(config: &RunConfig, batch: usize, epochs: u64, lr: f64, weight_decay: f64) {
            let found = (config.train.global_batch, config.run.length, config.optimizer.lr);
            assert_eq!(found, (batch, crate::Length::Epochs(epochs), lr));
            assert_eq!(config.optimizer.weight_decay, weight_decay);
        }
        learning(&config("simclr-imagenet"), 4096, 100, 4.8, 1e-6);
        learning(&config("simclr-imagenet-decay-1e-4"), 4096, 100, 4.8, 1e-4);
        learning(&config("simclr-imagenet-256-sqrt"), 256, 100, 1.2, 1e-6);
        learning(&config("simclr-v2-imagenet"), 4096, 800, 6.4, 1e-4);
        // 0.5 and 1e-4 by the program, whose loss is 0.1 / 0.07 of the paper's.
        learning(&config("supcon-cifar10"), 1024, 1000, 0.714, 7e-5);
        learning(&config("dcl-imagenet"), 256, 200, 1.2, 1e-6);
        let npid = config("npid-imagenet");
        learning(&npid, 256, 200, 0.03, 1e-4);
        assert_eq!((npid.objective.negatives, npid.objective.temperature), (4096, 0.07));
        assert_eq!(
            (npid.schedule.kind, &npid.schedule.milestones[..]),
            (ScheduleKind::Step, &[120, 160][..])
        );
        let cifar = config("npid-cifar10");
        learning(&cifar, 128, 200, 0.03, 5e-4);
        assert_eq!((cifar.objective.negatives, cifar.objective.estimator), (0, Estimator::Softmax));
        assert_eq!(cifar.schedule.milestones, [120, 160]);
        let ema = config("npid-imagenet-ema").objective;
        assert_eq!((ema.normalizer, ema.normalizer_momentum), (Normalizer::Ema, 0.99));
        let proximal = config("npid-cifar10-proximal").objective;
        assert_eq!((proximal.negatives, proximal.proximal), (4096, 30.0));
        for (name, kind) in [("npidpp-imagenet", ObjectiveKind::Npid), ("pirl-imagenet", ObjectiveKind::Pirl)]
        {
            let config = config(name);
            learning(&config, 1024, 800, 0.12, 1e-4);
            assert_eq!((config.objective.kind, config.objective.negatives), (kind, 32_000));
            assert_eq!((config.schedule.kind, config.schedule.final_lr), (ScheduleKind::Cosine, 1.2e-4));
        }
        for (name, temperature, kind) in
            [("moco-v1-imagenet", 0.07, ScheduleKind::Step), ("moco-v2-imagenet", 0.2, ScheduleKind::Cosine)]
        {
            let config = config(name);
            learning(&config, 256, 200, 0.03, 1e-4);
            assert_eq!((config.objective.queue, config.objective.momentum), (65_536, 0.999));
            assert_eq!((config.objective.temperature, config.schedule.kind), (temperature, kind));
        }
        for (name, epochs, lr, weight_decay, momentum) in [
            ("moco-v3-imagenet", 100, 9.6, 1e-6, 0.99),
            ("moco-v3-imagenet-300", 300, 4.8, 1e-6, 0.99),
            ("moco-v3-imagenet-1000", 1000, 4.8, 1.5e-6, 0.996),
        ] {
            let config = config(name);
            learning(&config, 4096, epochs, lr, weight_decay);
            assert_eq!((config.objective.momentum, config.objective.temperature), (momentum, 1.0));
            assert_eq!(config.objective.momentum_schedule, MomentumSchedule::Cosine);
        }
        for (name, arch) in [("moco-v3-vit-s16-imagenet", "vit-s16"), ("moco-v3-vit-b16-imagenet", "vit-b16")]
        {
            let config = config(name);
            learning(&config, 4096, 300, 1.5e-4 * 16.0, 0.1);
            assert_eq!((config.objective.momentum, config.objective.temperature), (0.99, 0.2));
            assert_eq!((config.model.arch.to_string().as_str(), config.model.patch), (arch, 16));
            assert!(config.model.freeze_patch && config.optimizer.decay_all);
            assert_eq!(config.schedule.warmup_steps, 40 * (1_281_167 / 4096));
        }
    }

    /// Each method has a small form that also runs for 30 steps of 64 on 600 images.
    #[test]
    fn small_presets_go_with_few_images() {
        for name in names().into_iter().filter(|name| name.ends_with("-cifar10-small")) {
            let set = ["train.global_batch=64", "run.steps=30", "data.source=/images"].map(str::to_owned);
            let layers = crate::Layers {
                preset: Some(name),
                config: None,
                data: None,
                set: &set,
                orphan_ttl: crate::ORPHAN_TTL,
            };
            let config = crate::resolve(&layers).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(config.objective.queue.is_multiple_of(64), "{name}");
            assert_eq!(RunConfig::from_toml(&config.to_toml()).unwrap(), config, "{name}");
        }
    }
}
