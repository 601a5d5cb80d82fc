//! Generated wire types and checked conversions.
