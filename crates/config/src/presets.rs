//! Named configurations after the papers.

use crate::Error;

/// The preset that holds where neither a preset nor a file is given.
pub const QUICKSTART: &str = "quickstart";

const PRESETS: &[(&str, &str)] = &[
    (QUICKSTART, include_str!("../presets/quickstart.toml")),
    ("simclr-cifar10-small", include_str!("../presets/simclr-cifar10-small.toml")),
    ("simclr-fashion-mnist-small", include_str!("../presets/simclr-fashion-mnist-small.toml")),
    ("simclr-cifar10", include_str!("../presets/simclr-cifar10.toml")),
    ("simclr-imagenet", include_str!("../presets/simclr-imagenet.toml")),
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
        assert_eq!(
            text("quickstrat").unwrap_err().to_string(),
            "unknown preset `quickstrat`, expected one of quickstart, simclr-cifar10-small, simclr-fashion-mnist-small, \
             simclr-cifar10, simclr-imagenet"
        );
    }
}
