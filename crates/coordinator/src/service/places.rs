//! Where runs may live.

use identity::{Caller, Role};
use std::path::{Component, Path, PathBuf};
use tonic::{Code, Status};

use super::refusal;

/// The coordinator's directory and what else operators may name.
pub(crate) struct Places {
    /// Below which runs live that name no other directory.
    pub dir: PathBuf,
    /// `--allow-dir`.
    pub allowed: Vec<PathBuf>,
}

impl Places {
    /// The directory that a caller names so, unless it is not the caller's to name. Whoever holds the coordinator's own token
    /// could write anywhere the coordinator can, as they are one user; others name what is below the coordinator's directory or
    /// an allowed one, and not within another run's. Links on the way are followed first: what counts, and is used from then
    /// on, is where they lead.
    pub fn check(&self, caller: &Caller, run_dir: &Path) -> Result<PathBuf, Status> {
        if matches!(caller, Caller::Holder { role: Role::Admin, .. }) {
            return Ok(run_dir.to_owned());
        }
        let target = resolve(run_dir);
        let below = |root: &PathBuf| {
            let root = root.canonicalize().ok();
            root.zip(target.as_ref())
                .is_some_and(|(root, target)| *target != root && target.starts_with(root))
        };
        // What is below the coordinator's directory, but for its own secrets.
        let secrets = self.dir.join("credentials").canonicalize().ok();
        let is_secret =
            secrets.zip(target.as_ref()).is_some_and(|(secrets, target)| target.starts_with(secrets));
        if !is_secret && self.allowed.iter().chain([&self.dir]).any(below) {
            let target = target.as_deref().unwrap_or(run_dir);
            if !target.ancestors().skip(1).any(|above| above.join("events.jsonl").exists()) {
                return Ok(target.to_owned());
            }
        }
        let message = format!(
            "{} lies neither below the coordinator's directory nor below one that it was started with by --allow-dir, or within \
             another run",
            run_dir.display()
        );
        let hint = "leave the directory to the coordinator, or have it started with --allow-dir";
        Err(refusal(Code::PermissionDenied, "directory_not_allowed", message, hint))
    }
}

/// Where a path leads of which the last parts need not be there; nothing if it cannot be told.
fn resolve(path: &Path) -> Option<PathBuf> {
    let mut missing = Vec::new();
    let mut there = path;
    loop {
        // A link that leads nowhere is there, and would be followed.
        if there.symlink_metadata().is_ok() {
            let found = there.canonicalize().ok()?;
            return Some(missing.iter().rev().fold(found, |path, name| path.join(name)));
        }
        match there.components().next_back()? {
            Component::Normal(name) => missing.push(name.to_owned()),
            // What is above a directory that does not exist yet cannot be told.
            _ => return None,
        }
        there = there.parent()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn operators_name_what_is_below_an_allowed_directory() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["own/credentials", "own/runs/other", "allowed/deep", "elsewhere"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        std::fs::write(path("own/runs/other/events.jsonl"), "").unwrap();
        symlink(path("elsewhere"), path("own/out")).unwrap();
        symlink(path("nowhere"), path("own/dangling")).unwrap();
        symlink(path("allowed"), path("way-in")).unwrap();
        let places = Places { dir: path("own"), allowed: vec![path("way-in")] };
        let holder = |role| Caller::Holder { role, name: None };
        let check = |name: &str, expected: bool| {
            let operator = places.check(&holder(Role::Operator), &path(name));
            assert_eq!(operator.is_ok(), expected, "{name}: {operator:?}");
            assert!(places.check(&holder(Role::Admin), &path(name)).is_ok(), "{name}");
        };
        check("own/runs/a", true);
        check("allowed/deep/b", true);
        check("way-in/c", true);
        check("elsewhere/d", false);
        check("own/runs/other", true);
        check("own/runs/other/checkpoints", false);
        check("own", false);
        check("own/credentials", false);
        check("own/credentials/run", false);
        check("own/runs/../credentials/run", false);
        check("own/out/e", false);
        check("own/dangling/f", false);
        check("own/../elsewhere/g", false);
        check("own/new/../../elsewhere/h", false);
        check("ownership", false);
        let led = places.check(&holder(Role::Operator), &path("way-in/c")).unwrap();
        assert_eq!(led, path("allowed").canonicalize().unwrap().join("c"));
    }
}
