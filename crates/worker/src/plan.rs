//! The resolved plan of a run on one rank: configuration and data set in, shapes and specifications out.
