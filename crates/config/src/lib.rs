//! The run configuration: keys, defaults, presets, validation.
