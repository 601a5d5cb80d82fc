//! What a rank computes with.

use std::sync::Arc;

use crate::path::KernelPath;
use crate::pool::Pool;
use crate::vectorized::{ChannelPass, vectorized};

/// The device of a rank: where its arrays live, and what computes on them.
#[derive(Clone)]
pub enum Device {
    /// Threads of this process.
    Cpu(Cpu),
}

/// How a device is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceOptions {
    /// See [`Device::Cpu`].
    Cpu(CpuOptions),
}

/// Threads of this process, and the instructions that they use.
#[derive(Clone)]
pub struct Cpu {
    /// The threads.
    pub pool: Arc<Pool>,
    /// The instructions of the kernels.
    pub path: KernelPath,
}

/// How the threads of a [`Cpu`] are to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads, at least 1.
    pub threads: usize,
    /// One core for each thread; empty: wherever the system puts them.
    pub cores: Vec<usize>,
    /// The instructions of the kernels.
    pub path: KernelPath,
}

impl Device {
    /// The CPU with `threads` threads, not pinned.
    ///
    /// # Panics
    /// If the system starts no thread.
    pub fn of_threads(threads: usize, path: KernelPath) -> Device {
        DeviceOptions::of_threads(threads, path).open()
    }

    /// The threads of this process, for what runs on the CPU whatever the device is.
    pub fn cpu(&self) -> &Cpu {
        match self {
            Device::Cpu(cpu) => cpu,
        }
    }
}

impl DeviceOptions {
    /// The CPU with `threads` threads, not pinned.
    pub fn of_threads(threads: usize, path: KernelPath) -> DeviceOptions {
        DeviceOptions::Cpu(CpuOptions { threads, cores: Vec::new(), path })
    }

    /// Opens the device. From then on the calling thread is pinned to the first of its cores, if any are given.
    ///
    /// # Panics
    /// If the system starts no thread.
    pub fn open(&self) -> Device {
        match self {
            DeviceOptions::Cpu(cpu) => Device::Cpu(cpu.open()),
        }
    }

    /// How the threads of this process are to be started.
    pub fn cpu(&self) -> &CpuOptions {
        match self {
            DeviceOptions::Cpu(cpu) => cpu,
        }
    }
}

impl CpuOptions {
    /// As [`DeviceOptions::open`].
    ///
    /// # Panics
    /// If the system starts no thread.
    pub fn open(&self) -> Cpu {
        Cpu { pool: Arc::new(Pool::new(self.threads.max(1), &self.cores)), path: self.path }
    }
}

impl Cpu {
    /// `threads` threads, not pinned.
    ///
    /// # Panics
    /// If the system starts no thread.
    pub fn new(threads: usize, path: KernelPath) -> Cpu {
        CpuOptions { threads, cores: Vec::new(), path }.open()
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs one pass per thread.
    pub fn run<P: ChannelPass + Send>(&self, channels: usize, passes: Vec<P>) {
        self.pool.for_each_part(passes, |_, pass| vectorized(self.path, channels, pass));
    }
}
