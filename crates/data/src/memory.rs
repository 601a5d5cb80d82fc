//! How much memory this process could still take: what is held whole in memory is bounded by it.
//!
//! The machine's estimate (`MemAvailable`) and the limits of the control groups that the process is in, of either
//! version, the smallest of them. A group's page cache is not counted as used, since the system takes it back.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that are available to this process; `u64::MAX` where the system reports none.
pub fn available() -> u64 {
    available_below(Path::new("/"))
}

/// As [`available`], of the files below `root`.
fn available_below(root: &Path) -> u64 {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of_groups = groups.lines().filter_map(|line| of_group(root, line));
    of_groups.chain(of_machine(root)).min().unwrap_or(u64::MAX)
}

fn of_machine(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The names of a version's files, and where groups are mounted.
struct Version {
    mounts: &'static [&'static str],
    limit: &'static str,
    usage: &'static str,
    /// Prefix of the entries of `memory.stat` that count the group and those below it.
    total: &'static str,
}

const V1: Version = Version {
    mounts: &["sys/fs/cgroup/memory"],
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    total: "total_",
};

const V2: Version = Version {
    mounts: &["sys/fs/cgroup", "sys/fs/cgroup/unified"],
    limit: "memory.max",
    usage: "memory.current",
    total: "",
};

/// What the group of a line of `/proc/self/cgroup` and those above it leave.
///
/// In a container the line may name a path of the host, of which only the end is mounted: folders that are not there
/// set no limit, and the mount itself is always looked at.
fn of_group(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let version = match controllers {
        "" => V2,
        names if names.split(',').any(|name| name == "memory") => V1,
        _ => return None,
    };
    let within = Path::new(path.trim_start_matches('/'));
    let folders = version.mounts.iter().flat_map(|mount| {
        let mount = root.join(mount);
        within.ancestors().map(move |group| mount.join(group)).collect::<Vec<PathBuf>>()
    });
    folders.filter_map(|folder| left_in(&folder, &version)).min()
}

/// None where the group has no limit.
fn left_in(folder: &Path, version: &Version) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(version.limit)?, number(version.usage)?);
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached: u64 = ["active_file", "inactive_file"]
        .iter()
        .filter_map(|name| {
            let name = format!("{}{name} ", version.total);
            stat.lines().find_map(|line| line.strip_prefix(name.as_str()))?.parse::<u64>().ok()
        })
        .sum();
    Some(limit.saturating_sub(usage.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::write_files;

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: u64) {
        let root = tempfile::tempdir().unwrap();
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect();
        write_files(root.path(), &files);
        assert_eq!(available_below(root.path()), expected, "{files:?}");
    }

    const MACHINE: (&str, &str) =
        ("proc/meminfo", "MemTotal:  99 kB\nMemAvailable:      7 kB\nSwapFree: 0 kB\n");

    #[test]
    fn the_smallest_limit_counts() {
        check(&[], u64::MAX);
        check(&[MACHINE], 7 * 1024);
        let v2 = |limit: &'static str| {
            [
                MACHINE,
                ("proc/self/cgroup", "0::/job/step\n"),
                ("sys/fs/cgroup/job/step/memory.max", "max\n"),
                ("sys/fs/cgroup/job/step/memory.current", "100\n"),
                ("sys/fs/cgroup/job/memory.max", limit),
                ("sys/fs/cgroup/job/memory.current", "2000\n"),
                ("sys/fs/cgroup/job/memory.stat", "anon 100\ninactive_file 1000\nactive_file 500\n"),
            ]
        };
        // 500 of the 2,000 bytes are no page cache.
        check(&v2("4500\n"), 4000);
        check(&v2("max\n"), 7 * 1024);
        check(&v2("400\n"), 0);
    }

    #[test]
    fn the_first_version_is_read_too_and_a_path_of_the_host_is_none_here() {
        let v1 = [
            MACHINE,
            ("proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 900\ntotal_inactive_file 10\n"),
        ];
        check(&v1, 2010);
    }

    #[test]
    fn this_machine_tells_something() {
        assert!((1 << 20..1 << 50).contains(&available()), "{}", available());
    }
}
