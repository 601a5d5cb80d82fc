//! Which keys belong to which kinds.

use crate::keys::{KEYS, Key};
use crate::run_config::RunConfig;
use crate::{Arch, Error};

/// A key and the values with which another one goes.
type Condition = (&'static str, &'static [&'static str]);

const OF_RESNET: Condition = ("model.arch", Arch::RESNETS);
const OF_VIT: Condition = ("model.arch", Arch::VITS);
const OF_BANK: Condition = ("objective.kind", &["npid", "pirl"]);
const OF_MOMENTUM: Condition = ("objective.kind", &["moco", "moco-v3"]);
const OF_NCE: Condition = ("objective.estimator", &["nce"]);

/// What must hold for a key to mean anything; the conditions of every other key always hold.
const OWNERS: &[(&str, &[Condition])] = &[
    ("train.convolution", &[OF_RESNET]),
    ("model.stem", &[OF_RESNET]),
    ("model.zero_init_residual", &[OF_RESNET]),
    ("model.patch", &[OF_VIT]),
    ("model.freeze_patch", &[OF_VIT]),
    ("model.predictor", &[("objective.kind", &["moco-v3"])]),
    ("objective.negatives", &[OF_BANK]),
    ("objective.estimator", &[OF_BANK]),
    ("objective.normalizer", &[OF_BANK, OF_NCE]),
    ("objective.normalizer_momentum", &[OF_BANK, OF_NCE, ("objective.normalizer", &["ema"])]),
    ("objective.proximal", &[("objective.kind", &["npid"])]),
    ("objective.feature_momentum", &[OF_BANK]),
    ("objective.exclude_positive", &[OF_BANK]),
    ("objective.jigsaw_weight", &[("objective.kind", &["pirl"])]),
    ("objective.queue", &[("objective.kind", &["moco"])]),
    ("objective.momentum", &[OF_MOMENTUM]),
    ("objective.momentum_schedule", &[OF_MOMENTUM]),
    ("bank.dtype", &[OF_BANK]),
    ("bank.storage", &[OF_BANK]),
    ("bank.refresh_age", &[OF_BANK]),
    ("bank.mirror", &[OF_BANK]),
    ("schedule.final_lr", &[("schedule.kind", &["cosine"])]),
    ("schedule.milestones", &[("schedule.kind", &["step"])]),
    ("schedule.gamma", &[("schedule.kind", &["step"])]),
];

/// Whether a key means anything in this configuration.
pub(crate) fn goes(config: &RunConfig, name: &str) -> bool {
    broken(config, name).is_none()
}

/// Refuses keys that were set but mean nothing in the configuration that came of it.
pub(crate) fn check<'a>(config: &RunConfig, set: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    for name in set {
        if let Some((owner, belongs_to)) = broken(config, name) {
            let key = Key::find(name)?.name;
            return Err(Error::NotOfKind { key, owner, value: value(config, owner), belongs_to });
        }
    }
    Ok(())
}

/// Gives keys that mean nothing their defaults: a preset's, whose kind a later layer has changed.
pub(crate) fn reset(config: &mut RunConfig) -> Result<(), Error> {
    for key in KEYS.iter().filter(|key| broken(config, key.name).is_some()).collect::<Vec<_>>() {
        if let Some(default) = (key.write)(&RunConfig::default()) {
            key.set(config, &default)?;
        }
    }
    Ok(())
}

/// The first condition of a key that does not hold.
fn broken(config: &RunConfig, name: &str) -> Option<Condition> {
    let (_, conditions) = OWNERS.iter().find(|(owned, _)| *owned == name)?;
    let holds = |(owner, values): &&Condition| {
        let found = value(config, owner);
        values.iter().any(|value| is_of_form(&found, value))
    };
    conditions.iter().find(|condition| !holds(condition)).copied()
}

/// Whether a value is the one named, or of the form, `vit-<width>-...`.
fn is_of_form(value: &str, form: &str) -> bool {
    match form.split_once('<') {
        Some((start, _)) => value.starts_with(start),
        None => value == form,
    }
}

