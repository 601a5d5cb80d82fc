//! Membership, runs and checkpoints; decisions are pure.
