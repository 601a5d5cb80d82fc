//! Secrets inside messages where the connection is not encrypted.
//!
//! Without TLS an agent still gets its workers' secrets, and a worker the key of its group. They travel under a key that both
//! ends derive from the proof of the connection ([`crate::proof`]): who listens on the way learns nothing of them. Each label
//! is used for one secret, so that no part of a key stream is used twice.

use ring::hmac;
use std::fmt;

/// How secrets travel on one connection: as they are, inside TLS, or under a key of the connection.
#[derive(Clone)]
pub struct Seal(Option<hmac::Key>);

impl Seal {
    /// For a connection that is encrypted as a whole.
    pub const ENCRYPTED: Seal = Seal(None);

    pub(crate) fn under(key: &[u8]) -> Seal {
        Seal(Some(hmac::Key::new(hmac::HMAC_SHA256, key)))
    }

    /// Seals `secret`, at most 32 bytes, or opens what was sealed under the same `label`.
    ///
    /// # Panics
    /// If it is longer.
    pub fn apply(&self, label: &str, secret: &[u8]) -> Vec<u8> {
        assert!(secret.len() <= 32, "a secret of {} bytes", secret.len());
        match &self.0 {
            None => secret.to_vec(),
            Some(key) => {
                let stream = hmac::sign(key, label.as_bytes());
                secret.iter().zip(stream.as_ref()).map(|(byte, key)| byte ^ key).collect()
            }
        }
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_it_sealed_under_the_same_label_and_key() {
        let seal = Seal::under(b"key");
        let sealed = seal.apply("a", &[7; 16]);
        assert_ne!(sealed, [7; 16]);
        assert_eq!(seal.apply("a", &sealed), [7; 16]);
        assert_ne!(seal.apply("b", &sealed), [7; 16]);
        assert_ne!(Seal::under(b"other").apply("a", &sealed), [7; 16]);
        assert_eq!(Seal::ENCRYPTED.apply("a", &[7; 16]), [7; 16]);
    }
}
