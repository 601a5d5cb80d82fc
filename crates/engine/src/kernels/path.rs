//! Which instructions the kernels are made of.

use std::fmt;
use std::str::FromStr;

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

/// A name that is no kernel path.
#[derive(Debug, thiserror::Error)]
#[error("unknown kernel path {0:?}: expected reference, portable, avx2 or avx512")]
pub struct UnknownPath(pub String);

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

impl FromStr for KernelPath {
    type Err = UnknownPath;

    fn from_str(name: &str) -> Result<Self, UnknownPath> {
        Self::ALL
            .into_iter()
            .find(|path| path.to_string() == name)
            .ok_or_else(|| UnknownPath(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::KernelPath;

    #[test]
    fn names_read_back() {
        for path in KernelPath::ALL {
            assert_eq!(path.to_string().parse::<KernelPath>().unwrap(), path);
        }
        assert_eq!(
            "sse9".parse::<KernelPath>().unwrap_err().to_string(),
            "unknown kernel path \"sse9\": expected reference, portable, avx2 or avx512"
        );
    }

    #[test]
    fn the_detected_path_is_available() {
        assert!(KernelPath::detect().is_available());
        assert_ne!(KernelPath::detect(), KernelPath::Reference);
    }
}
