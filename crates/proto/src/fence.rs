//! Names for people, and the order of fences.

use std::fmt;

use crate::v1::{Fence, WorkerId};

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.agent_id, self.slot)
    }
}

impl Fence {
    /// Whether this fence was dealt before `current`: its holder has been replaced.
    pub fn is_older_than(&self, current: &Fence) -> bool {
        (self.incarnation, self.generation) < (current.incarnation, current.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_outranks_a_generation() {
        let fence = |incarnation, generation| Fence { run_id: "r".into(), incarnation, generation };
        assert!(fence(1, 9).is_older_than(&fence(2, 1)));
        assert!(fence(2, 1).is_older_than(&fence(2, 2)));
        assert!(!fence(2, 2).is_older_than(&fence(2, 2)));
        assert!(!fence(3, 1).is_older_than(&fence(2, 2)));
    }
}
