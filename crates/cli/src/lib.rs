//! The himpun binary.
