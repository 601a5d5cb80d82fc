//! The secrets of one start of the coordinator, all derived from one key: nothing about a worker has to be kept to verify it.

use proto::v1::Fence;
use std::fmt;

/// Begins every derivation, so that no secret of one kind is ever one of another.
const WORKER: &[u8] = b"himpun 2026 secret of a worker";
const GROUP: &[u8] = b"himpun 2026 key of a group";

/// What workers' secrets and groups' keys are derived from; the caller draws it anew at every start.
#[derive(Clone)]
pub struct SpawnKey([u8; 32]);

impl SpawnKey {
    /// A key of these bytes, which nobody else may know.
    pub fn new(bytes: [u8; 32]) -> SpawnKey {
        SpawnKey(bytes)
    }

    /// What the worker of this nonce proves itself by.
    pub fn worker_secret(&self, nonce: &str) -> [u8; 16] {
        let mut secret = [0; 16];
        self.derive(WORKER, nonce.as_bytes()).fill(&mut secret);
        secret
    }

    /// What the ranks of this generation prove themselves to each other by.
    pub fn group_key(&self, fence: &Fence) -> [u8; 32] {
        let Fence { run_id, incarnation, generation } = fence;
        // Of a fixed length, so that the run's id is the rest.
        let counts = [incarnation.to_le_bytes(), generation.to_le_bytes()].concat();
        let mut key = [0; 32];
        self.derive(GROUP, &[&counts, run_id.as_bytes()].concat()).fill(&mut key);
        key
    }

    fn derive(&self, label: &[u8], of: &[u8]) -> blake3::OutputReader {
        blake3::Hasher::new_keyed(&self.0).update(label).update(of).finalize_xof()
    }
}

/// A key that is printed tells everything that is derived from it.
impl fmt::Debug for SpawnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpawnKey(..)")
    }
}
