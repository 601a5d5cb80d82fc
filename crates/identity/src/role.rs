//! What the holder of a credential may do.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The roles of certificates and tokens. Workers have none: each has a secret of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Whoever holds the coordinator's own token, which is its user: everything, in any directory.
    Admin,
    /// Reads, changes, and weights.
    Operator,
    /// Reads, without weights.
    Viewer,
    /// Spawns and supervises workers, under its own id.
    Agent,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 4] = [Role::Admin, Role::Operator, Role::Viewer, Role::Agent];

    /// As certificates, tokens and the audit name it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
            Role::Agent => "agent",
        }
    }

    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
