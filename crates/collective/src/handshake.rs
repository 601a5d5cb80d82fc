//! The two messages by which a rank that dials and a rank that listens agree that they belong together.
//!
//! `Hello`, 72 bytes: magic (8), protocol version (4), rank (4), communicator (4), number of communicators
//! (4), world size (4), generation (8), token (32), CRC-32C of what precedes (4). `Welcome`, 20 bytes: magic
//! (8), protocol version (4), verdict (4), CRC-32C (4). All little-endian. Magic, version and length stay where
//! they are in every version, so that another version can be told apart from garbage.

use crate::Refusal;
use crate::frame::{u32_at, u64_at};

pub(crate) const HELLO_BYTES: usize = 72;
pub(crate) const WELCOME_BYTES: usize = 20;
const MAGIC: [u8; 8] = *b"himpun\xf0\x0a";
const VERSION: u32 = 1;
const WELCOME: u32 = 0;

/// What the dialling rank says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub rank: u32,
    pub communicator: u32,
    pub n_communicators: u32,
    pub world_size: u32,
    pub generation: u64,
    pub token: [u8; 32],
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        let numbers = [VERSION, self.rank, self.communicator, self.n_communicators, self.world_size];
        for (place, number) in bytes[8..28].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[28..36].copy_from_slice(&self.generation.to_le_bytes());
        bytes[36..68].copy_from_slice(&self.token);
        seal(&mut bytes);
        bytes
    }

    /// Reads a greeting; `Refusal::NotAWorker` if it is none.
    pub(crate) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Refusal> {
        check_envelope(bytes)?;
        Ok(Self {
            rank: u32_at(bytes, 12),
            communicator: u32_at(bytes, 16),
            n_communicators: u32_at(bytes, 20),
            world_size: u32_at(bytes, 24),
            generation: u64_at(bytes, 28),
            token: bytes[36..68].try_into().expect("32 bytes"),
        })
    }
}

/// Whether `received` can still become a greeting.
pub(crate) fn may_be_hello(received: &[u8]) -> bool {
    let len = received.len().min(MAGIC.len());
    received[..len] == MAGIC[..len]
}

/// The listening rank's answer.
pub(crate) fn encode_answer(verdict: Result<(), Refusal>) -> [u8; WELCOME_BYTES] {
    let code = match verdict {
        Ok(()) => WELCOME,
        Err(Refusal::Version) => 1,
        Err(Refusal::Token) => 2,
        Err(Refusal::Generation) => 3,
        Err(Refusal::Place) => 4,
        Err(Refusal::NotAWorker) => 5,
    };
    let mut bytes = [0; WELCOME_BYTES];
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&code.to_le_bytes());
    seal(&mut bytes);
    bytes
}

/// Reads the answer to a greeting.
pub(crate) fn decode_answer(bytes: &[u8; WELCOME_BYTES]) -> Result<(), Refusal> {
    check_envelope(bytes)?;
    match u32_at(bytes, 12) {
        WELCOME => Ok(()),
        1 => Err(Refusal::Version),
        2 => Err(Refusal::Token),
        3 => Err(Refusal::Generation),
        4 => Err(Refusal::Place),
        _ => Err(Refusal::NotAWorker),
    }
}

/// Magic, then version, then checksum: another version may have another checksum.
fn check_envelope(bytes: &[u8]) -> Result<(), Refusal> {
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    if body[0..8] != MAGIC {
        Err(Refusal::NotAWorker)
    } else if u32_at(body, 8) != VERSION {
        Err(Refusal::Version)
    } else if crc != crc32c::crc32c(body).to_le_bytes() {
        Err(Refusal::NotAWorker)
    } else {
        Ok(())
    }
}

fn seal(bytes: &mut [u8]) {
    let (body, crc) = bytes.split_at_mut(bytes.len() - 4);
    crc.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Hello = Hello {
        rank: 3,
        communicator: 1,
        n_communicators: 2,
        world_size: 4,
        generation: 7,
        token: [0xa5; 32],
    };

    #[test]
    fn a_greeting_reads_back_and_a_flipped_bit_is_refused() {
        let bytes = HELLO.encode();
        assert_eq!(Hello::decode(&bytes), Ok(HELLO));
        for bit in 0..HELLO_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            let expected = if (8..12).contains(&(bit / 8)) { Refusal::Version } else { Refusal::NotAWorker };
            assert_eq!(Hello::decode(&damaged), Err(expected), "bit {bit}");
        }
    }

    #[test]
    fn answers_read_back() {
        let refusals =
            [Refusal::Version, Refusal::Token, Refusal::Generation, Refusal::Place, Refusal::NotAWorker];
        for verdict in refusals.map(Err).into_iter().chain([Ok(())]) {
            assert_eq!(decode_answer(&encode_answer(verdict)), verdict);
        }
        assert_eq!(decode_answer(b"HTTP/1.1 400 Bad Req"), Err(Refusal::NotAWorker));
    }

    #[test]
    fn garbage_is_recognised_by_its_first_byte() {
        assert!(may_be_hello(b"") && may_be_hello(b"himp") && may_be_hello(&HELLO.encode()));
        assert!(!may_be_hello(b"GET /") && !may_be_hello(b"himpun\xf0\x0b"));
    }
}
