//! One per node: spawns and supervises workers.
