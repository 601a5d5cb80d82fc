//! One process, one device: the training program.
