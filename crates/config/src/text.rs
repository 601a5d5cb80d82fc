//! A configuration as text: read on its own, and written with what every key means. And its check.

use crate::keys::KEYS;
use crate::run_config::RunConfig;
use crate::{Error, layers, owners};

impl RunConfig {
    /// Reads a configuration on its own, without a preset below it.
    ///
    /// # Errors
    /// If the text is not TOML, a key is unknown, a value is out of its range, or a key does not go with the kind.
    pub fn from_toml(text: &str) -> Result<RunConfig, Error> {
        let mut config = RunConfig::default();
        let set = layers::apply_text(&mut config, text)?;
        layers::derive(&mut config, set.iter().map(String::as_str));
        owners::check(&config, set.iter().map(String::as_str))?;
        Ok(config)
    }

    /// Writes every key with its value and what it means; keys that are unset or of other kinds stand as comments.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in KEYS {
            if key.section() != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                section = key.section();
                text.push_str(&format!("{gap}[{section}]\n"));
            }
            let value = owners::goes(self, key.name).then(|| (key.write)(self)).flatten();
            let line = match value {
                Some(value) => format!("{} = {value}", key.field()),
                None => format!("# {} is not set", key.field()),
            };
            text.push_str(&format!("{line:<32}  # {}\n", key.doc));
        }
        text
    }

    /// Checks every value against its range. What [`resolve`](crate::resolve) and [`from_toml`](Self::from_toml)
    /// return has passed already; this is for a configuration that a program has changed.
    ///
    /// # Errors
    /// The first value that is out of its range.
    pub fn validate(&self) -> Result<(), Error> {
        let mut scratch = self.clone();
        for key in KEYS {
            if let Some(value) = (key.write)(self) {
                key.set(&mut scratch, &value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_config::Length;
    use std::time::Duration;

    #[test]
    fn every_default_is_written_and_read_back() {
        let config = RunConfig::default();
        let text = config.to_toml();
        for key in KEYS {
            assert!(
                text.contains(&format!("\n{} = ", key.field()))
                    || text.contains(&format!("# {} is not set", key.field()))
            );
        }
        assert_eq!(RunConfig::from_toml(&text).unwrap(), config, "{text}");
    }

    #[test]
    fn what_is_set_survives_writing() {
        let text = "[run]\nsteps = 7\nstop_after = 3\n[model]\nhead = \"mlp-64-32\"\n[data]\nstd = [0.25, 0.2, 1]\n\
                    [optimizer]\nlr = 1e-7\n[cluster]\norphan_ttl = \"1500ms\"\n[eval]\ndata = \"/a b/\\\"c\"\n";
        let config = RunConfig::from_toml(text).unwrap();
        assert_eq!(config.run.length, Length::Steps(7));
        assert_eq!(config.data.std, Some([0.25, 0.2, 1.0]));
        assert_eq!(config.cluster.orphan_ttl, Duration::from_millis(1500));
        assert_eq!(RunConfig::from_toml(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn validate_finds_what_a_program_broke() {
        let mut config = RunConfig::default();
        assert!(config.validate().is_ok());
        config.train.global_batch = 1;
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "train.global_batch = 1: expected a whole number, at least 2"
        );
    }
}
