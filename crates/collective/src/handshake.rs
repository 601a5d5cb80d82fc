//! How a rank that dials and a rank that listens prove to each other that they belong to one generation.
//!
//! Every message begins with magic (8) and protocol version (4) and ends with the CRC-32C (4) of what precedes
//! it; numbers are little-endian. In between:
//!
//! | message | from | bytes | fields (bytes) |
//! |---|---|---|---|
//! | `Hello` | dialer | 72 | rank (4), rank it dials (4), communicator (2), number of communicators (2), world size (4), generation (8), nonce (32) |
//! | `Challenge` | listener | 84 | verdict (4), nonce (32), MAC (32) |
//! | `Proof` | dialer | 48 | MAC (32) |
//! | `Welcome` | listener | 20 | verdict (4) |
//!
//! Magic, version and the length of `Hello` are the same in every version, and no answer to it is shorter than
//! 20 bytes, so that each side can tell another version from garbage.
//!
//! A MAC is HMAC-SHA256 under the key of the generation, which every rank has from the coordinator and which
//! is never sent here. The listener's covers the label `listener`, `Hello`, the verdict and its nonce; the dialer's
//! covers the label `dialer`, `Hello` and `Challenge`. Both sides prove that they know the key: otherwise the
//! listener would sum what a stranger sends, or the dialer would give its data to whatever has taken over a
//! rank's port. The listener proves first, so that an impostor gets no MAC from a rank.
//!
//! - Replay: each side draws a new nonce for each connection, and both MACs cover both nonces.
//! - Reflection: the labels differ, so that neither side's MAC is worth anything when sent back to it.
//! - Redirection: `Hello` names both ranks and the communicator, so that a connection can neither be passed off as
//!   another's nor be led to another rank's listener.
//! - Refusals carry no MAC, since the refusing side may lack the key; they end the handshake, as closing the
//!   connection would. Nor does `Welcome`: the listener has proved its key by then, and if it was a refusal that
//!   somebody changed, the connection is closed already.
//!
//! A claim takes nothing: the position is filled by the first connection that proves it, and only after `Welcome`
//! is the connection used. Connections are authenticated when they are opened, and not encrypted: whoever controls
//! the network can read and change what is sent later. The CRCs detect damage, not intent.

use std::io;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use crate::frame::{u16_at, u32_at, u64_at};
use crate::{Error, Refusal};

pub(crate) const HELLO_BYTES: usize = 72;
pub(crate) const CHALLENGE_BYTES: usize = 84;
pub(crate) const PROOF_BYTES: usize = 48;
pub(crate) const WELCOME_BYTES: usize = 20;
const MAGIC: [u8; 8] = *b"himpun\xf0\x0a";
const VERSION: u32 = 2;
const WELCOME: u32 = 0;

const OF_LISTENER: &[u8] = b"listener";
const OF_DIALER: &[u8] = b"dialer";

/// What the dialling rank claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub rank: u32,
    /// The rank that it takes the listener for.
    pub dialled: u32,
    pub communicator: u16,
    pub n_communicators: u16,
    pub world_size: u32,
    pub generation: u64,
    pub nonce: [u8; 32],
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_BYTES] {
        seal(&[
            &self.rank.to_le_bytes(),
            &self.dialled.to_le_bytes(),
            &self.communicator.to_le_bytes(),
            &self.n_communicators.to_le_bytes(),
            &self.world_size.to_le_bytes(),
            &self.generation.to_le_bytes(),
            &self.nonce,
        ])
    }

    /// Reads a `Hello`; `Refusal::NotAWorker` if it is none.
    pub(crate) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Refusal> {
        check_envelope(bytes)?;
        Ok(Self {
            rank: u32_at(bytes, 12),
            dialled: u32_at(bytes, 16),
            communicator: u16_at(bytes, 20),
            n_communicators: u16_at(bytes, 22),
            world_size: u32_at(bytes, 24),
            generation: u64_at(bytes, 28),
            nonce: bytes[36..68].try_into().expect("32 bytes"),
        })
    }
}

/// Answers a `Hello` whose claim is to be proved, and proves to the dialer that this side knows the key.
pub(crate) fn challenge(
    key: &hmac::Key,
    hello: &[u8; HELLO_BYTES],
    nonce: &[u8; 32],
) -> [u8; CHALLENGE_BYTES] {
    let verdict = WELCOME.to_le_bytes();
    let mac = hmac::sign(key, &[OF_LISTENER, hello, &verdict, nonce].concat());
    seal(&[&verdict, nonce, mac.as_ref()])
}

