//! Collective operations between worker processes. Knows no model.
