//! Which cores a worker computes on.
//!
//! Workers of one node must not fight for a core: at every collective all of them wait for the slowest.

/// The cores that this process may run on, ascending; empty if the system does not say.
pub fn available_cores() -> Vec<usize> {
    match nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)) {
        Ok(set) => {
            (0..nix::sched::CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect()
        }
        Err(error) => {
            tracing::warn!(%error, "the system does not tell the available cores, workers are not pinned");
            Vec::new()
        }
    }
}

/// One slot's part of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// At least 1.
    pub threads: u32,
    /// As many as threads, or empty: wherever the system puts them.
    pub cores: Vec<u32>,
}

/// Slot `slot`'s part of `cores`: equal and disjoint where there are enough, else one unpinned thread.
///
/// Equal, because all ranks of a step wait for the one with the fewest; a remainder is left to the system.
pub(crate) fn share(cores: &[usize], slots: u32, slot: u32) -> Share {
    let each = cores.len() / slots.max(1) as usize;
    let start = slot as usize * each;
    match cores.get(start..start + each) {
        Some(own) if !own.is_empty() => {
            Share { threads: own.len() as u32, cores: own.iter().map(|&core| core as u32).collect() }
        }
        _ => Share { threads: 1, cores: Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cores: &[usize], slots: u32, slot: u32, threads: u32, expected: &[u32]) {
        assert_eq!(share(cores, slots, slot), Share { threads, cores: expected.to_vec() });
    }

    #[test]
    fn slots_get_equal_disjoint_cores_or_none() {
        check(&[0, 1], 1, 0, 2, &[0, 1]);
        check(&[0, 1], 2, 1, 1, &[1]);
        check(&[0, 1], 4, 3, 1, &[]);
        check(&[2, 3, 6, 7, 9], 2, 0, 2, &[2, 3]);
        check(&[2, 3, 6, 7, 9], 2, 1, 2, &[6, 7]);
        check(&[], 2, 0, 1, &[]);
        // A slot that the agent never offered gets nobody's cores.
        check(&[0, 1], 2, 2, 1, &[]);
    }

    #[test]
    fn this_process_may_run_somewhere() {
        let cores = available_cores();
        assert!(!cores.is_empty() && cores.is_sorted(), "{cores:?}");
    }
}