/// What a key that takes a name is set to.
fn value(config: &RunConfig, name: &str) -> String {
    let key = Key::find(name).expect("owners are keys");
    (key.write)(config).and_then(|value| value.as_str().map(str::to_owned)).expect("owners take names")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_keys_and_values_that_exist() {
        for (name, conditions) in OWNERS {
            assert!(Key::find(name).is_ok(), "{name}");
            for (owner, values) in *conditions {
                for owner_value in values.iter().filter(|value| !value.contains('<')) {
                    let mut config = RunConfig::default();
                    let text = toml::Value::String((*owner_value).to_owned());
                    Key::find(owner).unwrap().set(&mut config, &text).unwrap();
                    assert_eq!(value(&config, owner), *owner_value);
                }
            }
        }
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = RunConfig::from_toml(text).unwrap_err();
        assert_eq!(format!("{error}; {}", error.hint().unwrap_or_default()), expected);
    }

    #[test]
    fn a_key_of_another_kind_is_refused_with_the_kinds_that_have_it() {
        refused(
            "[objective]\nqueue = 4096\n",
            "`objective.queue` does not go with objective.kind = simclr; leave it out, or set objective.kind = moco",
        );
        refused(
            "[objective]\nkind = \"moco\"\n[bank]\nmirror = false\n",
            "`bank.mirror` does not go with objective.kind = moco; leave it out, or set objective.kind = npid or pirl",
        );
        refused(
            "[objective]\nkind = \"npid\"\nestimator = \"softmax\"\nnormalizer = \"ema\"\n",
            "`objective.normalizer` does not go with objective.estimator = softmax; leave it out, or set \
             objective.estimator = nce",
        );
        refused(
            "[schedule]\nmilestones = [3]\n",
            "`schedule.milestones` does not go with schedule.kind = cosine; leave it out, or set schedule.kind = step",
        );
    }

    #[test]
    fn a_key_of_another_architecture_is_refused() {
        refused(
            "[model]\narch = \"vit-24-2-3\"\nstem = \"cifar\"\n",
            "`model.stem` does not go with model.arch = vit-24-2-3; leave it out, or set model.arch = resnet18 or \
             resnet34 or resnet50 or resnet20",
        );
        refused(
            "[model]\npatch = 4\n",
            "`model.patch` does not go with model.arch = resnet18; leave it out, or set model.arch = vit-ti16 or \
             vit-s16 or vit-b16 or vit-<width>-<depth>-<heads>",
        );
        let config = RunConfig::from_toml("[model]\narch = \"vit-24-2-3\"\npatch = 4\n").unwrap();
        let text = config.to_toml();
        assert_eq!(RunConfig::from_toml(&text).unwrap(), config, "{text}");
        assert!(!text.contains("\nstem =") && text.contains("\npatch = 4"), "{text}");
    }

    /// Every kind writes its own keys and reads them back, and the keys of no other.
    #[test]
    fn each_kind_writes_what_belongs_to_it() {
        #[track_caller]
        fn check(kind: &str, expected: &[&str]) {
            let config = RunConfig::from_toml(&format!("[objective]\nkind = \"{kind}\"\n")).unwrap();
            let text = config.to_toml();
            assert_eq!(RunConfig::from_toml(&text).unwrap(), config, "{text}");
            let table: toml::Table = text.parse().unwrap();
            let names = |section: &str| -> Vec<String> {
                table
                    .get(section)
                    .and_then(|s| s.as_table())
                    .map(|s| s.keys().cloned().collect())
                    .unwrap_or_default()
            };
            let written: Vec<String> = names("objective").into_iter().filter(|name| name != "kind").collect();
            assert_eq!(written, expected, "{kind}");
            assert_eq!(names("bank").len(), if ["npid", "pirl"].contains(&kind) { 4 } else { 0 }, "{kind}");
        }
        check("simclr", &["temperature"]);
        check("dcl", &["temperature"]);
        check("supcon", &["temperature"]);
        check("align-uniform", &["temperature"]);
        check("moco", &["momentum", "momentum_schedule", "queue", "temperature"]);
        check("moco-v3", &["momentum", "momentum_schedule", "temperature"]);
        let bank = ["estimator", "exclude_positive", "feature_momentum"];
        check("npid", &[&bank[..], &["negatives", "normalizer", "proximal", "temperature"]].concat());
        check("pirl", &[&bank[..], &["jigsaw_weight", "negatives", "normalizer", "temperature"]].concat());
    }
}
