//! Keys by their names, and values as they are given: what is refused, and what was meant instead.

use toml::Value;

use crate::keys::{KEYS, Key};
use crate::retired::Retired;
use crate::run_config::RunConfig;
use crate::{Error, nearest};

impl Key {
    /// The key of that name, if there is one.
    pub(crate) fn find(name: &str) -> Result<&'static Key, Error> {
        if let Some(Retired { name, fate, .. }) = Retired::find(name) {
            return Err(Error::RetiredKey { key: name, fate });
        }
        KEYS.iter()
            .find(|key| key.name == name)
            .ok_or_else(|| Error::UnknownKey { key: name.to_owned(), meant: nearest::key(name) })
    }

    /// Sets the field to `value`, if the key takes it.
    pub(crate) fn set(&self, config: &mut RunConfig, value: &Value) -> Result<(), Error> {
        (self.read)(config, value).map_err(|expected| Error::Value {
            key: self.name,
            meant: nearest::value(self.name, &value.to_string()),
            value: value.to_string(),
            expected,
        })
    }
}
