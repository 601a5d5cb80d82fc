//! The himpun binary.

fn main() {}