/// Answers a `Hello` that is refused.
pub(crate) fn refuse(refusal: Refusal) -> [u8; CHALLENGE_BYTES] {
    seal(&[&code(Err(refusal)).to_le_bytes(), &[0; 64]])
}

/// Checks that the listener knows the key, and returns the proof that this side does.
pub(crate) fn prove(
    key: &hmac::Key,
    hello: &[u8; HELLO_BYTES],
    challenge: &[u8; CHALLENGE_BYTES],
) -> Result<[u8; PROOF_BYTES], Refusal> {
    check_envelope(challenge)?;
    verdict(u32_at(challenge, 12))?;
    let (verdict_and_nonce, mac) = challenge[12..80].split_at(36);
    verify(key, &[OF_LISTENER, hello, verdict_and_nonce], mac)?;
    Ok(seal(&[hmac::sign(key, &[OF_DIALER, hello, challenge].concat()).as_ref()]))
}

/// Checks that the dialer knows the key.
pub(crate) fn check_proof(
    key: &hmac::Key,
    hello: &[u8; HELLO_BYTES],
    challenge: &[u8; CHALLENGE_BYTES],
    proof: &[u8; PROOF_BYTES],
) -> Result<(), Refusal> {
    check_envelope(proof)?;
    verify(key, &[OF_DIALER, hello, challenge], &proof[12..44])
}

/// Answers a proof.
pub(crate) fn encode_welcome(verdict: Result<(), Refusal>) -> [u8; WELCOME_BYTES] {
    seal(&[&code(verdict).to_le_bytes()])
}

/// Reads the answer to a proof.
pub(crate) fn decode_welcome(bytes: &[u8; WELCOME_BYTES]) -> Result<(), Refusal> {
    check_envelope(bytes)?;
    verdict(u32_at(bytes, 12))
}

/// Whether `received` can still become a message of this version.
pub(crate) fn check_beginning(received: &[u8]) -> Result<(), Refusal> {
    let len = received.len().min(MAGIC.len());
    if received[..len] != MAGIC[..len] {
        Err(Refusal::NotAWorker)
    } else if received.get(8..12).is_some_and(|version| version != VERSION.to_le_bytes()) {
        Err(Refusal::Version)
    } else {
        Ok(())
    }
}

/// Draws a nonce, for one connection.
pub(crate) fn nonce() -> Result<[u8; 32], Error> {
    let mut nonce = [0; 32];
    let drawn = SystemRandom::new().fill(&mut nonce);
    // The library does not say why.
    drawn.map_err(|_| Error::Io { action: "draw a nonce", source: io::ErrorKind::Other.into() })?;
    Ok(nonce)
}

fn code(verdict: Result<(), Refusal>) -> u32 {
    match verdict {
        Ok(()) => WELCOME,
        Err(Refusal::Version) => 1,
        Err(Refusal::Key) => 2,
        Err(Refusal::Generation) => 3,
        Err(Refusal::Place) => 4,
        Err(Refusal::NotAWorker) => 5,
    }
}

fn verdict(code: u32) -> Result<(), Refusal> {
    match code {
        WELCOME => Ok(()),
        1 => Err(Refusal::Version),
        2 => Err(Refusal::Key),
        3 => Err(Refusal::Generation),
        4 => Err(Refusal::Place),
        _ => Err(Refusal::NotAWorker),
    }
}

/// In constant time, so that a MAC cannot be guessed byte by byte.
fn verify(key: &hmac::Key, transcript: &[&[u8]], mac: &[u8]) -> Result<(), Refusal> {
    hmac::verify(key, &transcript.concat(), mac).map_err(|_| Refusal::Key)
}

/// Magic, then version, then checksum: another version may have another checksum.
fn check_envelope(bytes: &[u8]) -> Result<(), Refusal> {
    check_beginning(bytes)?;
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    if crc == crc32c::crc32c(body).to_le_bytes() { Ok(()) } else { Err(Refusal::NotAWorker) }
}

fn seal<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &fields.concat()].concat();
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes.try_into().expect("the fields of a message have fixed lengths")
}

#[cfg(test)]
mod tests;
