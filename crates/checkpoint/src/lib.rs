//! Checkpoint layout, digests, staging, retention, export.
