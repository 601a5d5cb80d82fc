//! Random bytes that nobody else knows, and that no log shows.

use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// `N` random bytes that are never printed; written to files as hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<const N: usize>(pub [u8; N]);

/// Proves a role.
pub type Token = Secret<32>;

/// Proves a worker process: the 128 bits of its spawn.
pub type WorkerSecret = Secret<16>;

/// Random bytes of the system's generator.
///
/// # Panics
/// If the system has none, which a Linux that has booted does not.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system's random generator works once it has booted");
    bytes
}

impl<const N: usize> Secret<N> {
    /// A new one.
    pub fn random() -> Secret<N> {
        Secret(random())
    }

    /// As files and headers carry it.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// Reads [`Secret::to_hex`].
    pub fn from_hex(text: &str) -> Option<Secret<N>> {
        from_hex(text)?.try_into().ok().map(Secret)
    }

    /// Compares in a time that does not depend on the contents.
    pub fn matches(&self, other: &[u8]) -> bool {
        // A comparison of digests under a key that was drawn for it tells nothing of the bytes.
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>());
        hmac::verify(&key, other, hmac::sign(&key, &self.0).as_ref()).is_ok()
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<const N: usize> Serialize for Secret<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de, const N: usize> Deserialize<'de> for Secret<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret<N>, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The text is not repeated: an error ends in a log.
        Secret::from_hex(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("not a secret of {} hexadecimal digits", 2 * N)))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_reads_back_and_is_never_printed() {
        let secret = Token::random();
        assert_eq!(Token::from_hex(&secret.to_hex()), Some(secret.clone()));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        let json = serde_json::to_string(&secret).unwrap();
        assert_eq!(serde_json::from_str::<Token>(&json).unwrap(), secret);
        let error = serde_json::from_str::<Token>("\"00ff\"").unwrap_err().to_string();
        assert!(error.contains("64 hexadecimal digits") && !error.contains("00ff"), "{error}");
        for wrong in ["", "0", "0g", "é0"] {
            assert_eq!(Secret::<1>::from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_same_bytes_match() {
        let secret = WorkerSecret::random();
        assert!(secret.matches(&secret.0));
        let mut other = secret.0;
        other[15] ^= 1;
        assert!(!secret.matches(&other) && !secret.matches(&secret.0[..15]) && !secret.matches(b""));
    }
}
