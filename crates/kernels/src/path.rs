//! Which instructions the kernels are made of.

use std::fmt;

/// An implementation of the kernels. They agree within rounding, not bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelPath {
    /// Plain loops: the yardstick, and the only path in `f64`.
    Reference,
    /// The blocked kernels in arrays of four lanes, for any machine.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512F.
    Avx512,
}

impl KernelPath {
    /// Every path, slowest first.
    pub const ALL: [Self; 4] = [Self::Reference, Self::Portable, Self::Avx2, Self::Avx512];

    /// The fastest path this machine can run.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|path| path.is_available()).expect("the reference path always is")
    }

    /// Whether this machine has the instructions of this path.
    pub fn is_available(self) -> bool {
        match self {
            Self::Reference | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }
}

impl fmt::Display for KernelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reference => "reference",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::KernelPath;

    #[test]
    fn the_detected_path_is_available() {
        assert!(KernelPath::detect().is_available());
        assert_ne!(KernelPath::detect(), KernelPath::Reference);
    }
}
