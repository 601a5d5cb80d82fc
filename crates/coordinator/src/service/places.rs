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
    /// Where the directory is that a caller names, unless it is not the caller's to name. Links are followed now and never
    /// again: whoever lays one on the way to a run that was submitted does not move it.
    ///
    /// Whoever holds the coordinator's own token could write anywhere the coordinator can, as they are one user; others name
    /// what is below the coordinator's directory or an allowed one, and not within another run's.
    pub fn check(&self, caller: &Caller, run_dir: &Path) -> Result<PathBuf, Status> {
        let target = resolve(run_dir);
        if matches!(caller, Caller::Holder { role: Role::Admin, .. }) {
            return target.map_err(|error| not_a_place(run_dir, &error));
        }
        // Others learn nothing of what is elsewhere, not even whether it exists.
        if let Some(target) = target.ok().filter(|target| self.allows(target)) {
            return Ok(target);
        }
        let message = format!(
            "{} lies neither below the coordinator's directory nor below one that it was started with by --allow-dir, or within \
             another run",
            run_dir.display()
        );
        let hint = "leave the directory to the coordinator, or have it started with --allow-dir";
        Err(refusal(Code::PermissionDenied, "directory_not_allowed", message, hint))
    }

    fn allows(&self, target: &Path) -> bool {
        let below =
            |root: &PathBuf| root.canonicalize().is_ok_and(|root| target != root && target.starts_with(root));
        // What is below the coordinator's directory, but for its own secrets.
        let secrets = self.dir.join("credentials").canonicalize();
        let is_secret = secrets.is_ok_and(|secrets| target.starts_with(secrets));
        let is_within_a_run = target.ancestors().skip(1).any(|above| above.join("events.jsonl").exists());
        !is_secret && !is_within_a_run && self.allowed.iter().chain([&self.dir]).any(below)
    }
}

/// A path that a run cannot have.
pub(super) fn not_a_place(run_dir: &Path, error: &std::io::Error) -> Status {
    let message = format!("`{}` is not a directory for a run: {error}", run_dir.display());
    refusal(Code::InvalidArgument, "bad_run_dir", message, "give another path")
}

/// Where a path leads of which the last parts need not be there.
fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    let mut missing = Vec::new();
    let mut there = path;
    loop {
        // A link that leads nowhere is there, and would be followed.
        if there.symlink_metadata().is_ok() {
            let found = there.canonicalize()?;
            return Ok(missing.iter().rev().fold(found, |path, name| path.join(name)));
        }
        match (there.components().next_back(), there.parent()) {
            (Some(Component::Normal(name)), Some(parent)) => {
                missing.push(name);
                there = parent;
            }
            // What is above a directory that does not exist yet cannot be told.
            _ => return Err(std::io::ErrorKind::NotFound.into()),
        }
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
        // Where these lead, nobody can tell.
        let unknown = ["own/dangling/f", "own/new/../../elsewhere/h"];
        let check = |name: &str, expected: bool| {
            let operator = places.check(&holder(Role::Operator), &path(name));
            assert_eq!(operator.is_ok(), expected, "{name}: {operator:?}");
            let admin = places.check(&holder(Role::Admin), &path(name));
            assert_eq!(admin.is_ok(), !unknown.contains(&name), "{name}: {admin:?}");
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
        for role in [Role::Operator, Role::Admin] {
            let led = places.check(&holder(role), &path("way-in/c")).unwrap();
            assert_eq!(led, path("allowed").canonicalize().unwrap().join("c"));
        }
    }
}
